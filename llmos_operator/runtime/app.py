"""The serving API as a FastAPI application: routes and their OpenAPI description.

Bodies are validated by pydantic from the raw bytes, so routes take the request itself and name their model in
`openapi_extra`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from llmos_operator import __version__
from llmos_operator.observability.metrics import render
from llmos_operator.runtime.adapters_api import LOAD, UNLOAD, LoadLora, UnloadLora
from llmos_operator.runtime.answers import ApiError, bad_request
from llmos_operator.runtime.classifying import classify
from llmos_operator.runtime.embeddings import embed
from llmos_operator.runtime.exchange import (
    AnswerReply,
    Silence,
    error_reply,
    json_reply,
    raw_body,
    read_body,
    while_there,
)
from llmos_operator.runtime.outputs import ClientGone
from llmos_operator.runtime.pictures.decoder import PictureDecoder
from llmos_operator.runtime.pictures.fields import read_classify
from llmos_operator.runtime.planning import plan_chat, plan_completion, render_messages
from llmos_operator.runtime.protocol import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
    TokenizeRequest,
)
from llmos_operator.runtime.scoring import rerank, score
from llmos_operator.runtime.speech.fields import SpeechRequest, form_schema
from llmos_operator.runtime.speech.rules import TRANSCRIBE, TRANSLATE
from llmos_operator.runtime.transcribing import listen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from prometheus_client import CollectorRegistry
    from pydantic import BaseModel

    from llmos_operator.clock import Clock
    from llmos_operator.runtime.adapters_api import AdaptersApi
    from llmos_operator.runtime.answering import Kitchen
    from llmos_operator.runtime.host import ModelHost
    from llmos_operator.runtime.served import ServedModel
    from llmos_operator.runtime.speech.decoder import Decoder

    Route = Callable[[Request], Awaitable[Response]]

FORMAT = "x-llmos-format"
_SCHEMAS = "#/components/schemas/{model}"


class ServingApi:
    """Handlers of the serving API."""

    def __init__(
        self,
        host: ModelHost,
        kitchen: Kitchen,
        decoder: Decoder,
        registry: CollectorRegistry,
        clock: Clock,
        live: Callable[[], str],
    ) -> None:
        """``live`` returns "" or why the process should be restarted."""
        self._host = host
        self._kitchen = kitchen
        self._decoder = decoder
        self._pictures = PictureDecoder()
        self._registry = registry
        self._clock = clock
        self._live = live

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        self._need("chat", "/v1/chat/completions")
        body = await read_body(request, ChatRequest)
        model = self._host.require(body.model)
        self._need_text(model)
        plan = await plan_chat(body, model, max_choices=self._host.settings.max_choices)
        return AnswerReply(self._kitchen, plan, model, int(self._clock.now()))

    async def completion(self, request: Request) -> Response:
        """Continue a text."""
        self._need("completions", "/v1/completions")
        body = await read_body(request, CompletionRequest)
        model = self._host.require(body.model)
        self._need_text(model)
        plan = await plan_completion(body, model, max_choices=self._host.settings.max_choices)
        return AnswerReply(self._kitchen, plan, model, int(self._clock.now()))

    async def embeddings(self, request: Request) -> Response:
        """Return vectors of texts."""
        self._need("embeddings", "/v1/embeddings")
        body = await read_body(request, EmbeddingRequest)
        model = self._host.require(body.model)
        return await self._while_there(request, embed(body, model, self._kitchen))

    async def classify(self, request: Request) -> Response:
        """Return the labels of texts or pictures."""
        self._need("classify", "/classify")
        body, upload = read_classify(request.headers.get("content-type", ""), await raw_body(request))
        model = self._host.require(body.model)
        created = int(self._clock.now())
        return await self._while_there(
            request, classify(body, upload, model, self._kitchen, self._pictures, created)
        )

    async def score(self, request: Request) -> Response:
        """Return how well texts belong together."""
        self._need("score", "/v1/score")
        body = await read_body(request, ScoreRequest)
        model = self._host.require(body.model)
        return await self._while_there(request, score(body, model, self._kitchen, int(self._clock.now())))

    async def rerank(self, request: Request) -> Response:
        """Return documents in the order in which they answer a query."""
        self._need("score", "/v1/rerank")
        body = await read_body(request, RerankRequest)
        model = self._host.require(body.model)
        return await self._while_there(request, rerank(body, model, self._kitchen))

    async def transcription(self, request: Request) -> Response:
        """Write down what a file of sound says."""
        self._need("transcriptions", "/v1/audio/transcriptions")
        return await listen(request, self._host, self._kitchen, self._decoder, TRANSCRIBE)

    async def translation(self, request: Request) -> Response:
        """Write down in English what a file of sound says."""
        self._need("transcriptions", "/v1/audio/translations")
        return await listen(request, self._host, self._kitchen, self._decoder, TRANSLATE)

    async def tokenize(self, request: Request) -> Response:
        """Return the tokens of a text or a conversation."""
        body = await read_body(request, TokenizeRequest)
        model = self._require_words(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise bad_request("invalid_value", "Give exactly one of 'prompt' and 'messages'.", "prompt")
        if body.messages is not None:
            wanted = body.add_generation_prompt is not False
            text = await render_messages(body.messages, model, add_generation_prompt=wanted)
            tokens = await model.vocabulary.encode(text, special=bool(body.add_special_tokens))
        else:
            special = body.add_special_tokens is not False
            tokens = await model.vocabulary.encode(body.prompt or "", special=special)
        return json_reply({"count": len(tokens), "max_model_len": model.max_model_len, "tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        """Return the text of tokens."""
        body = await read_body(request, DetokenizeRequest)
        model = self._require_words(body.model)
        worst = max(body.tokens, default=0)
        if worst >= model.info.vocab_size:
            text = f"'tokens' has {worst}; this model's tokens are 0 to {model.info.vocab_size - 1}."
            raise bad_request("invalid_value", text, "tokens")
        return json_reply({"prompt": model.vocabulary.decode(body.tokens, skip_special=False)})

    async def models(self, _: Request) -> Response:
        """List the served model and its adapters."""
        return json_reply({"object": "list", "data": [self._describe(name) for name in self._host.names()]})

    async def model(self, request: Request) -> Response:
        """Describe the served model or one of its adapters."""
        name = str(request.path_params["name"])
        if name not in self._host.names():
            self._host.require(name)
        return json_reply(self._describe(name))

    async def livez(self, _: Request) -> Response:
        """200 unless the process should be restarted."""
        return probe(self._live())

    async def readyz(self, _: Request) -> Response:
        """200 while requests are welcome; a header tells the format in use."""
        answer = probe(self._host.not_ready())
        answer.headers[FORMAT] = self._host.format
        return answer

    async def startupz(self, _: Request) -> Response:
        """200 once loading is over, well or badly: a model that cannot be loaded is no reason for a restart."""
        state = self._host.state()
        if state.loading_is_over:
            return probe("")
        load = self._host.status().load
        share = f" {load.bytes_done} of {load.bytes_total} bytes" if load.bytes_total else ""
        return probe(f"{state.value}{share}")

    async def metrics(self, _: Request) -> Response:
        """Return Prometheus' text."""
        body, kind = render(self._registry)
        return Response(body, headers={"content-type": kind})

    async def version(self, _: Request) -> Response:
        """Return the version of this runtime."""
        return json_reply({"version": __version__})

    async def _while_there(self, request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> Response:
        """Answer with what ``work`` makes. A client that leaves ends it between two parts of the engine's work."""
        try:
            return json_reply(await while_there(request.receive, work))
        except ClientGone:
            self._kitchen.metrics.disconnects.inc()
            return Silence()

    def _describe(self, name: str) -> dict[str, Any]:
        served, base = self._host.served, self._host.settings.model_name
        return {
            "id": name,
            "object": "model",
            "created": served.created if served else int(self._clock.now()),
            "owned_by": "llmos",
            "root": name,
            "parent": None if name == base else base,
            "max_model_len": served.max_model_len if served else None,
            "format": self._host.format,
        }

    def _need(self, part: str, path: str) -> None:
        if self._host.settings.apis and part not in self._host.settings.apis:
            served = ", ".join(self._host.settings.apis)
            text = f"{path} is not served by this workload: its spec.serving.apis are {served}."
            raise ApiError(HTTPStatus.NOT_FOUND, "unsupported_endpoint", text)

    def _require_words(self, name: str | None) -> ServedModel:
        model = self._host.require(name or self._host.settings.model_name)
        if model.pictures is not None:
            text = f"The model {model.name} has no tokens: use {model.routes}."
            raise bad_request("unsupported_value", text, "model")
        return model

    def _need_text(self, model: ServedModel) -> None:
        if "chat" not in model.apis:
            text = f"The model {model.name} generates no text: use {model.routes}."
            raise bad_request("unsupported_value", text, "model")


def build(api: ServingApi, adapters: AdaptersApi | None = None) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="LLMOS runtime", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    bodies: list[tuple[str, Route, type[BaseModel]]] = [
        ("/v1/chat/completions", api.chat, ChatRequest),
        ("/v1/completions", api.completion, CompletionRequest),
        ("/v1/embeddings", api.embeddings, EmbeddingRequest),
        ("/classify", api.classify, ClassifyRequest),
        ("/v1/score", api.score, ScoreRequest),
        ("/score", api.score, ScoreRequest),
        ("/v1/rerank", api.rerank, RerankRequest),
        ("/rerank", api.rerank, RerankRequest),
        ("/v2/rerank", api.rerank, RerankRequest),
        ("/tokenize", api.tokenize, TokenizeRequest),
        ("/detokenize", api.detokenize, DetokenizeRequest),
        ("/v1/tokenize", api.tokenize, TokenizeRequest),
        ("/v1/detokenize", api.detokenize, DetokenizeRequest),
    ]
    if adapters is not None:
        bodies += [(LOAD, adapters.load, LoadLora), (UNLOAD, adapters.unload, UnloadLora)]
    for path, handler, kind in bodies:
        app.add_api_route(path, handler, methods=["POST"], response_model=None, openapi_extra=_body(kind))
    for path, handler in (
        ("/v1/audio/transcriptions", api.transcription),
        ("/v1/audio/translations", api.translation),
    ):
        app.add_api_route(path, handler, methods=["POST"], response_model=None, openapi_extra=_sound())
    plain: list[tuple[str, Route]] = [
        ("/v1/models", api.models),
        ("/v1/models/{name:path}", api.model),
        ("/livez", api.livez),
        ("/readyz", api.readyz),
        ("/health", api.readyz),
        ("/startupz", api.startupz),
        ("/metrics", api.metrics),
        ("/version", api.version),
    ]
    for path, handler in plain:
        app.add_api_route(path, handler, methods=["GET"], response_model=None)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    kinds = {kind for _, _, kind in bodies}

    async def openapi(_: Request) -> Response:
        return json_reply(_describe_api(app, kinds))

    app.add_route("/openapi.json", openapi, methods=["GET"])
    return app


async def on_api_error(_: Request, error: Exception) -> Response:
    """Answer with an ApiError."""
    if not isinstance(error, ApiError):
        raise error
    return error_reply(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Give the framework's own 404 and 405 OpenAI's shape."""
    if not isinstance(error, HTTPException):
        raise error
    path, headers = request.url.path[:200], dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = headers.get("Allow") or headers.get("allow") or "another method"
        text, code = f"Not allowed to {request.method} on {path}; use {allowed}.", "method_not_allowed"
    elif error.status_code == HTTPStatus.NOT_FOUND:
        text, code = f"Unknown request URL: {request.method} {path}.", "unknown_url"
    else:
        text, code = str(error.detail), "http_error"
    response = error_reply(ApiError(error.status_code, code, text))
    response.headers.update(headers)
    return response


def probe(trouble: str) -> Response:
    """Return the answer to a probe: 200, or 503 and why."""
    return Response(trouble or "ok", status_code=503 if trouble else 200, media_type="text/plain")


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    reference = {"$ref": _SCHEMAS.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def _sound() -> dict[str, Any]:
    reference = {"$ref": _SCHEMAS.format(model=SpeechRequest.__name__)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": reference}}}}


def _describe_api(app: FastAPI, kinds: set[type[BaseModel]]) -> dict[str, Any]:
    """Return the OpenAPI document with the schemas of the bodies."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas[SpeechRequest.__name__] = form_schema()
    for kind in sorted(kinds, key=lambda one: one.__name__):
        schema = kind.model_json_schema(ref_template=_SCHEMAS)
        schemas.update(schema.pop("$defs", {}))
        schemas[kind.__name__] = schema
    return document
