"""What the kubelet knows of a container, and how restarts are decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmos_operator.clock import parse_rfc3339, rfc3339

Json = dict[str, Any]

SIGNAL_BASE = 128
EXIT_KILLED = 137
EXIT_CANNOT_START = 128
CONTAINER_SCHEME = "process://"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not started, or between two runs."""

    reason: str
    message: str = ""

    def to_json(self) -> Json:
        """Return the API's ContainerState."""
        return {"waiting": {"reason": self.reason} | ({"message": self.message} if self.message else {})}


@dataclass(frozen=True, slots=True)
class Running:
    """Its process runs since `started_at` (epoch seconds)."""

    started_at: float

    def to_json(self) -> Json:
        """Return the API's ContainerState."""
        return {"running": {"startedAt": rfc3339(self.started_at)}}


@dataclass(frozen=True, slots=True)
class Terminated:
    """One run has ended. A signal n is exit code 128+n."""

    exit_code: int
    reason: str
    message: str = ""
    started_at: float = 0.0
    finished_at: float = 0.0
    container_id: str = ""

    def to_json(self) -> Json:
        """Return the API's ContainerState."""
        body: Json = {
            "exitCode": self.exit_code,
            "reason": self.reason,
            "startedAt": rfc3339(self.started_at) if self.started_at else None,
            "finishedAt": rfc3339(self.finished_at) if self.finished_at else None,
        }
        if self.message:
            body["message"] = self.message
        if self.container_id:
            body["containerID"] = self.container_id
        return {"terminated": body}

    @classmethod
    def from_json(cls, body: Json) -> Terminated:
        """Read the API's ContainerStateTerminated."""
        return cls(
            exit_code=int(body["exitCode"]),
            reason=body.get("reason") or "",
            message=body.get("message") or "",
            started_at=parse_rfc3339(body["startedAt"]) if body.get("startedAt") else 0.0,
            finished_at=parse_rfc3339(body["finishedAt"]) if body.get("finishedAt") else 0.0,
            container_id=body.get("containerID") or "",
        )


State = Waiting | Running | Terminated


@dataclass(slots=True)
class ContainerView:
    """The state of one container, as its status reports it."""

    spec: Json
    init: bool
    state: State
    last: Terminated | None = None
    restarts: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""
    image_id: str = ""

    @property
    def name(self) -> str:
        """Name within the pod."""
        return str(self.spec["name"])

    @property
    def sidecar(self) -> bool:
        """Whether this is a native sidecar: an init container that keeps running."""
        return self.init and self.spec.get("restartPolicy") == "Always"

    @property
    def done(self) -> bool:
        """Whether an init container has finished well (a sidecar: has started)."""
        if self.sidecar:
            return self.started
        return isinstance(self.state, Terminated) and self.state.exit_code == 0

    def to_json(self) -> Json:
        """Return the API's ContainerStatus."""
        return {
            "name": self.name,
            "image": self.spec.get("image", ""),
            "imageID": self.image_id,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state.to_json(),
            "lastState": self.last.to_json() if self.last else {},
        } | ({"containerID": self.container_id} if self.container_id else {})


@dataclass(slots=True)
class PodViews:
    """All containers of a pod in the order of its spec."""

    init: list[ContainerView] = field(default_factory=list)
    app: list[ContainerView] = field(default_factory=list)

    def all(self) -> list[ContainerView]:
        """Return init containers, then app containers."""
        return [*self.init, *self.app]

    def find(self, name: str) -> ContainerView | None:
        """Return a container by name."""
        return next((view for view in self.all() if view.name == name), None)

    def take_spec(self, spec: Json) -> None:
        """Take what a newer spec says of containers that do not run: their image may be another one."""
        newer = {one["name"]: one for one in [*(spec.get("initContainers") or []), *spec["containers"]]}
        for view in self.all():
            if not isinstance(view.state, Running):
                view.spec = newer.get(view.name, view.spec)


def views_of(spec: Json, status: Json, now: float) -> PodViews:
    """Return the containers of a pod as they are when the kubelet first sees it.

    A status that says a container ran belongs to an earlier life of the kubelet, with which its process ended: such a
    container counts as killed, as after a node's reboot.
    """
    waiting = Waiting("PodInitializing" if spec.get("initContainers") else "ContainerCreating")
    views = PodViews(
        init=[
            ContainerView(c, init=True, state=Waiting("PodInitializing"))
            for c in spec.get("initContainers") or []
        ],
        app=[ContainerView(c, init=False, state=waiting) for c in spec["containers"]],
    )
    old = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for entry in old:
        view = views.find(entry["name"])
        if view is not None:
            _adopt(view, entry, now)
    return views


def _adopt(view: ContainerView, status: Json, now: float) -> None:
    state, last = status.get("state") or {}, (status.get("lastState") or {}).get("terminated")
    view.restarts = int(status.get("restartCount") or 0)
    view.last = Terminated.from_json(last) if last else None
    if terminated := state.get("terminated"):
        view.state = Terminated.from_json(terminated)
    elif running := state.get("running"):
        view.state = Terminated(
            exit_code=EXIT_KILLED,
            reason="ContainerStatusUnknown",
            message="the node process ended and took this container with it",
            started_at=parse_rfc3339(running["startedAt"]) if running.get("startedAt") else now,
            finished_at=now,
            container_id=status.get("containerID") or "",
        )


def wants_restart(view: ContainerView, pod_policy: str, exit_code: int) -> bool:
    """Return whether a container that ended with ``exit_code`` is run again.

    Its own rules come first, then its own policy, then the pod's (KEP-5307). An init container has done its work once
    it succeeds, unless it is a sidecar.
    """
    if any(_matches(rule, exit_code) for rule in view.spec.get("restartPolicyRules") or []):
        return True
    policy = view.spec.get("restartPolicy") or pod_policy
    if view.init and not view.sidecar and policy == "Always":
        policy = "OnFailure"
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def _matches(rule: Json, exit_code: int) -> bool:
    """Return whether a rule restarts on an exit code; other actions are not ours to judge."""
    condition = rule.get("exitCodes")
    if rule.get("action") != "Restart" or not condition:
        return False
    listed = exit_code in (condition.get("values") or [])
    return listed if condition.get("operator") == "In" else not listed
