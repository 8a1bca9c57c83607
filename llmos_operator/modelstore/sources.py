"""From a URI to the place it names."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.modelstore.http import Http

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmos_operator.modelstore.remote import Access, Place, Source

SCHEMES = ("hf", "s3", "gs", "oci", "https")
"""Schemes that lie far away; pvc and file are paths."""


def open_source(
    place: Place,
    access: Access,
    *,
    files: Sequence[str] = (),
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Source, Http]:
    """Return the place and what to ask it with; ``files`` are all that is wanted of a web folder.

    Raises Permanent (UnsupportedScheme, AccessDenied, InvalidSpec).
    """
    scheme = place.uri.partition("://")[0]
    http = Http(place, sleep=sleep)
    return _source(scheme, place, access, http, files), http


def _source(scheme: str, place: Place, access: Access, http: Http, files: Sequence[str]) -> Source:
    # Imported as needed: a process reads from one or two kinds of places.
    if scheme == "s3":
        from llmos_operator.modelstore.s3 import S3  # noqa: PLC0415

        return S3(place, access, http)
    if scheme == "gs":
        if access.get("AWS_ACCESS_KEY_ID"):
            from llmos_operator.modelstore.s3 import interoperable  # noqa: PLC0415

            return interoperable(place, access, http)
        from llmos_operator.modelstore.gcs import GoogleStorage  # noqa: PLC0415

        return GoogleStorage(place, access, http)
    if scheme == "oci":
        from llmos_operator.modelstore.oci import Registry  # noqa: PLC0415

        return Registry(place, access, http)
    if scheme == "hf":
        from llmos_operator.modelstore.hub import Hub  # noqa: PLC0415

        return Hub(place, access, http)
    if scheme == "https":
        from llmos_operator.modelstore.web import Web  # noqa: PLC0415

        return Web(place, access, http, only=files)
    raise place.refuse(
        f"{scheme}:// is not read from far away; known: {', '.join(SCHEMES)}", Reason.UNSUPPORTED_SCHEME
    )
