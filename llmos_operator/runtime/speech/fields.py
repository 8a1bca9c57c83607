"""Fields of `POST /v1/audio/transcriptions` and `/v1/audio/translations`: OpenAI's, from a form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmos_operator.runtime.answers import bad_request, from_validation
from llmos_operator.runtime.speech.multipart import BadForm, Upload, read_form

if TYPE_CHECKING:
    from llmos_operator.runtime.speech.multipart import Form

MAX_PROMPT_CHARACTERS = 16 << 10
_FILE = "file"
_LISTS = {"timestamp_granularities[]": "timestamp_granularities", "include[]": "include"}
TIMED = ("verbose_json", "srt", "vtt")


class SpeechRequest(BaseModel):
    """A form to write down, or to translate, what a file says."""

    # Not strict: everything in a form is text.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(min_length=1, max_length=512, description="Name of the model, as in /v1/models.")
    language: str | None = Field(
        None,
        min_length=2,
        max_length=16,
        description="Code of the spoken language, as `en`; heard if absent.",
    )
    prompt: str | None = Field(
        None, max_length=MAX_PROMPT_CHARACTERS, description="Text before the sound, for names and style."
    )
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float = Field(0.0, ge=0.0, le=1.0, description="0 is greedy.")
    timestamp_granularities: list[Literal["word", "segment"]] = Field(
        default=[], max_length=8, description="With verbose_json; `word` is not supported."
    )
    stream: bool = Field(default=False, description="Text as events while it is written; with json or text.")
    include: list[Literal["logprobs"]] = Field(default=[], max_length=8)
    user: str | None = None

    @property
    def times(self) -> bool:
        """Whether the answer says when."""
        return self.response_format in TIMED


def read_request(content_type: str, body: bytes) -> tuple[SpeechRequest, Upload]:
    """Return a request's fields and its file. Raises ApiError (400) naming what is wrong."""
    try:
        form = read_form(content_type, body)
    except BadForm as error:
        raise bad_request("invalid_form", f"Invalid form: {error}.", error.param) from None
    try:
        request = SpeechRequest.model_validate(_values(form))
    except ValidationError as error:
        raise from_validation(error) from None
    _refuse(request)
    upload = form.files.get(_FILE)
    if upload is None:
        raise bad_request(
            "missing_required_parameter", "Missing required parameter: 'file' (a file of the form).", _FILE
        )
    return request, upload


def form_schema() -> dict[str, Any]:
    """Return the JSON schema of the form, its file included."""
    schema = SpeechRequest.model_json_schema()
    written = {plain: name for name, plain in _LISTS.items()}
    described = {written.get(name, name): value for name, value in schema["properties"].items()}
    file = {"type": "string", "format": "binary", "description": "wav, flac, ogg, mp3 or aiff."}
    return schema | {"properties": {_FILE: file, **described}, "required": [_FILE, *schema["required"]]}


def _values(form: Form) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in form.fields.items():
        plain = _LISTS.get(name, name)
        if plain in _LISTS.values():
            found.setdefault(plain, []).extend(values)
        elif len(values) > 1:
            raise bad_request("invalid_form", f"Invalid form: '{name[:80]}' is there twice.", name[:80])
        elif values[0]:  # an empty field is an absent one: forms cannot say null
            found[plain] = values[0]
    return found


def _refuse(request: SpeechRequest) -> None:
    """Raise ApiError (400) for what is described, because OpenAI's clients know it, and not supported."""
    if "word" in request.timestamp_granularities:
        raise bad_request(
            "unsupported_value",
            "Times of words are not supported: ask for 'segment'.",
            "timestamp_granularities",
        )
    if request.timestamp_granularities and request.response_format != "verbose_json":
        raise bad_request(
            "invalid_value",
            "'timestamp_granularities' needs 'response_format' to be verbose_json.",
            "timestamp_granularities",
        )
    if request.include:
        raise bad_request("unsupported_parameter", "'include' is not supported by this model.", "include")
    if request.stream and request.times:
        raise bad_request(
            "invalid_value",
            f"'stream' needs 'response_format' to be json or text, not {request.response_format}.",
            "stream",
        )
