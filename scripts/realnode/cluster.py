"""What the chart finds on the node: simulated devices, a hub mirror with the demo's models, and values that say so."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from scripts.realnode import host, layout
from scripts.realnode.components import CACHE
from scripts.realnode.images import code_digest, make_images

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scripts.realnode.images import Image
    from scripts.realnode.node import Node

HUB = "llmos-hub"  # namespace and name
HUB_PORT = 9999
DEVICES = 2
DEVICE_BYTES = 2 << 30


def devices() -> str:
    """Return the annotation that the agent makes simulated devices of."""
    found = [
        {
            "uuid": f"GPU-sim-{layout.NAME}-{index}",
            "index": index,
            "product": "SIM-A",
            "memoryBytes": DEVICE_BYTES,
            "computeCapability": "8.0",
        }
        for index in range(DEVICES)
    ]
    return json.dumps(found, separators=(",", ":"))


def image(process: str, tag: str = "") -> str:
    """Return the name of one of the project's images, by default of the code as it is."""
    return f"{layout.REGISTRY}/llmos-{process}:{tag or code_digest()}"


def values(tag: str = "") -> dict[str, Any]:
    """Return the values of the chart for this node; everything else is at its default."""
    return {
        "image": {"registry": layout.REGISTRY, "tag": tag or code_digest()},
        "operator": {
            "config": {
                "sources": {"hubEndpoint": f"http://{HUB}.{HUB}.svc.{layout.DOMAIN}:{HUB_PORT}"},
                "runtime": {"baseMemory": "800Mi"},  # measured: llmos_operator.local.installation
            }
        },
        "agent": {"config": {"mode": "simulated"}},
        # Answers take long where a few cores do everything: none is cut off at its end for that.
        "gateway": {"replicas": 1, "terminationGracePeriodSeconds": 300, "config": {"drainTimeout": 280}},
    }


def hub_objects() -> tuple[dict[str, Any], ...]:
    """Return the hub mirror: the operator's image over the models in the user's cache."""
    label = {"app.kubernetes.io/name": HUB}
    context = {
        "runAsUser": 0,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
    }
    container = {
        "name": "hub",
        "image": image("operator"),
        "command": ["python", "-m", "llmos_operator.local.hub", "/models"],
        "args": ["--host=0.0.0.0", f"--port={HUB_PORT}"],
        "ports": [{"containerPort": HUB_PORT}],
        "readinessProbe": {"tcpSocket": {"port": HUB_PORT}, "periodSeconds": 1},
        "securityContext": context,  # root, since the cache may be readable by its owner only
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    spec = {
        "containers": [container],
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "models", "hostPath": {"path": f"{CACHE}/hub"}}],
    }
    meta = {"name": HUB, "namespace": HUB, "labels": label}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "selector": {"matchLabels": label},
            "template": {"metadata": {"labels": label}, "spec": spec},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {"selector": label, "ports": [{"port": HUB_PORT}]},
    }
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HUB}}
    return namespace, deployment, service


def bring_up(node: Node) -> None:
    """Start the node unless it runs, and equip it; the images are made meanwhile. Raises as `Node.up` does."""
    if node.record() is None:
        host.require_able()  # before anything is made for it
    with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:
        images = pool.submit(make_images)
        node.up()
        _equip(node, images.result())


def _equip(node: Node, images: Iterable[Image]) -> None:
    """Give the node its devices, the images of the code as it is, the hub mirror, and the chart's values beside it."""
    tools = node.tools()
    tools.kubectl(
        "annotate", "node", layout.NAME, "--overwrite", f"{names.ANNOTATION_SIMULATED_GPUS}={devices()}"
    )
    for one in images:
        new = node.load(one)
        node.say(f"{one.name} {one.size / 1e6:.0f} MB{'' if new else ' (was there)'}")
    tools.apply(*hub_objects())
    node.paths.values.write_text(json.dumps(values(), indent=1), encoding="utf-8")
