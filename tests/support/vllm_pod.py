"""A pod of engine vllm as processes: built by the operator's own builder, its two containers run by hand.

What a kubelet would do is done here as far as it matters: mount paths stand for folders, the engine is started again
when it ends or when its liveness probe fails, and at the end the runtime goes first.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.local.kubelet.mounts import MountMap
from llmos_operator.manifests import pod as manifest
from tests.support.replicas import SETTINGS, a_claim_of, a_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
TOKEN, KEY = "control-token", "client-key"


class Container:
    """One container as a process, started again whenever it ends until :meth:`stop`."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self._command, self._env, self._log = command, env, log
        self._stopping = threading.Event()
        self.runs = 0
        self.process = self._start()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.runs += 1
        with self._log.open("ab") as out:
            return subprocess.Popen(
                self._command, env=self._env, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
            )

    def _keep(self) -> None:
        while True:
            self.process.wait()
            if self._stopping.is_set():
                return
            self.process = self._start()

    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> int:
        """End it as a kubelet does, and return its exit status."""
        self._stopping.set()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()
        finally:
            self._thread.join(10)


class VllmPod:
    """The pod while it runs."""

    def __init__(self, pod: Json, host: str, folder: Path, path: str, **environment: str) -> None:
        self.pod, self.host, self.folder = pod, host, folder
        self.base = f"http://{host}:8000"
        spec = pod["spec"]
        self._volumes = {one["name"]: folder / one["name"] for one in spec["volumes"]}
        for target in self._volumes.values():
            target.mkdir(exist_ok=True)
        self._engine_spec = next(one for one in spec["initContainers"] if one["name"] == "engine")
        runtime = spec["containers"][0]
        own = {"LLMOS_HOST": host, "LLMOS_ALLOW_FILE": "true", **environment}
        self.engine = Container(
            *self._command(self._engine_spec, {"PATH": f"{path}:/usr/bin:/bin"}), folder / "engine.log"
        )
        command, env = self._command(runtime, {"PATH": os.environ["PATH"]})
        program = [sys.executable, "-m", "llmos_operator", *command]
        self.runtime = Container(program, env | own, folder / "runtime.log")

    def _command(self, container: Json, base: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        mounts = MountMap({one["mountPath"]: self._volumes[one["name"]] for one in container["volumeMounts"]})
        known = {names.ENV_POD_IP: self.host, names.ENV_CONTROL_TOKEN: TOKEN, names.ENV_API_KEYS: KEY}
        env = {**base, "LANG": "C.UTF-8"}
        for one in container["env"]:
            value = one["value"] if "value" in one else known.get(one["name"], "")
            env[one["name"]] = mounts.rewrite(self._expanded(value))
        words = [*container.get("command", ()), *container.get("args", ())]
        return [mounts.rewrite(self._expanded(word)) for word in words], env

    def _expanded(self, text: str) -> str:
        return text.replace(f"$({names.ENV_POD_IP})", self.host).replace("$$", "$")

    def alive(self) -> bool:
        """Run the engine's liveness probe, and end the engine if it fails, as a kubelet does."""
        mounts = MountMap(
            {one["mountPath"]: self._volumes[one["name"]] for one in self._engine_spec["volumeMounts"]}
        )
        probe = [mounts.rewrite(word) for word in self._engine_spec["livenessProbe"]["exec"]["command"]]
        if subprocess.run(probe, check=False).returncode == 0:
            return True
        os.killpg(self.engine.process.pid, signal.SIGKILL)
        return False

    # -- asking

    def get(self, path: str, *, key: str = KEY) -> tuple[int, str]:
        return self._ask(urllib.request.Request(self.base + path, headers={"Authorization": f"Bearer {key}"}))  # noqa: S310

    def post(self, path: str, body: Any, *, key: str = KEY) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        return self._ask(
            urllib.request.Request(self.base + path, json.dumps(body).encode(), headers, method="POST")  # noqa: S310
        )

    def order(self, path: str, body: Any = None, *, method: str = "POST") -> tuple[int, str]:
        """Give an order over the control API."""
        url = f"http://{self.host}:8001/control/v1/{path}"
        data = json.dumps(body).encode() if body is not None else None
        return self._ask(
            urllib.request.Request(url, data, {"Authorization": f"Bearer {TOKEN}"}, method=method)
        )

    def report(self) -> Json:
        """Return the status as the operator reads it; {} while nobody answers."""
        status, text = self.order("status", method="GET")
        return json.loads(text) if status == 200 else {}

    def until(self, state: str) -> Json:
        """Wait until the runtime reports a state, and return its report."""

        def check() -> Json | None:
            found = self.report()
            return found if found.get("state") == state else None

        return eventually(check, f"state {state}; engine: {self.engine.text()[-600:]}", 180)

    def _ask(self, request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - loopback
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def stop(self) -> list[int]:
        """End the runtime, then the engine, and return their exit statuses."""
        return [self.runtime.stop(), self.engine.stop()]


def double_path(folder: Path) -> str:
    """Return a folder for PATH in which `vllm` is the double."""
    program = folder / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\nexec env PYTHONPATH={ROOT} {sys.executable} -m tests.support.vllm_double "$@"\n'
    )
    program.chmod(0o755)
    return str(program.parent)


@contextmanager
def vllm_pod(
    model: str,
    host: str,
    *,
    path: str = "",
    simulated: bool = False,
    share: str = "",
    claim: Json | None = None,
    environment: Json | None = None,
    **spec: Any,
) -> Iterator[VllmPod]:
    """Run the pod of a workload of engine vllm on loopback address ``host``; without ``path`` vLLM is the double.

    ``claim`` changes the claim, ``environment`` the runtime's own variables, ``spec`` the workload.
    """
    folder = Path(tempfile.mkdtemp(prefix="v-"))  # short: a socket's path has 107 bytes
    engine = {"name": "vllm", "image": "vllm:1", **spec.pop("engine", {})}
    serving = {"apiKeySecretRef": {"name": "keys"}, **spec.pop("serving", {})}
    source = {"uri": f"file://{model}", "name": "served"}
    workload = a_work(model=source, engine=engine, serving=serving, **spec)
    given = a_claim_of(workload, **{"max_model_len": 512, **(claim or {})})
    pod = manifest.build(workload, given, SETTINGS, simulated=simulated, share=share)
    running = VllmPod(pod, host, folder, path or double_path(folder), **(environment or {}))
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)
