"""Workloads whose engine is a shell script in the node's small image: what happens to their pods is what happens to any."""

from __future__ import annotations

from typing import Any

from scripts.realnode import layout

# A program that answers the probes of a runtime, and nothing else, and ends when it is told to.
SERVE = (
    'b=/usr/bin/busybox; $b mkdir -p "$TMPDIR/w"; '
    'for one in startupz readyz livez; do $b touch "$TMPDIR/w/$one"; done; '
    '$b httpd -f -p "$LLMOS_PORT" -h "$TMPDIR/w" & trap "kill $!; exit" TERM; wait'
)


def stand_in(name: str, script: str = SERVE, **resources: Any) -> dict[str, Any]:
    """Return a workload on the CPU whose engine is a shell script."""
    return {
        "apiVersion": "llmos.dev/v1alpha1",
        "kind": "ModelWorkload",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "Inference",
            "model": {"uri": "hf://sentence-transformers/all-MiniLM-L6-v2", "name": name},
            "engine": {
                "name": "custom",
                "image": layout.PAUSE_IMAGE,
                "args": ["/usr/bin/busybox", "sh", "-c", script],
            },
            "resources": {"accelerators": 0, "memory": "64Mi", **resources},
            "serving": {"apis": ["embeddings"]},
        },
    }
