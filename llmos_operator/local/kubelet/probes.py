"""Startup, readiness and liveness probes, and the checks they and lifecycle hooks share.

Source: Kubernetes docs "Configure Liveness, Readiness and Startup Probes"; pkg/kubelet/prober of 1.36.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from llmos_operator.local.processes import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from llmos_operator.local.kubelet.model import Json

_SNIPPET = 300
_USER_AGENT = "kube-probe/1.36"
_HTTP_OK = range(200, 400)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check: whether it passed, and what it said."""

    passed: bool
    message: str = ""


@dataclass(slots=True)
class Threshold:
    """Turns single outcomes into a verdict: it changes after enough equal outcomes in a row."""

    success: int
    failure: int
    verdict: bool | None
    _last: bool | None = None
    _count: int = 0

    def add(self, passed: bool) -> bool:
        """Take an outcome; returns whether the threshold of its kind has been reached."""
        self._count = self._count + 1 if passed == self._last else 1
        self._last = passed
        reached = self._count >= (self.success if passed else self.failure)
        if reached:
            self.verdict = passed
        return reached


@dataclass(frozen=True, slots=True)
class Target:
    """A container as probes see it."""

    address: str
    ports: Mapping[str, int]  # by name
    environment: Mapping[str, str]
    cwd: Path
    rewrite: Callable[[str], str]

    def port(self, reference: str | int) -> int:
        """Return a port given as number or name; raise ValueError for an unknown name."""
        if isinstance(reference, int) or reference.isdigit():
            return int(reference)
        if reference not in self.ports:
            msg = f'no container port is named "{reference}"'
            raise ValueError(msg)
        return self.ports[reference]


def ports_by_name(container: Json) -> dict[str, int]:
    """Return the named ports of a container."""
    return {port["name"]: port["containerPort"] for port in container.get("ports") or [] if port.get("name")}


class Checker:
    """Runs the checks. One for the whole node process: it owns the HTTP connections."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End what is open."""
        if self._session is not None:
            await self._session.close()

    async def check(self, handler: Json, target: Target, seconds: float) -> Outcome:
        """Run the handler of a probe or hook within ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                return await self._run(handler, target)
        except TimeoutError:
            return Outcome(passed=False, message=f"timed out after {seconds:g}s")
        except (OSError, ValueError, aiohttp.ClientError) as error:
            return Outcome(passed=False, message=str(error) or type(error).__name__)

    async def _run(self, handler: Json, target: Target) -> Outcome:
        if action := handler.get("httpGet"):
            return await self._http(action, target)
        if action := handler.get("tcpSocket"):
            return await _tcp(action, target)
        if action := handler.get("exec"):
            return await _exec([target.rewrite(word) for word in action.get("command") or []], target)
        if action := handler.get("sleep"):
            await asyncio.sleep(float(action["seconds"]))
            return Outcome(passed=True)
        if "grpc" in handler:
            return Outcome(passed=False, message="grpc probes are not supported by the local cluster")
        return Outcome(passed=False, message=f"unknown handler {sorted(handler)}")

    async def _http(self, action: Json, target: Target) -> Outcome:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=False, force_close=True, limit=0)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        host = action.get("host") or target.address
        scheme = (action.get("scheme") or "HTTP").lower()
        path = action.get("path") or "/"
        url = f"{scheme}://{host}:{target.port(action['port'])}{path if path.startswith('/') else '/' + path}"
        headers = {"User-Agent": _USER_AGENT, "Accept": "*/*"}
        headers |= {header["name"]: header["value"] for header in action.get("httpHeaders") or []}
        async with self._session.get(url, headers=headers) as response:
            body = await response.content.read(_SNIPPET)
        if response.status in _HTTP_OK:
            return Outcome(passed=True)
        text = body.decode(errors="replace").strip()
        return Outcome(
            passed=False, message=f"HTTP probe failed with statuscode: {response.status} {text}".strip()
        )


async def _tcp(action: Json, target: Target) -> Outcome:
    _, writer = await asyncio.open_connection(
        action.get("host") or target.address, target.port(action["port"])
    )
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Outcome(passed=True)


async def _exec(command: Sequence[str], target: Target) -> Outcome:
    """Run a command beside the container; it ends with the check, whatever it started."""
    popen = subprocess.Popen(  # noqa: S603, ASYNC220 - a probe of the pod; starting blocks for a few milliseconds
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(target.environment),
        cwd=target.cwd,
        start_new_session=True,
        preexec_fn=die_with_parent(),  # noqa: PLW1509 - resolved before the fork
    )
    try:
        output = await _read_until_exit(popen)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()  # killed above if it had not ended
        if popen.stdout is not None:
            popen.stdout.close()
    text = output.decode(errors="replace").strip()
    return Outcome(passed=popen.returncode == 0, message=text or f"exit code {popen.returncode}")


async def _read_until_exit(popen: subprocess.Popen[bytes]) -> bytes:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    output = bytearray()
    assert popen.stdout is not None  # noqa: S101 - a pipe was asked for
    pipe, pidfd = popen.stdout.fileno(), os.pidfd_open(popen.pid)

    def read() -> None:
        block = os.read(pipe, 4096)
        output.extend(block[: _SNIPPET - len(output)] if len(output) < _SNIPPET else b"")
        if not block:
            loop.remove_reader(pipe)

    os.set_blocking(pipe, False)
    loop.add_reader(pipe, read)
    loop.add_reader(pidfd, _resolve, ended)
    try:
        await ended
        with contextlib.suppress(BlockingIOError):
            read()
        return bytes(output)
    finally:
        loop.remove_reader(pipe)
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def probe(
    spec: Json,
    check: Callable[[float], Awaitable[Outcome]],
    *,
    initial: bool | None,
    report: Callable[[bool, Outcome], Any],
    failed: Callable[[Outcome], None],
) -> None:
    """Check for ever by a probe's timing; ``report`` hears of each verdict, ``failed`` of each single failure."""
    threshold = Threshold(
        int(spec.get("successThreshold") or 1), int(spec.get("failureThreshold") or 3), initial
    )
    timeout, period = float(spec.get("timeoutSeconds") or 1), float(spec.get("periodSeconds") or 10)
    await asyncio.sleep(float(spec.get("initialDelaySeconds") or 0))
    while True:
        outcome = await check(timeout)
        if not outcome.passed:
            failed(outcome)
        before = threshold.verdict
        if threshold.add(outcome.passed) and (threshold.verdict != before or not outcome.passed):
            report(outcome.passed, outcome)
        await asyncio.sleep(period)
