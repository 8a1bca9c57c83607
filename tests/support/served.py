"""A runtime as a process with a real model, and OpenAI's client to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import openai

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOAD_SECONDS = 240.0
MIB = 1 << 20


class Served:
    """A runtime process."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, port: int) -> None:
        self.process = process
        self.url = f"http://{host}:{port}"
        self.control = f"http://{host}:{port + 1}/control/v1"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="k", max_retries=0, timeout=120)

    def status_of(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:  # noqa: S310 - loopback
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def report(self) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.control}/status", headers={"Authorization": "Bearer t"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - loopback
            found: dict[str, Any] = json.loads(answer.read())
        return found


@contextmanager
def runtime_process(
    folder: Path, model: str, host: str, *, ready: bool = True, **environment: str
) -> Iterator[Served]:
    """Serve ``model`` on loopback address ``host``; wait until it is ready, or only start it."""
    port = 18800
    env = {
        **os.environ,
        "LLMOS_MODEL_URI": f"file://{model}",
        "LLMOS_MODEL_NAME": "m",
        "LLMOS_ALLOW_FILE": "true",
        "LLMOS_HOST": host,
        "LLMOS_PORT": str(port),
        "LLMOS_CONTROL_PORT": str(port + 1),
        "LLMOS_CONTROL_TOKEN": "t",
        "LLMOS_CACHE_DIR": str(folder / "cache"),
        "LLMOS_GRACE_SECONDS": "20",
        "LLMOS_MAX_NUM_SEQS": "4",
        "LLMOS_MEMORY_LIMIT_BYTES": str(1200 * MIB),
        "NVIDIA_VISIBLE_DEVICES": "void",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    with (folder / "runtime.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "llmos_operator", "runtime"], env=env, stderr=log)
    served = Served(process, host, port)
    try:
        if ready:
            eventually(lambda: served.status_of("/readyz") == 200, "the model is ready", LOAD_SECONDS)
        yield served
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
