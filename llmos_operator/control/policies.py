"""Settings as the values that pure packages take."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.api.mig import parse_profile
from llmos_operator.api.quantity import parse_bytes, parse_milli
from llmos_operator.control.gangs import GangLimits
from llmos_operator.manifests.holder import HolderPodSettings
from llmos_operator.manifests.settings import PodSettings
from llmos_operator.scheduler.geometry.layouts import Layout
from llmos_operator.scheduler.geometry.products import PRODUCTS, fits
from llmos_operator.scheduler.policy import PartitioningPolicy, Policy, ScoreKind
from llmos_operator.settings import BadSettings
from llmos_operator.state.types import DisruptionStep
from llmos_operator.telemetry.policy import LOST_REASONS
from llmos_operator.telemetry.treatment import Course

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.settings import OperatorSettings

# Steps of the disruption ladder the executor can carry out in this release.
STEPS = (DisruptionStep.SHRINK, DisruptionStep.SLEEP, DisruptionStep.EVICT)


def policy_of(settings: OperatorSettings) -> Policy:
    """Return the scheduler's policy. Raises BadSettings for a quantity that cannot be read."""
    base = Policy()
    scheduling, runtime = settings.scheduling, settings.runtime
    try:
        sizing = replace(
            base.sizing,
            base_bytes=parse_bytes(runtime.base_memory),
            runtime_cpu_milli=parse_milli(runtime.cpu_request),
            runtime_memory_bytes=parse_bytes(runtime.memory_request),
            vllm_base_bytes=parse_bytes(runtime.vllm_base_memory),
            vllm_memory_bytes=parse_bytes(runtime.vllm_memory_request),
        )
    except ValueError as error:
        raise BadSettings(
            f"runtime.baseMemory, cpuRequest, memoryRequest, vllmBaseMemory or vllmMemoryRequest: {error}"
        ) from error
    return replace(
        base,
        sample_interval=scheduling.telemetry_interval,
        min_runtime=scheduling.min_runtime,
        startup_seconds=scheduling.startup_wait,
        topology_labels=scheduling.topology_labels,
        score=ScoreKind.FRAGMENTATION if scheduling.prices.enabled else ScoreKind.BEST_FIT,
        price_seconds=scheduling.prices.max_age,
        interference_weight=scheduling.interference_weight,
        sizing=sizing,
        preemption=replace(base.preemption, steps=STEPS, restore_after=scheduling.restore_after),
        reservation=replace(
            base.reservation, most=scheduling.reservation.most, after=scheduling.reservation.after
        ),
        consolidation=replace(base.consolidation, part=scheduling.migration_budget),
        breaker=replace(base.breaker, share=settings.health.share, window=settings.health.window),
        lost_reasons=LOST_REASONS,
        partitioning=_partitioning(settings),
    )


def _partitioning(settings: OperatorSettings) -> PartitioningPolicy:
    asked = settings.partitioning
    layouts = tuple(_layout(name, counts) for name, counts in sorted(asked.layouts.items()))
    return PartitioningPolicy(asked.enabled, layouts, asked.rest, asked.patience)


def _layout(name: str, counts: Mapping[str, int]) -> Layout:
    """Return a layout. Raises BadSettings for one that no GPU this operator knows can have."""
    where = f"partitioning.layouts.{name}"
    try:
        layout = Layout(name, tuple((parse_profile(text), count) for text, count in counts.items()))
    except ValueError as error:
        raise BadSettings(f"{where}: {error}") from error
    whole = all(count > 0 for _, count in layout.counts)
    if not layout.counts or not whole or not any(fits(one, dict(layout.counts)) for one in PRODUCTS):
        told = ", ".join(f"{text}: {count}" for text, count in counts.items())
        raise BadSettings(
            f"{where} = {{{told}}}: these instances do not fit on one A100, H100 or H200 beside each other; write how many of "
            "each profile every GPU has, such as {3g.40gb: 1, 1g.10gb: 4}"
        )
    return layout


def pods_of(settings: OperatorSettings) -> PodSettings:
    """Return what the pod builder needs to know."""
    runtime = settings.runtime
    return PodSettings(
        image=runtime.image,
        image_pull_policy=runtime.image_pull_policy,
        cache_host_path=runtime.cache_host_path,
        model_cache_path=runtime.model_cache_path.rstrip("/"),
        runtime_class_name=runtime.runtime_class_name,
        run_as_user=runtime.run_as_user,
        service_account=runtime.service_account,
        control_secret=runtime.control_secret,
        startup_seconds=runtime.startup_seconds,
        hub_endpoint=settings.sources.hub_endpoint,
        trace_endpoint=settings.tracing.endpoint,
        trace_ratio=settings.tracing.sample_ratio,
        env=runtime.env,
    )


def holder_pods_of(settings: OperatorSettings) -> HolderPodSettings:
    """Return what the builder of holder pods needs to know."""
    holders = settings.holders
    return HolderPodSettings(
        namespace=settings.namespace,
        image=holders.image,
        pause_image=holders.pause_image,
        image_pull_policy=holders.image_pull_policy,
        pull_secrets=holders.pull_secrets,
        priority_class_name=holders.priority_class_name,
    )


def course_of(settings: OperatorSettings) -> Course:
    """Return how sick devices are treated."""
    health = settings.health
    return Course(clean=health.clean, resets=health.resets, hook=bool(health.reset_job))


def gangs_of(settings: OperatorSettings) -> GangLimits:
    """Return the time limits of what runs together."""
    return GangLimits(grace=settings.scheduling.gang_grace, start=settings.scheduling.gang_start)
