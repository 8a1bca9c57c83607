"""Grammars with the real library: what a mask allows is what the schema allows, and nothing else changes an answer."""

import json
import random

import jsonschema
import pytest

from llmos_operator.runtime.batching import Batcher, BatchLimits
from llmos_operator.runtime.grammar import text
from llmos_operator.runtime.grammar.compiler import GrammarCompiler
from llmos_operator.runtime.grammar.guide import BadGrammar
from llmos_operator.runtime.grammar.schema import checked
from llmos_operator.runtime.ipc.messages import SamplingParams, Submit
from llmos_operator.runtime.kvcache import KvCache
from llmos_operator.runtime.tools.reading import CallReader
from llmos_operator.runtime.tools.styles import (
    ANSWER_BASE,
    HERMES,
    LLAMA,
    base_of,
    forced_grammar,
    guarded_grammar,
)
from tests.support.engine import EOS, tokens_of, write_model
from tests.support.models import write_random

MOST = 50  # tokens of an answer of the model
VOCABULARY = 320  # bytes, two special tokens, and places without a token
OTHER_EOS = 300
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "sizes": {
            "type": "array",
            "items": {"type": "integer", "minimum": -5, "maximum": 120},
            "maxItems": 3,
        },
        "kind": {"enum": ["a", "é", None]},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    },
    "required": ["name", "sizes", "kind", "next"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("tokens"))
    made = GrammarCompiler(str(folder), VOCABULARY, (EOS, OTHER_EOS))
    yield made
    made.close()


def guide_of(compiler, grammar):
    return compiler.compile(grammar).result(60)


def allowed(mask):
    return [token for token in range(VOCABULARY) if mask[token >> 3] >> (token & 7) & 1]


def walk(guide, rng, most=400):
    """Take random allowed tokens to the end; return the text."""
    taken = []
    for _ in range(most):
        (mask,) = guide.masks()
        choices = allowed(mask)
        # Closing brackets and quotes first, or random strings and trees would not end.
        closing = [token for token in choices if token in set(b'"]}')] if rng.random() < 0.4 else []
        token = rng.choice(closing or choices)
        if token in (EOS, OTHER_EOS):
            break
        taken.append(token)
        if guide.take(token):
            break
    else:
        return None
    return bytes(taken).decode()


@pytest.mark.parametrize("seed", range(12))
def test_any_path_through_the_masks_is_an_answer_to_the_schema(compiler, seed):
    grammar = text.of_schema(checked(SCHEMA, "s", strict=True))
    found = [walk(guide_of(compiler, grammar), random.Random(seed * 100 + i)) for i in range(5)]
    answers = [one for one in found if one is not None]
    assert answers
    for answer in answers:
        jsonschema.validate(json.loads(answer), SCHEMA)
        assert not set(answer) & set("\n\t")  # one layout, so that no answer is white space without end


def test_every_end_of_text_is_allowed_when_the_answer_may_end(compiler):
    guide = guide_of(compiler, text.of_regex("ab?"))
    assert allowed(guide.masks()[0]) == list(b"a")
    assert not guide.take(ord("a"))
    assert allowed(guide.masks()[0]) == [ord("b"), EOS, OTHER_EOS]
    assert guide.take(ord("b"))  # nothing can follow


def test_choices_are_whole_texts(compiler):
    choices = ["yes", "no", 'q"\n\\é/']
    for seed in range(20):
        assert walk(guide_of(compiler, text.of_choice(choices)), random.Random(seed)) in choices


def test_drafts_are_tried_and_taken_back(compiler):
    guide = guide_of(compiler, text.of_choice(["abcd", "abxy"]))
    masks = guide.masks((*tuple(b"abxq"), EOS))
    assert [allowed(mask) for mask in masks[:4]] == [list(b"a"), list(b"b"), list(b"cx"), list(b"y")]
    assert masks[4:] == [None, None]
    assert allowed(guide.masks()[0]) == list(b"a")  # as if nothing had been tried
    assert walk(guide, random.Random(1)) in {"abcd", "abxy"}
    whole = guide_of(compiler, text.of_choice(["ab"])).masks((ord("a"), ord("b"), EOS))
    assert [allowed(mask) for mask in whole[:3]] == [list(b"a"), list(b"b"), [EOS, OTHER_EOS]]


def test_answers_of_one_grammar_do_not_share_a_place(compiler):
    grammar = text.of_choice(["ab", "cd"])
    one, other = guide_of(compiler, grammar), guide_of(compiler, grammar)
    one.take(ord("a"))
    assert allowed(other.masks()[0]) == list(b"ac")


def test_a_token_that_is_not_allowed_is_trouble_and_not_a_crash(compiler):
    guide = guide_of(compiler, text.of_choice(["ab"]))
    guide.take(ord("z"))
    assert "could not be followed" in guide.trouble
    assert guide.masks((1, 2)) == [None, None, None]


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (text.of_schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
        (text.of_schema({"$ref": "#"}), "no text can satisfy it"),
        (text.of_schema({"allOf": [{"type": "string"}, {"type": "integer"}]}), "Unsatisfiable"),
        (text.of_regex("(a"), "unclosed group"),
        (text.of_regex("(?=a)b"), "look-around"),
        (
            text.of_schema(
                {
                    "allOf": [
                        {"anyOf": [{"type": "object", "properties": {f"p{i}{j}": {}}} for j in range(4)]}
                        for i in range(12)
                    ]
                }
            ),
            "too large",
        ),
        ("start: " + " ".join(['"a"'] * 80_000), "characters"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(compiler, grammar, words):
    with pytest.raises(BadGrammar) as caught:
        guide_of(compiler, grammar)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_model_without_a_usable_tokenizer_refuses_forms(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    compiler = GrammarCompiler(str(tmp_path), 10, (1,))
    with pytest.raises(BadGrammar, match="tokenizer"):
        guide_of(compiler, text.of_choice(["a"]))
    compiler.close()


WEATHER = {"type": "object", "properties": {"city": {"$ref": "#/$defs/c"}}, "required": ["city"]} | {
    "additionalProperties": False,
    "$defs": {"c": {"type": "string", "maxLength": 4}},
}
TREE = {
    "type": "object",
    "properties": {"l": {"$ref": "#"}, "v": {"type": "null"}},
    "additionalProperties": False,
}
FUNCTIONS = {"weather": WEATHER, "tree": TREE}
ANSWER = {
    "type": "object",
    "properties": {"ok": {"$ref": "#/$defs/b"}},
    "$defs": {"b": {"type": "boolean"}},
} | {
    "required": ["ok"],
    "additionalProperties": False,
}


def calls_and_text(style, answer):
    reader = CallReader(style, frozenset(FUNCTIONS))
    shown, pieces = reader.push(answer)
    rest, more = reader.end(cut=False)
    calls = []
    for piece in pieces + more:
        if piece.id:
            calls.append([piece.name, ""])
        calls[piece.index][1] += piece.arguments
    return calls, shown + rest


@pytest.mark.parametrize("style", [HERMES, LLAMA], ids=["hermes", "llama"])
@pytest.mark.parametrize("kind", ["one", "several", "answer"])
def test_any_path_through_a_forced_call_is_read_as_calls_that_keep_to_their_schemas(compiler, style, kind):
    based = {
        name: checked(schema, "s", strict=True, base=base_of(place))
        for place, (name, schema) in enumerate(FUNCTIONS.items())
    }
    if kind == "answer":
        answer = checked(ANSWER, "s", strict=True, base=ANSWER_BASE if style is LLAMA else "#")
        grammar = guarded_grammar(style, based, several=True, answer=answer)
    else:
        grammar = forced_grammar(style, based, several=kind == "several")
    names, answers, most = set(), 0, 0
    for seed in range(40):
        found = walk(guide_of(compiler, grammar), random.Random(seed), most=300)
        if found is None:
            continue
        calls, shown = calls_and_text(style, found)
        most = max(most, len(calls))
        if kind == "answer" and not calls:
            jsonschema.validate(json.loads(shown), ANSWER)
            answers += 1
            continue
        assert calls
        assert shown == ""
        for name, arguments in calls:
            names.add(name)
            jsonschema.validate(json.loads(arguments), FUNCTIONS[name])
    assert names == set(FUNCTIONS)
    assert (most > 1) == (kind == "several") or kind == "answer"
    assert bool(answers) == (kind == "answer")


def test_text_stays_free_until_a_call_begins(compiler):
    based = {"weather": checked(WEATHER, "s", strict=True, base=base_of(0))}
    guide = guide_of(compiler, guarded_grammar(HERMES, based, several=False, answer=None))
    for token in tokens_of("Any text <b> {"):
        assert allowed(guide.masks()[0]).count(token) == 1
        guide.take(token)
    assert EOS in allowed(guide.masks()[0])
    for token in tokens_of("<tool_call>"):
        guide.take(token)
    assert allowed(guide.masks()[0]) == [ord("\n")]
    for token in tokens_of('\n{"name": '):
        guide.take(token)
    assert allowed(guide.masks()[0]) == [ord('"')]
    assert not guide.trouble


# ------------------------------------------------------------ with a model


def run(driver, compiler, grammars, *, blocks=400, **limits):
    """Answer numbered prompts, each by its grammar ("" is free), together; return texts, reasons and the scheduler."""
    cache = KvCache(blocks=blocks, slots=driver.slots, slot_tokens=driver.slot_tokens)
    batcher = Batcher(BatchLimits(max_tokens=driver.slot_tokens, **limits), cache, (EOS,))
    outputs = {i: [] for i in grammars}
    reasons = {}
    for i, grammar in grammars.items():
        form = guide_of(compiler, grammar) if grammar else None
        # The repetition in the prompt makes drafts.
        prompt = tokens_of(f'{i} {{"name": "aaaa", "sizes": [1')
        params = SamplingParams(max_tokens=MOST, temperature=0.9 * (i % 2), seed=i)
        assert not batcher.add(Submit(str(i), prompt, params), 0.0, form)
    while batcher.running or batcher.waiting:
        plan = batcher.plan(0.0)
        result = driver.built.causal.execute(plan, (EOS,))
        for emitted in batcher.commit(plan, result.tokens, 0.0):
            number = int(emitted.sequence.submit.request_id)
            outputs[number] += emitted.tokens
            if emitted.finish_reason:
                reasons[number] = emitted.finish_reason
    cache.check()
    return outputs, reasons, batcher


def test_company_preemption_chunks_and_drafts_change_no_bound_answer(driver, compiler, tmp_path):
    write_random(tmp_path, "llama", seed=3, num_hidden_layers=1)
    model = driver(tmp_path)
    small = {"type": "object", "properties": SCHEMA["properties"] | {"next": {"type": "null"}}}
    small |= {"required": list(SCHEMA["required"]), "additionalProperties": False}
    form = text.of_schema(checked(small, "s", strict=True))
    grammars = {0: form, 1: form, 2: "", 3: text.of_regex("[ab]{20}")}
    alone, drafted = {}, {}
    for i, grammar in grammars.items():
        alone |= run(model, compiler, {i: grammar})[0]
        drafted |= run(model, compiler, {i: grammar}, draft_tokens=4)[0]
    assert drafted == alone
    together, reasons, _ = run(model, compiler, grammars, prefill_tokens=16)
    assert together == alone
    squeezed, _, batcher = run(model, compiler, grammars, blocks=12)
    assert batcher.preemptions > 0
    assert squeezed == alone
    for i in (0, 1):
        if reasons[i] == "stop":
            jsonschema.validate(json.loads(bytes(together[i])), small)
        else:
            assert (reasons[i], len(together[i])) == ("length", MOST)
    assert set(bytes(together[3])) <= set(b"ab")
    assert (reasons[3], len(together[3])) == ("stop", 20)
