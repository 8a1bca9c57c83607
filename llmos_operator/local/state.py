"""What runs, as a file: written by the supervisor whenever it changes, read by `status`, `down` and the next `up`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llmos_operator.local.processes import ProcessRecord

if TYPE_CHECKING:
    from pathlib import Path

Stage = Literal["starting", "ready", "stopping", "failed"]


class RecordedProcess(BaseModel):
    """A process by name; `started` are clock ticks since boot and tell it from a later one with the same pid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pid: int
    started: int

    @classmethod
    def of(cls, record: ProcessRecord) -> RecordedProcess:
        """Return what to write of ``record``."""
        return cls(name=record.name, pid=record.pid, started=record.started)

    def record(self) -> ProcessRecord:
        """Return the process."""
        return ProcessRecord(self.name, self.pid, self.started)


class ClusterState(BaseModel):
    """The state file. `marks` are seconds from the supervisor's start to each stage of the cluster's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Stage
    message: str = ""
    supervisor: RecordedProcess
    processes: tuple[RecordedProcess, ...] = ()
    index: int = 0
    api_url: str = ""
    hub_url: str = ""
    restarts: dict[str, int] = {}
    marks: dict[str, float] = {}

    def write(self, path: Path) -> None:
        """Replace the file at once: a reader sees the old or the new state."""
        temporary = path.with_suffix(".new")
        temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> ClusterState | None:
        """Return the state, None if there is none (or none that this version understands)."""
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, ValidationError):
            return None

    def alive(self) -> bool:
        """Return whether the supervisor that wrote this still runs."""
        return self.supervisor.record().alive()
