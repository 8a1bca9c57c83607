"""What the agent and a download tell each other."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Order:
    """What to bring where. Bytes; 0: no bound."""

    root: str
    uri: str
    revision: str = "main"
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    hub: str = "https://huggingface.co"
    endpoint: str = ""
    region: str = ""
    limit_bytes: int = 0  # of this model
    budget_bytes: int = 0  # of all models in the store
    keep: tuple[str, ...] = ()  # keys that must not make room

    def text(self) -> str:
        """Return the order as JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: ``reason`` is "" if the model is there, else one CamelCase word with a message."""

    bytes: int = 0
    reason: str = ""
    message: str = ""
    permanent: bool = False
    after: float = 0.0  # seconds before the next try


def parse_order(text: str) -> Order:
    """Return an order from its JSON. Raises ValueError, TypeError or KeyError."""
    values: dict[str, Any] = json.loads(text)
    values["keep"] = tuple(values.get("keep", ()))
    return Order(**values)
