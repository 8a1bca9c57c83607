"""What the runtime's spans are called and say: a request with its wait, its prompt and its answer, and the load of the model.

Names follow OpenTelemetry's conventions for HTTP and for generative AI, as the gateway's do (`gateway.spans`). Times inside
the engine come with its last output (`ipc.Timing`), so tracing costs the engine nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.observability import tracing

if TYPE_CHECKING:
    from llmos_operator.observability.tracing import Span, TraceContext, Tracer, Value
    from llmos_operator.runtime.answering import Answer
    from llmos_operator.runtime.choices import Choice
    from llmos_operator.runtime.ipc import EngineInfo
    from llmos_operator.runtime.planning import Plan

CLIENT_GONE: Final = "client_gone"
LOAD: Final = "load"
FIRST_TOKEN: Final = "llmos.first_token"  # noqa: S105 - an event's name
_SHOWN: Final = 8  # answers of one request whose times are spans of their own
_SERVER_ERROR: Final = 500
_PROVIDER: Final = "llmos"


def started(tracer: Tracer, headers: dict[bytes, bytes], path: str, *, known: bool) -> Span:
    """Begin the span of a request, below the caller's if it names one."""
    route = path if known else "other"
    return tracer.start(
        f"POST {route}",
        tracing.Kind.SERVER,
        parent=tracing.parse(_text(headers, tracing.TRACEPARENT), _text(headers, tracing.TRACESTATE)),
        attributes={"http.request.method": "POST", "http.route": route, "url.scheme": "http"},
    )


def ended(span: Span, status: int) -> None:
    """End the span of a request; status 0 is a client that left before there was one."""
    if status:
        span.set({"http.response.status_code": status})
    if not status or status >= _SERVER_ERROR:
        span.fail(str(status) if status else CLIENT_GONE)
    span.end()


def answered(tracer: Tracer, answer: Answer, first_token: float | None) -> None:
    """Add what an answer was to the request's span, and its parts below it. ``first_token`` is seconds from the start."""
    span = tracing.current()
    if not span.recording:
        return
    plan, usage = answer.plan, answer.usage()
    found: dict[str, Value] = {
        "gen_ai.operation.name": _operation(plan),
        "gen_ai.provider.name": _PROVIDER,
        "gen_ai.request.model": answer.model.name,
        "gen_ai.response.model": answer.model.name,
        "gen_ai.response.id": answer.id,
        "gen_ai.request.max_tokens": max((one.max_tokens for one in plan.samplings), default=0),
        "gen_ai.request.stream": plan.stream,
        "gen_ai.response.finish_reasons": tuple(
            choice.told_reason or "abort" for choice in answer.choices[:_SHOWN]
        ),
        "gen_ai.usage.input_tokens": usage.prompt,
        "gen_ai.usage.output_tokens": usage.completion,
        "gen_ai.usage.cache_read.input_tokens": usage.cached,
        "llmos.format": answer.model.info.format,
    }
    if plan.n != 1:
        found["gen_ai.request.choice.count"] = plan.n
    if first_token is not None:
        found["gen_ai.server.time_to_first_token"] = round(first_token, 6)
    span.set(found)
    for choice in answer.choices[:_SHOWN]:
        _parts(tracer, span.context, choice)


def _operation(plan: Plan) -> str:
    if plan.sounds:
        return "transcription"
    return "chat" if plan.chat else "text_completion"


def embedded(model: str, prompt_tokens: int, operation: str) -> None:
    """Add what a request to an encoder was to its span."""
    span = tracing.current()
    if span.recording:
        span.set(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": _PROVIDER,
                "gen_ai.request.model": model,
                "gen_ai.usage.input_tokens": prompt_tokens,
            }
        )


def _parts(tracer: Tracer, above: TraceContext | None, choice: Choice) -> None:
    """Make the spans of one answer in the engine: waiting, reading the prompt, writing."""
    timing = choice.timing
    if timing is None or not timing.scheduled_at:
        return
    first = timing.first_token_at or timing.finished_at
    facts: dict[str, Value] = {"llmos.choice": choice.index}
    for name, start, end, more in (
        ("queue", timing.arrived_at, timing.scheduled_at, {}),
        (
            "prefill",
            timing.scheduled_at,
            first,
            {"gen_ai.usage.input_tokens": choice.prompt_tokens, "llmos.cached_tokens": choice.cached_tokens},
        ),
        ("decode", first, timing.finished_at, {"gen_ai.usage.output_tokens": choice.made}),
    ):
        part = tracer.start(name, parent=above, attributes={**facts, **more}, at=tracer.moment(start))
        part.end(tracer.moment(max(start, end)))


def loaded(tracer: Tracer, parent: str, info: EngineInfo, began: float, ended_at: float) -> None:
    """Make the spans of a load that ended well, below the placement's. Times are monotonic seconds."""
    span = tracer.start(
        LOAD,
        parent=tracing.parse(parent),
        at=tracer.moment(began),
        attributes={
            "llmos.format": info.format,
            "llmos.load.path": info.load_path,
            "llmos.architecture": info.architecture,
            "llmos.device": info.device,
            "llmos.kv_blocks": info.kv_blocks,
        },
    )
    # The engine tells durations; its stages follow one another and the last ends with the load.
    start = max(began, ended_at - sum(seconds for _, seconds in info.stage_seconds))
    for stage, seconds in info.stage_seconds:
        end = min(ended_at, start + seconds)
        part = tracer.start(f"{LOAD} {stage}", parent=span.context, at=tracer.moment(start))
        part.end(tracer.moment(end))
        start = end
    span.end(tracer.moment(ended_at))


def not_loaded(tracer: Tracer, parent: str, reason: str, began: float, ended_at: float) -> None:
    """Make the span of a load that failed; ``reason`` is of the closed list."""
    span = tracer.start(LOAD, parent=tracing.parse(parent), at=tracer.moment(began))
    span.fail(reason)
    span.end(tracer.moment(ended_at))


def _text(headers: dict[bytes, bytes], name: str) -> str:
    return headers.get(name.encode(), b"").decode("latin-1")
