"""The fleet of `sim.month`: nodes of eight GPUs that run single-GPU services, whole-node jobs and gangs of four nodes.

A part of the GPUs stays free as spare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.sim.failures import DAY
from llmos_operator.state.types import Device, GpuNode, Model, Node, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

GPUS: Final = 8  # of a node
START: Final = 1_700_000_000.0
_GIB: Final = 1 << 30
_MEMORY: Final = 80 * _GIB


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated. `rate` multiplies the published rate of faults; `spare` is the part of the GPUs left free."""

    gpus: int = 1000
    days: float = 30.0
    rate: float = 20.0
    spare: float = 0.05
    seed: int = 0

    def names(self) -> list[str]:
        """Return the names of the nodes."""
        return [f"n{i:04}" for i in range(self.gpus // GPUS)]

    def work(self) -> Iterator[Workload]:
        """Yield half of the used GPUs in gangs of four nodes, three tenths in jobs of one node, the rest in services of one GPU."""
        used = int(self.gpus * (1.0 - self.spare))
        gangs = used // 2 // (4 * GPUS)
        jobs = int(used * 0.3) // GPUS
        services = used - gangs * 4 * GPUS - jobs * GPUS
        shapes: list[tuple[str, int, dict[str, Any]]] = [
            ("gang", gangs, {"accelerators": GPUS, "copies": 4}),
            ("job", jobs, {"accelerators": GPUS}),
            ("service", services, {"accelerators": 1}),
        ]
        for name, count, fields in shapes:
            for i in range(count):
                yield Workload(
                    f"default/{name}-{i}", f"uid-{name}-{i}", Model("hf://o/m"), created_at=START - DAY,
                    memory_bytes=40 * _GIB, min_runtime=0.0, **fields,
                )  # fmt: skip


def node_named(name: str) -> tuple[Node, GpuNode]:
    """Return a node, and its devices."""
    node = Node(name, f"uid-{name}", cpu_milli=256_000, memory_bytes=2048 * _GIB, gpus=GPUS)
    return node, GpuNode(name, tuple(Device(f"GPU-{name}-{i}", i, "H100", _MEMORY) for i in range(GPUS)))
