"""Where the control plane's programs come from."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import tarfile
import threading
from pathlib import Path

import pytest

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.local.binaries import building, published, resolution, versions

ROOT = Path(__file__).parents[3]


def _pin(module: str, path: str) -> str:
    text = (ROOT / "tools" / module / "go.mod").read_text()
    found = re.search(rf"^(?:\s*|require ){re.escape(path)} v(\S+)", text, re.MULTILINE)
    assert found, f"{path} is not pinned in tools/{module}/go.mod"
    return found.group(1)


def test_versions_are_those_the_go_modules_pin() -> None:
    assert _pin("controlplane", "k8s.io/kubernetes") == versions.KUBERNETES
    assert _pin("controlplane", "go.etcd.io/etcd/server/v3") == versions.ETCD
    assert _pin("helm", "helm.sh/helm/v4") == versions.HELM
    assert _pin("realnode", "k8s.io/kubernetes") == versions.KUBERNETES
    assert _pin("coredns", "github.com/coredns/coredns") == versions.COREDNS


def test_every_program_can_be_built_from_a_tool_line() -> None:
    assert set(building.PACKAGES) == {*versions.NAMES, *versions.NODE}
    for module, package, _ in building.PACKAGES.values():
        assert package in (ROOT / "tools" / module / "go.mod").read_text()


def test_a_changed_pin_names_another_cache_folder(tmp_path, monkeypatch) -> None:
    before = versions.cache_folder()
    for module in ("controlplane", "helm"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "go.mod").write_text("module other\n")
    monkeypatch.setattr(versions, "module_root", lambda: tmp_path)
    assert versions.cache_folder() != before
    assert versions.cache_folder().name.startswith(f"kubernetes-{versions.KUBERNETES}-")


class _Host:
    """A release host on loopback."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(self.path)
                content = host.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_arguments: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def host():
    found = _Host()
    yield found
    found.server.shutdown()
    found.server.server_close()


def _archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"tools/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_a_published_program_is_checked_and_made_executable(host, tmp_path) -> None:
    host.files = {
        "/prog": b"#!/bin/sh\n",
        "/prog.sha256": hashlib.sha256(b"#!/bin/sh\n").hexdigest().encode() + b"  prog\n",
    }
    source = published.Published(f"{host.url}/prog", "sha256", digest_url=f"{host.url}/prog.sha256")
    path = published.Downloader(tmp_path, resolution.quiet).fetch("prog", source)
    assert path == tmp_path / "prog"
    assert path.read_bytes() == b"#!/bin/sh\n"
    assert path.stat().st_mode & 0o777 == 0o755


def test_an_archive_is_downloaded_once_for_all_its_programs(host, tmp_path) -> None:
    archive = _archive(etcd=b"E", kubectl=b"K")
    host.files = {"/a.tar.gz": archive}
    downloader = published.Downloader(tmp_path, resolution.quiet)
    for name, content in (("etcd", b"E"), ("kubectl", b"K")):
        source = published.Published(
            f"{host.url}/a.tar.gz",
            "sha512",
            digest=hashlib.sha512(archive).hexdigest(),
            member=f"tools/{name}",
        )
        assert downloader.fetch(name, source).read_bytes() == content
    assert host.asked == ["/a.tar.gz"]


def test_a_file_with_another_digest_is_refused_and_not_installed(host, tmp_path) -> None:
    host.files = {"/prog": b"evil"}
    source = published.Published(f"{host.url}/prog", "sha256", digest="0" * 64)
    with pytest.raises(Retryable, match="refused"):
        published.Downloader(tmp_path, resolution.quiet).fetch("prog", source)
    assert not list(tmp_path.iterdir())


def test_a_host_that_cannot_be_reached_is_asked_once(tmp_path) -> None:
    downloader = published.Downloader(tmp_path, resolution.quiet)
    source = published.Published("http://127.0.0.1:1/prog", "sha256", digest="0" * 64)
    for _ in range(2):
        with pytest.raises(Retryable, match="cannot be reached"):
            downloader.fetch("prog", source)
    assert downloader._dead == {"127.0.0.1:1"}


def test_published_addresses_name_the_pinned_versions() -> None:
    for name in versions.NAMES:
        source = published.published(name, "linux", "amd64")
        assert source.url.startswith("https://")
        assert source.digest or source.digest_url.startswith("https://")
        version = {
            "helm": versions.HELM,
            "kube-scheduler": versions.KUBERNETES,
            "kube-controller-manager": versions.KUBERNETES,
        }
        assert version.get(name, published.ENVTEST_VERSION) in source.url
    assert len(bytes.fromhex(published.ENVTEST_SHA512["linux-amd64"])) == 64
    assert published.ENVTEST_VERSION.rpartition(".")[0] == versions.KUBERNETES.rpartition(".")[0]


def _program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_named_folder_wins_over_the_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LLMOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    cached = _program(versions.cache_folder(), "etcd")
    assert resolution.resolve(["etcd"]).paths["etcd"] == cached
    named = _program(tmp_path / "assets", "etcd")
    assert resolution.resolve(["etcd"]).paths["etcd"] == named


def test_a_file_that_cannot_be_executed_does_not_count(tmp_path) -> None:
    _program(tmp_path, "etcd").chmod(0o644)
    assert resolution.find(["etcd"], [tmp_path]) == {}


def test_without_download_and_compiler_the_message_names_all_ways_out(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LLMOS_CACHE", str(tmp_path))
    monkeypatch.setenv("LLMOS_DOWNLOAD", "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    with pytest.raises(Permanent) as failure:
        resolution.resolve(["etcd"])
    for words in ("downloads are switched off", "install Go", "KUBEBUILDER_ASSETS", versions.ETCD):
        assert words in str(failure.value)


def test_a_failed_download_falls_through_to_a_build_and_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LLMOS_CACHE", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setattr(published, "ENVTEST", "https://127.0.0.1:1")
    built: list[str] = []

    def build(name: str, folder: Path, _say: object) -> Path:
        built.append(name)
        return _program(folder, name)

    monkeypatch.setattr(resolution, "build", build)
    said: list[str] = []
    found = resolution.resolve(["etcd"], lambda name, what: said.append(f"{name}: {what}"))
    assert built == ["etcd"]
    assert found.paths["etcd"].exists()
    assert any("not downloaded" in line for line in said)
