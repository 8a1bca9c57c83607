"""Settings of programs that run in the pods of FineTune and Batch: those of the runtime, and one block of their own.

The block is JSON in one variable, as the workload's spec has it (camelCase), written by `manifests.jobs`.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.runtime.settings import BadEnvironment, RuntimeSettings, from_environment

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What one run was started with. ``block`` is `spec.fineTune` or `spec.batch`, as far as the API filled it in."""

    runtime: RuntimeSettings
    block: Mapping[str, Any]
    termination_log: str = "/dev/termination-log"  # where the kubelet reads why the program ended

    def text(self, *path: str) -> str:
        """Return a text of the block. Raises BadEnvironment naming the field if it is missing or no text."""
        value: Any = self.block
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, str) or not value:
            raise BadEnvironment(
                f"{names.ENV_JOB}: {'.'.join(path)} = {value!r} must be a text that is not empty"
            )
        return value


def job_from_environment(environ: Mapping[str, str] | None = None) -> JobSettings:
    """Return the settings this process was started with. Raises BadEnvironment.

    The serving port takes requests from this process alone: it exists for probes and metrics, so it has a key that
    nobody else knows.
    """
    env = os.environ if environ is None else environ
    runtime = from_environment(env)
    text = env.get(names.ENV_JOB, "")
    try:
        block = json.loads(text or "null")
    except ValueError as error:
        raise BadEnvironment(f"{names.ENV_JOB} is not JSON: {error}") from error
    if not isinstance(block, dict):
        raise BadEnvironment(
            f"{names.ENV_JOB} is not set to a JSON object; it describes the run, like spec.batch"
        )
    return JobSettings(
        runtime=replace(runtime, api_keys=(secrets.token_urlsafe(32),)),
        block=block,
        termination_log=env.get(names.ENV_TERMINATION_LOG, "") or "/dev/termination-log",
    )
