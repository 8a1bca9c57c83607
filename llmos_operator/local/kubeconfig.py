"""Kubeconfig files: for the administrator, for components, and for pods."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import yaml

from llmos_operator.local.certificates import KeyPair, write_private

if TYPE_CHECKING:
    from pathlib import Path


def _document(server: str, authority: bytes, user: dict[str, Any], namespace: str) -> dict[str, Any]:
    context: dict[str, Any] = {"cluster": "llmos-local", "user": "llmos-local"}
    if namespace:
        context["namespace"] = namespace
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(authority).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "llmos-local", "cluster": cluster}],
        "users": [{"name": "llmos-local", "user": user}],
        "contexts": [{"name": "llmos-local", "context": context}],
        "current-context": "llmos-local",
    }


def write_client_kubeconfig(path: Path, server: str, authority: bytes, pair: KeyPair) -> None:
    """Write a kubeconfig that authenticates by client certificate; everything is embedded."""
    user = {
        "client-certificate-data": base64.b64encode(pair.certificate).decode(),
        "client-key-data": base64.b64encode(pair.key).decode(),
    }
    write_private(path, yaml.safe_dump(_document(server, authority, user, "")).encode())


def write_pod_kubeconfig(path: Path, server: str, authority: bytes, token_file: Path, namespace: str) -> None:
    """Write a pod's kubeconfig: the token is read from ``token_file``, which is replaced before it expires."""
    document = _document(server, authority, {"tokenFile": str(token_file)}, namespace)
    write_private(path, yaml.safe_dump(document).encode())
