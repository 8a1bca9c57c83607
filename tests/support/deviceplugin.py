"""The device plugin double and the kubelet double of tools/deviceplugin, built once a version of their sources."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCES = Path(__file__).parents[2] / "tools" / "deviceplugin"
RESOURCE = "nvidia.com/gpu"


class NoGoError(RuntimeError):
    """The doubles cannot be built here."""


def build() -> Path:
    """Return the program; compile it if its sources changed."""
    digest = hashlib.sha256()
    for source in sorted((*SOURCES.glob("*.go"), *SOURCES.glob("go.*"))):
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmos" / "deviceplugin-double"
    program = cache / digest.hexdigest()[:16]
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        raise NoGoError("the device plugin double needs a Go compiler (1.26 or newer)")
    cache.mkdir(parents=True, exist_ok=True)
    building = program.with_suffix(f".{os.getpid()}")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    command = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", str(building), "."]
    done = subprocess.run(command, cwd=SOURCES, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the device plugin double does not compile:\n{done.stderr}")
    building.replace(program)
    return program


class KubeletDouble:
    """A kubelet's device manager for the pods of a file, and a device plugin for the GPUs of a control file."""

    def __init__(self, folder: Path, control: Path) -> None:
        self.folder = folder
        self.socket = folder / "pod-resources.sock"
        self._control = control
        self._pods: dict[str, dict[str, Any]] = {}
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        self._write()

    def start_kubelet(self) -> None:
        self.socket.unlink(missing_ok=True)  # of one that was killed
        options = ("-serve-kubelet", str(self._file), "-pod-resources", str(self.socket))
        self._start("kubelet", *options, "-plugins", str(self.folder))
        eventually(self.socket.exists, "the kubelet double listens")

    def start_plugin(self, *options: str) -> None:
        self._start("plugin", "-control", str(self._control), "-plugins", str(self.folder), *options)

    def stop(self, name: str) -> None:
        """End one of the two."""
        program = self._programs.pop(name)
        program.kill()
        program.wait(20)

    def close(self) -> None:
        for name in list(self._programs):
            self.stop(name)

    def run(self, key: str, gpus: int, container: str = "main") -> None:
        """Let a pod ("namespace/name") ask for GPUs."""
        namespace, _, name = key.partition("/")
        requests = {RESOURCE: gpus} if gpus else {}
        self._pods[key] = {
            "namespace": namespace,
            "name": name,
            "containers": [{"name": container, "requests": requests}],
        }
        self._write()

    def remove(self, key: str) -> None:
        """Take a pod away."""
        del self._pods[key]
        self._write()

    def granted(self, key: str, container: str = "main") -> Mapping[str, Any]:
        """Return what a pod got, once it has got something or was refused."""

        def look() -> Mapping[str, Any]:
            path = Path(f"{self._file}.granted")
            told = json.loads(path.read_text()) if path.exists() else {}
            found: Mapping[str, Any] = told.get(f"{key}/{container}", {})
            return found

        return eventually(look, f"{key} is given devices or refused\n{self.text()}")

    def text(self) -> str:
        """Return what both programs logged."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    @property
    def _file(self) -> Path:
        return self.folder / "pods.json"

    def _write(self) -> None:
        building = self.folder / "pods.json.new"
        building.write_text(json.dumps(list(self._pods.values())))
        building.replace(self._file)

    def _start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._programs[name] = subprocess.Popen([str(build()), *arguments], stdout=log, stderr=log)
