"""From a validated request to what the engine is asked: prompts in tokens, sampling, and what to do with the text.

Everything that a request can get wrong about lengths, tokens and abilities is refused here, with the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime.answers import bad_request
from llmos_operator.runtime.forms import form_of
from llmos_operator.runtime.ipc import SamplingParams
from llmos_operator.runtime.tools.choosing import tool_use

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.forms import Form
    from llmos_operator.runtime.protocol import ChatRequest, CompletionRequest, Message, Sampling
    from llmos_operator.runtime.served import ServedModel
    from llmos_operator.runtime.tools.choosing import ToolUse

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
_RENDER_INLINE = 4096  # characters of a conversation that is rendered without a thread


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, ready for the engine: each prompt is answered `n` times."""

    prompts: tuple[tuple[int, ...], ...]
    samplings: tuple[SamplingParams, ...]  # one for each prompt: they may differ in max_tokens
    n: int = 1
    chat: bool = False
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    keep_special: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: int | None = None  # most likely tokens to report; None: no logprobs
    echo: tuple[str, ...] = ()  # texts of the prompts, where they begin the answers
    score_only: bool = False  # echo with max_tokens 0: the one token the engine makes is dropped
    tenant: str = ""
    grammar: str = ""  # what answers keep to, "" for free text
    grammar_param: str = ""  # the field that asked for it
    tools: ToolUse | None = None  # how answers call tools
    sounds: tuple[bytes, ...] = ()  # what a speech model hears, one window for each prompt
    script: tuple[tuple[int, ...], ...] = ()  # of a speech model: as in ipc.Submit
    times: bool = False  # of a speech model: whether it says when

    @property
    def sequences(self) -> int:
        """How many answers are made."""
        return len(self.prompts) * self.n


async def plan_chat(body: ChatRequest, model: ServedModel, *, max_choices: int) -> Plan:
    """Return the plan of a chat completion. Raises ApiError (400)."""
    use, form = tool_use(body, model.template.tool_style if model.template is not None else None)
    text = await render_messages(
        body.messages,
        model,
        add_generation_prompt=body.add_generation_prompt is not False,
        tools=use.told if use is not None else (),
        extra=body.chat_template_kwargs,
    )
    await refuse_too_long(text, model, "messages")
    prompt = await model.vocabulary.encode(text, special=False)
    wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    param = "max_completion_tokens" if body.max_completion_tokens is not None else "max_tokens"
    limit = _limit(prompt, wanted, None, model, "messages", param)
    logprobs = None
    if body.logprobs:
        logprobs = body.top_logprobs or 0
    elif body.top_logprobs:
        raise bad_request("invalid_value", "'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    sampling = _sampling(body, model, logprobs)
    plan = _plan(
        body,
        (prompt,),
        (replace(sampling, max_tokens=limit),),
        max_choices,
        chat=True,
        logprobs=logprobs,
        form=form,
    )
    return replace(plan, tools=use)


async def plan_completion(body: CompletionRequest, model: ServedModel, *, max_choices: int) -> Plan:
    """Return the plan of a text completion. Raises ApiError (400)."""
    if body.suffix:
        raise bad_request("unsupported_parameter", "'suffix' is not supported by this model.", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad_request(
            "unsupported_parameter", "'best_of' must equal 'n': answers are not ranked.", "best_of"
        )
    score_only = body.max_tokens == 0
    if score_only and not body.echo:
        raise bad_request("invalid_value", "'max_tokens' may be 0 only together with 'echo'.", "max_tokens")
    prompts = await read_input(body.prompt, model, "prompt")
    sampling = _sampling(body, model, body.logprobs)
    if body.echo and body.logprobs is not None:
        sampling = replace(sampling, prompt_logprobs=True)
    samplings = tuple(
        replace(
            sampling,
            max_tokens=1
            if score_only
            else _limit(prompt, body.max_tokens, DEFAULT_COMPLETION_TOKENS, model, "prompt", "max_tokens"),
        )
        for prompt in prompts
    )
    plan = _plan(
        body, tuple(prompts), samplings, max_choices, chat=False, logprobs=body.logprobs, form=form_of(body)
    )
    if not body.echo:
        return plan
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    echo = tuple(
        text if isinstance(text, str) else model.vocabulary.decode(prompt)
        for text, prompt in zip(texts if len(texts) == len(prompts) else prompts, prompts, strict=True)
    )
    return replace(plan, echo=echo, score_only=score_only)


async def refuse_too_long(text: str, model: ServedModel, param: str) -> None:
    """Raise ApiError (400) for a text that is far beyond the context, before minutes are spent on its tokens."""
    if await model.vocabulary.exceeds(text, model.max_model_len):
        raise bad_request(
            "context_length_exceeded",
            f"This model's maximum context length is {model.max_model_len} tokens. However, your {param} has more than "
            f"that, with {len(text)} characters. Shorten the {param}.",
            param,
        )


async def render_messages(
    messages: Sequence[Message],
    model: ServedModel,
    *,
    add_generation_prompt: bool,
    tools: Sequence[dict[str, Any]] = (),
    extra: dict[str, Any] | None = None,
) -> str:
    """Return a conversation as the model's chat template writes it."""
    if model.template is None:
        raise bad_request(
            "unsupported_value",
            f"The model {model.name} has no chat template: use /v1/completions.",
            "messages",
        )
    return model.template.render(
        messages, tools=tools, add_generation_prompt=add_generation_prompt, extra=extra
    )


async def read_input(
    given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
    model: ServedModel,
    param: str,
) -> list[tuple[int, ...]]:
    """Return the token sequences of a `prompt` or `input`: text, tokens, or a list of either."""
    if isinstance(given, str):
        given = [given]
    if not given:
        raise bad_request("invalid_value", f"'{param}' must not be an empty list.", param)
    if isinstance(given[0], str):
        texts = [str(one) for one in given]
        for text in texts:
            await refuse_too_long(text, model, param)
        found = await model.vocabulary.encode_all(texts, special=True)
    elif isinstance(given[0], int):
        found = [tuple(int(one) for one in given if isinstance(one, int))]
    else:
        found = [tuple(one) for one in given if not isinstance(one, int | str)]
    for place, tokens in enumerate(found):
        where = param if len(found) == 1 else f"{param}[{place}]"
        if not tokens:
            raise bad_request("invalid_value", f"'{where}' has no tokens: it must not be empty.", where)
        worst = max(tokens)
        if worst >= model.info.vocab_size:
            text = f"'{where}' has token {worst}; this model's tokens are 0 to {model.info.vocab_size - 1}."
            raise bad_request("invalid_value", text, where)
    return found


def _plan(
    body: Sampling,
    prompts: tuple[tuple[int, ...], ...],
    samplings: tuple[SamplingParams, ...],
    max_choices: int,
    *,
    chat: bool,
    logprobs: int | None,
    form: Form,
) -> Plan:
    n = body.n or 1
    if len(prompts) * n > max_choices:
        text = (
            f"{len(prompts)} prompts x n = {n} are more than the {max_choices} answers a request may ask for."
        )
        raise bad_request("invalid_value", text, "n")
    options = body.stream_options
    if options is not None and not body.stream:
        raise bad_request("invalid_value", "'stream_options' needs 'stream' to be true.", "stream_options")
    return Plan(
        prompts=prompts,
        samplings=samplings,
        n=n,
        chat=chat,
        stops=body.stops(),
        include_stop=bool(body.include_stop_str_in_output),
        keep_special=body.skip_special_tokens is False,
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        logprobs=logprobs,
        tenant=body.user or "",
        grammar=form.grammar,
        grammar_param=form.param,
    )


def _sampling(body: Sampling, model: ServedModel, logprobs: int | None) -> SamplingParams:
    """Return the sampling a request asks for; what it leaves open comes from the model's author, then from OpenAI."""
    recommended = model.recommended
    top_k = body.top_k if body.top_k is not None else int(recommended.get("top_k", 0))

    def pick(name: str, default: float) -> float:
        value = getattr(body, name)
        return float(value if value is not None else recommended.get(name, default))

    return SamplingParams(
        temperature=pick("temperature", 1.0),
        top_p=pick("top_p", 1.0),
        top_k=max(0, top_k),
        min_p=pick("min_p", 0.0),
        seed=body.seed,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
        repetition_penalty=pick("repetition_penalty", 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_biases(body, model),
        logprobs=logprobs,
    )


def _biases(body: Sampling, model: ServedModel) -> tuple[tuple[int, float], ...]:
    found = tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items())
    wrong = next((token for token, _ in found if token >= model.info.vocab_size), None)
    if wrong is not None:
        text = f"'logit_bias' has token {wrong}; this model's tokens are 0 to {model.info.vocab_size - 1}."
        raise bad_request("invalid_value", text, "logit_bias")
    return found


def _limit(
    prompt: Sequence[int],
    wanted: int | None,
    default: int | None,
    model: ServedModel,
    source: str,
    param: str,
) -> int:
    """Return how many tokens may be made. Raises ApiError (400) if prompt and answer cannot fit the context."""
    context, length = model.max_model_len, len(prompt)
    left = context - length
    if left < 1:
        raise bad_request(
            "context_length_exceeded",
            f"This model's maximum context length is {context} tokens. However, your {source} has {length} tokens, "
            f"which leaves no room for an answer. Shorten the {source} by at least {1 - left} tokens.",
            source,
        )
    if wanted is None:
        return min(left, default) if default is not None else left
    if wanted > left:
        raise bad_request(
            "context_length_exceeded",
            f"This model's maximum context length is {context} tokens. However, you requested {length + wanted} tokens "
            f"({length} in the {source}, {wanted} in the completion). Reduce either by {wanted - left}.",
            param,
        )
    return wanted
