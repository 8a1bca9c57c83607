"""A whole run on a tiny model, in this process: from files to files."""

import json

import pytest

from llmos_operator.clock import SystemClock
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.modelstore.bucket import Bucket
from llmos_operator.modelstore.remote import Access, Place
from llmos_operator.runtime.ipc.messages import Load
from llmos_operator.tuning.away import Folder
from llmos_operator.tuning.program import digest_of
from llmos_operator.tuning.progress import Board
from llmos_operator.tuning.recipe import read_order
from llmos_operator.tuning.session import Session
from tests.support.learning import one_thread, tiny
from tests.support.storages import ACCESS, SECRET, storage

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


def test_a_run_between_buckets_goes_on_elsewhere_and_is_done_once(session, tmp_path):
    """The first process ends after its first checkpoint; the second has nothing but the bucket."""

    def folder(name, key):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        return Folder(Bucket(Place(f"s3://runs/{key}"), Access(keys)), path)

    with storage() as store:
        store.buckets["runs"] = {}
        keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": store.url}
        kept = folder("kept-1", "checkpoints")

        def written(path):
            kept.send_checkpoint(path)
            raise KeyboardInterrupt

        every = {"checkpoint": {"uri": "s3://runs/checkpoints", "every": "1s"}}
        run, _ = session(training={"steps": 60, "batchSize": 2, "maxLength": 64}, **every)
        with pytest.raises(KeyboardInterrupt):
            run.run(tmp_path / "out", tmp_path / "kept-1", written)
        steps = {name.split("/")[1] for name in store.buckets["runs"]}
        assert len(steps) == 1
        store.buckets["runs"]["checkpoints/step-0000009999/state.safetensors"] = b"its state never came"

        kept, out = folder("kept-2", "checkpoints"), folder("out", "adapter")
        out.take_up_result()
        kept.take_up_checkpoint()
        run, board = session(training={"steps": 60, "batchSize": 2, "maxLength": 64}, **every)
        run.run(tmp_path / "out", tmp_path / "kept-2", kept.send_checkpoint)
        assert board.now.step == 60
        out.send_result()
        assert {name for name in store.buckets["runs"] if name.startswith("adapter/")} >= {
            "adapter/adapter_model.safetensors",
            "adapter/training.json",
        }
        assert store.writes[-1] == ("PUT", "/runs/adapter/training.json")

        out = folder("out-3", "adapter")
        out.take_up_result()
        run, _ = session(training={"steps": 60, "batchSize": 2, "maxLength": 64}, **every)
        assert run.run(tmp_path / "out-3", tmp_path / "kept-2") == "the result is there already"


def test_a_store_that_is_away_for_a_while_does_not_end_the_learning(session, tmp_path):
    told = []

    def written(folder):
        told.append(folder.name)
        if len(told) < 3:
            raise Retryable("the store is away")

    every = {"checkpoint": {"uri": "s3://runs/checkpoints", "every": "1s"}}
    run, board = session(training={"steps": 60, "batchSize": 2, "maxLength": 64}, **every)
    run.run(tmp_path / "out", tmp_path / "kept", written)
    assert board.now.step == 60
    assert told[-1] == "step-0000000060", "the last update is saved, as the result has a way to go"
    assert (board.now.checkpoint_step == 60) is (len(told) >= 3)


def test_a_result_is_not_taken_for_whole_while_it_is_replaced(tmp_path):
    with storage() as store:
        store.buckets["runs"] = {"a/training.json": b"of before"}
        keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": store.url}
        (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
        (tmp_path / "training.json").write_bytes(b"facts")
        Folder(Bucket(Place("s3://runs/a"), Access(keys)), tmp_path).send_result()
        assert [method for method, _ in store.writes] == ["DELETE", "PUT", "PUT"]
        assert store.writes[0][1] == store.writes[2][1] == "/runs/a/training.json"


def test_checkpoints_that_are_not_whole_count_for_nothing(tmp_path):
    with storage() as store:
        store.buckets["runs"] = {f"c/step-{n:010}/state.safetensors": b"" for n in (8, 9)}
        keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": store.url}
        for number in (1, 2):
            step = tmp_path / f"step-{number:010}"
            step.mkdir()
            for name in ("state.json", "state.safetensors"):
                (step / name).write_text(f"{name} {number}")
            Folder(Bucket(Place("s3://runs/c"), Access(keys)), tmp_path).send_checkpoint(step)
        assert {name.split("/")[1][-1] for name in store.buckets["runs"]} == {"1", "2"}
        (tmp_path / "again").mkdir()
        Folder(Bucket(Place("s3://runs/c"), Access(keys)), tmp_path / "again").take_up_checkpoint()
        assert sorted(one.name[-1] for one in (tmp_path / "again").iterdir()) == ["1", "2"]


def test_the_newest_two_checkpoints_stay_in_the_bucket(tmp_path):
    with storage() as store:
        store.buckets["runs"] = {"c/README": b"somebody's"}
        keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": store.url}
        kept = Folder(Bucket(Place("s3://runs/c"), Access(keys)), tmp_path)
        for number in (1, 2, 3):
            step = tmp_path / f"step-{number:010}"
            step.mkdir()
            for name in ("state.json", "state.safetensors"):
                (step / name).write_text(f"{name} {number}")
            kept.send_checkpoint(step)
        assert sorted(store.buckets["runs"]) == [
            "c/README",
            *(f"c/step-{n:010}/{name}" for n in (2, 3) for name in ("state.json", "state.safetensors")),
        ]
        puts = [path for method, path in store.writes if method == "PUT"]
        assert puts[:2] == ["/runs/c/step-0000000001/state.safetensors", "/runs/c/step-0000000001/state.json"]
        deleted = [path for method, path in store.writes if method == "DELETE"]
        assert deleted[0].endswith("state.json"), "what makes it whole goes first"


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
