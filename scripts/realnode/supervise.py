"""The node's first process: sets up its network, starts the components, starts again what ends, collects the dead.

It is copied into the node and runs there with the node's own Python: nothing but the standard library. Every process of
the node is below it, so all of them end with it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

LOGS = Path("/var/log/llmos")
COMPONENTS = Path("/etc/llmos/components.json")
PIDS = Path("/run/llmos")
_POLL_SECONDS = 0.05
_BACK_OFF_SECONDS = 1.0


class Component(NamedTuple):
    """A process of the node, as scripts/realnode/components.py writes it."""

    name: str
    command: list[str]
    after: str


def network(address: str, prefix: str, gateway: str) -> None:
    """Wait for the cable (the machine plugs it in), then give it its address; route and filter as a node does."""
    while not Path("/sys/class/net/eth0").exists():
        time.sleep(_POLL_SECONDS)
    for words in (
        ["link", "set", "lo", "up"],
        ["address", "add", f"{address}/{prefix}", "dev", "eth0"],
        ["link", "set", "eth0", "up"],
        ["route", "add", "default", "via", gateway],
    ):
        subprocess.run(["ip", *words], check=True)
    settings = Path("/proc/sys/net")  # of this network namespace
    (settings / "ipv4" / "ip_forward").write_text("1", encoding="ascii")
    bridged = settings / "bridge" / "bridge-nf-call-iptables"
    if bridged.exists():  # else a pod behind a Service would answer its neighbour on the bridge directly
        bridged.write_text("1", encoding="ascii")


def there(what: str) -> bool:
    """Return whether a socket file exists, or somebody listens on a port."""
    if what.startswith("/"):
        return Path(what).exists()
    host, _, port = what.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


class Supervisor:
    """Holds the components that run, by pid."""

    def __init__(self, components: list[Component]) -> None:
        self._waiting = [(0.0, one) for one in components]
        self._running: dict[int, Component] = {}

    def run(self) -> None:
        """Run for good."""
        while True:
            now = time.monotonic()
            for entry in list(self._waiting):
                at, component = entry
                if at <= now and (not component.after or there(component.after)):
                    self._waiting.remove(entry)
                    self._start(component)
            self._collect()
            time.sleep(_POLL_SECONDS if self._waiting else 4 * _POLL_SECONDS)

    def _start(self, component: Component) -> None:
        """Start a component. Not with `subprocess`, which would wait for its children behind `_collect`'s back."""
        log = os.open(LOGS / f"{component.name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        files = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        words = list(component.command)
        pid = os.posix_spawnp(words[0], words, os.environ, file_actions=files, setsid=True)
        os.close(log)
        self._running[pid] = component
        (PIDS / component.name).write_text(str(pid), encoding="ascii")

    def _collect(self) -> None:
        """Take the dead: components, which start again, and orphans of containers, which nobody else waits for."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            component = self._running.pop(pid, None)
            if component is not None:
                code = os.waitstatus_to_exitcode(status)
                print(f"{component.name} ended with {code}; starting it again", file=sys.stderr)
                self._waiting.append((time.monotonic() + _BACK_OFF_SECONDS, component))


def main() -> None:
    """Be the node."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    PIDS.mkdir()
    network(*sys.argv[1:4])
    Supervisor([Component(**one) for one in json.loads(COMPONENTS.read_text(encoding="utf-8"))]).run()


if __name__ == "__main__":
    main()
