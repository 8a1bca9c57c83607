"""Who sends a request: ServiceAccount tokens checked by TokenReview, remembered for a minute.

Tokens are remembered by their hash only.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.port import ClusterPort, TokenIdentity

KNOWN_SECONDS = 60.0
UNKNOWN_SECONDS = 10.0
REMEMBERED = 10_000
NODE_EXTRA = "authentication.kubernetes.io/node-name"


class Identities:
    """Answers who a bearer token belongs to."""

    def __init__(self, port: ClusterPort, clock: Clock) -> None:
        self._port = port
        self._clock = clock
        self._answers: OrderedDict[bytes, tuple[float, TokenIdentity | None]] = OrderedDict()

    async def identify(self, token: str) -> TokenIdentity | None:
        """Return the token's identity, None if it is nobody's. Raises the port's errors."""
        key = hashlib.sha256(token.encode()).digest()
        now = self._clock.monotonic()
        answer = self._answers.get(key)
        if answer is not None and now < answer[0]:
            return answer[1]
        identity = await self._port.token_review(token)
        self._answers[key] = (now + (KNOWN_SECONDS if identity else UNKNOWN_SECONDS), identity)
        self._answers.move_to_end(key)
        while len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)
        return identity


def account(namespace: str, name: str) -> str:
    """Return the user name of a ServiceAccount."""
    return f"system:serviceaccount:{namespace}:{name}"
