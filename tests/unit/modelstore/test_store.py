"""The folder of a node that keeps models: one download for many, nothing deleted that is in use."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.api.runtime.uris import model_key
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.modelstore.eviction import Kept, to_evict
from llmos_operator.modelstore.fetch import fetch
from llmos_operator.modelstore.order import Order, parse_order
from llmos_operator.modelstore.remote import Access, Place
from llmos_operator.modelstore.room import make_room
from llmos_operator.modelstore.sources import open_source
from llmos_operator.modelstore.store import Store, await_folder, use_folder
from tests.support.storages import ACCESS, SECRET, storage
from tests.support.tinymodels import safetensors

WEIGHTS = safetensors({"model.embed_tokens.weight": (256, 64)})
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
DEADLINE = 60.0


@pytest.fixture
def bucket():
    with storage() as made:
        made.buckets["b"] = {
            f"{name}/{file}": content
            for name in ("one", "two", "three")
            for file, content in (("config.json", b"{}"), ("model.safetensors", WEIGHTS))
        }
        yield made


def obtain(store, bucket, name="one", **options):
    place = Place(f"s3://b/{name}")
    return store.obtain(
        place,
        lambda: open_source(place, Access(KEYS, bucket.url), sleep=lambda _: None),
        report=options.pop("report", lambda _done, _total: None),
        **options,
    )


def order(tmp_path, bucket, name="one", **more):
    return Order(str(tmp_path), f"s3://b/{name}", secrets=KEYS, endpoint=bucket.url, **more)


def until(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "not within the deadline"
        time.sleep(0.01)


def test_who_comes_second_waits_sees_progress_and_shares(bucket, tmp_path):
    store, bucket.gate = Store(tmp_path), threading.Event()
    leases, heard = [], []
    first = threading.Thread(target=lambda: leases.append(obtain(store, bucket)))
    first.start()
    until(lambda: any(path == "/b/one/config.json" for path, _ in bucket.seen))
    second = threading.Thread(
        target=lambda: leases.append(obtain(store, bucket, report=lambda *seen: heard.append(seen)))
    )
    second.start()
    assert use_folder(store.folder(model_key("s3://b/one", "main")), "s3://b/one", "main") is None
    bucket.gate.set()
    first.join(DEADLINE)
    second.join(DEADLINE)
    assert sorted(lease.fetched for lease in leases) == [0, len(WEIGHTS) + 2]
    assert len(bucket.asked("/b/one/model.safetensors")) == 1
    assert all((lease.folder / "model.safetensors").read_bytes() == WEIGHTS for lease in leases)


def test_a_pod_waits_for_the_copy_that_is_on_its_way_and_gives_up_one_that_is_not(bucket, tmp_path):
    store, bucket.gate = Store(tmp_path), threading.Event()
    folder = store.folder(model_key("s3://b/one", "main"))
    assert await_folder(folder, "s3://b/one", "main", lambda *_: None) is None  # nobody brings it
    agent = threading.Thread(target=lambda: obtain(store, bucket).release())
    agent.start()
    until(lambda: any(path == "/b/one/config.json" for path, _ in bucket.seen))
    found = []
    pod = threading.Thread(
        target=lambda: found.append(await_folder(folder, "s3://b/one", "main", lambda *_: None))
    )
    pod.start()
    bucket.gate.set()
    agent.join(DEADLINE)
    pod.join(DEADLINE)
    assert (found[0].folder / "config.json").read_bytes() == b"{}"


def test_a_copy_of_another_model_in_the_same_folder_is_not_taken(bucket, tmp_path):
    lease = obtain(Store(tmp_path), bucket)
    assert use_folder(lease.folder.parent, "s3://b/one", "main") is not None
    assert use_folder(lease.folder.parent, "s3://b/two", "main") is None
    assert use_folder(lease.folder.parent, "s3://b/one", "v2") is None


def test_a_damaged_copy_is_made_again_of_what_is_missing(bucket, tmp_path):
    store = Store(tmp_path)
    lease = obtain(store, bucket)
    weights = lease.folder / "model.safetensors"
    os.truncate(weights, 100)
    with pytest.raises(Retryable, match="damaged and in use"):
        obtain(store, bucket)
    lease.release()
    assert store.entries() == []
    assert obtain(store, bucket).fetched == len(WEIGHTS)
    assert weights.read_bytes() == WEIGHTS


def test_what_is_in_use_is_never_deleted(bucket, tmp_path):
    store = Store(tmp_path)
    lease = obtain(store, bucket)
    key = lease.entry.key
    assert store.in_use(key)
    assert store.delete(key) == 0
    lease.release()
    assert not store.in_use(key)
    assert store.delete(key) > 0
    assert store.entries() == []
    assert use_folder(store.folder(key), "s3://b/one", "main") is None


def test_a_process_that_dies_lets_its_model_go(bucket, tmp_path):
    obtain(Store(tmp_path), bucket).release()
    key = model_key("s3://b/one", "main")
    script = (
        "import sys; from pathlib import Path; from llmos_operator.modelstore.store import use_folder; "
        f"lease = use_folder(Path({str(Store(tmp_path).folder(key))!r}), 's3://b/one', 'main'); "
        "print(lease.entry.size, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline().strip() == str(len(WEIGHTS) + 2).encode()
        assert Store(tmp_path).in_use(key)
    finally:
        process.kill()
        process.wait(DEADLINE)
        process.stdout.close()
        process.stdin.close()
    assert not Store(tmp_path).in_use(key)


def test_room_is_made_by_what_is_worth_least_and_neither_used_nor_asked_for(bucket, tmp_path):
    store = Store(tmp_path)
    for name in ("one", "two", "three"):
        obtain(store, bucket, name).release()
    keys = {name: model_key(f"s3://b/{name}", "main") for name in ("one", "two", "three")}
    for name, used in (("one", 100), ("two", 200), ("three", 300)):
        os.utime(store.folder(keys[name]) / "used", (used, used))
        record = store.folder(keys[name]) / "record.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": 10.0}))
    lease = store.use("s3://b/one", "main")
    os.utime(store.folder(keys["one"]) / "used", (100, 100))
    budget = store.held_bytes()
    assert make_room(store, 1, now=1000.0, budget=budget, keep=(keys["two"],)) == 0
    assert sorted(entry.key for entry in store.entries()) == sorted([keys["one"], keys["two"]])
    assert make_room(store, 10**9, now=1000.0, budget=budget, keep=(keys["two"],)) > 0
    lease.release()
    assert make_room(store, 1, now=1000.0, budget=store.held_bytes()) == 0
    assert [entry.key for entry in store.entries()] == [keys["two"]]


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 50), st.integers(0, 900)), max_size=8),
    st.integers(-5, 500),
)
def test_enough_goes_and_nothing_in_vain(sizes, needed):
    kept = [Kept(str(at), size, seconds, used) for at, (size, seconds, used) in enumerate(sizes)]
    gone = to_evict(kept, needed, 1000.0)
    freed = sum(one.size for one in gone)
    assert freed >= min(needed, sum(one.size for one in kept))
    assert all(freed - one.size < needed for one in gone)


def test_a_download_that_fits_nowhere_says_so_and_leaves_others_alone(bucket, tmp_path):
    first = fetch(order(tmp_path, bucket))
    assert (first.reason, first.bytes) == ("", len(WEIGHTS) + 2)
    budget = Store(tmp_path).held_bytes() + 100
    refused = fetch(
        order(tmp_path, bucket, "two", budget_bytes=budget, keep=(model_key("s3://b/one", "main"),))
    )
    assert (refused.reason, refused.permanent) == ("DiskFull", True)
    assert "modelCache.budget" in refused.message
    assert len(Store(tmp_path).entries()) == 1
    assert fetch(order(tmp_path, bucket, "two", budget_bytes=budget)).reason == ""
    assert [entry.uri for entry in Store(tmp_path).entries()] == ["s3://b/two"]


def test_a_disk_without_room_is_told_before_the_download(bucket, tmp_path, monkeypatch):
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    with pytest.raises(Permanent, match="make room there") as caught:
        obtain(Store(tmp_path), bucket)
    assert caught.value.reason == "DiskFull"
    assert not bucket.asked("/b/one/model.safetensors")


def test_the_program_takes_secrets_from_its_input_alone(bucket, tmp_path):
    text = order(tmp_path, bucket).text()
    assert parse_order(text) == order(tmp_path, bucket)
    command = [sys.executable, "-m", "llmos_operator", "fetch"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert json.loads(done.stdout)["bytes"] == len(WEIGHTS) + 2
    assert SECRET not in done.stdout + done.stderr
    assert (
        subprocess.run(
            command, input="{}", capture_output=True, text=True, timeout=DEADLINE, check=False
        ).returncode
        == 2
    )
