"""Training data: what is learned of a line, what is refused, and in which order it comes."""

import json
from itertools import chain

import pytest

from llmos_operator.errors import Permanent
from llmos_operator.tuning.batches import parts, split, update
from llmos_operator.tuning.dataset import Sample, read_dataset
from tests.support.learning import END, encoder_of, tiny


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return encoder_of(tiny(tmp_path_factory.mktemp("model")))


def read(encoder, *lines, max_length=512):
    raw = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines]
    return read_dataset(raw, encoder, max_length)


def learned(sample):
    """The text of the tokens that are learned; <|im_end|> is shown as $."""
    tokens = [token for token, wanted in zip(sample.tokens, sample.learned, strict=True) if wanted]
    return "".join("$" if token == END else chr(token) for token in tokens)


def says(role, content):
    return {"role": role, "content": content}


def test_of_a_conversation_every_turn_of_the_assistant_is_learned_and_nothing_else(encoder):
    messages = [
        says("system", "Be kind."),
        says("user", "Hi?"),
        says("assistant", "Hello."),
        says("user", "And?"),
        says("assistant", "More."),
    ]
    (sample,) = read(encoder, {"messages": messages}).samples
    assert learned(sample) == "Hello.$More.$"
    assert not sample.learned[0]


def test_of_prompt_and_completion_the_completion_is_learned_with_its_end(encoder):
    (sample,) = read(encoder, {"prompt": "1+1=", "completion": "2"}).samples
    assert learned(sample) == "2$"
    assert bytes(sample.tokens[:4]) == b"1+1="


def test_a_text_is_learned_whole_and_split_where_it_is_too_long(encoder):
    found = read(encoder, {"text": "abcdefghij"}, max_length=4).samples
    assert [bytes(t for t in one.tokens if t != END) for one in found] == [b"abcd", b"efgh", b"ij"]
    assert [learned(one) for one in found] == ["bcd", "fgh", "j$"]


def test_a_conversation_that_is_too_long_loses_its_end_and_is_left_out_when_nothing_is_left_to_learn(encoder):
    long = {"prompt": "p" * 30, "completion": "c" * 30}
    found = read(encoder, long, {"prompt": "p" * 50, "completion": "c"}, max_length=40)
    assert (found.cut, found.dropped, found.lines) == (2, 1, 2)
    assert learned(found.samples[0]) == "c" * 10


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: it is no JSON"),
        ([1], "line 2: it is no JSON object"),
        ({"texts": "a"}, "none of the known keys"),
        ({"text": 5}, "text is 5, not a text"),
        ({"text": ""}, "text is empty"),
        ({"prompt": "a"}, "completion is missing, not a text"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"messages": [says("user", "a")]}, "nothing by the assistant"),
        ({"messages": [says("robot", "a")]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": 3}]}, "messages[0].content"),
        ({"messages": "hi"}, "messages: "),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_what_is_wrong(encoder, line, message):
    with pytest.raises(Permanent) as caught:
        read(encoder, {"text": "good"}, line)
    assert caught.value.reason == "InvalidData"
    assert message in str(caught.value)
    assert "line 2" in str(caught.value)


def test_of_many_bad_lines_the_first_are_told(encoder):
    with pytest.raises(Permanent, match=r"line 5: .*there are more"):
        read(encoder, *[b"?"] * 20)


def test_a_model_without_a_template_takes_no_conversations(tmp_path):
    folder = tiny(tmp_path / "plain")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(Permanent, match="no chat template; give prompt and completion"):
        read(encoder_of(folder), {"messages": [says("user", "a"), says("assistant", "b")]})


def test_nothing_but_too_long_samples_is_refused(encoder):
    with pytest.raises(Permanent, match=r"raise training\.maxLength"):
        read(encoder, {"prompt": "p" * 50, "completion": "c"}, max_length=40)


def test_an_epoch_holds_every_sample_once_and_the_next_one_in_another_order():
    places = range(10)
    first = [update(places, 3, step, seed=1) for step in range(4)]
    second = [update(places, 3, step, seed=1) for step in range(4, 8)]
    assert [len(one) for one in first] == [3, 3, 3, 1]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(places)
    assert first != second
    assert first == [update(places, 3, step, seed=1) for step in range(4)]
    assert first != [update(places, 3, step, seed=2) for step in range(4)]


def test_parts_keep_to_their_tokens_and_hold_every_sample():
    samples = [Sample((0,) * length, (True,) * length) for length in (3, 9, 1, 4, 4, 20, 2)]
    found = parts(samples, 12)
    assert sorted(len(s.tokens) for part in found for s in part) == [1, 2, 3, 4, 4, 9, 20]
    for part in found:
        assert len(part) == 1 or len(part) * max(len(s.tokens) for s in part) <= 12


def test_samples_to_measure_with_are_kept_from_training():
    found = split(20, 0.25, seed=3)
    assert len(found.validation) == 5
    assert sorted((*found.training, *found.validation)) == list(range(20))
    assert split(2, 0.01, seed=3).validation
    assert split(1, 0.5, seed=3).training == (0,)
