"""An API server's pods as they change, for tests: one watch, every version kept, and reads that start no process."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from tests.support.apiclient import ApiClient, Json, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.local.tools import Tools

_RECHECK_SECONDS = 0.5  # for what a check asks for beside the pod


class ApiWatch(ApiClient):
    """Sees all pods of a cluster through `kubectl proxy`. Threads may share it; use as a context manager."""

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._news = threading.Condition()
        self._versions: dict[tuple[str, str], list[Json | None]] = {}  # None: it was gone
        self._ending = False
        self._thread = threading.Thread(target=self._follow, name="pod watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self.close()
        self._thread.join(timeout=90)

    # -- following

    def _follow(self) -> None:
        while not self._ending:
            try:
                self._once()
            except (OSError, http.client.HTTPException, Refused):
                if not self._ending:
                    time.sleep(0.2)  # the API server is away for a moment

    def _once(self) -> None:
        listing = self.ask("GET", "/api/v1/pods")
        found = {_key(pod): pod for pod in listing["items"]}
        with self._news:
            for key in self._versions.keys() - found.keys():
                self._note(key, None)
            for key, pod in found.items():
                self._note(key, pod)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=3600)
        version = listing["metadata"]["resourceVersion"]
        try:
            connection.request("GET", f"/api/v1/pods?watch=1&resourceVersion={version}")
            for line in connection.getresponse():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                with self._news:
                    self._note(_key(event["object"]), None if event["type"] == "DELETED" else event["object"])
        finally:
            connection.close()

    def _note(self, key: tuple[str, str], pod: Json | None) -> None:
        versions = self._versions.setdefault(key, [])
        if not versions or versions[-1] != pod:
            versions.append(pod)
            self._news.notify_all()

    def versions(self, namespace: str, name: str) -> list[Json]:
        """Return what a pod has been, oldest first, while it was there."""
        with self._news:
            return [one for one in self._versions.get((namespace, name), []) if one is not None]

    def until(
        self, namespace: str, name: str, check: Callable[[Json | None], Any], timeout: float
    ) -> Json | None:
        """Return the first version from now on, the present one included, that `check` says yes to.

        Raises AssertionError after ``timeout`` seconds. The present version is looked at again now and then, for checks
        that ask for more than the pod.
        """
        deadline = time.monotonic() + timeout
        key = (namespace, name)
        with self._news:
            at = max(0, len(self._versions.get(key, [])) - 1)
        while True:
            with self._news:
                fresh = self._versions.get(key, [])[at:]
            for one in fresh:
                if check(one):
                    return one
            at += max(0, len(fresh) - 1)
            with self._news:
                if len(self._versions.get(key, [])) <= at + 1:
                    self._news.wait(_RECHECK_SECONDS)
            now = fresh[-1] if fresh else None
            assert time.monotonic() < deadline, (
                f"not within {timeout:g} s; {name} is {json.dumps(now and now['status'], indent=1)}"
            )


def _key(pod: Json) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]
