"""The openb trace: a cluster of GPU nodes and lists of tasks (Alibaba cluster-trace-gpu-v2023).

The arrival stream is the "workload inflation" of the paper on fragmentation (Weng et al., ATC'23): the tasks of a list
in random order, then tasks drawn from it again until 130 % of the cluster's devices have been asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from llmos_operator.sim.trace_files import BadTrace, find, folder_of, rows, whole
from llmos_operator.state.types import FULL_MILLI

if TYPE_CHECKING:
    from pathlib import Path

Ints: TypeAlias = npt.NDArray[np.int64]

INFLATION: Final = 1.3  # of the cluster's devices asked for in the end
_KNOWN: Final = 0.95  # of all tasks, in the mix that a policy may know: the most frequent requests
_STREAM: Final = (
    7919  # second word of the seed of arrivals, so that another use of the seed draws other numbers
)
_UNKNOWN_PRODUCT: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes, one entry each: CPU in thousandths of a core, memory in MiB, devices, product by number in `models`."""

    cpu: Ints
    mem: Ints
    ngpu: Ints
    model: Ints
    models: tuple[str, ...]

    @property
    def devices(self) -> int:
        """Devices of all nodes."""
        return int(self.ngpu.sum())


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of request: `num` devices of which it takes `milli` thousandths each; `models` is a bit mask, 0: any."""

    index: int
    cpu: int
    mem: int
    num: int
    milli: int
    models: int

    @property
    def amount(self) -> int:
        """Thousandths of devices it takes altogether."""
        return self.num * self.milli


@dataclass(frozen=True, slots=True)
class Mix:
    """Frequent requests without their memory, and their part of all of these."""

    cpu: Ints
    num: Ints
    milli: Ints
    models: Ints
    p: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TaskList:
    """A list: the kinds of request, and the kind of each task in the order of their names."""

    name: str
    types: tuple[Task, ...]
    order: Ints


def read_cluster(data: str, nodes: int = 0, gpus: int = 0) -> Cluster:
    """Read the nodes; with `nodes` or `gpus` only that many of them, spread evenly over the list."""
    path = find(folder_of(data, "openb"), "openb_node_list*.csv", "the nodes of the openb trace")
    read = list(rows(path, "cpu_milli", "memory_mib", "gpu", "model"))
    models = tuple(sorted({row["model"] for row in read}))

    def column(name: str) -> Ints:
        return np.array([whole(row, name, path) for row in read], np.int64)

    model = np.array([models.index(row["model"]) for row in read], np.int64)
    found = Cluster(column("cpu_milli"), column("memory_mib"), column("gpu"), model, models)
    if gpus:
        nodes = max(1, round(len(read) * gpus / max(1, found.devices)))
    if not nodes or nodes >= len(read):
        return found
    kept = np.linspace(0, len(read) - 1, nodes).round().astype(np.int64)
    return Cluster(found.cpu[kept], found.mem[kept], found.ngpu[kept], found.model[kept], models)


def read_tasks(data: str, name: str, cluster: Cluster) -> TaskList:
    """Read a list of tasks by name ("default"). Raises `BadTrace` naming the lists there are."""
    folder = folder_of(data, "openb")
    path = find(folder, f"openb_pod_list_{name}.csv", f"the list {name!r}; there are: {_lists(folder)}")
    numbers: dict[tuple[int, int, int, int, int], int] = {}
    columns = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
    order = []
    for row in sorted(rows(path, *columns), key=lambda one: one["name"]):
        count = whole(row, "num_gpu", path)
        milli = min(whole(row, "gpu_milli", path), FULL_MILLI) if count else 0
        mask = _mask(row.get("gpu_spec") or "", cluster.models) if count else 0
        key = (whole(row, "cpu_milli", path), whole(row, "memory_mib", path), count, milli, mask)
        order.append(numbers.setdefault(key, len(numbers)))
    types = tuple(Task(number, *key) for key, number in numbers.items())
    if not any(task.amount for task in types):
        raise BadTrace(f"{path}: no task asks for a device")
    return TaskList(name, types, np.array(order, np.int64))


def _lists(folder: Path) -> str:
    stems = {path.name.partition(".csv")[0] for path in folder.glob("openb_pod_list_*.csv*")}
    return ", ".join(sorted(stem.removeprefix("openb_pod_list_") for stem in stems)) or "none"


def _mask(products: str, models: tuple[str, ...]) -> int:
    wanted = {product for product in products.split("|") if product}
    return sum(1 << models.index(one) if one in models else _UNKNOWN_PRODUCT for one in wanted)


def arrivals(tasks: TaskList, devices: int, seed: int, inflation: float = INFLATION) -> Ints:
    """Return the kind of each arriving task; at most `inflation` times `devices` are asked for."""
    draw = np.random.default_rng([_STREAM, seed])
    amount = np.array([task.amount for task in tasks.types], np.int64)
    most = inflation * devices * FULL_MILLI
    shuffled: Ints = draw.permutation(tasks.order)
    asked = int(amount[shuffled].sum())
    if asked > most:
        return _thinned(shuffled, amount, most, draw)
    more: list[int] = []
    while True:
        kind = int(tasks.order[draw.integers(len(tasks.order))])
        if asked + tasks.types[kind].milli > most:
            return np.concatenate([shuffled, np.array(more, np.int64)])
        asked += int(amount[kind])
        more.append(kind)


def _thinned(shuffled: Ints, amount: Ints, most: float, draw: np.random.Generator) -> Ints:
    """Return the stream less randomly chosen tasks, so many that the rest asks for at most `most`."""
    removed = draw.permutation(len(shuffled))
    left = int(amount[shuffled].sum()) - np.cumsum(amount[shuffled[removed]])
    count = int(np.searchsorted(-left, -most)) + 1
    kept = np.ones(len(shuffled), np.bool_)
    kept[removed[:count]] = False
    return shuffled[kept]


def mix_of(tasks: TaskList) -> Mix:
    """Return the most frequent requests that make up 95 % of the list."""
    counts: Counter[tuple[int, int, int, int]] = Counter()
    for kind, count in zip(*np.unique(tasks.order, return_counts=True), strict=True):
        task = tasks.types[int(kind)]
        counts[task.cpu, task.milli, task.num, task.models] += int(count)
    ranked = sorted(counts.items(), key=lambda item: (item[1], item[0]), reverse=True)
    running = np.cumsum([count for _, count in ranked])
    taken = ranked[: int(np.searchsorted(running, _KNOWN * running[-1])) + 1]
    cpu, milli, num, models = (np.array([key[i] for key, _ in taken], np.int64) for i in range(4))
    part = np.array([count for _, count in taken], np.float64)
    return Mix(cpu, num, milli, models, part / part.sum())
