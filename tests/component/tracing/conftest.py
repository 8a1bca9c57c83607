"""Async tests run on asyncio; spans go to a receiver of the test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.operator_process import Bench, bench
from tests.support.otlp import receiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from llmos_operator.local.controlplane import ControlPlane
    from tests.support.otlp import Receiver


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in [one for one in os.environ if one.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with receiver() as made:
        yield made


@pytest.fixture(name="bench")
async def _bench(api_server: ControlPlane, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(api_server, tmp_path) as made:
        yield made
