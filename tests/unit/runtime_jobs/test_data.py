from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.runtime.data import claims, refusal
from llmos_operator.api.runtime.endings import format_message, parse_progress, parse_reason
from llmos_operator.api.runtime.messages import WorkProgress
from llmos_operator.errors import Permanent
from llmos_operator.runtime.ipc.zygote import SECRET_VARIABLES
from llmos_operator.runtime.jobs.data import Data, replacing
from llmos_operator.runtime.jobs.settings import job_from_environment
from llmos_operator.runtime.settings import BadEnvironment
from tests.support.storages import ACCESS, SECRET, storage

if TYPE_CHECKING:
    from pathlib import Path


def test_a_claim_leads_to_its_folder_and_not_out_of_it(tmp_path: Path) -> None:
    data = Data(tmp_path / "scratch", tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a b.jsonl").write_text("x")
    assert data.readable("pvc://c/a%20b.jsonl", "batch.input.uri").read_text() == "x"
    assert data.writable("pvc://c/new/out.jsonl", "batch.output.uri") == tmp_path / "c" / "new" / "out.jsonl"
    (tmp_path / "c" / "link").symlink_to(tmp_path.parent)
    for uri in ("pvc://c/%2e%2e/secret", "pvc://c/link/secret"):
        with pytest.raises(Permanent, match="leaves its volume"):
            data.readable(uri, "batch.input.uri")


@pytest.mark.parametrize(
    ("uri", "reason", "said"),
    [
        ("pvc://c/absent", "DataNotFound", "batch.input.uri: pvc://c/absent: no such file"),
        ("hf://b/x", "UnsupportedScheme", "use pvc://, s3://, gs://, file://, https://"),
        ("s3://b", "InvalidSpec", "not of the form s3://bucket/key"),
        ("file:///etc/hosts", "SourceNotAllowed", "use pvc://claim/path"),
        ("pvc://Bad_Name/x", "InvalidSpec", "not of the form pvc://claim/path"),
        ("https://me:secret@h/x", "InvalidSpec", "carries a user or password"),
    ],
)
def test_what_cannot_be_read_names_field_value_and_fix(
    tmp_path: Path, uri: str, reason: str, said: str
) -> None:
    with pytest.raises(Permanent) as refused:
        Data(tmp_path, tmp_path).readable(uri, "batch.input.uri")
    assert refused.value.reason == reason
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_what_the_operator_accepts_is_what_programs_can_use() -> None:
    for uri, write in (("pvc://c/x", True), ("file:///x", True), ("https://h/x", False)):
        assert refusal(uri, write=write, allow_file=True, allowed_hosts=("h",)) is None
    refused = refusal("https://h/x", write=True, allow_file=True, allowed_hosts=("h",))
    assert refused is not None
    assert "cannot be written to https://" in refused[1]
    assert claims(("pvc://a/x", "https://h/x", "pvc://b/y", "pvc://a/z")) == ("a", "b")


def test_an_object_is_fetched_with_the_keys_of_the_run(tmp_path: Path) -> None:
    with storage() as store:
        store.buckets["b"] = {"in/x.jsonl": b"one", "in/x.jsonl.old": b"two"}
        environ = {
            "LLMOS_DATA_AWS_ACCESS_KEY_ID": ACCESS,
            "LLMOS_DATA_AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": store.url,  # an administrator's, for everybody
        }
        data = Data(tmp_path, tmp_path, environ=environ)
        assert data.readable("s3://b/in/x.jsonl", "batch.input.uri").read_bytes() == b"one"
        with pytest.raises(Permanent, match="no such object; check bucket and key") as refused:
            data.readable("s3://b/in", "batch.input.uri")
        assert refused.value.reason == "DataNotFound"
        unsigned = Data(tmp_path, tmp_path, environ={"AWS_ENDPOINT_URL": store.url})
        bucket = unsigned.bucket("s3://b/out", "batch.output.uri")
        assert bucket is not None
        with pytest.raises(Permanent, match=r"without keys nobody may .* in spec\.batch\.secretRef"):
            bucket.objects()
        assert data.writable("s3://b/out/y.jsonl", "batch.output.uri") == tmp_path / "output" / "data"
        assert data.bucket("pvc://c/x", "batch.output.uri") is None
    assert SECRET not in repr(data)


def test_no_engine_gets_the_keys_of_data() -> None:
    assert "LLMOS_DATA_AWS_SECRET_ACCESS_KEY" in SECRET_VARIABLES
    assert "LLMOS_DATA_AWS_SESSION_TOKEN" in SECRET_VARIABLES


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("former")

    def torn() -> None:
        with replacing(target) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        torn()
    assert (target.read_text(), list(tmp_path.iterdir())) == ("former", [target])
    with replacing(target) as file:
        file.write(b"whole")
    assert target.read_text() == "whole"


def test_last_words_are_read_back() -> None:
    progress = WorkProgress(unit="requests", done=3, total=4, failed=1)
    text = format_message("InvalidData", "line 3:\n is not JSON; " + "x" * 9000, progress)
    assert len(text.encode()) <= 4096
    assert parse_reason(text)[0] == "InvalidData"
    assert parse_reason(text)[1].startswith("line 3: is not JSON; x")
    assert parse_progress(text) == progress
    assert parse_progress("a\nb") is None
    assert parse_reason("") == ("", "")


def test_settings_name_what_is_missing() -> None:
    env = {"LLMOS_MODEL_URI": "hf://a/b", "LLMOS_JOB": '{"input": {"uri": "pvc://c/x"}}'}
    settings = job_from_environment(env)
    assert settings.text("input", "uri") == "pvc://c/x"
    assert settings.runtime.api_keys[0]
    with pytest.raises(BadEnvironment, match=r"output\.uri = None"):
        settings.text("output", "uri")
    for text in ("", "[]", "{"):
        with pytest.raises(BadEnvironment, match="LLMOS_JOB"):
            job_from_environment({**env, "LLMOS_JOB": text})
