"""Runs every contract test twice: on the real API server and on the in-memory port that stands for it in unit tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.transport import Transport, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.cluster.port import ClusterPort


@dataclass(frozen=True, slots=True)
class Server:
    """A port and a namespace of one's own on it."""

    port: ClusterPort
    namespace: str


@pytest.fixture(params=["memory", "real"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    if request.param == "memory":
        yield Server(FakeCluster(), "contract")
        return
    plane = request.getfixturevalue("api_server")
    namespace = request.getfixturevalue("namespace")
    transport: Transport = await connect(str(plane.kubeconfig), process="contract")
    try:
        yield Server(transport, namespace)
    finally:
        await transport.close()
