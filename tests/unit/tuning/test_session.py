"""A whole run on a tiny model, in this process: from files to files."""

import json

import pytest

from llmos_operator.clock import SystemClock
from llmos_operator.errors import Permanent
from llmos_operator.runtime.ipc.messages import Load
from llmos_operator.tuning.program import digest_of
from llmos_operator.tuning.progress import Board
from llmos_operator.tuning.recipe import read_order
from llmos_operator.tuning.session import Session
from tests.support.learning import one_thread, tiny

BLOCK = {
    "dataset": {"uri": "file:///d.jsonl"},
    "output": {"uri": "file:///o"},
    "training": {"steps": 3, "batchSize": 2, "maxLength": 64},
    "lora": {"rank": 4},
}


@pytest.fixture
def session(tmp_path):
    one_thread()
    folder = tiny(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"{n}?", "completion": f" {n * 7}"}) + "\n" for n in range(5))
    )
    (tmp_path / "out").mkdir()

    def make(fmt="fp32", **block):
        load = Load(str(folder), format=fmt, cache_dir=str(tmp_path / "cache"), allow_file=True, device="cpu")
        clock = SystemClock()
        board = Board(clock)
        order = read_order(BLOCK | block)
        return Session(load, order, data, digest_of(data), board, clock, lambda: False), board

    return make


def test_a_run_leaves_an_adapter_and_the_next_process_sees_that_it_is_done(session, tmp_path):
    run, board = session()
    assert run.run(tmp_path / "out", None).startswith("3 updates, loss ")
    assert board.now.step == 3
    assert board.now.predicted_bytes > board.now.base_bytes > 0
    written = (tmp_path / "out" / "adapter_model.safetensors").stat().st_mtime_ns
    again, board = session()
    assert again.run(tmp_path / "out", None) == "the result is there already"
    assert board.now.step == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_mtime_ns == written


def test_a_run_of_all_weights_leaves_a_model(session, tmp_path):
    run, _ = session(method="full")
    run.run(tmp_path / "out", tmp_path / "saved")
    names = {one.name for one in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.json", "README.md"} <= names


def test_an_adapter_on_quantised_weights_is_an_adapter_like_any_other(session, tmp_path):
    run, _ = session("int8", method="qlora")
    run.run(tmp_path / "out", None)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4
    assert json.loads((tmp_path / "out" / "training.json").read_text())["base"]["format"] == "int8"


def test_a_format_that_does_not_fit_the_method_is_refused_before_anything_is_loaded(session, tmp_path):
    run, board = session("int8")
    with pytest.raises(Permanent, match="trains on bf16 or fp32"):
        run.run(tmp_path / "out", None)
    assert board.now.weights_bytes == 0
