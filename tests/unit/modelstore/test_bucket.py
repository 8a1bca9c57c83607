"""Objects of a bucket as files, against a store on loopback that checks every signature and every body."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.modelstore import bucket as buckets
from llmos_operator.modelstore.bucket import Bucket
from llmos_operator.modelstore.http import Http
from llmos_operator.modelstore.remote import Access, Place
from tests.support.storages import ACCESS, SECRET, Storage, storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
PLACE = Place("s3://data/runs/out 1.jsonl", field="batch.output.uri", secret="spec.batch.output.secretRef")


@pytest.fixture(name="store")
def _store() -> Iterator[Storage]:
    with storage() as made:
        made.buckets["data"] = {}
        yield made


def a_file(folder: Path, content: bytes) -> Path:
    path = folder / "source"
    path.write_bytes(content)
    return path


def a_bucket(store: Storage, place: Place = PLACE, **secrets: str) -> Bucket:
    access = Access({**KEYS, "AWS_ENDPOINT_URL": store.url, **secrets})
    http = Http(place, sleep=lambda _: None)
    return Bucket(place, access, missing=Reason.OUTPUT_NOT_WRITABLE, http=http)


def test_what_is_put_is_listed_read_noted_and_deleted(store: Storage, tmp_path: Path) -> None:
    bucket = a_bucket(store)
    source = a_file(tmp_path, b"0123456789")
    bucket.put(bucket.key, source, notes={"llmos-run": "abc"})
    bucket.put(f"{bucket.key}.part/1", source, start=3, end=7)
    assert store.buckets["data"] == {"runs/out 1.jsonl": b"0123456789", "runs/out 1.jsonl.part/1": b"3456"}
    found = bucket.objects()
    assert {key: one.size for key, one in found.items()} == {
        "runs/out 1.jsonl": 10,
        "runs/out 1.jsonl.part/1": 4,
    }
    assert (bucket.note(bucket.key, "llmos-run"), bucket.note(f"{bucket.key}.part/1", "llmos-run")) == (
        "abc",
        "",
    )
    bucket.fetch(found[bucket.key], tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"0123456789"
    bucket.delete(bucket.key)
    bucket.delete(bucket.key)
    assert list(bucket.objects()) == ["runs/out 1.jsonl.part/1"]


@pytest.mark.parametrize("size", [0, 9, 10, 11, 30, 31])
def test_large_objects_are_sent_in_parts(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(buckets, "PART_BYTES", 10)
    source = a_file(tmp_path, bytes(range(size + 2)))
    bucket = a_bucket(store)
    bucket.put(bucket.key, source, start=1, end=size + 1, notes={"llmos-run": "abc"})
    assert store.buckets["data"][bucket.key] == bytes(range(1, size + 1))
    assert bucket.note(bucket.key, "llmos-run") == "abc"
    assert store.uploads == {}
    assert len([path for method, path in store.writes if method == "PUT"]) == max(1, -(-size // 10))


def test_an_upload_that_fails_leaves_no_parts_behind(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "PART_BYTES", 10)
    source = a_file(tmp_path, bytes(25))
    bucket = a_bucket(store)
    with pytest.raises(OSError, match="ended 5 bytes early"):
        bucket.put(bucket.key, source, end=30)
    assert (store.uploads, store.buckets["data"]) == ({}, {})


def test_an_answer_that_says_ok_and_then_no_is_no_success(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "PART_BYTES", 10)
    source = a_file(tmp_path, bytes(25))
    bucket = a_bucket(store)
    monkeypatch.setattr(buckets, "escape", lambda tag: tag[::-1])
    with pytest.raises(Retryable, match="not put together: InvalidPart"):
        bucket.put(bucket.key, source)
    assert store.buckets["data"] == {}


def test_passing_failures_are_tried_again_and_cut_answers_go_on(store: Storage, tmp_path: Path) -> None:
    bucket = a_bucket(store)
    path = f"/data/{bucket.key}"
    source = a_file(tmp_path, bytes(range(200)))
    store.failures[path] = [503, 500]
    bucket.put(bucket.key, source)
    store.cuts[path] = 2
    file = io.BytesIO(b"before ")
    file.seek(0, io.SEEK_END)
    bucket.append(bucket.objects()[bucket.key], file)
    assert file.getvalue() == b"before " + bytes(range(200))
    assert store.asked(path) == ["", "bytes=100-", "bytes=150-"]


def test_an_object_that_changes_while_it_is_read_is_not_put_together_from_two(
    store: Storage, tmp_path: Path
) -> None:
    bucket = a_bucket(store)
    store.buckets["data"][bucket.key] = b"one"
    (found,) = bucket.objects().values()
    store.buckets["data"][bucket.key] = b"two"
    with pytest.raises(Retryable, match="answered 412"):
        bucket.fetch(found, tmp_path / "target")


def test_the_region_is_learned(store: Storage, tmp_path: Path) -> None:
    store.region = "eu-central-1"
    bucket = a_bucket(store)
    assert bucket.objects() == {}
    source = a_file(tmp_path, b"x")
    bucket.put(bucket.key, source)
    assert store.buckets["data"] == {bucket.key: b"x"}


def test_refusals_name_field_value_and_fix(store: Storage, tmp_path: Path) -> None:
    source = a_file(tmp_path, b"x")
    store.read_only = True
    with pytest.raises(Permanent, match=r"may write there \(s3:PutObject") as refused:
        a_bucket(store).put("runs/x", source)
    assert refused.value.reason == Reason.OUTPUT_NOT_WRITABLE
    assert str(refused.value).startswith("batch.output.uri = s3://data/runs/out 1.jsonl: ")
    with pytest.raises(Permanent, match="does not accept the keys") as refused:
        a_bucket(store, AWS_ACCESS_KEY_ID="other").objects()
    assert refused.value.reason == Reason.ACCESS_DENIED
    elsewhere = Place("s3://nowhere/x", field="batch.output.uri", secret="spec.batch.output.secretRef")
    for ask in (lambda one: one.objects(), lambda one: one.put("x", source)):
        with pytest.raises(Permanent, match="no bucket 'nowhere'") as refused:
            ask(a_bucket(store, elsewhere))
        assert refused.value.reason == Reason.OUTPUT_NOT_WRITABLE
    with pytest.raises(Permanent, match="may write there"):
        a_bucket(store).check_writable()


def test_an_upload_whose_last_answer_was_lost_is_done(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "PART_BYTES", 10)
    source = a_file(tmp_path, bytes(25))
    bucket = a_bucket(store)
    store.lost = 1
    bucket.put(bucket.key, source)
    assert store.buckets["data"] == {bucket.key: bytes(25)}


@pytest.mark.parametrize(
    ("status", "code", "error", "said"),
    [
        (400, "RequestTimeout", Retryable, "answered 400 RequestTimeout"),
        (400, "ExpiredToken", Retryable, "ExpiredToken"),
        (507, "", Retryable, "answered 507"),
        (413, "", Permanent, r"refuses what is written there \(413 \)"),
        (400, "KeyTooLongError", Permanent, "KeyTooLongError"),
    ],
)
def test_what_passes_is_told_from_what_stays(
    store: Storage, tmp_path: Path, status: int, code: str, error: type[Exception], said: str
) -> None:
    source = a_file(tmp_path, b"x")
    bucket = a_bucket(store)
    store.refusals[f"/data/{bucket.key}"] = (status, code)
    with pytest.raises(error, match=said) as refused:
        bucket.put(bucket.key, source)
    assert str(refused.value).startswith("batch.output.uri = s3://data/runs/out 1.jsonl: ")
    if isinstance(refused.value, Permanent):
        assert refused.value.reason == Reason.OUTPUT_NOT_WRITABLE


def test_a_store_without_ranges_is_read_from_the_start_again(store: Storage) -> None:
    bucket = a_bucket(store)
    store.buckets["data"][bucket.key] = bytes(range(200))
    store.ranges, store.cuts[f"/data/{bucket.key}"] = False, 1
    file = io.BytesIO()
    bucket.append(bucket.objects()[bucket.key], file)
    assert file.getvalue() == bytes(range(200))


def test_what_is_stored_is_said_to_be_bytes(store: Storage) -> None:
    a_bucket(store).check_writable()
    assert store.buckets["data"] == {}
    assert store.headers[-2]["Content-Type"] == "application/octet-stream"
