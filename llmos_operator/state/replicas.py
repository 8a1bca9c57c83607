"""What the kubelet says of the runtime container of one replica. The ledger does not need it; status and repair do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended. `reason` is the kubelet's word: OOMKilled, Error, Completed and others."""

    reason: str
    exit_code: int
    message: str = ""
    finished_at: float = 0.0  # epoch seconds


@dataclass(frozen=True, slots=True)
class Replica:
    """One pod of a replica as the kubelet reports it."""

    pod: str  # namespace/name
    uid: str
    workload_uid: str
    serves: bool = True  # False: a member of a gang beside its leader
    node: str = ""
    ip: str = ""  # "" until the pod has one
    phase: str = "Pending"
    running: bool = False  # the runtime container runs
    ready: bool = False  # the pod's condition Ready
    deleting: bool = False
    restarts: int = 0
    waiting: str = (
        ""  # reason the runtime container waits for: CreateContainerConfigError, CrashLoopBackOff, …
    )
    waiting_message: str = ""
    ended: Exit | None = None  # the container has ended and was not started again
    last: Exit | None = None  # how it ended before its last start
    failure: str = ""  # status.reason of a Failed pod: Evicted, UnexpectedAdmissionError, …
    failure_message: str = ""
    disrupted: bool = False  # condition DisruptionTarget: it is being ended from outside

    @property
    def latest_exit(self) -> Exit | None:
        """How the runtime container ended last, None if it never did."""
        return self.ended or self.last
