"""Models from object stores and registries, over real HTTP on loopback."""

import datetime as dt
import io
import logging
import tarfile

import pytest

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.modelstore.download import Download
from llmos_operator.modelstore.oci import parse_challenge
from llmos_operator.modelstore.remote import Access, Place
from llmos_operator.modelstore.sigv4 import Keys, signed
from llmos_operator.modelstore.sources import open_source
from tests.support.storages import ACCESS, PASSWORD, SECRET, USER, storage
from tests.support.tinymodels import safetensors

WEIGHTS = safetensors({"model.embed_tokens.weight": (256, 64)})
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
MODEL = {"m/config.json": b"{}", "m/model.safetensors": WEIGHTS, "m/tokenizer.json": b"[]"}


@pytest.fixture
def store():
    with storage() as made:
        made.buckets["models"] = dict(MODEL)
        yield made


def fetch(uri, access, folder, **options):
    source, http = open_source(Place(uri), access, sleep=lambda _: None)
    work = Download(source, http, folder, **options)
    return work, [one.path for one in work.run(source.listing())]


def s3(store, folder, uri="s3://models/m", keys=KEYS, region="", **options):
    access = Access(keys, store.url, region)
    return fetch(uri, access, folder, part_bytes=4096, **options)


def refusal(call, *arguments, **options):
    with pytest.raises(Permanent) as caught:
        call(*arguments, **options)
    return caught.value.reason, str(caught.value)


def test_the_published_example_of_a_signature():
    # https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, "GET Object"
    keys = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    made = signed(
        "https://examplebucket.s3.amazonaws.com/test.txt",
        {"Range": "bytes=0-9"},
        keys,
        region="us-east-1",
        at=dt.datetime(2013, 5, 24, tzinfo=dt.UTC),
    )
    assert made["Authorization"].endswith(
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


def test_a_prefix_of_a_bucket_is_fetched_with_what_a_model_needs_alone(store, tmp_path):
    store.buckets["models"] |= {"m/pytorch_model.bin": b"PK", "m/run.py": b"", "mother/config.json": b"no"}
    store.page = 2  # several pages
    work, paths = s3(store, tmp_path)
    assert paths == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert work.fetched == len(WEIGHTS) + 4
    assert len(store.asked("/models/m/model.safetensors")) == -(-len(WEIGHTS) // 4096)


def test_names_with_spaces_and_other_letters_are_signed_as_they_are(store, tmp_path):
    store.buckets["models"] = {"größe +1/model file.safetensors": WEIGHTS, "größe +1/config.json": b"{}"}
    _, paths = s3(store, tmp_path, "s3://models/größe +1")
    assert paths == ["config.json", "model file.safetensors"]


def test_a_public_bucket_needs_no_keys(store, tmp_path):
    store.private = False
    assert s3(store, tmp_path, keys={})[1]
    assert all("Authorization" not in one for one in store.headers)


def test_the_region_an_answer_names_is_taken(store, tmp_path):
    store.region = "eu-central-1"
    assert s3(store, tmp_path)[1]


@pytest.mark.parametrize(
    ("keys", "uri", "reason", "says"),
    [
        ({}, "s3://models/m", "AccessDenied", "name a Secret with AWS_ACCESS_KEY_ID"),
        (
            {**KEYS, "AWS_SECRET_ACCESS_KEY": "wrong"},
            "s3://models/m",
            "AccessDenied",
            "SignatureDoesNotMatch",
        ),
        ({**KEYS, "AWS_ACCESS_KEY_ID": "who"}, "s3://models/m", "AccessDenied", "InvalidAccessKeyId"),
        ({"AWS_ACCESS_KEY_ID": ACCESS}, "s3://models/m", "AccessDenied", "add the other"),
        (KEYS, "s3://none/m", "ModelNotFound", "there is no bucket 'none'"),
        (KEYS, "s3://models/other", "ModelNotFound", "there is nothing"),
    ],
)
def test_what_is_refused_names_field_value_and_fix(store, tmp_path, keys, uri, reason, says):
    found, text = refusal(s3, store, tmp_path, uri, keys)
    assert (found, text.startswith(f"spec.model.uri = {uri}: ")) == (reason, True)
    assert says in text
    assert SECRET not in text


def test_what_is_no_model_is_refused_before_a_byte_of_it_is_read(store, tmp_path):
    store.buckets["models"] = {"m/pytorch_model.bin": b"PK", "m/config.json": b"{}"}
    assert refusal(s3, store, tmp_path)[0] == "UnsafeFormat"
    store.buckets["models"] = {"m/a/../../../etc/x.json": b"{}", **MODEL}
    assert refusal(s3, store, tmp_path)[0] == "SourceNotAllowed"
    store.buckets["models"] = dict(MODEL)
    assert refusal(s3, store, tmp_path, limit=100)[0] == "TooLarge"
    assert not any(path.startswith("/models/m") for path, _ in store.seen)


def test_a_cut_connection_goes_on_where_it_ended(store, tmp_path):
    path = "/models/m/model.safetensors"
    store.cuts[path] = 3
    s3(store, tmp_path, workers=1)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert "bytes=2048-4095" in store.asked(path)


def test_a_later_try_takes_up_the_parts_that_are_there(store, tmp_path):
    path = "/models/m/model.safetensors"
    whole = -(-len(WEIGHTS) // 4096)
    source, http = open_source(Place("s3://models/m"), Access(KEYS, store.url), sleep=lambda _: None)
    listing = source.listing()
    broken = Download(source, http, tmp_path, part_bytes=4096, workers=1)
    original = broken._part_of
    calls = []

    def fails_at_the_third(file, descriptor, start, end):
        calls.append(start)
        if file.path == "model.safetensors" and start == 2 * 4096:
            raise Retryable("the process ends here")
        original(file, descriptor, start, end)

    broken._part_of = fails_at_the_third
    with pytest.raises(Retryable):
        broken.run(listing)
    assert not (tmp_path / "model.safetensors").exists()
    store.seen.clear()
    s3(store, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert 0 < len(store.asked(path)) <= whole - 2


def test_a_model_that_changed_meanwhile_is_not_put_together_from_two(store, tmp_path):
    s3(store, tmp_path)
    other = bytes(reversed(WEIGHTS))
    store.buckets["models"]["m/model.safetensors"] = other
    s3(store, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == other


def test_a_busy_server_is_asked_again_and_a_broken_one_not_for_ever(store, tmp_path):
    path = "/models/m/config.json"
    store.failures[path] = [503, 429]
    assert s3(store, tmp_path)[1]
    store.failures["/models/"] = [500] * 50
    with pytest.raises(Retryable, match="answered 500"):
        s3(store, tmp_path / "other")
    assert len(store.failures["/models/"]) == 45


def test_a_checksum_file_is_believed_and_not_kept(store, tmp_path):
    store.buckets["models"]["m/SHA256SUMS"] = f"{'0' * 64}  model.safetensors\n".encode()
    reason, text = refusal(s3, store, tmp_path)
    assert reason == "Corrupted"
    assert "model.safetensors does not have the digest" in text
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "SHA256SUMS").exists()


def test_secrets_are_in_no_repr_and_no_log(store, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    access = Access(KEYS, store.url)
    assert SECRET not in repr(access)
    assert SECRET not in repr(Keys(ACCESS, SECRET))
    fetch("s3://models/m", access, tmp_path)
    assert SECRET not in caplog.text
    assert not any(SECRET in str(one) for one in store.headers)


# -- Google


def test_google_objects_with_a_token(store, tmp_path):
    store.token, store.page = "ya29", 2
    access = Access({"token": "ya29"}, store.url)
    assert fetch("gs://models/m", access, tmp_path)[1] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    reason, text = refusal(fetch, "gs://models/m", Access({"token": "old"}, store.url), tmp_path)
    assert (reason, "has expired or is wrong" in text) == ("AccessDenied", True)
    assert refusal(fetch, "gs://none/m", access, tmp_path)[0] == "ModelNotFound"


def test_google_hmac_keys_speak_the_dialect_of_s3(store, tmp_path):
    store.region = "auto"
    assert len(fetch("gs://models/m", Access(KEYS, store.url), tmp_path)[1]) == 3
    assert not any(path.startswith("/storage") for path, _ in store.seen)


# -- registries

LOGIN = Access({"username": USER, "password": PASSWORD})


def a_tar(members):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("models/link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return raw.getvalue()


def oci(store, name="team/model:v1"):
    return f"oci://{store.url.removeprefix('http://')}/{name}"


def test_an_artifact_is_its_layers(store, tmp_path):
    digest = store.push(
        "team/model",
        "v1",
        [("application/octet-stream", "model.safetensors", WEIGHTS), ("text/plain", "config.json", b"{}")],
    )
    assert fetch(oci(store), LOGIN, tmp_path)[1] == ["config.json", "model.safetensors"]
    assert fetch(oci(store, f"team/model@{digest}"), LOGIN, tmp_path / "pinned")[1]
    source, _ = open_source(Place(oci(store)), LOGIN)
    assert source.listing().revision == digest


def test_of_an_image_what_lies_in_its_models_folder(store, tmp_path):
    layer = a_tar({"models/config.json": b"{}", "models/model.safetensors": WEIGHTS, "etc/x.json": b"{}"})
    index = {"manifests": [{"digest": store.push("i", "amd64", [("application/vnd.oci.image.layer.v1.tar+gzip", "", layer)]),
                            "platform": {"architecture": arch}} for arch in ("amd64", "arm64")]}  # fmt: skip
    store.store_manifest("i", "v1", index)
    _, paths = fetch(oci(store, "i:v1"), LOGIN, tmp_path)
    assert paths == ["config.json", "model.safetensors"]
    assert sorted(one.name for one in tmp_path.iterdir() if not one.name.startswith(".")) == paths


def test_an_archive_that_leads_out_of_the_folder_is_refused(store, tmp_path):
    layer = a_tar({"models/../../evil.json": b"{}", "models/model.safetensors": WEIGHTS})
    store.push("i", "v1", [("application/vnd.oci.image.layer.v1.tar+gzip", "", layer)])
    assert refusal(fetch, oci(store, "i:v1"), LOGIN, tmp_path)[0] == "SourceNotAllowed"
    assert not list(tmp_path.parent.glob("evil.json"))


def test_an_archive_that_grows_beyond_belief_is_refused(store, tmp_path):
    layer = a_tar({"models/model.safetensors": bytes(80 << 20)})
    store.push("i", "v1", [("application/vnd.oci.image.layer.v1.tar+gzip", "", layer)])
    assert refusal(fetch, oci(store, "i:v1"), LOGIN, tmp_path)[0] == "TooLarge"


def test_a_blob_that_is_not_what_the_manifest_says_is_refused(store, tmp_path):
    store.push("team/model", "v1", [("application/octet-stream", "model.safetensors", WEIGHTS)])
    for digest in store.blobs:
        store.blobs[digest] = bytes(reversed(store.blobs[digest]))
    assert refusal(fetch, oci(store), LOGIN, tmp_path)[0] == "Corrupted"


def test_who_may_not_pull_is_told_which_keys_are_missing(store, tmp_path):
    store.push("team/model", "v1", [("application/octet-stream", "model.safetensors", WEIGHTS)])
    for access in (Access(), Access({"username": USER, "password": "wrong"})):
        reason, text = refusal(fetch, oci(store), access, tmp_path)
        assert (reason, "`username` and `password`" in text) == ("AccessDenied", True)
    assert refusal(fetch, oci(store, "team/model:v2"), LOGIN, tmp_path)[0] == "ModelNotFound"
    assert refusal(fetch, oci(store, "Team/Model:v2"), LOGIN, tmp_path)[0] == "InvalidSpec"


def test_a_challenge_in_parts():
    assert parse_challenge('Bearer realm="https://a/t",service="r"') == (
        "bearer", {"realm": "https://a/t", "service": "r"},
    )  # fmt: skip
