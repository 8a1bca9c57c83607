"""The project's CRDs on a control plane."""

from __future__ import annotations

import json
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.local.controlplane import ControlPlane

REPOSITORY = Path(__file__).resolve().parents[2]
CRDS = REPOSITORY / "crds"
_DONE: weakref.WeakSet[ControlPlane] = weakref.WeakSet()


def install_crds(plane: ControlPlane, timeout: float = 90.0) -> None:
    """Apply ``crds/`` and wait until every kind is served, discovered and documented.

    The three come one after the other: requests are answered before discovery names the kinds, and `kubectl explain`
    reads yet another document. Done once for each control plane: tests that take CRDs away use one of their own.
    """
    if plane in _DONE:
        return
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    plane.kubectl("wait", "--for=condition=Established", f"--timeout={timeout:.0f}s", "-f", str(CRDS))
    deadline = time.monotonic() + timeout
    wanted = {path.stem.split("_")[1] for path in CRDS.glob("*.yaml")}
    while not (wanted <= _discovered(plane) and wanted <= _documented(plane)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"discovered {_discovered(plane)}, documented {_documented(plane)}")
        time.sleep(0.05)
    _DONE.add(plane)


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
