"""Addresses that spans may be sent to. Apart from `tracing`, because settings of processes without spans know them, too."""

from __future__ import annotations

from urllib.parse import urlsplit


def check_endpoint(endpoint: str) -> str:
    """Return an address that spans can be sent to. Raises ValueError saying what is wrong."""
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in endpoint or "?" in endpoint:
        raise ValueError(
            "must be the http:// or https:// address of an OTLP receiver without user, password and query, "
            "like http://otel-collector.monitoring.svc:4318"
        )
    return endpoint.rstrip("/")
