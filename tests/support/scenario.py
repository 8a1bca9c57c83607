"""Scenario files: cluster and running work in, expected plan out. See tests/scenarios/README.md for the format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import yaml

from llmos_operator.api.mig import parse_profile
from llmos_operator.api.quantity import parse_bytes, parse_milli
from llmos_operator.scheduler.claims import profile_of
from llmos_operator.scheduler.filters.device_kind import product_matches
from llmos_operator.scheduler.fragmentation.pricer import Pricer
from llmos_operator.scheduler.fragmentation.shapes import ANY, FULL, Shape
from llmos_operator.scheduler.geometry.layouts import Layout
from llmos_operator.scheduler.interference import subject_of
from llmos_operator.scheduler.policy import (
    ConsolidationPolicy,
    PartitioningPolicy,
    Policy,
    PreemptionLimits,
    ScoreKind,
    SizingPolicy,
)
from llmos_operator.scheduler.shares import kinds_of, stock_of
from llmos_operator.scheduler.shrinking import shrunk_bytes
from llmos_operator.scheduler.sizing import sizes
from llmos_operator.scheduler.sleeping import asleep_as
from llmos_operator.scheduler.table import NodeTable
from llmos_operator.state.types import (
    Busy,
    DeviceSelector,
    DisruptionBudget,
    DisruptionStep,
    Draw,
    FormatProfile,
    LoadTime,
    Model,
    Namespace,
    Placement,
    Pod,
    PodPhase,
    PreemptionPolicy,
    Queue,
    Requirement,
    Selector,
    Sharing,
    Toleration,
    Topology,
    WorkloadKind,
)
from tests.support import builders
from tests.support.builders import (
    LONG_AGO,
    NOW,
    ClusterBuilder,
    NodeBuilder,
    WorkloadBuilder,
    a_node,
    a_workload,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmos_operator.scheduler.fragmentation.prices import DeviceKind, Prices
    from llmos_operator.state.types import Workload

SHAPES = {"small": builders.SMALL_MODEL, "large": builders.LARGE_MODEL}


@dataclass
class Scenario:
    """A loaded file: the cluster it describes, and what is expected of it."""

    name: str
    cluster: ClusterBuilder
    policy: Policy
    expect: dict[str, Any]
    then: dict[str, Any] = field(default_factory=dict)
    lost_for: dict[str, float] = field(default_factory=dict)  # workload -> seconds since a pod of it was lost
    prices: Prices | None = None


def load(path: Path) -> Scenario:
    """Read a scenario; an unknown key is an error, so that a typing mistake cannot make a test pass."""
    data = yaml.safe_load(path.read_text())
    cluster = ClusterBuilder()
    known = {
        "about",
        "source",
        "policy",
        "finished",
        "priorities",
        "queues",
        "namespaces",
        "models",
        "budgets",
        "interference",
        "mix",
        "nodes",
        "running",
        "pending",
        "expect",
        "then",
    }
    _only(data, known, path.name)
    cluster.with_priorities(**data.get("priorities", {}))
    for queue in data.get("queues", [{"name": "default"}]):
        cluster.add(_queue(queue))
    for name, labels in data.get("namespaces", {}).items():
        cluster.add(Namespace(name, labels))
    cluster.add(*(_profile(one) for one in data.get("models", [])))
    cluster.add(*(_budget(one) for one in data.get("budgets", [])))
    cluster.add(*(_node(one) for one in data["nodes"]))
    lost_for = {}
    for one in data.get("running", []):
        lost_for[one["name"]] = float(one.get("lost_for", 0.0))
        _run(cluster, {key: value for key, value in one.items() if key != "lost_for"})
    for one in data.get("pending", []):
        cluster.add(_workload(one))
    for queue, seconds in data.get("finished", {}).items():
        for number, one in enumerate(seconds):
            cluster.add(_finished(f"{queue}-{number}", queue, one))
    for one in data.get("interference", []):
        _interfere(cluster, one)
    policy = _policy(data.get("policy", {}))
    prices = _prices(cluster, data["mix"]) if "mix" in data else None
    return Scenario(path.stem, cluster, policy, data["expect"], data.get("then", {}), lost_for, prices)


def _only(data: dict[str, Any], known: set[str], where: str) -> None:
    unknown = set(data) - known
    if unknown:
        raise ValueError(f"{where}: unknown keys {sorted(unknown)}; known are {sorted(known)}")


def _interfere(cluster: ClusterBuilder, data: dict[str, Any]) -> None:
    """Let work like one workload have been seen to lose thousandths of its speed beside work like another."""
    _only(data, {"of", "beside", "loses"}, "interference")
    workloads = cluster.snapshot().workloads
    of, beside = (subject_of(workloads[f"default/{data[key]}"]) for key in ("of", "beside"))
    cluster.store.set_interference(of, beside, data["loses"])


def _prices(cluster: ClusterBuilder, mix: list[dict[str, Any]]) -> Prices:
    """Return prices for the cluster as the file has it, as the operator's solver makes them."""
    table = NodeTable()
    table.sync(cluster.snapshot().nodes)
    kinds = kinds_of(table)
    expected = {_expected(one, kinds): float(one["count"]) for one in mix}
    found = Pricer().price(stock_of(table, kinds), expected, kinds, NOW)
    if found is None:
        raise ValueError("the mix asks for nothing")
    return found


def _expected(data: dict[str, Any], kinds: tuple[DeviceKind, ...]) -> Shape:
    _only(data, {"count", "gpus", "share", "cpu", "product"}, "mix")
    words = tuple(data.get("product", ()))
    mask = sum(1 << i for i, (product, _) in enumerate(kinds) if words and product_matches(product, words))
    cpu = parse_milli(str(data.get("cpu", "250m")))
    return Shape(data.get("gpus", 1), data.get("share", FULL), cpu, mask or ANY)


def _policy(data: dict[str, Any]) -> Policy:
    if "score" in data:
        data["score"] = ScoreKind(data["score"])
    limits = PreemptionLimits(**data.pop("preemption", {}))
    moves = ConsolidationPolicy(**data.pop("consolidation", {}))
    cutting = _partitioning(data.pop("partitioning")) if "partitioning" in data else PartitioningPolicy()
    return Policy(preemption=limits, consolidation=moves, partitioning=cutting, **data)


def _partitioning(data: dict[str, Any]) -> PartitioningPolicy:
    layouts = {name: counts.items() for name, counts in data.pop("layouts", {}).items()}
    found = (
        Layout(name, tuple((parse_profile(text), n) for text, n in counts))
        for name, counts in layouts.items()
    )
    return PartitioningPolicy(enabled=True, layouts=tuple(found), **data)


def _queue(data: dict[str, Any]) -> Queue:
    _only(
        data,
        {
            "name",
            "parent",
            "nominal",
            "borrowing",
            "lending",
            "weight",
            "reclaim",
            "within",
            "ceiling",
            "namespaces",
        },
        f"queue {data.get('name')}",
    )

    def milli(key: str) -> int | None:
        return parse_milli(str(data[key])) if key in data else None

    return Queue(
        data["name"],
        parent=data.get("parent", ""),
        weight=data.get("weight", 1),
        nominal_gpu_milli=milli("nominal"),
        borrowing_gpu_milli=milli("borrowing"),
        lending_gpu_milli=milli("lending"),
        reclaim=data.get("reclaim", "Any"),
        preempt_within=data.get("within", True),
        priority_ceiling=data.get("ceiling"),
        namespaces=_selector(data.get("namespaces", {})),
    )


def _selector(labels: dict[str, str]) -> Selector:
    return Selector(tuple(Requirement(k, "In", (v,)) for k, v in sorted(labels.items())))


def _profile(data: dict[str, Any]) -> Any:
    _only(data, {"uri", "shape", "formats", "base", "draws", "loaded"}, f"model {data.get('uri')}")
    formats = tuple(FormatProfile(name, **values) for name, values in data.get("formats", {}).items())
    more: dict[str, Any] = {"base_bytes": parse_bytes(data["base"])} if "base" in data else {}
    more["draws"] = tuple(Draw(d["product"], d["format"], d["watts"] * 1000) for d in data.get("draws", []))
    more["load_times"] = tuple(
        LoadTime(on, "Warm", fmt, 20_000) for fmt, on in data.get("loaded", {}).items()
    )
    return builders.a_profile(data["uri"], SHAPES[data["shape"]], *formats, **more)


def _budget(data: dict[str, Any]) -> DisruptionBudget:
    return DisruptionBudget(f"default/{data['name']}", _selector(data["labels"]), data["allowed"])


def _node(data: dict[str, Any]) -> NodeBuilder:
    _only(
        data,
        {
            "name",
            "gpus",
            "product",
            "memory",
            "cpu",
            "host",
            "labels",
            "taints",
            "cordoned",
            "ready",
            "heard",
            "unhealthy",
            "observed",
            "strangers",
            "mig",
            "instances",
            "mig_strategy",
            "recut",
            "pods",
            "islands",
            "throttled",
            "risk",
            "watts",
            "budget",
            "rack",
            "rack_budget",
        },
        f"node {data.get('name')}",
    )
    node = a_node(data["name"]).with_host(
        str(data.get("cpu", 64)), data.get("host", "512Gi"), data.get("pods", 110)
    )
    if data.get("gpus"):
        node.with_gpus(
            data["gpus"], data.get("product", "A100-80G"), data.get("memory", ""), mig=data.get("mig", False)
        )
    for profiles in data.get("instances", []):
        node.cut_into(*profiles, strategy=data.get("mig_strategy", "mixed"))
    node.labelled(**data.get("labels", {}))
    node.linked(*data.get("islands", []))
    if "recut" in data:
        node.cut_before(*data["recut"])
    for taint in data.get("taints", []):
        node.tainted(**taint)
    _tell_of_devices(node, data)
    if data.get("cordoned"):
        node.cordoned()
    if not data.get("ready", True):
        node.not_ready()
    if "heard" in data:
        node.last_heard(data["heard"])
    return node


def _tell_of_devices(node: NodeBuilder, data: dict[str, Any]) -> None:
    for index in data.get("unhealthy", []):
        node.unhealthy(index)
    for index, amount in data.get("observed", {}).items():
        node.observed_using(index, amount)
    for index, amount in data.get("strangers", {}).items():
        node.used_by_strangers(index, amount)
    for index, milli in data.get("throttled", {}).items():
        node.held_down(index, milli)
    for index, milli in data.get("risk", {}).items():
        node.ageing(index, milli)
    if "watts" in data:
        node.drawing(*(data["watts"] if isinstance(data["watts"], list) else [data["watts"]]))
    node.within_watts(data.get("budget"), data.get("rack", ""), data.get("rack_budget"))


# How a key changes the workload: each gives the fields it sets.
_CHANGES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "memory": lambda v: {"memory_bytes": parse_bytes(v)},
    "shared": lambda v: {"memory_bytes": parse_bytes(v), "sharing": Sharing.SHARED},
    "sharing": lambda v: {"sharing": Sharing(v)},
    "profile": lambda v: {"mig_profile": parse_profile(v)},
    "model": lambda v: {"model": Model(v), "memory_bytes": None},
    "context": lambda v: {"max_model_len": v},
    "seqs": lambda v: {"max_num_seqs": v},
    "kind": lambda v: {"kind": WorkloadKind(v)},
    "min_runtime": lambda v: {"min_runtime": float(v)},
    "max_runtime": lambda v: {"max_runtime": float(v)},
    "node_selector": lambda v: {"node_selector": _selector(v)},
    "tolerations": lambda v: {"tolerations": tuple(Toleration(**t) for t in v)},
    "product": lambda v: {"selector": DeviceSelector(tuple(v))},
    "never": lambda v: {"preemption": PreemptionPolicy.NEVER} if v else {},
    "order": lambda v: {"disruption_order": tuple(DisruptionStep(s) for s in v)},
    "placement": lambda v: {"placement": Placement(v)},
    "suspended": lambda v: {"suspended": v},
    "quiet": lambda v: {"idle_since": NOW - v},
    "gpus": lambda v: {"accelerators": v},
    "priority": lambda v: {"priority_class": v},
    "queue": lambda v: {"queue": v},
    "replicas": lambda v: {"replicas": v},
    "cpu": lambda v: {"cpu_milli": parse_milli(str(v)) - SizingPolicy().cpu_only_milli},
    "least": lambda v: {"min_replicas": v},
    "elastic": lambda v: {"elastic": v},
    "together": lambda v: {"together": v, "min_replicas": v},
    "copies": lambda v: {"copies": v},
    "stages": lambda v: {"stages": v},
    "topology": lambda v: {"topology": Topology(v.get("required", ""), v.get("preferred", ""))},
}
_PRECISION = {"mode", "format", "allowed", "min_bits", "max_loss", "downgrade"}


def _workload(data: dict[str, Any]) -> WorkloadBuilder:
    _only(data, {"name", "namespace", "waited", *_CHANGES, *_PRECISION}, f"workload {data.get('name')}")
    builder = a_workload(data["name"], data.get("namespace", "default")).created(data.get("waited", 3600))
    for key, change in _CHANGES.items():
        if key in data:
            builder.with_(**change(data[key]))
    if _PRECISION & set(data):
        builder.at(
            data.get("mode", "Fixed" if "format" in data else "Auto"),
            data.get("format", ""),
            tuple(data.get("allowed", ("bf16", "int8", "int4"))),
            min_bits=data.get("min_bits", 4),
            max_quality_loss_milli=data.get("max_loss"),
            allow_downgrade=data.get("downgrade", True),
        )
    return builder


def _finished(name: str, queue: str, seconds: float) -> WorkloadBuilder:
    """Return training work on one device that a queue has finished."""
    past = a_workload(name).in_queue(queue)
    return past.with_(kind=WorkloadKind.FINE_TUNE, finished=True, gpu_seconds=int(seconds))


def _run(cluster: ClusterBuilder, data: dict[str, Any]) -> None:
    """Let replicas of a workload run: `on` lists {node, devices} of each pod, in order of ordinal and member."""
    data = dict(data)
    places = data.pop("on")
    ran = data.pop("ran", NOW - LONG_AGO)
    terminating = data.pop("terminating", None)  # seconds since its grace ended; negative: still to go
    labels, ready = data.pop("labels", {}), data.pop("ready", True)
    lowered = data.pop("lowered", None)  # seconds since it was asked to come down, which it has
    asleep, idle = data.pop("asleep", None), data.pop("idle", False)
    lent, lending = data.pop("lent", None), data.pop("lending", False)
    lender = data.pop("lender", "")  # whose lent memory it stands in
    least_runtime = float(data.pop("min_runtime", 0.0))
    streams, held = data.pop("streams", []), data.pop("held", None)
    moved_at = NOW - data.pop("moved") if "moved" in data else 0.0  # seconds since it was moved there
    host = {"cpu_milli": parse_milli(str(data["cpu"]))} if "cpu" in data else {}
    members = data.get("copies", 1) * data.get("stages", 1)
    data["replicas"] = data.get("replicas", -(-len(places) // members))
    builder = _workload(data)
    sized = _sized(cluster, builder.value)
    for number, place in enumerate(places):
        if place.get("lost"):
            continue
        pod = cluster.running(
            builder,
            place["node"],
            place.get("devices", ()),
            number // members,
            bound_at=NOW - ran,
            member=number % members,
            min_runtime=least_runtime,
            moved_at=moved_at,
            lender=_only_pod(cluster, lender) if lender else "",
            **host,
            **sized,
        )
        changes: dict[str, Any] = {
            "started_at": NOW - ran,
            "labels": {**pod.labels, **labels},
            "ready": ready,
        }
        if terminating is not None:
            changes |= {"phase": PodPhase.TERMINATING, "deletion_at": NOW - terminating}
        cluster.store.apply_pod(replace(pod, **changes))
        if lowered is not None:
            _come_down(cluster, builder.value, pod, NOW - lowered)
        if lent is not None:
            _come_down(cluster, builder.value, pod, NOW - lent, lent=True)
        if asleep is not None:
            _lay_down(cluster, builder.value, pod, asleep)
        if streams:
            cluster.store.set_busy(pod.key, Busy(streams[number]))
    if held is not None:
        _only(held, {"for", "since", "to"}, f"held of {builder.value.name}")
        at, whom = NOW - held["since"], f"default/{held['for']}"
        cluster.store.allow_replicas(
            builder.value.key, builder.value.uid, held.get("to", len(places)), at, whom
        )
    cluster.store.set_idle(builder.value.key, idle=idle)
    cluster.store.set_lending(builder.value.key, lending=lending or (False if lent is not None else None))


def _only_pod(cluster: ClusterBuilder, name: str) -> str:
    """Return the pod of a workload with one replica."""
    snapshot = cluster.snapshot()
    (pod,) = snapshot.pods_of[snapshot.workloads[f"default/{name}"].uid]
    return pod.key


def _come_down(
    cluster: ClusterBuilder, workload: Workload, pod: Pod, at: float, *, lent: bool = False
) -> None:
    assert pod.claim is not None
    profile = profile_of(cluster.snapshot(), workload)
    left = shrunk_bytes(pod.claim, workload, profile, Policy())
    assert left is not None, f"{workload.name} cannot come down"
    cluster.store.ask_to_lower(pod.key, pod.uid, left, at, lent=lent)
    cluster.store.note_yielded(pod.key, pod.uid)


def _lay_down(cluster: ClusterBuilder, workload: Workload, pod: Pod, told: dict[str, Any]) -> None:
    """Let a pod sleep; `told` has for whom ("": nobody asked for it), since how many seconds, and whether it is seen to."""
    _only(told, {"for", "since", "down"}, f"asleep of {workload.name}")
    assert pod.claim is not None
    profile = profile_of(cluster.snapshot(), workload)
    whom = f"default/{told['for']}" if told.get("for") else ""
    sleeping = asleep_as(pod.claim, workload, profile, Policy(), NOW - told["since"], whom)
    assert sleeping is not None, f"{workload.name} cannot sleep"
    cluster.store.ask_to_sleep(pod.key, pod.uid, sleeping)
    if told.get("down", True):
        cluster.store.note_asleep(pod.key, pod.uid)


def _sized(cluster: ClusterBuilder, workload: Workload) -> dict[str, Any]:
    """Return what the claims of a workload hold whose size comes from its model: the best there is."""
    if workload.memory_bytes is not None:
        return {}
    snapshot = cluster.snapshot()
    best = sizes(workload, profile_of(snapshot, workload), Policy()).sizes[0]
    return {
        "memory": str(best.bytes_per_device),
        "format": best.format,
        "max_model_len": best.max_model_len,
        "kv_tokens": best.kv_tokens,
    }
