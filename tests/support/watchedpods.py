"""The pods of `tests.support.pods`, seen through one watch: many tests may wait at once, and no state is missed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support.apiclient import Refused
from tests.support.pods import Json, PodClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.apiwatch import ApiWatch

_NOT_FOUND = 404


@dataclass
class WatchedPods(PodClient):
    """Pods of one namespace, bound to one node."""

    watch: ApiWatch = field(kw_only=True)

    def _path(self, name: str = "", rest: str = "") -> str:
        return "/".join(filter(None, ["/api/v1/namespaces", self.namespace, "pods", name, rest]))

    def send(self, body: Json) -> None:
        """Create a pod as it stands. Raises :class:`Refused`."""
        self.watch.ask("POST", self._path(), body)

    def get(self, name: str) -> Json:
        """The pod as it is now."""
        return dict(self.watch.ask("GET", self._path(name)))

    def exists(self, name: str) -> bool:
        """Whether there is a pod of this name."""
        try:
            self.get(name)
        except Refused as error:
            if error.status == _NOT_FOUND:
                return False
            raise
        return True

    def wait(self, name: str, check: Callable[[Json], Any], timeout: float = 120.0) -> Json:
        """Return the first version of the pod, from the present one on, that ``check`` says yes to."""
        pod = self.watch.until(self.namespace, name, lambda one: one is not None and check(one), timeout)
        assert pod is not None
        return pod

    def wait_gone(self, name: str, timeout: float = 120.0) -> float:
        """Wait until the pod's object is gone; return how many seconds that took."""
        began = time.monotonic()
        self.watch.until(self.namespace, name, lambda one: one is None and not self.exists(name), timeout)
        return time.monotonic() - began

    def past(self, name: str) -> list[Json]:
        """All versions of a pod there have been, oldest first."""
        return self.watch.versions(self.namespace, name)

    def events(self, name: str, reason: str) -> list[str]:
        """Messages of the pod's events of one reason."""
        query = f"fieldSelector=involvedObject.name={name},reason={reason}"
        found = self.watch.ask("GET", f"/api/v1/namespaces/{self.namespace}/events?{query}")
        return [event.get("message", "") for event in found["items"]]

    def wait_event(self, name: str, reason: str, timeout: float = 120.0) -> str:
        """Wait for an event and return its message."""
        self.wait(name, lambda _pod: self.events(name, reason), timeout)
        return self.events(name, reason)[0]

    def remove_all(self) -> None:
        """Delete what this client created, without waiting."""
        for name in self.names:
            try:
                self.watch.ask("DELETE", self._path(name, "?gracePeriodSeconds=1").replace("/?", "?"))
            except Refused as error:
                if error.status != _NOT_FOUND:
                    raise
