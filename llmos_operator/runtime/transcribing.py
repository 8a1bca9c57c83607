"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`: a file of sound in, what it says out.

The sound is decoded in a process of its own and cut into windows; each window is a sequence in the engine, batched with
those of others, a few of one request at a time. A client that leaves ends them within one step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from llmos_operator.runtime.answering import Answer
from llmos_operator.runtime.answers import ApiError, bad_request
from llmos_operator.runtime.exchange import raw_body, send_all, send_error, start_events, watching, write
from llmos_operator.runtime.outputs import ClientGone
from llmos_operator.runtime.speech import rendering
from llmos_operator.runtime.speech.fields import read_request
from llmos_operator.runtime.speech.planning import check, plan_language, plan_speech
from llmos_operator.runtime.speech.rules import RATE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from llmos_operator.runtime.answering import Kitchen
    from llmos_operator.runtime.host import ModelHost
    from llmos_operator.runtime.ipc import TokenLogprob
    from llmos_operator.runtime.served import ServedModel
    from llmos_operator.runtime.speech.decoder import Decoder, Sound
    from llmos_operator.runtime.speech.fields import SpeechRequest
    from llmos_operator.runtime.speech.multipart import Upload
    from llmos_operator.runtime.speech.rules import SpeechRules

_KINDS = {
    "text": b"text/plain; charset=utf-8",
    "srt": b"application/x-subrip",
    "vtt": b"text/vtt; charset=utf-8",
}
_JSON = b"application/json"


async def listen(
    request: Request, host: ModelHost, kitchen: Kitchen, decoder: Decoder, task: str
) -> Response:
    """Return the answer to a form that asks for ``task``. Raises ApiError."""
    raw = await raw_body(request)
    body, upload = read_request(request.headers.get("content-type", ""), raw)
    model = host.require(body.model)
    rules = model.rules
    if rules is None:
        text = f"The model {model.name} hears nothing: use {model.routes}."
        raise bad_request("unsupported_value", text, "model")
    check(body, rules, task, model.name)
    return Transcription(kitchen, decoder, model, rules, body, upload, task)


class Transcription(Response):
    """Writes down what a file says and sends it, as events or as a whole."""

    def __init__(
        self,
        kitchen: Kitchen,
        decoder: Decoder,
        model: ServedModel,
        rules: SpeechRules,
        body: SpeechRequest,
        upload: Upload,
        task: str,
    ) -> None:
        super().__init__()
        self._kitchen = kitchen
        self._decoder = decoder
        self._model = model
        self._rules = rules
        self._body = body
        self._upload = upload
        self._task = task
        self._started = False
        self._language = body.language or ""
        self._heard: dict[int, list[TokenLogprob]] = {}  # by window

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        window = self._model.info.window_samples
        try:
            async with self._decoder.decoded(self._upload.data, window) as sound:
                await self._tell_language(sound, receive)
                await self._answer(sound, receive, send)
        except ApiError as error:
            await send_error(send, error, started=self._started)
        except ClientGone:
            self._kitchen.metrics.disconnects.inc()

    async def _tell_language(self, sound: Sound, receive: Receive) -> None:
        """Hear the language of a long recording once, so that its windows do not differ."""
        if self._language or not self._rules.languages or len(sound.windows) == 1:
            return
        answer = Answer(self._kitchen, plan_language(self._body, self._rules, sound), self._model)
        async with watching(receive, answer.outputs.interrupt), answer.open():
            async for found in answer.pieces():
                for _, piece in found:
                    self._note_language(piece.logprobs)

    async def _answer(self, sound: Sound, receive: Receive, send: Send) -> None:
        plan = await plan_speech(self._body, self._model, self._rules, sound, self._task, self._language)
        answer = Answer(self._kitchen, plan, self._model)
        async with watching(receive, answer.outputs.interrupt), answer.open():
            await (self._stream if plan.stream else self._whole)(answer, sound, send)
        self._kitchen.metrics.audio.inc(sound.seconds)

    async def _stream(self, answer: Answer, sound: Sound, send: Send) -> None:
        text = ""
        async for piece in self._in_order(answer):
            new = piece if text else piece.lstrip()
            text += new
            if new:
                self._started = await start_events(send, started=self._started)
                await write(send, rendering.delta(new))
        self._started = await start_events(send, started=self._started)
        await write(send, rendering.done(text, sound.seconds), more=False)

    async def _whole(self, answer: Answer, sound: Sound, send: Send) -> None:
        text = "".join([piece async for piece in self._in_order(answer)])
        kind = self._body.response_format
        headers = [(b"content-type", _KINDS.get(kind, _JSON))]
        await send_all(send, 200, headers, self._render(text, sound))

    def _render(self, text: str, sound: Sound) -> bytes:
        body, words = self._body, self._model.vocabulary.decode
        match body.response_format:
            case "text":
                return text.strip().encode() + b"\n"
            case "srt":
                return rendering.srt(self._segments(sound), words)
            case "vtt":
                return rendering.vtt(self._segments(sound), words)
            case "verbose_json":
                return rendering.verbose(
                    text,
                    self._segments(sound),
                    words,
                    task=self._task,
                    language=self._language or "en",
                    seconds=sound.seconds,
                    temperature=body.temperature,
                )
            case _:
                return rendering.plain(text, sound.seconds)

    def _segments(self, sound: Sound) -> list[rendering.Segment]:
        found = []
        for index, (begin, end) in enumerate(sound.windows):
            made = self._heard.get(index, [])
            found += rendering.segments(made, self._rules, begin / RATE, end / RATE)
        return found

    async def _in_order(self, answer: Answer) -> AsyncIterator[str]:
        """Yield the text of window after window, as far as all before it is complete."""
        held = [""] * len(answer.choices)
        at = 0
        async for found in answer.pieces():
            for choice, piece in found:
                if not choice.index:
                    self._note_language(piece.logprobs)
                self._heard.setdefault(choice.index, []).extend(piece.logprobs)
                held[choice.index] += piece.text
            while at < len(held):
                if held[at]:
                    yield held[at]
                    held[at] = ""
                if not answer.choices[at].finish_reason:
                    break
                at += 1

    def _note_language(self, made: tuple[TokenLogprob, ...]) -> None:
        if self._language or not made:
            return
        self._language = next(
            (code for code, token in self._rules.languages.items() if token == made[0].token), ""
        )
