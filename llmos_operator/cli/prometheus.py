"""Questions to a Prometheus over its HTTP API, and what can go wrong with them in words for people.

API: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

from llmos_operator.cli.failures import UNREACHABLE, USAGE, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENV_URL = "LLMOS_PROMETHEUS"
ENV_TOKEN = "LLMOS_PROMETHEUS_TOKEN"  # noqa: S105 - the variable's name; an option would show in the list of processes
_SECONDS = 60.0
_SHOWN = 200
_HOW = (
    f"name one with --prometheus URL or {ENV_URL}. Inside a cluster: "
    "kubectl -n monitoring port-forward svc/prometheus-operated 9090, then --prometheus http://127.0.0.1:9090"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One element of a vector."""

    labels: Mapping[str, str]
    value: float


def address(option: str) -> str:
    """Return the address to ask, of the option or the environment. Raises `CommandFailed` if there is none."""
    url = (option or os.environ.get(ENV_URL, "")).rstrip("/")
    if not url:
        raise CommandFailed(f"usage is kept by Prometheus, and no Prometheus is known: {_HOW}", status=USAGE)
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise CommandFailed(f"{url!r} is no http or https address of a Prometheus", status=USAGE)
    return url


async def ask(url: str, queries: Sequence[str]) -> list[list[Sample]]:
    """Return the vector of each query now. Raises `CommandFailed`."""
    token = os.environ.get(ENV_TOKEN, "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as client:
            return list(await asyncio.gather(*(_one(client, url, query) for query in queries)))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        raise CommandFailed(f"no Prometheus answers at {url}: {why}; {_HOW}", status=UNREACHABLE) from error


async def _one(client: aiohttp.ClientSession, url: str, query: str) -> list[Sample]:
    async with client.get(f"{url}/api/v1/query", params={"query": query}, allow_redirects=False) as response:
        text = await response.text()
        if response.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise CommandFailed(f"{url} wants to know who asks ({response.status}): set {ENV_TOKEN}")
        try:
            answer: dict[str, Any] = json.loads(text)
            data = answer.get("data") or {}
            if answer["status"] == "success":
                return [Sample(one["metric"], float(one["value"][1])) for one in data["result"]]
            refusal = str(answer.get("error", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandFailed(
                f"{url} does not answer like a Prometheus ({response.status}: {text[:_SHOWN]!r}); {_HOW}"
            ) from error
        raise CommandFailed(f"{url} refused the query: {refusal}")
