"""The NVML test double, loaded once into the test process under the name pynvml asks for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from llmos_operator.telemetry.nvml.backend import NvmlBackend
from llmos_operator.telemetry.watchdog import InFlight
from tests.support.nvml import Double, NoCompilerError, build, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE = 90.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _library() -> None:
    try:
        build()
    except NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture
def double(tmp_path: Path) -> Double:
    """A control file with nothing in it, in use by the library in this process."""
    machine = Double(tmp_path).write()
    load(machine)
    return machine


@pytest.fixture
def backend(double: Double) -> Iterator[NvmlBackend]:
    """A backend over the double; open it in the test, once the double has what it needs."""
    made = NvmlBackend(InFlight(), trust_pids=True)
    yield made
    double.heal().write()
    made.close()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Poll a condition until it holds; fail with what was expected after a deadline."""

    def wait(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what}: not within {seconds} s"
            time.sleep(0.01)

    return wait
