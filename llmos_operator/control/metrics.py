"""Metrics of the operator's own work. Scheduler decisions, writes, freshness of what is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from llmos_operator.api.conditions import Reason
from llmos_operator.observability.metrics import (
    DECISION_BUCKETS,
    LOAD_BUCKETS,
    REQUEST_BUCKETS,
    WAIT_BUCKETS,
    span_counter,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class OperatorMetrics:
    """All metrics of the process, on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.spans = span_counter(registry)
        self.leader = Gauge("llmos_operator_leader", "1 while this process may write.", registry=registry)
        self.synced = Gauge(
            "llmos_operator_synced",
            "1 while all lists are complete and decisions are taken.",
            registry=registry,
        )
        self.view_age = Gauge(
            "llmos_operator_view_age_seconds",
            "Seconds since the last sign of life of the watch of a kind.",
            ["kind"],
            registry=registry,
        )
        self.repaired = Counter(
            "llmos_operator_repaired_objects_total",
            "Changes a resync found that no watch had told.",
            ["kind"],
            registry=registry,
        )
        self.unreadable = Counter(
            "llmos_operator_unreadable_objects_total",
            "Objects that could not be understood and were left out.",
            ["kind"],
            registry=registry,
        )
        self.requests = Histogram(
            "llmos_operator_api_request_seconds",
            "Requests to the API server by verb, resource and status code (0: no answer).",
            ["verb", "resource", "code"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.cycles = Histogram(
            "llmos_operator_cycle_seconds",
            "Planning time of one cycle.",
            buckets=DECISION_BUCKETS,
            registry=registry,
        )
        self.interrupted = Counter(
            "llmos_operator_cycles_interrupted_total",
            "Cycles that ended at their time budget; the rest was looked at in the next one.",
            registry=registry,
        )
        self.failed_plans = Counter(
            "llmos_operator_failed_plans_total",
            "Cycles whose plan could not be made because of a bug; nothing new is placed meanwhile.",
            registry=registry,
        )
        self.prices = Counter(
            "llmos_operator_prices_total",
            "Looks at the cluster for prices by result (solved, unchanged, too-few, failed, late).",
            ["result"],
            registry=registry,
        )
        self.prices_at = Gauge(
            "llmos_operator_prices_timestamp_seconds",
            "When the cluster was read that the prices in use were made from; 0: none, best fit decides.",
            registry=registry,
        )
        self.price_seconds = Histogram(
            "llmos_operator_price_seconds",
            "Time from the question for prices to the answer of the solver, which is a process beside decisions.",
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.placements = Counter(
            "llmos_operator_placements_total",
            "Replicas given a place, by the score that chose it (Fragmentation, BestFit).",
            ["score"],
            registry=registry,
        )
        self.actions = Counter(
            "llmos_operator_actions_total", "Actions of plans by kind.", ["action"], registry=registry
        )
        self.bind_seconds = Histogram(
            "llmos_operator_bind_seconds",
            "Time from the creation of a workload to the creation of its first pod.",
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        self.ready_seconds = Histogram(
            "llmos_operator_ready_seconds",
            "Time from the decision to place a replica until it serves.",
            buckets=LOAD_BUCKETS,
            registry=registry,
        )
        self.bind_failures = Counter(
            "llmos_operator_bind_failures_total", "Pods the API server refused.", registry=registry
        )
        self._add_disruptions(registry)
        self.holders = Gauge(
            "llmos_operator_holders",
            "Holder pods by state: used (shared work is on their device), idle, coming (nobody told their device yet), leaving; missing: devices with shared work and without one.",
            ["state"],
            registry=registry,
        )
        self.holder_pods = Counter(
            "llmos_operator_holder_pods_total",
            "Holder pods by what became of them (made, removed, refused).",
            ["result"],
            registry=registry,
        )
        self.waiting_writes = Gauge(
            "llmos_operator_waiting_writes", "Writes waiting or under way.", registry=registry
        )
        self.fenced = Gauge(
            "llmos_operator_fenced_writes",
            "Writes dropped because this process did not lead any more.",
            registry=registry,
        )
        self.gangs = Gauge(
            "llmos_operator_gangs",
            "Replicas of several pods by state (ready, starting, incomplete, waiting).",
            ["state"],
            registry=registry,
        )
        self.telemetry_at = Gauge(
            "llmos_operator_telemetry_timestamp_seconds",
            "When the last telemetry of a node was taken, or when the node became known.",
            ["node"],
            registry=registry,
        )
        self.unreserved = Gauge(
            "llmos_operator_unreserved_bytes",
            "Device memory observed in use beyond what the ledger reserves, by node.",
            ["node"],
            registry=registry,
        )
        self.overused = Gauge(
            "llmos_operator_overused_devices",
            "Devices that take no new work because far more is in use than reserved, by node.",
            ["node"],
            registry=registry,
        )
        self.stranger_bytes = Gauge(
            "llmos_operator_stranger_bytes",
            "Device memory used by processes of nobody the ledger knows of there, by node.",
            ["node"],
            registry=registry,
        )
        self.overusing_replicas = Gauge(
            "llmos_operator_overusing_replicas",
            "Pods that use clearly more of a device than they were given, by node.",
            ["node"],
            registry=registry,
        )
        self.inspections = Counter(
            "llmos_operator_inspections_total",
            "Inspections of models by result.",
            ["result"],
            registry=registry,
        )
        self.profiles = Gauge(
            "llmos_operator_model_profiles",
            "ModelProfiles by whether a workload names the model (used, unused).",
            ["use"],
            registry=registry,
        )
        self.profiles_deleted = Counter(
            "llmos_operator_model_profiles_deleted_total",
            "ModelProfiles deleted because no workload had named the model for profileRetention.",
            registry=registry,
        )
        self.telemetry = Counter(
            "llmos_operator_telemetry_batches_total",
            "Telemetry batches by result.",
            ["result"],
            registry=registry,
        )

        self._add_standing(registry)
        self._add_usage(registry)
        self._add_health(registry)
        self._add_devices(registry)
        self._add_activity(registry)
        # A label value that first shows with a count of its own has no increase Prometheus could see.
        for start in ("expected", "unknown"):
            self.reservations.labels(start)
        for result in ("made", "removed", "refused"):
            self.holder_pods.labels(result)
        for company in ("alone", "together", "unclear"):
            self.interference_samples.labels(company)
        for result in ("accepted", "late"):
            self.telemetry.labels(result)

    def _add_disruptions(self, registry: CollectorRegistry) -> None:
        """What is done to some so that others can start."""
        self.evictions = Counter(
            "llmos_operator_evictions_total",
            "Evictions by reason and result (accepted, refused).",
            ["reason", "result"],
            registry=registry,
        )
        self.shrinks = Counter(
            "llmos_operator_shrinks_total",
            "Replicas asked to give up KV cache, by what became of it (asked, yielded, refused, restored).",
            ["result"],
            registry=registry,
        )
        self.loans = Counter(
            "llmos_operator_loans_total",
            "Replicas that idled and were asked to lend KV cache (asked), loans that ended (returned), and borrowers evicted because "
            "the lender works again (called_back).",
            ["result"],
            registry=registry,
        )
        self.lent_bytes = Gauge(
            "llmos_operator_lent_bytes",
            "Device memory that idle replicas have lent, and how much of it borrowers hold, by node and side (lent, borrowed).",
            ["node", "side"],
            registry=registry,
        )
        self.replicas_given_up = Counter(
            "llmos_operator_replicas_given_up_total",
            "Replicas that elastic workloads did without so that others could start, by what became of it (given, refused), and how "
            "often some were wanted again (restored).",
            ["result"],
            registry=registry,
        )
        self.sleeps = Counter(
            "llmos_operator_sleeps_total",
            "Replicas asked to sleep, by what became of it (asked, asleep, refused, woken).",
            ["result"],
            registry=registry,
        )
        self.moves = Counter(
            "llmos_operator_moves_total",
            "Replicas started again elsewhere so that others could start, by result of the eviction (accepted, refused).",
            ["result"],
            registry=registry,
        )
        for reason in (
            Reason.PREEMPTED,
            Reason.RECLAIMED,
            Reason.CALLED_BACK,
            Reason.GPU_UNHEALTHY,
            Reason.NODE_LOST,
        ):
            for result in ("accepted", "refused"):
                self.evictions.labels(reason.value, result)
        for result in ("asked", "yielded", "refused", "restored"):
            self.shrinks.labels(result)
        for result in ("asked", "returned", "called_back"):
            self.loans.labels(result)
        for result in ("given", "refused", "restored"):
            self.replicas_given_up.labels(result)
        for result in ("asked", "asleep", "refused", "woken"):
            self.sleeps.labels(result)
        for result in ("accepted", "refused"):
            self.moves.labels(result)

    def _add_standing(self, registry: CollectorRegistry) -> None:
        self.workloads = Gauge(
            "llmos_operator_workloads", "Workloads by phase.", ["phase"], registry=registry
        )
        self.pending = Gauge(
            "llmos_operator_pending_workloads",
            "Workloads that wait, by reason.",
            ["reason"],
            registry=registry,
        )
        self.reservations = Gauge(
            "llmos_operator_reservations",
            "Places that are kept for work that cannot start yet, by whether its start is known (expected, unknown).",
            ["start"],
            registry=registry,
        )
        self.placeholders = Gauge(
            "llmos_operator_placeholder_pods",
            "Placeholder pods wanted to show cluster autoscalers what work lacks capacity.",
            registry=registry,
        )
        self.waiting = Gauge(
            "llmos_operator_waiting_workloads",
            "Workloads with a replica that has no place, by queue.",
            ["queue"],
            registry=registry,
        )
        self.waiting_since = Gauge(
            "llmos_operator_waiting_since_timestamp_seconds",
            "When the workload that waits longest began to wait, by queue; absent where none waits.",
            ["queue"],
            registry=registry,
        )

    def _add_usage(self, registry: CollectorRegistry) -> None:
        holder = ["namespace", "workload", "queue", "product"]
        self.gpu_seconds = Counter(
            "llmos_operator_gpu_seconds_total",
            "Devices held, times seconds; a shared device counts by the part that is held, as quota does.",
            holder,
            registry=registry,
        )
        self.gpu_busy_seconds = Counter(
            "llmos_operator_gpu_busy_seconds_total",
            "Of the devices held, times seconds: those in which the device worked, as far as it tells.",
            holder,
            registry=registry,
        )
        self.gpu_idle_seconds = Counter(
            "llmos_operator_gpu_idle_seconds_total",
            "Of the devices held, times seconds: those in which the device did nothing by its multiprocessors, memory and power, or a server had no request.",
            holder,
            registry=registry,
        )
        self.gpu_lost_seconds = Counter(
            "llmos_operator_gpu_lost_seconds_total",
            "Devices times seconds that evictions threw away: the load of a server, all that a job had done in its pod.",
            holder,
            registry=registry,
        )
        self.energy = Counter(
            "llmos_operator_energy_joules_total",
            "Energy of the devices held, as far as they tell; of a shared device the part that is held.",
            holder,
            registry=registry,
        )
        self.gpu_memory = Counter(
            "llmos_operator_gpu_memory_byte_seconds_total",
            "Device memory reserved, times seconds: what the ledger counts as held.",
            holder,
            registry=registry,
        )
        self.tokens = Counter(
            "llmos_operator_tokens_total",
            "Tokens as the runtimes count them, by kind (prompt, generation).",
            ["namespace", "workload", "queue", "kind"],
            registry=registry,
        )

    def _add_devices(self, registry: CollectorRegistry) -> None:
        level = ["level", "name"]
        self.power_budget = Gauge(
            "llmos_operator_power_budget_watts",
            "What the devices of a node or rack may draw together, by level (node, rack) and name; only where a label says so.",
            level,
            registry=registry,
        )
        self.power_expected = Gauge(
            "llmos_operator_power_expected_watts",
            "What they are expected to draw with all at work that is placed there; absent where a device tells no limit.",
            level,
            registry=registry,
        )
        self.power_drawn = Gauge(
            "llmos_operator_power_drawn_watts",
            "What they draw by their own word; absent where a device does not tell.",
            level,
            registry=registry,
        )
        self.strain = Gauge(
            "llmos_operator_device_strain_ratio",
            "How much less a device counts in placement than its like, by kind (throttled, risk); only devices that do.",
            ["node", "gpu", "kind"],
            registry=registry,
        )
        self.held_down = Gauge(
            "llmos_operator_held_down_devices",
            "Devices that take no new work because heat or a power brake holds them down most of the time, by node.",
            ["node"],
            registry=registry,
        )

    def _add_activity(self, registry: CollectorRegistry) -> None:
        self.activity = Gauge(
            "llmos_operator_workload_activity",
            "Workloads with pods by what they do (Busy, Idle, Unknown) and what says so (requests, progress, start, sm, dram, "
            "power, asleep, none).",
            ["activity", "sign"],
            registry=registry,
        )
        self.interference = Gauge(
            "llmos_operator_interference_ratio",
            "Part of its speed that a model was seen to lose on a shared device beside another one, the largest 64.",
            ["model", "beside"],
            registry=registry,
        )
        self.interference_samples = Counter(
            "llmos_operator_interference_samples_total",
            "Speeds of replicas on shared devices by what was at work beside them (alone, together, unclear).",
            ["company"],
            registry=registry,
        )

    def _add_health(self, registry: CollectorRegistry) -> None:
        self.remedies = Gauge(
            "llmos_operator_remedies",
            "What the health policy asks for: by action and state (advice, allowed, young, breaker, treated).",
            ["action", "state"],
            registry=registry,
        )
        self.treatments = Gauge(
            "llmos_operator_treatments",
            "Devices and nodes that are treated, by phase (Draining, Resetting, Waiting, Probation, Released).",
            ["phase"],
            registry=registry,
        )
        self.breaker_held = Gauge(
            "llmos_operator_breaker_held_nodes",
            "Nodes on which nothing is done about sick devices because the circuit breaker holds.",
            registry=registry,
        )
        self.breaker_acted = Gauge(
            "llmos_operator_breaker_acted_nodes",
            "Nodes acted on because of sick devices that count for the circuit breaker now.",
            registry=registry,
        )

    def observe_request(self, verb: str, plural: str, status: int, seconds: float) -> None:
        """Count one API request; watches count when they open."""
        self.requests.labels(verb, plural, str(status)).observe(seconds)
