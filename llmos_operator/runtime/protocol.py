"""Requests of the serving API: OpenAI's fields, the sampling fields vLLM adds, and their bounds.

Strict types, because OpenAI's servers refuse `"16"` where a number is due; null is the same as absent; unknown fields
are ignored. What a model or this runtime cannot do is refused by name, never ignored silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_STOPS = 16
MAX_STOP_LENGTH = 512
MAX_LOGPROBS = 20
MAX_INPUTS = 2048
MAX_DOCUMENTS = 1000
MAX_TOKENS = 1 << 20
_INT32 = 2**31 - 1
_INT63 = 2**63 - 1

TokenId = Annotated[int, Field(ge=0, le=_INT32)]
# fail_fast: a million wrong elements must not become a million error objects.
Tokens = Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)]
Input = (
    str
    | Annotated[list[str], Field(max_length=MAX_INPUTS, fail_fast=True)]
    | Tokens
    | Annotated[list[Tokens], Field(max_length=MAX_INPUTS, fail_fast=True)]
)


class Body(BaseModel):
    """Base of request bodies."""

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class StreamOptions(Body):
    """What a stream says beside its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class StructuredOutputs(Body):
    """vLLM's way to bind an answer to a form; exactly one of the fields."""

    choice: Annotated[list[str], Field(min_length=1, max_length=1000, fail_fast=True)] | None = None
    regex: str | None = Field(
        None, min_length=1, max_length=8192, description="Rust's syntax, no look-around."
    )
    json_: dict[str, Any] | None = Field(None, alias="json", description="A JSON schema.")

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        given = [one for one in (self.choice, self.regex, self.json_) if one is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of 'choice', 'regex' and 'json'")
        if self.choice is not None and not all(self.choice):
            raise ValueError("a choice must not be empty")
        return self


class JsonSchemaFormat(Body):
    """A named schema of a whole answer."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="A JSON schema.")
    strict: bool | None = Field(None, description="Whether keywords that cannot be enforced are refused.")


class ResponseFormat(Body):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class Sampling(Body):
    """Fields shared by chat and text completions."""

    model: str = Field(min_length=1, max_length=512, description="Name of the model, as in /v1/models.")
    n: int | None = Field(None, ge=1, le=128, description="Answers for each prompt.")
    temperature: float | None = Field(None, ge=0.0, le=2.0, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0.0, le=1.0, description="Nucleus sampling.")
    top_k: int | None = Field(
        None, ge=-1, le=_INT32, description="Most likely tokens to choose from; 0 or -1: all."
    )
    min_p: float | None = Field(
        None, ge=0.0, le=1.0, description="Least probability relative to the best token's."
    )
    seed: int | None = Field(
        None, ge=-_INT63 - 1, le=_INT63, description="Same seed and request: same answer."
    )
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="Texts that end an answer."
    )
    stop_token_ids: list[TokenId] | None = Field(
        None, max_length=256, description="Tokens that end an answer."
    )
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    repetition_penalty: float | None = Field(None, gt=0.0, le=10.0)
    logit_bias: dict[str, float] | None = Field(None, max_length=1024, description="Token id to -100 … 100.")
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=_INT32)
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    structured_outputs: StructuredOutputs | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        found = [value] if isinstance(value, str) else value or []
        if len(found) > MAX_STOPS:
            raise ValueError(f"{len(found)} texts, at most {MAX_STOPS} are allowed")
        if any(not one or len(one) > MAX_STOP_LENGTH for one in found):
            raise ValueError(f"each text must have 1 to {MAX_STOP_LENGTH} characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            if not token.isdecimal():
                raise ValueError(f"keys must be token ids, got {token[:40]!r}")
            if not -100.0 <= bias <= 100.0:  # noqa: PLR2004 - OpenAI's bounds
                raise ValueError(f"biases must be between -100 and 100, got {bias} for token {token[:20]}")
        return value

    def stops(self) -> tuple[str, ...]:
        """Return the stop texts."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(Sampling):
    """Body of `POST /v1/completions`."""

    prompt: Input = Field(description="Text, tokens, or a list of either.")
    max_tokens: int | None = Field(
        None, ge=0, le=_INT32, description="Most tokens of an answer; 16 if absent."
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="Most likely tokens to report.")
    echo: bool | None = Field(None, description="Whether the answer begins with the prompt.")
    best_of: int | None = Field(None, ge=1, le=128)
    suffix: str | None = None


class TextPart(Body):
    """A part of a message's content."""

    type: str
    text: str | None = None


class CalledFunction(Body):
    """A function and its arguments, as a model called it."""

    name: str
    arguments: str = Field(description="JSON.")


class ToolCall(Body):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class FunctionDefinition(Body):
    """A function that a model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema; none: no arguments.")
    strict: bool | None = Field(None, description="Whether calls always keep to the schema.")


class Tool(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Body):
    """Names a function."""

    name: str


class NamedToolChoice(Body):
    """Makes the model call one function."""

    type: Literal["function"]
    function: FunctionName


class Message(Body):
    """One message of a conversation."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(max_length=4096, fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: str | None = None


class ChatRequest(Sampling):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(
        min_length=1, max_length=4096, description="The conversation so far."
    )
    max_tokens: int | None = Field(None, ge=1, le=_INT32, description="Older name of max_completion_tokens.")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=_INT32, description="Most tokens of the answer; what the context leaves if absent."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = Field(
        None, description="Whether tools may, must or must not be called; auto if absent."
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether an answer may hold several calls.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Further variables of the chat template."
    )
    add_generation_prompt: bool | None = None


class EmbeddingRequest(Body):
    """Body of `POST /v1/embeddings`."""

    model: str = Field(min_length=1, max_length=512, description="Name of the model, as in /v1/models.")
    input: Input = Field(description="Text, tokens, or a list of either.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=65536, description="Keep the first so many numbers.")
    user: str | None = None


class ClassifyRequest(Body):
    """Body of `POST /classify`."""

    model: str = Field(min_length=1, max_length=512, description="Name of the model, as in /v1/models.")
    input: Input = Field(
        description="Text, tokens, or a list of either; of an image classifier pictures as base64 or data URLs."
    )
    user: str | None = None


Texts = str | Annotated[list[str], Field(max_length=MAX_DOCUMENTS, fail_fast=True)]
Truncation = Annotated[
    int | None,
    Field(
        ge=-1,
        le=_INT32,
        description="Cut what is longer to so many tokens; -1: to the context. Refused if absent.",
    ),
]


class ScoreRequest(Body):
    """Body of `POST /v1/score`: one text and those it is compared with, or as many on both sides."""

    model: str = Field(min_length=1, max_length=512, description="Name of the model, as in /v1/models.")
    text_1: Texts = Field(
        validation_alias=AliasChoices("text_1", "queries", "data_1"),
        description="One text, or as many as in text_2. Also named queries or data_1.",
    )
    text_2: Texts = Field(
        validation_alias=AliasChoices("text_2", "documents", "data_2"),
        description="What it is compared with. Also named documents or data_2.",
    )
    truncate_prompt_tokens: Truncation = None
    user: str | None = None


class TextDocument(Body):
    """A document as Jina's clients may write it."""

    text: str


class RerankRequest(Body):
    """Body of `POST /v1/rerank`: documents to be put in the order in which they answer a query."""

    model: str = Field(min_length=1, max_length=512, description="Name of the model, as in /v1/models.")
    query: str
    documents: Annotated[list[str | TextDocument], Field(fail_fast=True)] = Field(
        min_length=1, max_length=MAX_DOCUMENTS
    )
    top_n: int | None = Field(None, ge=0, le=_INT32, description="Most results; 0 or absent: all.")
    return_documents: bool | None = Field(
        None, description="Whether results hold their texts; they do if absent."
    )
    max_tokens_per_doc: int | None = Field(
        None, ge=0, le=_INT32, description="Cut each document to so many tokens; 0 or absent: not."
    )
    truncate_prompt_tokens: Truncation = None
    user: str | None = None


class TokenizeRequest(Body):
    """Body of `POST /tokenize`: a text, or a conversation as the chat template writes it."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=4096
    )
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(Body):
    """Body of `POST /detokenize`."""

    model: str | None = None
    tokens: Tokens
