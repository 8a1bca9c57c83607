"""A hub mirror for tests: a folder of models behind a real HTTP server in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def hub_mirror(store: Path, *, bandwidth: int = 0) -> Iterator[str]:
    """Serve ``store``/<org>/<name>/ and yield the endpoint; ``bandwidth`` bounds bytes a second for each file."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "llmos_operator.local.hub",
        str(store),
        f"--port={port}",
        f"--bandwidth={bandwidth}",
    ]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"{url}/healthz", timeout=1).read()  # noqa: S310 - our own server
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, "the hub mirror has ended"
                assert time.monotonic() < deadline, "the hub mirror does not answer"
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)
