"""An OTLP receiver: a real HTTP server that reads the protobuf as a collector does, and may be slow or broken."""

from __future__ import annotations

import gzip
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATUS = {0: "unset", 1: "ok", 2: "error"}
_KIND = {1: "internal", 2: "server", 3: "client"}
NANO = 1_000_000_000


@dataclass(frozen=True)
class Seen:
    """One span as it came over the wire."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    start: float
    end: float
    status: str
    attributes: dict[str, Any]
    events: list[tuple[str, float, dict[str, Any]]]
    resource: dict[str, Any]
    state: str = ""


@dataclass(eq=False)
class Receiver:
    """What came, and how to answer."""

    url: str = ""
    answer: int = 200
    gate: threading.Event = field(default_factory=threading.Event)  # clear: requests hang
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    spans: list[Seen] = field(default_factory=list)

    def named(self, name: str) -> list[Seen]:
        """Return the spans of a name, as far as they have come."""
        return [one for one in self.spans if one.name == name]

    def one(self, name: str, *, within: float = 90.0, **attributes: Any) -> Seen:
        """Return the only span of a name (with these attributes, dots as two underscores); waits for it."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}

        def found() -> list[Seen]:
            return [
                one
                for one in self.named(name)
                if all(one.attributes.get(key) == value for key, value in wanted.items())
            ]

        try:
            eventually(found, f"span {name!r} {wanted} comes", within)
        except AssertionError as error:
            raise AssertionError(f"{error}; there are {[one.name for one in self.spans]}") from None
        (only,) = found()
        return only

    def take(self, body: bytes) -> None:
        """Read one export request."""
        self.raw.append(body)
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            resource = _values(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [_seen(span, resource) for span in scope.spans]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Yield a receiver that listens on loopback."""
    made = Receiver()
    made.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            made.requests.append((self.path, dict(self.headers)))
            made.gate.wait(120)
            if made.answer == 200:
                made.take(body)
            self.send_response(made.answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


def _seen(span: Any, resource: dict[str, Any]) -> Seen:
    return Seen(
        name=span.name,
        kind=_KIND.get(span.kind, "?"),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start=span.start_time_unix_nano / NANO,
        end=span.end_time_unix_nano / NANO,
        status=_STATUS[span.status.code],
        attributes=_values(span.attributes),
        events=[(one.name, one.time_unix_nano / NANO, _values(one.attributes)) for one in span.events],
        resource=resource,
        state=span.trace_state,
    )


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
