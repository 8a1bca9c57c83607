"""Which headers cross the gateway."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from llmos_operator.gateway import headers


def _to_replica(given: dict[str, str], *, strip: bool = False) -> CIMultiDict[str]:
    return headers.to_replica(
        CIMultiDict(given), request_id="id-1", remote="192.0.2.1", strip_authorization=strip
    )


def test_hop_by_hop_headers_end_here_also_those_connection_names() -> None:
    sent = _to_replica(
        {
            "Connection": "keep-alive, X-Secret-Hop",
            "X-Secret-Hop": "1",
            "Transfer-Encoding": "chunked",
            "Upgrade": "h2c",
            "TE": "trailers",
            "Proxy-Authorization": "Basic x",
            "Host": "models.example",
            "Content-Length": "7",
            "Accept-Encoding": "gzip",
            "Cookie": "a=b",
            "Content-Type": "application/json",
        }
    )
    assert dict(sent) == {
        "Content-Type": "application/json",
        "X-Request-Id": "id-1",
        "X-Forwarded-For": "192.0.2.1",
    }


def test_a_client_cannot_forge_what_the_gateway_says() -> None:
    sent = _to_replica(
        {
            "X-Forwarded-For": "10.0.0.1",
            "X-Forwarded-Proto": "https",
            "Forwarded": "for=10.0.0.1",
            "X-Real-IP": "10.0.0.1",
            "X-LLMOS-Key": "llmos-secret",
            "X-LLMOS-Refused": "draining",
            "X-Request-Id": "other",
        }
    )
    assert dict(sent) == {"X-Request-Id": "id-1", "X-Forwarded-For": "192.0.2.1"}


@pytest.mark.parametrize(("strip", "arrives"), [(True, False), (False, True)])
def test_the_gateways_own_key_is_not_shown_to_replicas(strip: bool, arrives: bool) -> None:
    assert ("Authorization" in _to_replica({"Authorization": "Bearer k"}, strip=strip)) is arrives


def test_tracing_headers_pass() -> None:
    assert _to_replica({"traceparent": "00-1-2-01"})["traceparent"] == "00-1-2-01"


def test_answers_lose_what_the_gateway_sets_itself() -> None:
    sent = headers.to_client(
        CIMultiDict(
            {
                "Content-Length": "5",
                "Transfer-Encoding": "chunked",
                "Connection": "close",
                "Server": "uvicorn",
                "Date": "today",
                "Set-Cookie": "a=b",
                "Retry-After": "3",
                "X-Request-Id": "the replica's",
                "Content-Type": "text/event-stream",
            }
        ),
        request_id="id-1",
        workload="team/chat",
    )
    assert dict(sent) == {
        "Retry-After": "3",
        "Content-Type": "text/event-stream",
        "X-Request-Id": "id-1",
        "X-LLMOS-Workload": "team/chat",
    }


@pytest.mark.parametrize("given", ["abc-123", "a" * 128, "A.b_c:d"])
def test_a_sane_request_id_is_kept(given: str) -> None:
    assert headers.request_id({"X-Request-Id": given}) == given


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, 'x"y', "é"])
def test_any_other_request_id_is_replaced_by_a_random_one(given: str) -> None:
    made = [headers.request_id({"X-Request-Id": given}) for _ in range(2)]
    assert all(len(one) == 32 for one in made)
    assert made[0] != made[1]
