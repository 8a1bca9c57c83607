"""A classifier's probabilities in a packed batch are those of a plain forward."""

import json
import random

import pytest
import torch

from llmos_operator.errors import Permanent
from llmos_operator.runtime.formats.config import read_config
from tests.support.models import write_classifier

LABELS = ("calm", "glad", "sad")
LENGTHS = (5, 37, 1, 18, 64, 2, 29)


def texts():
    rng = random.Random(7)
    return [[rng.randrange(2, 300) for _ in range(length)] for length in LENGTHS]


def plain(reference, text):
    with torch.no_grad():
        return reference(torch.tensor([text])).logits[0]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_probabilities_of_a_batch_are_those_of_each_alone(driver, tmp_path, model_type):
    reference = write_classifier(tmp_path / "m", model_type, LABELS)
    found = driver(tmp_path / "m").built.encoder.classify(texts())
    expected = torch.stack([plain(reference, text).softmax(-1) for text in texts()])
    assert torch.allclose(found, expected, atol=1e-5)
    assert expected.std(0).max() > 0.001, "the answers depend on the text"


@pytest.mark.parametrize(
    ("labels", "problem", "squash"),
    [
        (LABELS, "multi_label_classification", torch.sigmoid),
        (("score",), None, torch.sigmoid),
        (("score",), "regression", lambda logits: logits),
    ],
)
def test_the_problem_type_says_what_logits_mean(driver, tmp_path, labels, problem, squash):
    reference = write_classifier(tmp_path / "m", "bert", labels, problem_type=problem)
    found = driver(tmp_path / "m").built.encoder.classify(texts())
    assert torch.allclose(found, torch.stack([squash(plain(reference, text)) for text in texts()]), atol=1e-5)


def a_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    return read_config(folder)


def test_labels_come_from_the_config_and_have_names_where_it_has_none(tmp_path):
    write_classifier(tmp_path, "bert", LABELS)
    assert a_config(tmp_path).labels == LABELS
    assert a_config(tmp_path, id2label=None, num_labels=2).labels == ("LABEL_0", "LABEL_1")
    assert a_config(tmp_path).apis == ("classify",)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "numbers from 0 to 1"),
        ({"id2label": []}, "no object"),
        ({"id2label": {}}, "no object"),
        ({"id2label": None, "num_labels": 10**9}, "num_labels is 1000000000"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path, changes, told):
    write_classifier(tmp_path, "bert", LABELS)
    with pytest.raises(Permanent, match=told):
        a_config(tmp_path, **changes)
