"""Everything about decisions that an administrator may set. Frozen: a plan depends on nothing else but its snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from llmos_operator.api import vllm
from llmos_operator.api.runtime.memory import MIB
from llmos_operator.scheduler.thrift import Thrift
from llmos_operator.state.breaker import Breaker
from llmos_operator.state.types import DisruptionStep, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.scheduler.geometry.layouts import Layout

GIB = 1 << 30


class ScoreKind(StrEnum):
    """What decides between nodes that can take a request."""

    BEST_FIT = "BestFit"  # leaves the least behind
    FRAGMENTATION = "Fragmentation"  # destroys the least of what the cluster can do for expected work


@dataclass(frozen=True, slots=True)
class SizingPolicy:
    """Defaults of the memory model."""

    base_bytes: int = 400 * MIB  # R0 of the runtime image on a device until a profile has measured it
    vllm_base_bytes: int = 2 * GIB  # R0 of engine vllm; profiles measure the runtime's own engine alone
    vllm_memory_bytes: int = 4 * GIB  # host memory requested by a replica of it with devices
    auto_context_tokens: int = 8192  # maxModelLen: auto aims at this (or the model's own limit, if lower)
    least_context_tokens: int = 2048  # and never goes below this (or the model's own limit, if lower)
    runtime_cpu_milli: int = 250  # host CPU requested by a replica with devices
    runtime_memory_bytes: int = 512 * MIB  # host memory requested by a replica with devices
    cpu_only_milli: int = 1000  # host CPU requested by a replica without devices
    shared_compute_milli: int = 100  # compute of a device a Shared replica is charged: at most ten tenants


@dataclass(frozen=True, slots=True)
class PreemptionLimits:
    """Bounds of the search for victims; counts rather than seconds, so that the same snapshot gives the same plan."""

    enabled: bool = True
    steps: tuple[DisruptionStep, ...] = (DisruptionStep.SHRINK, DisruptionStep.SLEEP, DisruptionStep.EVICT)
    nodes: int = 64  # nodes searched for one claim, most promising first
    states: int = 2000  # victim sets tried on one node before the greedy set is taken
    outage_seconds: float = 60.0  # what it costs to take a workload below its least number of replicas
    stream_seconds: float = 1.0  # of a device that an interrupted request costs beside its KV cache
    searches: int = 200  # claims per cycle for which victims are searched
    restore_after: float = 60.0  # seconds for which a replica that came down does with less, at least
    wake_after: float = 10.0  # seconds for which a replica that was put to sleep for another sleeps, at least
    stuck_after: float = 30.0  # seconds past its grace after which a terminating pod is not waited for


@dataclass(frozen=True, slots=True)
class ReservationPolicy:
    """Places that are kept for work that cannot start yet."""

    most: int = 1  # for each tree of queues and choice of devices; 0: none
    after: float = (
        3600.0  # seconds of waiting after which a place is kept though nobody knows when it will be free
    )
    part: float = 0.9  # of work like it that has ended by the time at which work is expected to have ended
    least_finished: int = 10  # pieces of work a queue must have finished before its durations are known


@dataclass(frozen=True, slots=True)
class ConsolidationPolicy:
    """Running replicas that are moved so that others can start, and bounds of the search for whom and where to."""

    part: float = 0.01  # of all pods with claims that may be moved within `window`, but at least one; 0: none
    window: float = 3600.0  # seconds
    cool_down: float = 3600.0  # seconds after a move in which a replica is not moved again
    replicas: int = 8  # moved for one claimant at most
    nodes: int = 64  # looked at for one claimant, cheapest first
    sets: int = 20_000  # of replicas that are looked at in one plan
    tries: int = 2000  # places for them that are tried in one plan
    searches: int = 8  # claimants of one plan for whom others might be moved


@dataclass(frozen=True, slots=True)
class PartitioningPolicy:
    """Whether GPUs are cut into the MIG instances that work waits for, by NVIDIA's mig-manager."""

    enabled: bool = False
    layouts: tuple[Layout, ...] = ()  # beside, or in place of, those of mig-manager's own configuration
    rest: float = 900.0  # seconds after which a node may be cut again
    patience: float = 300.0  # seconds in which mig-manager must have begun


def _default_service() -> dict[WorkloadKind, float]:
    return {WorkloadKind.INFERENCE: 3600.0, WorkloadKind.FINE_TUNE: 7200.0, WorkloadKind.BATCH: 1800.0}


def _default_formats() -> dict[str, tuple[str, ...]]:
    return {"builtin": ("bf16", "int8", "int4"), vllm.ENGINE: vllm.FORMATS}


@dataclass(frozen=True, slots=True)
class Policy:
    """Settings of a cycle."""

    default_queue: str = "default"
    require_queue: bool = True  # False: a namespace without any queue may still run (tests, simulation)
    sample_interval: float = 1.0  # seconds between telemetry batches of a node
    stale_after_intervals: int = 3  # telemetry older than this many intervals is stale (at least 8 s)
    least_stale_seconds: float = 8.0  # agents tell every three seconds, see telemetry.telling
    overuse_percent: int = (
        10  # observed above reserved by more than this share of a device stops new placement
    )
    engine_formats: Mapping[str, tuple[str, ...]] = field(default_factory=_default_formats)  # absent: all
    # How long after the grace of its victims a claimant still goes before its equals.
    nomination_seconds: float = 60.0
    service_seconds: Mapping[WorkloadKind, float] = field(
        default_factory=_default_service
    )  # expected, for ageing
    min_runtime: float = (
        120.0  # seconds after a start during which nothing is taken, where a workload says nothing
    )
    startup_seconds: float = (
        300.0  # after its bind for which a replica that loads keeps others from starting on its shared device
    )
    sharing_domain_label: str = (
        "llmos.dev/sharing-domain"  # of a namespace; without it a namespace is its own domain
    )
    load_bytes_per_second: int = 200 * MIB  # until a profile has measured a load
    sizing: SizingPolicy = field(default_factory=SizingPolicy)
    preemption: PreemptionLimits = field(default_factory=PreemptionLimits)
    reservation: ReservationPolicy = field(default_factory=ReservationPolicy)
    consolidation: ConsolidationPolicy = field(default_factory=ConsolidationPolicy)
    partitioning: PartitioningPolicy = field(default_factory=PartitioningPolicy)
    thrift: Thrift = field(default_factory=Thrift)  # turns of FineTune and Batch work
    score: ScoreKind = ScoreKind.FRAGMENTATION
    # Weight of what is lost to interference against room for expected work, both in devices; 0: it does not count.
    interference_weight: float = 1.0
    price_seconds: float = 300.0  # age beyond which prices are not used, and best fit decides
    breaker: Breaker = field(default_factory=Breaker)  # of what is done because devices look sick
    # Findings after which what runs on the device computes nothing, or something wrong: it is ended, not asked to leave.
    lost_reasons: tuple[str, ...] = ()
    keep_rejections: int = 5  # rejections kept in a decision
    # Levels of the topology above a node, and the label of nodes that names their domain.
    topology_labels: Mapping[str, str] = field(
        default_factory=lambda: {
            "rack": "topology.llmos.dev/rack",
            "block": "topology.llmos.dev/block",
            "zone": "topology.kubernetes.io/zone",
        }
    )

    @property
    def rack_label(self) -> str:
        """Label of nodes that names their rack; "" where there is no such level."""
        return self.topology_labels.get("rack", "")

    @property
    def stale_seconds(self) -> float:
        """Age at which telemetry is stale."""
        return max(self.least_stale_seconds, self.sample_interval * self.stale_after_intervals)
