"""A bench per test: a real API server of the session, emptied, with a real operator process on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.operator_process import Bench, bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from llmos_operator.local.controlplane import ControlPlane


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(name="bench")
async def _bench(api_server: ControlPlane, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(api_server, tmp_path) as made:
        yield made
