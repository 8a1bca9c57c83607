"""Model URIs: what the operator and the runtime must agree on."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from llmos_operator.api import names

# Keys of a model's Secret that prove who asks, by scheme. They are named as each provider's own tools name them.
SECRET_KEYS: Final = {
    "hf": ("token",),
    "https": ("token",),
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
    ),
    "gs": ("token", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "oci": ("username", "password", "token"),
}
# Environment variables of a runtime container by key; `token` is HF_TOKEN for every scheme.
SOURCE_VARIABLES: Final = {
    "AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN": "AWS_SESSION_TOKEN",
    "AWS_REGION": "AWS_REGION",
    "AWS_ENDPOINT_URL": "AWS_ENDPOINT_URL",
    "username": names.ENV_REGISTRY_USERNAME,
    "password": names.ENV_REGISTRY_PASSWORD,
}

_CREDENTIALS = re.compile(r"[^/]*://[^/]*@")


def carries_credentials(uri: str) -> bool:
    """Return whether a URI has a user or password before its host. Such a URI must not be shown to anybody."""
    return _CREDENTIALS.match(uri) is not None


def model_key(uri: str, revision: str) -> str:
    """Return the name of a revision of a model where a URI cannot stand: in file and object names."""
    return hashlib.sha256(f"{uri}@{revision}".encode()).hexdigest()[:16]
