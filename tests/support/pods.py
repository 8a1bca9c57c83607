"""Pods for tests: build them in one line, wait for what becomes of them."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.local.tools import Tools

Json = dict[str, Any]
_COUNTER = itertools.count()


def sh(script: str, name: str = "main", **fields: Any) -> Json:
    """A container that runs a shell script; the image is filled in by the client."""
    return {"name": name, "command": ["sh", "-c", script], **fields}


def python(code: str, name: str = "main", **fields: Any) -> Json:
    """A container that runs Python code."""
    return {"name": name, "command": ["python3", "-u", "-c", code], **fields}


def http_server(name: str = "main", *, port: int = 8000, delay: float = 0.0, **fields: Any) -> Json:
    """A container that answers 200 on every path, or 503 while the file $BAD exists; it binds $POD_IP.

    It makes the file $SERVED, if that is set, when it answers.
    """
    code = f"""
import http.server, os, time
time.sleep({delay})
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        bad = os.path.exists(os.environ.get("BAD", "/nonexistent"))
        open(os.environ.get("SERVED", os.devnull), "w").close()
        self.send_response(503 if bad else 200); self.end_headers(); self.wfile.write(os.environ["HOSTNAME"].encode())
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer((os.environ["POD_IP"], {port}), Handler).serve_forever()
"""
    env = [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    return python(code, name, **{**fields, "env": env + fields.get("env", [])})


@dataclass
class PodClient:
    """Pods of one namespace, bound to one node."""

    tools: Tools
    namespace: str
    node: str
    image: str
    names: list[str] = field(default_factory=list)

    def create(self, *containers: Json, name: str = "", meta: Json | None = None, **spec: Any) -> str:
        """Create a pod and return its name. It ends one second after it was asked to, unless ``spec`` says otherwise."""
        name = name or f"p{next(_COUNTER)}"
        for container in [*containers, *spec.get("initContainers", [])]:
            container.setdefault("image", self.image)
            container.setdefault("imagePullPolicy", "IfNotPresent")
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, **(meta or {})},
            "spec": {
                "nodeName": self.node,
                "containers": list(containers),
                "terminationGracePeriodSeconds": 1,
                **spec,
            },
        }
        self.send(body)
        self.names.append(name)
        return name

    def send(self, body: Json) -> None:
        """Create a pod as it stands."""
        self.kubectl("create", "-f", "-", stdin=json.dumps(body))

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl in the namespace."""
        words = arguments[0].split() if len(arguments) == 1 else list(arguments)
        return self.tools.kubectl(f"--namespace={self.namespace}", *words, stdin=stdin, check=check)

    def apply(self, *documents: Json) -> None:
        """Apply other objects in the namespace."""
        self.tools.apply(*documents, namespace=self.namespace)

    def get(self, name: str) -> Json:
        """The pod as it is now."""
        return self.tools.get("pod", name, namespace=self.namespace)

    def exists(self, name: str) -> bool:
        """Whether there is a pod of this name."""
        return bool(self.kubectl("get", "pod", name, "--ignore-not-found", "-o", "name"))

    def wait(self, name: str, check: Callable[[Json], Any], timeout: float = 90.0) -> Json:
        """Poll until ``check(pod)`` is true and return the pod."""
        deadline = time.monotonic() + timeout
        while True:
            began = time.monotonic()
            pod = self.get(name)
            if check(pod):
                return pod
            assert time.monotonic() < deadline, (
                f"not in time; status is {json.dumps(pod['status'], indent=1)}"
            )
            # kubectl has half of the time at most.
            time.sleep(min(1.0, max(0.1, time.monotonic() - began)))

    def wait_phase(self, name: str, phase: str, timeout: float = 90.0) -> Json:
        """Wait for a phase."""
        return self.wait(name, lambda pod: pod["status"].get("phase") == phase, timeout)

    def wait_ready(self, name: str, timeout: float = 90.0) -> Json:
        """Wait for the condition Ready."""
        return self.wait(name, lambda pod: condition(pod, "Ready").get("status") == "True", timeout)

    def wait_gone(self, name: str, timeout: float = 90.0) -> float:
        """Wait until the pod's object is gone; return how many seconds that took."""
        began = time.monotonic()
        while self.exists(name):
            assert time.monotonic() - began < timeout, f"{name} is still there: {self.get(name)['status']}"
            time.sleep(0.05)
        return time.monotonic() - began

    def logs(self, name: str, *options: str) -> str:
        """What `kubectl logs` prints."""
        return self.kubectl("logs", name, *options)

    def follow(self, name: str, *options: str) -> subprocess.Popen[str]:
        """Start `kubectl logs -f`."""
        return subprocess.Popen(
            [
                str(self.tools.binaries["kubectl"]),
                f"--namespace={self.namespace}",
                "logs",
                "-f",
                name,
                *options,
            ],
            env=self.tools.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )

    def follow_on(self, name: str, *options: str) -> subprocess.Popen[str]:
        """Start `kubectl logs -f` and return when it has shown the log's first line: it misses nothing that comes later."""
        follower = self.follow(name, *options)
        assert follower.stdout is not None
        assert follower.stdout.readline(), f"the log of {name} ended without a line"
        return follower

    def delete(self, name: str, *options: str) -> None:
        """Ask for deletion without waiting for it."""
        self.kubectl("delete", "pod", name, "--wait=false", *options)

    def events(self, name: str, reason: str) -> list[str]:
        """Messages of the pod's events of one reason."""
        found = self.tools.get("events", namespace=self.namespace)["items"]
        return [
            event.get("message", "")
            for event in found
            if event["involvedObject"].get("name") == name and event["reason"] == reason
        ]

    def wait_event(self, name: str, reason: str, timeout: float = 90.0) -> str:
        """Wait for an event and return its message."""
        deadline = time.monotonic() + timeout
        while not (messages := self.events(name, reason)):
            assert time.monotonic() < deadline, f"no event {reason} for {name}"
            time.sleep(0.1)
        return messages[0]

    def remove_all(self) -> None:
        """Delete what this client created."""
        if self.names:
            self.kubectl(
                "delete",
                "pod",
                *self.names,
                "--ignore-not-found",
                "--grace-period=1",
                "--wait=false",
                check=False,
            )


def condition(pod: Json, kind: str) -> Json:
    """A condition of a pod, empty if absent."""
    found = [entry for entry in pod["status"].get("conditions", []) if entry["type"] == kind]
    return found[0] if found else {}


def container(pod: Json, name: str = "main") -> Json:
    """The status of a container, of any sort; empty if absent."""
    status = pod["status"]
    for entry in [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]:
        if entry["name"] == name:
            return dict(entry)
    return {}


def waiting_reason(pod: Json, name: str = "main") -> str:
    """Why a container waits, or ""."""
    return str(container(pod, name).get("state", {}).get("waiting", {}).get("reason", ""))


def ended(pod: Json, name: str = "main") -> Json:
    """How a container's present or last run ended; empty if none has."""
    status = container(pod, name)
    state = status.get("state", {}).get("terminated") or status.get("lastState", {}).get("terminated")
    return dict(state or {})
