"""Where `prometheus` and `promtool` come from, and what is said where they cannot be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.errors import Permanent
from llmos_operator.local.layout import ENV_CACHE
from scripts.debian import NO_PACKAGE
from scripts.prometheus import resolve

if TYPE_CHECKING:
    from pathlib import Path


def program(path: Path, text: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on PATH but what is put into the returned folder, and an empty cache."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    return tmp_path / "bin"


def test_a_program_on_path_is_taken(machine: Path):
    present = program(machine / "promtool")
    assert resolve("promtool") == present


def test_an_unpacked_package_is_taken_from_the_cache(machine: Path):
    kept = program(machine.parent / "cache" / "prometheus" / "2.42.0" / "usr" / "bin" / "promtool")
    assert resolve("promtool") == kept


@pytest.mark.usefixtures("machine")
def test_a_machine_of_another_family_is_told_what_to_install():
    with pytest.raises(Permanent, match="Install Prometheus") as missing:
        resolve("promtool")
    assert missing.value.reason == NO_PACKAGE


def test_a_package_that_cannot_be_downloaded_is_no_reason_to_skip(machine: Path):
    program(machine / "apt-get", "echo E: nothing is reachable >&2; exit 100")
    program(machine / "dpkg-deb")
    with pytest.raises(Permanent, match="nothing is reachable") as failed:
        resolve("promtool")
    assert failed.value.reason != NO_PACKAGE
    assert not list((machine.parent / "cache" / "prometheus").glob(".unpack-*"))
