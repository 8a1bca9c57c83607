"""Programs as their projects publish them, each checked against its digest.

etcd, kube-apiserver and kubectl come in one archive (the one controller tests use, "envtest"), whose digest is pinned
here; the other Kubernetes programs from the project's release host one by one, and Helm in an archive of its own, with
the digests published beside them. Without network this fails within seconds and the caller builds instead.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import Retryable
from llmos_operator.local.binaries import versions

if TYPE_CHECKING:
    from collections.abc import Callable

ENVTEST_VERSION = "1.36.2"  # not every patch release gets an archive
ENVTEST_SHA512 = {
    "linux-amd64": "ea743186c8a799f5cf8faf16969f86189d003cb7d130e0ac4b58789f1e5748dc"
    "f30ebe91c837a10d5ac415383da3e10b9e64d65785c938c23e739781cfb76f08",
    "linux-arm64": "2d72ee985a8e262a3c57dc9f7f0fd891f6a8c7bf7ebaa2db6dc6d8eac8ae2818"
    "1afe51c1f368b67756cdb40b10de9b205609e1726e5f27f7c6d824dd9c6649ac",
}
ENVTEST = "https://github.com/kubernetes-sigs/controller-tools/releases/download"
KUBERNETES = "https://dl.k8s.io/release"
HELM = "https://get.helm.sh"
COREDNS = "https://github.com/coredns/coredns/releases/download"

_CONNECT_SECONDS = 3.0
_CHUNK = 1 << 20
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Published:
    """A file on a release host.

    `digest` is pinned, or "" where it is published at `digest_url`. `member` is the program's path in an archive, "" if
    the file is the program.
    """

    url: str
    algorithm: str
    digest: str = ""
    digest_url: str = ""
    member: str = ""


def published(name: str, system: str, machine: str) -> Published:
    """Return where a program is published for a platform. Raises `Retryable` where it is not."""
    if name in {"etcd", "kube-apiserver", "kubectl"}:
        digest = ENVTEST_SHA512.get(f"{system}-{machine}")
        if digest is None:
            raise Retryable(f"no archive is pinned for {system}-{machine}")
        release = f"envtest-v{ENVTEST_VERSION}"
        url = f"{ENVTEST}/{release}/{release}-{system}-{machine}.tar.gz"
        return Published(url, "sha512", digest=digest, member=f"controller-tools/envtest/{name}")
    if name == "helm":
        url = f"{HELM}/helm-v{versions.HELM}-{system}-{machine}.tar.gz"
        return Published(url, "sha256", digest_url=f"{url}.sha256sum", member=f"{system}-{machine}/helm")
    if name == "coredns":
        url = f"{COREDNS}/v{versions.COREDNS}/coredns_{versions.COREDNS}_{system}_{machine}.tgz"
        return Published(url, "sha256", digest_url=f"{url}.sha256", member="coredns")
    url = f"{KUBERNETES}/v{versions.KUBERNETES}/bin/{system}/{machine}/{name}"
    return Published(url, "sha512", digest_url=f"{url}.sha512")


class Downloader:
    """Downloads programs into a folder. A host that did not answer once is not asked again."""

    def __init__(self, folder: Path, say: Callable[[str, str], None]) -> None:
        self._folder = folder
        self._say = say
        self._dead: set[str] = set()
        self._archives: dict[str, bytes] = {}

    def fetch(self, name: str, source: Published) -> Path:
        """Return the program, in place and executable.

        Raises `Retryable` if the host cannot be reached, does not have it, or sent something else than was published.
        """
        content = self._content(name, source)
        if source.member:
            content = _member(content, source)
        return place(self._folder, name, content)

    def _content(self, name: str, source: Published) -> bytes:
        if source.url in self._archives:
            return self._archives[source.url]
        expected = (
            source.digest or self._read(name, source.digest_url, quiet=True).decode().split()[0].lower()
        )
        content = self._read(name, source.url)
        actual = hashlib.new(source.algorithm, content).hexdigest()
        if actual != expected:
            raise Retryable(f"{source.url} has {source.algorithm} {actual}, expected is {expected}: refused")
        if source.member:
            self._archives[source.url] = content
        return content

    def _read(self, name: str, url: str, *, quiet: bool = False) -> bytes:
        host = url.split("/")[2]
        if host in self._dead:
            raise Retryable(f"{host} cannot be reached")
        try:
            with urllib.request.urlopen(url, timeout=_CONNECT_SECONDS) as reply:  # noqa: S310 - constants above
                return self._copy(name, reply, int(reply.headers.get("Content-Length") or 0), quiet=quiet)
        except urllib.error.HTTPError as error:
            raise Retryable(f"{url}: {error.code} {error.reason}") from error
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            self._dead.add(host)
            raise Retryable(f"{host} cannot be reached: {error}") from error

    def _copy(self, name: str, reply: io.BufferedIOBase, total: int, *, quiet: bool) -> bytes:
        content, shown = bytearray(), -1
        while block := reply.read(_CHUNK):
            content += block
            if len(content) > _MAX_BYTES:
                raise Retryable(f"{name}: more than {_MAX_BYTES >> 20} MiB came; this cannot be right")
            percent = 100 * len(content) // total if total else 0
            if not quiet and percent // 10 != shown:
                shown = percent // 10
                self._say(name, f"downloading, {len(content) >> 20} of {total >> 20} MiB")
        if total and len(content) != total:
            raise Retryable(f"{name}: the download ended after {len(content)} of {total} bytes")
        return bytes(content)


def _member(archive: bytes, source: Published) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        try:
            file = tar.extractfile(source.member)
        except KeyError as error:
            raise Retryable(f"{source.url} has no {source.member}") from error
        if file is None:
            raise Retryable(f"{source.url}: {source.member} is not a file")
        return file.read()


def place(folder: Path, name: str, content: bytes) -> Path:
    """Write an executable so that nobody ever sees half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(temporary).chmod(0o755)
    return Path(temporary).replace(folder / name)
