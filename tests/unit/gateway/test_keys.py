"""API keys from a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from llmos_operator.gateway import app, keys
from llmos_operator.gateway.catalog import Rate, WorkloadKey
from llmos_operator.settings import BadSettings

if TYPE_CHECKING:
    from pathlib import Path


def _entry(name: str, key: str, rest: str = "") -> str:
    return f"- {{name: {name}, sha256: {keys.hash_key(key)}{rest}}}\n"


def _write(path: Path, *entries: str) -> str:
    path.write_text("keys:\n" + "".join(entries))
    return str(path)


def test_a_key_finds_its_client_with_limits_and_namespaces(tmp_path: Path) -> None:
    ring = keys.KeyRing(
        _write(
            tmp_path / "keys",
            _entry("team-a", "k1", ", namespaces: [a], requestsPerMinute: 6, tokensPerMinute: 60"),
        )
    )
    client = ring.client("k1")
    assert client is not None
    assert (client.name, client.rate) == ("team-a", Rate(6, 60))
    assert client.may_use(WorkloadKey("a", "x"))
    assert not client.may_use(WorkloadKey("b", "x"))
    assert ring.client("k2") is None


def test_without_a_file_no_key_is_needed() -> None:
    assert not keys.KeyRing("").required


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.KeyRing(_write(path, _entry("a", "k1")))
    assert not ring.refresh()
    _write(path, _entry("a", "k1"), _entry("b", "k2"))
    assert ring.refresh()
    assert ring.client("k2") is not None


def test_a_mounted_secret_that_is_swapped_by_symlink_is_seen(tmp_path: Path) -> None:
    for version, key in (("v1", "k1"), ("v2", "k2")):
        (tmp_path / version).mkdir()
        _write(tmp_path / version / "keys", _entry("a", key))
    link = tmp_path / "data"
    link.symlink_to("v1")
    ring = keys.KeyRing(str(link / "keys"))
    replacement = tmp_path / "data.new"
    replacement.symlink_to("v2")
    os.replace(replacement, link)  # noqa: PTH105 - what the kubelet does
    assert ring.refresh()
    assert ring.client("k1") is None
    assert ring.client("k2") is not None


def test_a_file_that_became_bad_is_reported_and_the_old_keys_stay(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.KeyRing(_write(path, _entry("a", "k1")))
    path.write_text("keys: [")
    with pytest.raises(BadSettings, match="not YAML"):
        ring.refresh()
    path.unlink()
    with pytest.raises(BadSettings, match="correct keysFile"):
        ring.refresh()
    assert ring.client("k1") is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: [{name: a}]", "keys.0.sha256: Field required"),
        ("keys: [{name: a, sha256: plain-text-secret}]", "keys.0.sha256"),
        ("keys: [{name: 'a b', sha256: " + "0" * 64 + "}]", "keys.0.name"),
        ("keys: [{name: a, sha256: " + "0" * 64 + ", limit: 3}]", "keys.0.limit: Extra inputs"),
        ("keys: [{name: a, sha256: " + "0" * 64 + ", requestsPerMinute: -1}]", "keys.0.requestsPerMinute"),
        ("- a", "valid dictionary"),
        (
            "keys: [" + _entry("a", "1").strip("- \n") + ", " + _entry("a", "2").strip("- \n") + "]",
            "used twice",
        ),
    ],
)
def test_a_bad_file_is_refused_with_field_and_fault_and_without_its_content(text: str, words: str) -> None:
    with pytest.raises(BadSettings) as caught:
        keys.parse(text, "/etc/keys")
    assert words in str(caught.value)
    assert "/etc/keys" in str(caught.value)
    assert "plain-text-secret" not in str(caught.value)


def test_a_new_key_and_its_entry_fit_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--new-key", "team-a"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    key = first.partition(": ")[2]
    parsed = keys.parse("keys:\n" + second.partition(": ")[2], "f")
    assert parsed[keys.hash_key(key)].name == "team-a"
    assert len(key) > 40


def test_a_name_that_no_keys_file_could_hold_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--new-key", "a b"]) == 1
    assert "name" in capsys.readouterr().err
