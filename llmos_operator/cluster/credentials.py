"""Where the API server is and how to prove who we are.

Order: an explicit path or the variable KUBECONFIG, else the pod's ServiceAccount, else `~/.kube/config`. Tokens are
read again every minute, because the kubelet rotates them in place.

The plain forms (token, token file, client certificate, in-cluster) are read here, in a few milliseconds and without
the Kubernetes client package, whose import costs an agent a third of its memory budget. A kubeconfig that needs a
plugin (`exec`, `auth-provider`) or a password is left to that package, see :mod:`llmos_operator.cluster.transport`.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_SECONDS = 60.0


class BadCredentials(Permanent):
    """No usable way to the API server; the message names file, field and fix."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="BadCredentials")


class NeedsPlugin(Permanent):
    """The kubeconfig's user authenticates through a plugin or password."""

    def __init__(self, path: str, context: str) -> None:
        super().__init__(f"kubeconfig {path}, context {context}: needs a plugin", reason="NeedsPlugin")
        self.path = path
        self.context = context


@dataclass(slots=True)
class Credentials:
    """Server address, TLS context and the current bearer token ("" if the certificate is the identity)."""

    server: str
    tls: ssl.SSLContext | None
    read_token: Callable[[], str]
    server_name: str = ""
    namespace: str = "default"
    _token: str = ""
    _read_at: float = -TOKEN_SECONDS

    def token(self, *, fresh: bool = False) -> str:
        """Return the token, read again if it is older than a minute or ``fresh`` is asked for."""
        now = time.monotonic()
        if fresh or now - self._read_at >= TOKEN_SECONDS:
            self._token = self.read_token()
            self._read_at = now
        return self._token


def find(path: str = "", environ: Mapping[str, str] | None = None, context: str = "") -> Credentials:
    """Return the credentials this process should use; ``context`` names a kubeconfig's context ("": its current one).

    Raises :class:`BadCredentials`, and :class:`NeedsPlugin` when the Kubernetes client package has to take over.
    """
    env = os.environ if environ is None else environ
    kubeconfig = path or env.get("KUBECONFIG", "").split(os.pathsep)[0]
    if kubeconfig:
        return from_kubeconfig(kubeconfig, context)
    if env.get("KUBERNETES_SERVICE_HOST") and (SERVICE_ACCOUNT / "token").exists():
        return _in_cluster(env)
    home = Path("~/.kube/config").expanduser()
    if home.exists():
        return from_kubeconfig(str(home), context)
    raise BadCredentials(
        "no way to a Kubernetes API server: set KUBECONFIG to a kubeconfig file, or run in a pod with a ServiceAccount"
    )


def _in_cluster(env: Mapping[str, str]) -> Credentials:
    host, port = env["KUBERNETES_SERVICE_HOST"], env.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    namespace = _read(SERVICE_ACCOUNT / "namespace") or "default"
    return Credentials(
        server=f"https://{host}:{port}",
        tls=_tls({"certificate-authority": str(SERVICE_ACCOUNT / "ca.crt")}, {}, Path("/")),
        read_token=lambda: _read(SERVICE_ACCOUNT / "token"),
        namespace=namespace,
    )


def from_kubeconfig(path: str, chosen: str = "") -> Credentials:
    """Return the credentials of context ``chosen`` ("": the current one) of the kubeconfig at ``path``."""
    context, cluster, user = _read_kubeconfig(path, chosen)
    if "exec" in user or "auth-provider" in user or "username" in user:
        raise NeedsPlugin(path, context.get("name", ""))
    server = str(cluster.get("server") or "").rstrip("/")
    if not server:
        raise BadCredentials(
            f"kubeconfig {path}: clusters[].cluster.server is empty; write the API server's URL there"
        )
    base = Path(path).resolve().parent

    def read_token() -> str:
        # The file is read again: the local kubelet rotates the token inside the kubeconfig.
        _, _, current = _read_kubeconfig(path, chosen)
        if current.get("token"):
            return str(current["token"])
        return _read(base / str(current["tokenFile"])) if current.get("tokenFile") else ""

    return Credentials(
        server=server,
        tls=_tls(cluster, user, base) if server.startswith("https") else None,
        read_token=read_token,
        server_name=str(cluster.get("tls-server-name") or ""),
        namespace=str(context.get("context", {}).get("namespace") or "default"),
    )


def _read_kubeconfig(path: str, chosen: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the chosen (or current) context entry, its cluster and its user."""
    import yaml  # noqa: PLC0415 - in a pod nothing needs the parser

    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise BadCredentials(
            f"cannot read kubeconfig {path}: {error.strerror}; correct KUBECONFIG"
        ) from error
    except yaml.YAMLError as error:
        raise BadCredentials(f"kubeconfig {path} is not YAML: {error}") from error
    name = chosen or document.get("current-context") or ""
    context = _named(document, "contexts", name, path)
    inner = context.get("context") or {}
    cluster = _named(document, "clusters", str(inner.get("cluster") or ""), path).get("cluster") or {}
    user = _named(document, "users", str(inner["user"]), path).get("user") or {} if inner.get("user") else {}
    return context, cluster, user


def _named(document: dict[str, Any], section: str, name: str, path: str) -> dict[str, Any]:
    for entry in document.get(section) or []:
        if entry.get("name") == name:
            return dict(entry)
    known = ", ".join(str(entry.get("name")) for entry in document.get(section) or []) or "none"
    raise BadCredentials(
        f"kubeconfig {path}: {section} has no entry {name!r} (it has: {known}); correct current-context"
    )


def _tls(cluster: dict[str, Any], user: dict[str, Any], base: Path) -> ssl.SSLContext:
    authority = _pem(cluster, "certificate-authority", base)
    try:
        context = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate, key = _pem(user, "client-certificate", base), _pem(user, "client-key", base)
        if certificate and key:
            _load_chain(context, certificate, key)
    except (ssl.SSLError, ValueError) as error:
        raise BadCredentials(f"the kubeconfig's certificates cannot be used: {error}") from error
    return context


def _load_chain(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load a client certificate from memory: OpenSSL wants a path, so it gets an unlinked in-memory file."""
    descriptor = os.memfd_create("llmos-client-certificate")
    try:
        os.write(descriptor, certificate + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _pem(section: dict[str, Any], field: str, base: Path) -> bytes:
    inline = section.get(f"{field}-data")
    if inline:
        try:
            return base64.b64decode(inline, validate=False)
        except binascii.Error as error:
            raise BadCredentials(f"kubeconfig field {field}-data is not base64: {error}") from error
    if section.get(field):
        return _read(base / str(section[field])).encode()
    return b""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadCredentials(f"cannot read {path}: {error.strerror}") from error
