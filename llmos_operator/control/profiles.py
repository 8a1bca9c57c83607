"""Keeps ModelProfiles: inspects models nobody has looked at yet, and corrects estimates by what runtimes measure.

One inspection per model and revision, however many workloads use it. What is learned goes to the API first and comes
back through the watch into the store, so every replica of the operator knows the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.api.conditions import Condition, Reason
from llmos_operator.api.meta import ConditionEntry, ConditionStatus
from llmos_operator.api.runtime.memory import kv_bytes_per_token, weights_bytes
from llmos_operator.api.v1alpha1.modelprofile import (
    FormatProfile,
    LoadPath,
    LoadTime,
    ModelProfileStatus,
    PowerDraw,
    ShapeStatus,
    profile_name,
)
from llmos_operator.api.v1alpha1.workload_model import WeightFormat
from llmos_operator.clock import rfc3339
from llmos_operator.cluster.port import MODEL_PROFILES
from llmos_operator.errors import LlmosError, Permanent, Retryable
from llmos_operator.manifests.observed import Refusal
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.inspector import Inspection, Inspector
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.mirror import Mirror
    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.control.drawing import Finding
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.control.reconcile import Shortage

log = logger(__name__)

Model = tuple[str, str]  # URI, revision
_FORMATS = (WeightFormat.BF16, WeightFormat.INT8, WeightFormat.INT4)
_WORTH_WRITING = 50  # thousandths: a measurement must differ by 5 % to be written
_MOST_LESS = (
    8  # an estimate is corrected down by at most an eighth: a busier hour may need what this one did not
)
_WORKERS = 4
_FORGET_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class KnownProfile:
    """A ModelProfile as it was last seen."""

    name: str
    uid: str
    model: Model
    status: ModelProfileStatus


class Profiles:
    """What is known of models, and the work to know more."""

    def __init__(
        self,
        port: ClusterPort,
        inspector: Inspector,
        mirror: Callable[[], Mirror],
        metrics: OperatorMetrics,
        clock: Clock,
        backoff: KeyedBackoff[Model],
        *,
        may_write: Callable[[], bool],
        failed: Callable[[Model, Refusal | None], None],
        used: Callable[[], set[Model]],
    ) -> None:
        """`failed` is told why a model cannot be inspected, None if it could; `used` tells models of workloads."""
        self._port = port
        self._inspector = inspector
        self._mirror = mirror
        self._metrics = metrics
        self._clock = clock
        self._backoff = backoff
        self._may_write = may_write
        self._failed = failed
        self._used = used
        self._known: dict[str, ModelProfileStatus] = {}  # by profile name
        self._objects: dict[str, tuple[str, Model]] = {}  # UID and model by profile name
        self._queue: asyncio.Queue[Model] = asyncio.Queue()
        self._open: set[Model] = set()
        self._refused: dict[Model, Refusal] = {}
        self._writing: dict[str, asyncio.Lock] = {}

    def note(self, body: Json, *, exists: bool) -> None:
        """Take a ModelProfile as the watch shows it."""
        name = str(body["metadata"]["name"])
        if not exists:
            self._known.pop(name, None)
            self._objects.pop(name, None)
            return
        spec = body.get("spec") or {}
        model = (str(spec.get("uri", "")), str(spec.get("revision", "main")))
        self._objects[name] = (str(body["metadata"].get("uid", "")), model)
        try:
            self._known[name] = ModelProfileStatus.model_validate(body.get("status") or {})
        except ValueError as error:
            log.warning("model profile cannot be read", profile=name, error=error)

    def known(self) -> list[KnownProfile]:
        """Return the profiles that bear the name of their model: what has another name is not of our making."""
        return [
            KnownProfile(name, uid, model, self._known[name])
            for name, (uid, model) in self._objects.items()
            if name in self._known and name == profile_name(*model)
        ]

    async def mark_unused(self, model: Model, since: str | None) -> None:
        """Write since when no workload has named the model; None: one does."""
        await self._change(
            *model, lambda status: status.model_copy(update={"unused_since": since}), learned=False
        )

    def want(self, uri: str, revision: str) -> Refusal | None:
        """Say that a workload needs this model's profile. Returns why it cannot be had, as far as that is known."""
        model = (uri, revision)
        status = self._known.get(profile_name(uri, revision))
        if status is not None and status.shape is not None:
            return None
        if model not in self._open and self._backoff.ready(model, self._clock.monotonic()):
            self._open.add(model)
            self._queue.put_nowait(model)
        return self._refused.get(model)

    def load_seconds(self, uri: str, revision: str) -> float | None:
        """Return the longest load that was measured with the weights in a cache or not; None if none was.

        Loads from host memory are left out: a new replica cannot count on them.
        """
        status = self._known.get(profile_name(uri, revision))
        if status is None:
            return None
        measured = [one.milliseconds for one in status.load_times if one.path is not LoadPath.HOT]
        return max(measured) / 1000.0 if measured else None

    def retry_at(self, uri: str, revision: str) -> float:
        """Return when a failed inspection may be tried again (monotonic seconds); 0.0 if it has not failed."""
        return self._backoff.ready_at((uri, revision))

    async def run(self) -> None:
        """Inspect what is wanted until cancelled."""
        async with asyncio.TaskGroup() as group:
            for index in range(_WORKERS):
                group.create_task(self._work(), name=f"inspect-{index}")
            group.create_task(self._forget_now_and_then(), name="forget-models")

    async def _forget_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_SECONDS)
            self.forget_unused()

    def forget_unused(self) -> None:
        """Drop refusals, back-offs and locks of models no workload refers to any more: they would pile up."""
        used = self._used() | self._open
        self._backoff.keep_only(used)
        self._refused = {model: why for model, why in self._refused.items() if model in used}
        named = {profile_name(*model) for model in used}
        self._writing = {name: lock for name, lock in self._writing.items() if name in named or lock.locked()}

    async def _work(self) -> None:
        while True:
            model = await self._queue.get()
            try:
                await self._inspect(model)
            finally:
                self._open.discard(model)

    async def _inspect(self, model: Model) -> None:
        uri, revision = model
        try:
            found = await self._inspector.inspect(uri, revision)
            await self._write(
                uri, revision, lambda status: _with_inspection(status, found, self._clock.now())
            )
        except Permanent as error:
            self._refuse(model, error.reason, str(error))
        except Retryable as error:
            self._refuse(model, Reason.DOWNLOAD_FAILED, str(error), after=error.after)
        except LlmosError as error:
            self._refuse(model, Reason.DOWNLOAD_FAILED, str(error))
        else:
            self._metrics.inspections.labels("ok").inc()
            self._backoff.succeed(model)
            if self._refused.pop(model, None) is not None:
                self._failed(model, None)
            log.info("model inspected", uri=uri, revision=revision, parameters=found.shape.parameters)

    def _refuse(self, model: Model, reason: str, message: str, *, after: float = 0.0) -> None:
        try:
            known = Reason(reason)
        except ValueError:
            known = Reason.DOWNLOAD_FAILED
        self._metrics.inspections.labels(known.value).inc()
        self._backoff.fail(model, self._clock.monotonic(), after=after)
        refusal = Refusal(known, message)
        self._refused[model] = refusal
        log.warning(
            "model cannot be inspected", uri=model[0], revision=model[1], reason=reason, error=message
        )
        self._failed(model, refusal)

    async def raise_floor(self, shortage: Shortage) -> None:
        """Remember that a format needs more than it had: the next decision must differ."""

        def change(status: ModelProfileStatus) -> ModelProfileStatus:
            known = _format(status, shortage.format)
            floor = max(known.oom_floor_bytes or 0, shortage.reserved_bytes)
            return _with_format(status, known.model_copy(update={"oom_floor_bytes": floor}))

        await self._change(shortage.uri, shortage.revision, change)

    async def measured(
        self,
        uri: str,
        revision: str,
        fmt: str,
        *,
        predicted: int,
        peak: int,
        weights: int,
        load: LoadTime | None,
        base: int = 0,
        proven: bool = False,
    ) -> None:
        """Take what a runtime measured: bytes per device, and how long the load took.

        `proven`: it has served, so that its peak may also be less than predicted; before that only growth counts.
        """

        def change(status: ModelProfileStatus) -> ModelProfileStatus:
            known = _format(status, fmt)
            told = known.measured_peak_bytes
            reached = max(peak, predicted - predicted // _MOST_LESS)
            # What the next size is corrected by; runs differ in their KV budgets, so peaks alone do not compare.
            off, was = reached - predicted, (told or 0) - (known.estimated_peak_bytes or 0)
            new = abs(off - was) * 1000 > predicted * _WORTH_WRITING or (proven and told is None)
            if new and (proven or off > max(0, was)):
                update = {"measured_peak_bytes": reached, "estimated_peak_bytes": predicted}
                known = known.model_copy(update={**update, "samples": known.samples + 1})
            if weights and _differs(known.measured_weights_bytes, weights):
                known = known.model_copy(update={"measured_weights_bytes": weights})
            status = _with_format(status, known)
            if base > (status.base_bytes or 0) and _differs(status.base_bytes, base):
                # The largest: what processes of one machine share counts less for each while there are several.
                status = status.model_copy(update={"base_bytes": base})
            return _with_load(status, load) if load is not None else status

        await self._change(uri, revision, change)

    async def drew(self, finding: Finding) -> None:
        """Take what a model was seen to draw at work; less than is known already is not news."""
        wanted = finding.subject

        def change(status: ModelProfileStatus) -> ModelProfileStatus:
            others = tuple(
                one for one in status.draws if (one.product, one.format) != (wanted.product, wanted.format)
            )
            known = next((one.milliwatts for one in status.draws if one not in others), 0)
            if finding.milliwatts <= known:
                return status
            draw = PowerDraw(
                product=wanted.product, format=WeightFormat(wanted.format), milliwatts=finding.milliwatts
            )
            return status.model_copy(update={"draws": (*others, draw)})

        await self._change(wanted.uri, wanted.revision, change)

    async def _change(
        self,
        uri: str,
        revision: str,
        change: Callable[[ModelProfileStatus], ModelProfileStatus],
        *,
        learned: bool = True,
    ) -> None:
        try:
            await self._write(uri, revision, change, learned=learned)
        except (LlmosError, ValueError) as error:  # ValueError: of a format no profile knows
            # The next measurement or failure brings it again.
            log.warning("model profile not written", uri=uri, error=error)

    async def _write(
        self,
        uri: str,
        revision: str,
        change: Callable[[ModelProfileStatus], ModelProfileStatus],
        *,
        learned: bool = True,
    ) -> None:
        name = profile_name(uri, revision)
        async with self._writing.setdefault(name, asyncio.Lock()):
            before = self._known.get(name)
            after = change(before or ModelProfileStatus())
            if after == before or not self._may_write():
                return
            meta = {"name": name}
            if before is None:
                spec = {"uri": uri, "revision": revision}
                body: dict[str, Any] = {"metadata": meta, "spec": spec}
                await self._port.apply(MODEL_PROFILES, body, manager=names.MANAGER_OPERATOR)
            if learned:
                after = after.model_copy(update={"updated": rfc3339(self._clock.now())})
            status = after.model_dump(mode="json", exclude_defaults=True)
            written = await self._port.patch_status(
                MODEL_PROFILES, {"metadata": meta, "status": status}, manager=names.MANAGER_STATUS
            )
            self._known[name] = after
            self._mirror().observe("MODIFIED", written)


def _with_inspection(status: ModelProfileStatus, found: Inspection, now: float) -> ModelProfileStatus:
    shape = found.shape
    fields = {name: getattr(shape, name) for name in ShapeStatus.model_fields}
    for fmt in _FORMATS:
        known = _format(status, fmt.value)
        status = _with_format(
            status, known.model_copy(update={"weights_bytes": weights_bytes(shape, fmt.value)})
        )
    ready = ConditionEntry(
        type=Condition.READY.value,
        status=ConditionStatus.TRUE,
        reason=Reason.READY.value,
        message="The model's metadata has been read.",
        last_transition_time=rfc3339(now),
    )
    return status.model_copy(
        update={
            "shape": ShapeStatus(**fields),
            "source_format": found.source_format,
            "source_bytes": found.source_bytes,
            "resolved_revision": found.resolved_revision,
            "kv_bytes_per_token": kv_bytes_per_token(shape),
            "conditions": (ready,),
        }
    )


def _format(status: ModelProfileStatus, fmt: str) -> FormatProfile:
    wanted = WeightFormat(fmt)
    return next((one for one in status.formats if one.format == wanted), FormatProfile(format=wanted))


def _with_format(status: ModelProfileStatus, changed: FormatProfile) -> ModelProfileStatus:
    others = [one for one in status.formats if one.format != changed.format]
    formats = tuple(sorted([*others, changed], key=lambda one: one.format.value))
    return status.model_copy(update={"formats": formats})


def _with_load(status: ModelProfileStatus, load: LoadTime) -> ModelProfileStatus:
    def same(one: LoadTime) -> bool:
        return (one.node_class, one.path, one.format) == (load.node_class, load.path, load.format)

    old = next((one for one in status.load_times if same(one)), None)
    if old is not None:
        # Smoothed, and written only when it says something new.
        smoothed = (3 * old.milliseconds + load.milliseconds) // 4
        if not _differs(old.milliseconds, smoothed, thousandths=200):
            return status
        load = load.model_copy(update={"milliseconds": smoothed, "samples": old.samples + 1})
    times = tuple(one for one in status.load_times if not same(one))
    return status.model_copy(update={"load_times": (*times, load)})


def _differs(old: int | None, new: int, thousandths: int = _WORTH_WRITING) -> bool:
    return old is None or abs(new - old) * 1000 > old * thousandths
