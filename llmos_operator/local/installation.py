"""Installs the chart of this checkout into a local cluster, with the values such a cluster needs.

The chart is not part of the Python package: this works from a checkout of the project, which is where a local cluster
is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.errors import Permanent
from llmos_operator.local.layout import cache_root

if TYPE_CHECKING:
    from llmos_operator.local.cluster import LocalCluster

RELEASE = "llmos"
# A runtime without a model, as a process of this machine, with a CUDA build of torch (whose libraries are mapped even
# without a GPU). Measured as proportional set size: 535 MiB beside several others, 760 MiB alone.
BASE_MEMORY = "800Mi"
CHART = Path(__file__).resolve().parents[2] / "helm" / "llmos-operator"


def values(hub_url: str, cache: Path) -> dict[str, Any]:
    """Return the values that differ from one local cluster to the next."""
    config: dict[str, Any] = {"runtime": {"cacheHostPath": str(cache), "baseMemory": BASE_MEMORY}}
    if hub_url:
        config["sources"] = {"hubEndpoint": hub_url}
    # All nodes of a local cluster share one folder: locks keep their agents from each other's way.
    kept = {"modelCache": {"hostPath": str(cache.with_name("kept"))}}
    return {"operator": {"config": config}, **kept}


def install(cluster: LocalCluster, *, overrides: dict[str, Any] | None = None, timeout: float = 90.0) -> None:
    """Install the chart, or upgrade it, and wait until its Deployments and agents are ready.

    ``overrides`` are further values of the chart. Raises :class:`Permanent` with what Helm said when it fails.
    """
    if not (CHART / "Chart.yaml").is_file():
        msg = f"there is no chart at {CHART}: run from a checkout of the project, or install the chart with helm yourself"
        raise Permanent(msg, reason="ChartMissing")
    state = cluster.state()
    hub_url = state.hub_url if state is not None else ""
    layers = [values(hub_url, cache_root() / "runtime"), overrides or {}]
    files = []
    for number, layer in enumerate(layers):
        path = cluster.paths.root / f"values-{number}.json"
        path.write_text(json.dumps(layer), encoding="utf-8")
        files += ["--values", str(path)]
    done = cluster.tools.run(
        "helm",
        "upgrade",
        "--install",
        RELEASE,
        str(CHART),
        f"--namespace={names.SYSTEM_NAMESPACE}",
        "--create-namespace",
        f"--values={CHART / 'ci' / 'local-values.yaml'}",
        *files,
        "--wait",
        f"--timeout={timeout:.0f}s",
    )
    if done.returncode:
        raise Permanent(f"helm could not install {CHART.name}: {done.stderr.strip()}", reason="InstallFailed")
