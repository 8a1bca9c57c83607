"""The locks: pinned, hashed, free of addresses, and each process with its own packages only."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PROCESSES = ("operator", "agent", "gateway", "runtime", "cli", "sim")
PEERS = ("bench-transformers", "bench-vllm")  # engines that the benchmark compares with
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==([^ ;]+)( ; .+?)?( \\)?$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")

# What must not reach a process, from docs/architecture.md section 1. torchvision and timm break the import of every
# transformers model beside a torch build they were not made for.
FORBIDDEN = {
    "operator": {"torch", "transformers", "nvidia-ml-py", "fastapi", "tokenizers", "triton"},
    "agent": {"torch", "transformers", "kopf", "numpy", "highspy", "fastapi"},
    "gateway": {"torch", "transformers", "kopf", "nvidia-ml-py", "numpy", "fastapi"},
    "runtime": {"kopf", "kubernetes", "nvidia-ml-py"},
    "cli": {"torch", "transformers", "kopf", "nvidia-ml-py", "fastapi", "highspy", "matplotlib"},
    "sim": {"torch", "transformers", "kopf", "kubernetes", "nvidia-ml-py", "fastapi"},
}
NOWHERE = {"torchvision", "timm", "torchaudio"}


def pins(path: Path) -> dict[str, str]:
    """Return name -> version of a lock; fails on a line that is neither pin nor hash."""
    found: dict[str, str] = {}
    hashes = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if HASH.match(line):
            hashes += 1
            continue
        match = PIN.match(line)
        assert match, f"{path.name}: not a pin or hash: {line!r}"
        assert not found or hashes, f"{path.name}: no hash before {line!r}"
        found[match[1]] = match[2]
        hashes = 0
    assert found, f"{path.name} is empty"
    assert hashes, f"{path.name}: its last pin has no hash"
    return found


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_is_pins_and_hashes_without_addresses(path: Path) -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links|@", path.read_text(encoding="utf-8"))
    pins(path)


def test_every_process_has_a_lock() -> None:
    names = {path.stem for path in LOCKS}
    assert names == {*PROCESSES, *PEERS, "dev", "models", "bootstrap"}


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_installs_what_the_development_environment_tests(process: str) -> None:
    tested = pins(ROOT / "requirements/dev.lock")
    shipped = pins(ROOT / f"requirements/{process}.lock")
    assert shipped.items() <= tested.items()


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_does_not_install_what_it_must_not_import(process: str) -> None:
    assert not pins(ROOT / f"requirements/{process}.lock").keys() & FORBIDDEN[process]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_no_lock_holds_packages_that_break_the_model_imports(path: Path) -> None:
    assert not pins(path).keys() & NOWHERE


def test_transformers_is_compared_at_the_version_that_the_runtime_uses() -> None:
    ours, peer = pins(ROOT / "requirements/runtime.lock"), pins(ROOT / "requirements/bench-transformers.lock")
    assert {name: peer[name] for name in ("torch", "transformers", "tokenizers")} == {
        name: ours[name] for name in ("torch", "transformers", "tokenizers")
    }


def test_the_lock_of_llama_cpp_has_checksums_and_no_addresses() -> None:
    lock = json.loads((ROOT / "tools/llamacpp/package-lock.json").read_text(encoding="utf-8"))
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert "node_modules/node-llama-cpp" in packages
    assert all(
        one.get("integrity", "").startswith("sha512-") and "resolved" not in one for one in packages.values()
    )


@pytest.mark.parametrize("process", PROCESSES)
def test_a_lock_covers_its_extra(process: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {re.split(r"[<>=!~\[ ;]", line)[0].lower() for line in project["optional-dependencies"][process]}
    assert asked <= pins(ROOT / f"requirements/{process}.lock").keys(), "run `make lock`"
