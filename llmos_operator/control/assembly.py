"""The operator's parts, each made once and given what it needs.

Nothing here starts anything; `control.app` does. Where two parts need each other, one gets a function that is called
later.
"""

from __future__ import annotations

import random
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.actuators.care import CareWriter
from llmos_operator.actuators.cutting import Cutting
from llmos_operator.actuators.deviceclaims import DeviceClaims
from llmos_operator.actuators.executor import Executor
from llmos_operator.actuators.holders import HolderWriter
from llmos_operator.actuators.inspector import Inspector
from llmos_operator.actuators.nursing import Nursing
from llmos_operator.actuators.placeholders import Placeholders
from llmos_operator.actuators.runtime_client import RuntimeClient
from llmos_operator.actuators.status import StatusWriter
from llmos_operator.actuators.support import ControlTokens, Support
from llmos_operator.actuators.writequeue import WriteQueue
from llmos_operator.api.conditions import Reason
from llmos_operator.clock import SystemClock
from llmos_operator.cluster import port as ports
from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.events import EventRecorder
from llmos_operator.cluster.fence import FencedPort
from llmos_operator.cluster.lease import LeaderLease, holder_identity
from llmos_operator.cluster.mirror import Change
from llmos_operator.cluster.retry import ONCE, Retrier
from llmos_operator.control.accounting import Accounts
from llmos_operator.control.activity import Activities
from llmos_operator.control.batcher import Batcher
from llmos_operator.control.claiming import Claiming
from llmos_operator.control.console.server import ConsoleServer, console_host
from llmos_operator.control.copies import Copies
from llmos_operator.control.demand import DemandBook
from llmos_operator.control.drawing import Drawing
from llmos_operator.control.expiry import Expiry
from llmos_operator.control.feedback import Feedback
from llmos_operator.control.hearing import Hearing
from llmos_operator.control.holding import Holding
from llmos_operator.control.identity import Identities
from llmos_operator.control.ingest import IngestServer
from llmos_operator.control.intake import Intake
from llmos_operator.control.interference import Interference
from llmos_operator.control.kueuekeeper import KueueKeeper
from llmos_operator.control.leadership import LeaderLabel, Leadership
from llmos_operator.control.loop import Loop
from llmos_operator.control.observe import Observer
from llmos_operator.control.placement_spans import PlacementSpans
from llmos_operator.control.policies import course_of, gangs_of, holder_pods_of, pods_of, policy_of
from llmos_operator.control.poller import Poller
from llmos_operator.control.pricing import Pricing, SolverProcess
from llmos_operator.control.profiles import Profiles
from llmos_operator.control.recorder import CycleRecorder
from llmos_operator.control.records import Records
from llmos_operator.control.remedies import Remedies
from llmos_operator.control.retention import Retention
from llmos_operator.control.review import Reviewer
from llmos_operator.control.scaleup import ScaleUp
from llmos_operator.control.sleepers import Sleepers
from llmos_operator.control.summaries import Summaries
from llmos_operator.control.treating import Treating
from llmos_operator.control.trespass import Trespass
from llmos_operator.control.watching import Watching, wired
from llmos_operator.control.working import DeviceWork
from llmos_operator.control.yielding import Yielding
from llmos_operator.observability import tracing
from llmos_operator.observability.footprint import settle
from llmos_operator.observability.heartbeat import Heartbeat
from llmos_operator.observability.logging import logger
from llmos_operator.scheduler.claims import host_needs
from llmos_operator.settings import BadSettings
from llmos_operator.state.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.cluster.port import ClusterPort, Json, Kind
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.control.placement_spans import Cycle
    from llmos_operator.control.records import Record
    from llmos_operator.observability.tracing import Tracer
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.settings import OperatorSettings
    from llmos_operator.state.care import Treatment
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Workload

log = logger(__name__)

LOOP_LIMIT = 60.0  # seconds without a turn of the loop after which the process is not alive
_RESTART = Curve(base=5.0, cap=300.0)  # after failures of a workload
_OBJECT = Curve(base=1.0, cap=60.0)  # after failed writes of one object
_EVICT = Curve(base=2.0, cap=30.0)
_CREATE = Curve(
    base=0.2, cap=10.0
)  # its claim is held meanwhile, and an API server may be back at any moment
_INSPECT = Curve(base=5.0, cap=300.0)


class Assembly:
    """All parts of one operator process."""

    def __init__(self, port: ClusterPort, settings: OperatorSettings, metrics: OperatorMetrics) -> None:
        """Raises BadSettings and BadTracing for settings that only show to be bad when they are used."""
        self.settings, self.metrics = settings, metrics
        self.clock = SystemClock()
        self.rng = random.Random()  # noqa: S311 - jitter, not cryptography
        self.policy, self.pod_settings = policy_of(settings), pods_of(settings)
        self.store = Store(claims_devices=settings.resource_claims.enabled)
        self.records, self.demand = Records(), DemandBook()
        self.work, self.drawing = DeviceWork(), Drawing()
        self.accounts = Accounts(metrics, self.records, self.work)
        self.interference = Interference(metrics, self.records)
        self.activities = Activities(metrics, self.records, self.demand, self.work)
        self.tracer = self._open_tracer()
        self.spans = PlacementSpans(self.tracer, self.clock.now, self._placed_before)
        scheduling = settings.scheduling
        self.batcher = Batcher(quiet=scheduling.quiet, longest=scheduling.max_batch)
        self.heartbeat = Heartbeat(LOOP_LIMIT)
        self.failures: KeyedBackoff[str] = KeyedBackoff(_RESTART, self.rng)
        self._make_leadership(port)
        self._make_writers()
        self._make_watching()
        self._make_actuators()
        self._make_loop()
        self._make_servers()

    def _open_tracer(self) -> Tracer:
        def count(result: str, spans: int) -> None:
            self.metrics.spans.labels(result).inc(spans)

        # Placements are few: all are kept, whatever share of requests is.
        return tracing.open_tracer(
            "operator", endpoint=self.settings.tracing.endpoint, always=True, count=count
        )

    def _make_leadership(self, port: ClusterPort) -> None:
        settings = self.settings
        self.lease = LeaderLease(
            port,
            settings.lease,
            namespace=settings.namespace,
            identity=holder_identity(settings.identity),
            on_regained=self._regained,
        )
        self.port: ClusterPort = FencedPort(
            port, self.lease.writes.writing
        )  # for every part but the lease itself
        self.leadership = Leadership(self.lease, self.store, resumed=self._resume)
        self.retrier = Retrier(self.rng, ONCE, allowed=self.leadership.may_write)
        self.label = LeaderLabel(port, settings.namespace)  # a standby takes its label off

    def _regained(self) -> None:
        self.watching.resync.ask()

    def _resume(self) -> None:
        """Decisions go on after a lapse: what the fence dropped meanwhile is found by looking at everything."""
        self.executor.resume()
        self.hearing.sweep()
        settle()
        self.batcher.trigger()

    def _make_writers(self) -> None:
        self.queue = WriteQueue(self.settings.scheduling.writes, self.leadership.may_write)
        self.recorder = EventRecorder(self.port, self.clock, instance=self.settings.identity)
        self.feedback = Feedback(
            self.records,
            self.recorder,
            self.metrics,
            self.clock,
            self.failures,
            review=self.review,
            evicted=lambda evict: self.accounts.evicted(evict, self.store, self.clock.now()),
            spans=self.spans,
        )
        self.trespass = Trespass(self.metrics, self.recorder, self._gpu_node_uid)
        self.tokens = ControlTokens(_master_key(self.settings.master_key_file))
        self.summaries = Summaries(
            self.port, self.store, self.queue, self.clock, may_act=self.leadership.may_act
        )

        self.copies = Copies(self.port, self.store, self.queue, self.clock, may_act=self.leadership.may_act)

    def _make_watching(self) -> None:
        intake = Intake(
            self.store,
            self.records,
            lambda: self.support,
            self.metrics,
            namespace=self.settings.namespace,
            now=self.clock.monotonic,
            changed=self.batcher.trigger,
            review=self.review,
            gone=self._gone,
            idle=self.activities.idle,
        )
        self.watching = Watching(
            self.port,
            self.store,
            self.metrics,
            self.rng,
            sink=wired(intake, self._tap),
            interval=self.settings.scheduling.resync,
            begin=self.leadership.lapses,
            confirmed=self.leadership.confirm,
            synced=self._synced,
        )

    def _make_actuators(self) -> None:
        mirrors, runtime = self.watching.mirrors, self.settings.runtime
        self.care = CareWriter(self.port, self.store)
        self.support = Support(
            self.port, self.retrier, mirrors[ports.SERVICES], self.tokens, runtime.control_secret
        )
        self.placeholders = Placeholders(self.port, self.queue, self.clock, KeyedBackoff(_OBJECT, self.rng))
        self.device_claims = DeviceClaims(
            self.port,
            self.store,
            self.queue,
            self.retrier,
            mirrors[ports.RESOURCE_CLAIMS],
            self.clock,
            KeyedBackoff(_OBJECT, self.rng),
            self.settings.resource_claims,
        )
        self.executor = Executor(
            port=self.port,
            store=self.store,
            queue=self.queue,
            retrier=self.retrier,
            pods=mirrors[ports.PODS],
            support=self.support,
            device_claims=self.device_claims,
            outcomes=self.feedback,
            settings=self.pod_settings,
            clock=self.clock,
            evictions=KeyedBackoff(_EVICT, self.rng),
            creations=KeyedBackoff(_CREATE, self.rng),
            care=self.care,
            breaker=self.policy.breaker,
            is_simulated=self._is_simulated,
            has_copy=self._has_copy,
            cutting=Cutting(self.port, self.store, self.queue, self.recorder, self.clock),
        )
        observer = Observer(
            self.store,
            self.records,
            self.accounts,
            self.activities,
            self.policy,
            self.clock,
            self.settings.url_template,
        )
        self.status = StatusWriter(
            port=self.port,
            queue=self.queue,
            mirror=mirrors[ports.MODEL_WORKLOADS],
            observe=observer.observe,
            busy=self._in_motion,
            clock=self.clock,
            backoff=KeyedBackoff(_OBJECT, self.rng),
        )
        self._make_remedies()
        self._make_holding()
        self.inspector = Inspector(self.settings.sources)
        self.client = RuntimeClient(self.tokens.token)

    def _make_remedies(self) -> None:
        settings = self.settings.health
        nursing = Nursing(
            self.port,
            self.queue,
            self.care,
            namespace=self.settings.namespace,
            job=settings.reset_job,
            reset_ended=self._reset_ended,
        )
        self.treating = Treating(
            self.store,
            nursing,
            self.recorder,
            self.metrics,
            self.policy,
            course_of(self.settings),
            act=settings.mode == "Act",
        )
        self.remedies = Remedies(
            self.metrics, self.policy, mode=settings.mode, treating=self.treating, recorder=self.recorder
        )

    def _make_holding(self) -> None:
        settings = self.settings.holders
        writer = HolderWriter(
            self.port,
            self.store,
            self.queue,
            self.watching.mirrors[ports.PODS],
            self.clock,
            KeyedBackoff(_OBJECT, self.rng),
            holder_pods_of(self.settings),
            owner=settings.owner,
            done=self._holder_done,
            refused=self._holder_refused,
        )
        self.holding = Holding(
            self.store,
            writer,
            self.recorder,
            self.metrics,
            self.clock,
            rest=settings.rest,
            gpu_node_uid=self._gpu_node_uid,
        )
        self.claiming = Claiming(
            self.store,
            self.device_claims,
            self.clock,
            self.executor.retire,
            enabled=self.settings.resource_claims.enabled,
            namespaces=self.settings.scheduling.namespaces,
        )

    def _hold(self, plan: Plan | None) -> None:
        """Look after what holds devices for our pods."""
        self.holding.turn(plan)
        self.claiming.turn()

    def _holder_done(self, result: str) -> None:
        self.holding.done(result)

    def _holder_refused(self, node: str, why: str) -> None:
        self.holding.refused(node, why)

    def _reset_ended(self, node: str, one: Treatment, failure: str) -> None:
        self.treating.reset_ended(node, one, failure)

    def _make_loop(self) -> None:
        self.profiles = Profiles(
            self.port,
            self.inspector,
            lambda: self.watching.mirrors[ports.MODEL_PROFILES],
            self.metrics,
            self.clock,
            KeyedBackoff(_INSPECT, self.rng),
            may_write=self.leadership.may_write,
            failed=lambda model, _: self._review_users_of(model),
            used=self._models,
        )
        # An operator of some namespaces does not see who else uses a profile.
        everywhere = not self.settings.scheduling.namespaces
        self.retention = Retention(
            self.port,
            self.profiles,
            self.metrics,
            self.clock,
            keep=self.settings.profile_retention if everywhere else 0.0,
            used=self._models,
            may_act=self.leadership.may_act,
        )
        self.kueue = KueueKeeper(
            self.port,
            self.store,
            self.queue,
            self.clock,
            self.rng,
            KeyedBackoff(_OBJECT, self.rng),
            enabled=self.settings.kueue.enabled,
            review=self.review,
            host_needs=lambda workload: host_needs(workload, workload.memory_bytes or 0, self.policy),
        )
        self.reviewer = Reviewer(
            store=self.store,
            records=self.records,
            executor=self.executor,
            support=self.support,
            profiles=self.profiles,
            feedback=self.feedback,
            queue=self.queue,
            demand=self.demand,
            failures=self.failures,
            sources=self.settings.sources,
            gangs=gangs_of(self.settings),
            expiry=Expiry(
                self.port,
                self.queue,
                self.clock,
                KeyedBackoff(_OBJECT, self.rng),
                failed=self.review,
            ),
            kueue=self.kueue,
            clock=self.clock,
            working=self.activities.working,
        )
        self.pricing = Pricing(
            store=self.store,
            policy=self.policy,
            settings=self.settings.scheduling.prices,
            metrics=self.metrics,
            clock=self.clock,
            solver=SolverProcess(),
            may_act=self.leadership.may_act,
        )
        self.scale_up = ScaleUp(
            self.store,
            self.placeholders,
            self.policy,
            self.settings.scheduling.scale_up,
            self.metrics,
            self.clock,
            self._asked_for_nodes,
        )
        self.loop = Loop(
            store=self.store,
            batcher=self.batcher,
            reviewer=self.reviewer,
            executor=self.executor,
            feedback=self.feedback,
            policy=self.policy,
            metrics=self.metrics,
            heartbeat=self.heartbeat,
            clock=self.clock,
            plan_seconds=self.settings.scheduling.plan_budget,
            search_seconds=self.settings.scheduling.search_budget,
            may_act=self.leadership.may_act,
            reviewed=self.status.mark,
            record=self._recorder(),
            planned=self._planned,
            hold=self._hold,
            prices=self.pricing.current,
        )
        self.hearing = Hearing(self)
        self.poller = Poller(self.client, self.records, self.clock, reported=self.hearing.report)
        self.yielding = Yielding(
            self.store,
            self.records,
            self.client,
            self.executor.lowering,
            self.clock,
            timeout=self.settings.scheduling.shrink_timeout,
            narrowing_timeout=self.settings.scheduling.requantise_timeout,
            may_act=self.leadership.may_act,
        )
        self.sleepers = Sleepers(
            self.store,
            self.records,
            self.client,
            self.executor.lowering,
            self.clock,
            timeout=self.settings.scheduling.sleep_timeout,
            may_act=self.leadership.may_act,
        )

    def _recorder(self) -> Callable[[Snapshot, Plan, Prices | None], None] | None:
        scheduling = self.settings.scheduling
        if not scheduling.record_folder:
            return None
        return CycleRecorder(scheduling.record_folder, scheduling.recorded_cycles, self.policy).take

    def _make_servers(self) -> None:
        settings = self.settings
        self.ingest = IngestServer(
            Identities(self.port, self.clock),
            self.metrics,
            self.clock,
            namespace=settings.namespace,
            agent=settings.agent_account,
            gateway=settings.gateway_account,
            leading=self.leadership.may_write,
            on_telemetry=self.hearing.telemetry,
            on_demand=self.hearing.demand,
        )
        self.console_host = console_host(settings.console.host, settings.host)
        self.console = ConsoleServer(
            self.store,
            self.records,
            self.accounts,
            self.remedies,
            self.clock,
            rack_label=self.policy.rack_label,
            leading=self.leadership.may_write,
        )

    # -- what parts tell each other ------------------------------------------------------------------------

    def review(self, key: str) -> None:
        """Look at a workload again: first at its pods, then at its status, which tells what the first look found."""
        self.loop.review(key)

    def _planned(self, plan: Plan, cycle: Cycle) -> None:
        self.spans.planned(plan, cycle)
        self.scale_up.planned(plan)

    def _asked_for_nodes(self, workload: Workload, note: str) -> None:
        record = self.records.by_uid(workload.uid)
        if record is not None:
            self.feedback.tell(record, "Normal", Reason.NODES_REQUESTED, note)

    def _in_motion(self, key: str) -> bool:
        """Return whether a status written now would be out of date at once: writes, or the first decision, are due."""
        record = self.records.get(key)
        return self.executor.busy(key) or (record is not None and self.loop.undecided(record))

    def _gone(self, record: Record) -> None:
        self.reviewer.forget(record)
        self.status.forget(record.key)
        self.spans.forget(record.uid)

    def _placed_before(self, workload_uid: str) -> bool:
        record = self.records.by_uid(workload_uid)
        return record is not None and bool(record.status.get("usage"))

    def _synced(self) -> None:
        """Every list is complete: look at everything once, also for pods whose workload was deleted meanwhile."""
        log.info("synced", workloads=len(self.records))
        self.hearing.sweep()
        self.batcher.trigger()

    def _models(self) -> set[tuple[str, str]]:
        """Return URI and revision of every workload's model."""
        return {(one.stub.model.uri, one.stub.model.revision) for one in self.records}

    def _review_users_of(self, model: tuple[str, str]) -> None:
        for record in self.records:
            if (record.stub.model.uri, record.stub.model.revision) == model:
                self.review(record.key)

    def _tap(self, kind: Kind, change: Change, body: Json) -> None:
        """See raw objects that parts beside the store care about."""
        exists = change is Change.APPLIED
        if kind == ports.MODEL_PROFILES:
            self.profiles.note(body, exists=exists)
        elif kind == ports.NAMESPACES and not exists:
            self.support.forget_namespace(str(body["metadata"]["name"]))
        elif kind == ports.RESOURCE_CLAIMS:
            self.device_claims.note(body)
        elif kind == ports.MODEL_CACHES:
            self.copies.note(kind, body, exists=exists)
        elif kind in {ports.GPU_NODES, ports.WORKLOAD_QUEUES}:
            self.summaries.note(kind, body, exists=exists)
            if kind == ports.GPU_NODES:
                self.copies.note(kind, body, exists=exists)
            if kind == ports.GPU_NODES and not exists:
                self.ingest.forget_node(str(body["metadata"]["name"]))

    def _gpu_node_uid(self, node: str) -> str:
        known = self.watching.mirrors[ports.GPU_NODES].known(("", node))
        return known.uid if known is not None else ""

    def _is_simulated(self, node: str) -> bool:
        state = self.store.node(node)
        return state is not None and state.gpu is not None and state.gpu.mode == "simulated"

    def _has_copy(self, node: str, key: str) -> bool:
        state = self.store.node(node)
        return state is not None and state.gpu is not None and key in state.gpu.models | state.gpu.coming


def _master_key(path: str) -> bytes:
    if not path:
        log.warning("no masterKeyFile is set: control tokens change with every restart of the operator")
        return secrets.token_bytes(32)
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise BadSettings(f"masterKeyFile = {path!r} cannot be read: {error.strerror}") from error
    if len(key) < 16:  # noqa: PLR2004 - bytes; less could be guessed
        raise BadSettings(f"masterKeyFile = {path!r} holds {len(key)} bytes; at least 16 are needed")
    return key
