"""An API server's objects without a process for each look at them: tests poll, and kubectl costs a fifth of a second of CPU."""

from __future__ import annotations

import http.client
import json
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from llmos_operator.local.tools import Tools

Json = dict[str, Any]
_NOT_FOUND, _BAD = 404, 300
_GROUPS = {
    "events": "api/v1",
    "gpunodes": "apis/llmos.dev/v1alpha1",
    "leases": "apis/coordination.k8s.io/v1",
    "modelworkloads": "apis/llmos.dev/v1alpha1",
    "nodes": "api/v1",
    "pods": "api/v1",
    "poddisruptionbudgets": "apis/policy/v1",
    "services": "api/v1",
}


class Refused(Exception):  # noqa: N818 - reads as what happened
    """The API server did not do what it was asked; the text is its own."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class ApiClient:
    """Asks a cluster's API server through `kubectl proxy`. Threads may share it; `close` it."""

    def __init__(self, tools: Tools) -> None:
        self._proxy = subprocess.Popen(
            [str(tools.binaries["kubectl"]), "proxy", "--address=127.0.0.1", "--port=0"],
            env=tools.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._proxy.stdout is not None
        self._port = int(self._proxy.stdout.readline().rpartition(":")[2])

    def close(self) -> None:
        self._proxy.terminate()
        self._proxy.wait()

    def ask(self, method: str, path: str, body: Json | None = None, kind: str = "application/json") -> Any:
        """Return the answer to one request. Raises :class:`Refused`."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=90)
        try:
            text = json.dumps(body) if body is not None else None
            connection.request(method, path, text, {"Content-Type": kind})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= _BAD:
            raise Refused(answer.status, data.decode())
        return json.loads(data)

    def get(self, kind: str, name: str, namespace: str = "") -> Json:
        """Return an object as it is now. Raises :class:`Refused`."""
        return dict(self.ask("GET", f"{_path(kind, namespace)}/{name}"))

    def find(self, kind: str, name: str, namespace: str = "") -> Json:
        """Return an object as it is now, or nothing if there is none (not even its kind). Raises :class:`Refused`."""
        try:
            return self.get(kind, name, namespace)
        except Refused as error:
            if error.status == _NOT_FOUND:
                return {}
            raise

    def items(self, kind: str, namespace: str = "", **query: str) -> list[Json]:
        """Return all objects of a kind, in a namespace or everywhere: ``labelSelector``, ``fieldSelector``. Raises :class:`Refused`."""
        return list(self.ask("GET", f"{_path(kind, namespace)}?{urlencode(query)}")["items"])


def _path(kind: str, namespace: str) -> str:
    """Return where the objects of a kind (its plural) are."""
    return "/" + "/".join(filter(None, [_GROUPS[kind], namespace and f"namespaces/{namespace}", kind]))
