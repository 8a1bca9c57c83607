"""An external.metrics.k8s.io server that answers with what our own processes measure, as prometheus-adapter or KEDA would.

It speaks HTTPS on loopback; the API server reaches it through an APIService whose Service is a name for localhost.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from llmos_operator.clock import rfc3339
from llmos_operator.local.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GROUP_VERSION = "external.metrics.k8s.io/v1beta1"
_ROOT = f"/apis/{GROUP_VERSION}"
NAMESPACE = "kube-system"
NAME = "external-metrics"


@contextmanager
def external_metrics(folder: Path, measure: Callable[[str, str], float]) -> Iterator[list[dict[str, Any]]]:
    """Serve ``measure(namespace, metric)`` meanwhile; yields the Service and the APIService that lead there."""
    authority = Authority("external-metrics")
    pair = authority.server("metrics", [f"{NAME}.{NAMESPACE}.svc"], ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair.write(folder, "metrics"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.dumps(_answer(self.path.partition("?")[0], measure)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield _objects(authority, server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)


def _answer(path: str, measure: Callable[[str, str], float]) -> dict[str, Any]:
    if not path.startswith(f"{_ROOT}/namespaces/"):
        resource = {
            "name": "*",
            "singularName": "",
            "namespaced": True,
            "kind": "ExternalMetricValueList",
            "verbs": ["get"],
        }
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": GROUP_VERSION,
            "resources": [resource],
        }
    namespace, metric = path.removeprefix(f"{_ROOT}/namespaces/").split("/")
    value = {
        "metricName": metric,
        "metricLabels": {},
        "timestamp": rfc3339(time.time()),
        "value": f"{round(measure(namespace, metric) * 1000)}m",
    }
    return {"kind": "ExternalMetricValueList", "apiVersion": GROUP_VERSION, "metadata": {}, "items": [value]}


def _objects(authority: Authority, port: int) -> list[dict[str, Any]]:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    }
    group, version = GROUP_VERSION.split("/")
    api = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
        "spec": {
            "group": group,
            "version": version,
            "service": {"name": NAME, "namespace": NAMESPACE, "port": port},
            "caBundle": base64.b64encode(authority.certificate).decode(),
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    }
    return [service, api]
