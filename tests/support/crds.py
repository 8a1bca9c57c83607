"""The project's CRDs on a control plane."""

from __future__ import annotations

import json
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from llmos_operator.local.controlplane import ControlPlane

REPOSITORY = Path(__file__).resolve().parents[2]
CRDS = REPOSITORY / "crds"
_DONE: weakref.WeakSet[ControlPlane] = weakref.WeakSet()


class Server(Protocol):
    """What runs kubectl against some API server."""

    def kubectl(self, *arguments: str) -> str: ...


def install_crds(plane: ControlPlane, timeout: float = 90.0) -> None:
    """Apply ``crds/`` and wait until every kind is served, discovered and documented.

    The three come one after the other: requests are answered before discovery names the kinds, and `kubectl explain`
    reads yet another document. Done once for each control plane: tests that take CRDs away use one of their own.
    """
    if plane in _DONE:
        return
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    await_established(plane, "-f", str(CRDS), timeout=timeout)
    deadline = time.monotonic() + timeout
    wanted = {path.stem.split("_")[1] for path in CRDS.glob("*.yaml")}
    while not (wanted <= _discovered(plane) and wanted <= _documented(plane)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"discovered {_discovered(plane)}, documented {_documented(plane)}")
        time.sleep(0.05)
    _DONE.add(plane)


def await_established(server: Server, *which: str, timeout: float = 90.0) -> None:
    """Wait until the CRDs that ``kubectl get *which`` names are served.

    Not by `kubectl wait`: it fails on a definition that was just made, whose status still has null for conditions.
    """
    eventually(lambda: _established(server, which), f"{' '.join(which)} established", timeout)


def _established(server: Server, which: tuple[str, ...]) -> bool:
    answer = json.loads(server.kubectl("get", *which, "-o", "json"))
    return all(
        any(one["type"] == "Established" and one["status"] == "True" for one in conditions)
        for item in answer.get("items", [answer])
        for conditions in [item.get("status", {}).get("conditions") or ()]
    )


def _discovered(plane: ControlPlane) -> set[str]:
    names = plane.kubectl(
        "api-resources", "--api-group=llmos.dev", "--cached=false", "-o", "name", check=False
    )
    return {name.split(".")[0] for name in names.split()}


def _documented(plane: ControlPlane) -> set[str]:
    address = json.loads(plane.request("/openapi/v3"))["paths"].get("apis/llmos.dev/v1alpha1")
    if address is None:
        return set()
    document = json.loads(plane.request(address["serverRelativeURL"]))
    return {path.split("/")[-1] for path in document["paths"]}
