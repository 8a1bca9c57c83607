"""What of a workload its engine cannot do, said before anything is placed. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api import vllm
from llmos_operator.state.types import WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.state.types import Workload


def refusal(workload: Workload) -> str:
    """Return what is wrong with a spec of engine vllm, naming field, value and fix; "" if nothing is."""
    engine = workload.spec.get("engine") or {}
    cache = workload.quantization.kv_cache_dtype
    if cache not in vllm.KV_DTYPES:
        known = ", ".join(vllm.KV_DTYPES)
        return f"spec.quantization.kvCacheDtype: vLLM keeps no KV cache in {cache}; use one of {known}"
    if workload.max_adapters and workload.adapter_rank > vllm.LORA_RANKS[-1]:
        most = vllm.LORA_RANKS[-1]
        return f"spec.adapterLimits.maxRank: {workload.adapter_rank}: vLLM serves adapters up to rank {most}"
    return vllm.refusal(engine)


def unsupported(workload: Workload) -> str:
    """Return why this release cannot run a workload on its engine, "" if it can."""
    if workload.engine == vllm.ENGINE:
        return _unfronted(workload)
    if workload.engine == "builtin" and workload.kind is not WorkloadKind.FINE_TUNE:
        return _unsplit(workload)
    return ""


def _unsplit(workload: Workload) -> str:
    """Return why the built-in engine cannot spread a copy as the workload asks, "" if it can."""
    if workload.copies > 1:
        return "Engine builtin has no copies that work in step: leave out parallelism.data and set replicas, or use engine custom."
    devices = workload.accelerators * workload.stages
    if workload.pipeline > 1 and devices != workload.pipeline:
        return (
            f"Engine builtin has pipeline stages of one device each, and parallelism.pipeline {workload.pipeline} of {devices} devices "
            f"asks for {devices // workload.pipeline}: set parallelism.pipeline to {devices} or 1, or use engine custom."
        )
    if devices > 1 and workload.max_adapters:
        return (
            f"Engine builtin serves adapters on one device, and resources.accelerators is {devices}: set it to 1, or leave out "
            "adapters and adapterLimits."
        )
    return ""


def _unfronted(workload: Workload) -> str:
    """Return why this release cannot run a workload on engine vllm, "" if it can."""
    if workload.kind is not WorkloadKind.INFERENCE:
        return f"Engine vllm serves; a {workload.kind} runs on engine builtin in this release."
    if workload.members > 1:
        return (
            f"A replica of engine vllm is one pod in this release, not {workload.members}: leave out parallelism.data and "
            "parallelism.pods, or use engine custom."
        )
    return ""
