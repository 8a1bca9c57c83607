"""Processes that decode files of strangers: no secrets, limits on memory and time, killed when nobody waits for them.

The front starts one for each file and believes what it says within bounds, for a file may have taken it over.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_LINE_BYTES = 1 << 20
# All that the process is told of this one's environment.
_VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


@asynccontextmanager
async def confined(module: str, arguments: Sequence[str], data: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Run ``module`` with ``data`` as its input; give its output, and kill it when the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=_LINE_BYTES,
        env={name: os.environ[name] for name in _VARIABLES if name in os.environ} | _ENVIRONMENT,
    )
    feeding = asyncio.create_task(_feed(process, data))
    try:
        if process.stdout is None:
            raise AssertionError("the process has a pipe")
        yield process.stdout
    finally:
        feeding.cancel()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def confine(*, memory_bytes: int, cpu_seconds: int) -> None:
    """Limit this process, which is such a one: address space, CPU time, no files written, no core."""
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    if process.stdin is None:
        raise AssertionError("the process has a pipe")
    with suppress(ConnectionError):
        process.stdin.write(data)
        await process.stdin.drain()
    process.stdin.close()
