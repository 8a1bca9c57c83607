"""The hub mirror, asked by the real huggingface_hub client."""

import json
import time
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support.hub import hub_mirror

pytestmark = pytest.mark.component

WEIGHTS = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("store")
    model = root / "acme" / "tiny"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "1_Pooling" / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(WEIGHTS)
    (model / ".hidden").write_text("no")
    gated = root / "acme" / "gated"
    gated.mkdir()
    (gated / "config.json").write_text("{}")
    (root / ".access").mkdir()
    (root / ".access" / "access.json").write_text(json.dumps({"acme/gated": "secret-token"}))
    (root / "outside.txt").write_text("outside")
    return root


@pytest.fixture(scope="module")
def endpoint(store):
    with hub_mirror(store) as url:
        yield url


def test_a_snapshot_holds_every_visible_file(endpoint, tmp_path) -> None:
    folder = Path(snapshot_download("acme/tiny", endpoint=endpoint, cache_dir=tmp_path, token=False))
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "1_Pooling/config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert folder.name == HfApi(endpoint=endpoint, token=False).model_info("acme/tiny").sha


def test_a_second_snapshot_downloads_nothing(endpoint, tmp_path) -> None:
    snapshot_download("acme/tiny", endpoint=endpoint, cache_dir=tmp_path, token=False)
    planned = snapshot_download("acme/tiny", endpoint=endpoint, cache_dir=tmp_path, token=False, dry_run=True)
    assert not [entry for entry in planned if entry.will_download]


def test_one_file_can_be_had_by_commit(endpoint, tmp_path) -> None:
    sha = HfApi(endpoint=endpoint, token=False).model_info("acme/tiny").sha
    path = hf_hub_download(
        "acme/tiny", "1_Pooling/config.json", revision=sha, endpoint=endpoint, cache_dir=tmp_path
    )
    assert Path(path).read_text() == "{}"


def test_an_interrupted_download_is_resumed(endpoint, tmp_path) -> None:
    planned = snapshot_download("acme/tiny", endpoint=endpoint, cache_dir=tmp_path, token=False, dry_run=True)
    etag = next(Path(entry.local_path).name for entry in planned if entry.filename == "config.json")
    assert etag
    blobs = tmp_path / "models--acme--tiny" / "blobs"
    info = HfApi(endpoint=endpoint, token=False).model_info("acme/tiny", files_metadata=True)
    digest = next(entry.lfs.sha256 for entry in info.siblings if entry.rfilename == "model.safetensors")
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / f"{digest}.incomplete").write_bytes(WEIGHTS[:100_000])
    path = hf_hub_download(
        "acme/tiny", "model.safetensors", endpoint=endpoint, cache_dir=tmp_path, token=False
    )
    assert Path(path).read_bytes() == WEIGHTS


def test_ranges_heads_and_identities(endpoint) -> None:
    url = f"{endpoint}/acme/tiny/resolve/main/model.safetensors"
    head = _ask(url, method="HEAD")
    assert int(head.headers["Content-Length"]) == len(WEIGHTS)
    assert head.headers["Accept-Ranges"] == "bytes"
    assert head.headers["ETag"] == head.headers["X-Linked-Etag"]
    assert len(head.headers["X-Repo-Commit"]) == 40
    part = _ask(url, headers={"Range": "bytes=100-199"})
    assert part.status == 206
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(WEIGHTS)}"
    assert part.read() == WEIGHTS[100:200]


def test_what_does_not_exist_is_told_apart(endpoint, tmp_path) -> None:
    options = {"endpoint": endpoint, "cache_dir": tmp_path, "token": False}
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("acme/absent", **options)
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("acme/tiny", revision="v9", **options)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("acme/tiny", "absent.json", **options)


@pytest.mark.parametrize(
    "path", ["../outside.txt", "../../outside.txt", "%2e%2e/outside.txt", ".hidden", "..%2f..%2foutside.txt"]
)
def test_nothing_outside_a_repository_can_be_read(endpoint, path) -> None:
    assert _ask(f"{endpoint}/acme/tiny/resolve/main/{path}").status == 404


def test_a_gated_repository_asks_for_its_token(endpoint, tmp_path) -> None:
    options = {"endpoint": endpoint, "cache_dir": tmp_path}
    with pytest.raises(GatedRepoError):
        hf_hub_download("acme/gated", "config.json", token=False, **options)
    with pytest.raises(GatedRepoError):
        hf_hub_download("acme/gated", "config.json", token="wrong", **options)
    assert hf_hub_download("acme/gated", "config.json", token="secret-token", **options)


def test_a_changed_file_makes_a_new_commit(endpoint, store, tmp_path) -> None:
    api = HfApi(endpoint=endpoint, token=False)
    model = store / "acme" / "moving"
    model.mkdir()
    (model / "config.json").write_text('{"v": 1}')
    first = api.model_info("acme/moving").sha
    (model / "config.json").write_text('{"v": 22}')
    second = api.model_info("acme/moving").sha
    assert first != second
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("acme/moving", revision=first, endpoint=endpoint, cache_dir=tmp_path, token=False)


def test_bandwidth_slows_files_but_not_listings(store, tmp_path) -> None:
    with hub_mirror(store, bandwidth=1) as url:  # a byte a second: a listing that was slowed would never end
        HfApi(endpoint=url, token=False).model_info("acme/tiny")
    with hub_mirror(store, bandwidth=len(WEIGHTS)) as url:
        began = time.monotonic()
        path = hf_hub_download(
            "acme/tiny", "model.safetensors", endpoint=url, cache_dir=tmp_path, token=False
        )
        assert time.monotonic() - began > 0.9
        assert Path(path).read_bytes() == WEIGHTS


def _ask(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> HTTPResponse:
    """One request, the path sent exactly as written."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname, parts.port, timeout=10)
    connection.request(method, parts.path, headers=headers or {})
    return connection.getresponse()
