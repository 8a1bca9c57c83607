"""The border between the HTTP front and the engine process: messages, frames and the front's client.

Owns what the two processes may say to each other over a UNIX socket and the life of the engine process as the front
sees it (start, progress, crash, restart).
Must not import torch, transformers or any HTTP library: both processes import this package.
"""

from llmos_operator.runtime.ipc.client import (
    EngineClient,
    EngineLost,
    EngineStatus,
    EngineUnavailable,
    Generation,
)
from llmos_operator.runtime.ipc.messages import (
    Cancel,
    Embed,
    EmbedResult,
    EngineInfo,
    EngineMemory,
    Failed,
    FinishReason,
    Load,
    Progress,
    Ready,
    RequestOutput,
    SamplingParams,
    SetBudget,
    Shutdown,
    Sleep,
    Stats,
    StepOutput,
    Submit,
    Timing,
    TokenLogprob,
    Unload,
    Wake,
)
from llmos_operator.runtime.ipc.zygote import Zygote

__all__ = [
    "Cancel",
    "Embed",
    "EmbedResult",
    "EngineClient",
    "EngineInfo",
    "EngineLost",
    "EngineMemory",
    "EngineStatus",
    "EngineUnavailable",
    "Failed",
    "FinishReason",
    "Generation",
    "Load",
    "Progress",
    "Ready",
    "RequestOutput",
    "SamplingParams",
    "SetBudget",
    "Shutdown",
    "Sleep",
    "Stats",
    "StepOutput",
    "Submit",
    "Timing",
    "TokenLogprob",
    "Unload",
    "Wake",
    "Zygote",
]
