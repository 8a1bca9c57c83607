"""What a run says of itself while it goes on: one value, replaced as a whole, read by the front's thread."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmos_operator.api.runtime.messages import RuntimeState

if TYPE_CHECKING:
    from llmos_operator.clock import Clock
    from llmos_operator.runtime.ipc.messages import Progress as LoadStage

_SPEED_SECONDS = 30.0  # tokens a second are those of about the last so many seconds


@dataclass(frozen=True, slots=True)
class Report:
    """A run now. Losses are nats a token; times are monotonic seconds; -1 and None: not known yet."""

    state: RuntimeState = RuntimeState.STARTING
    stage: LoadStage | None = None  # of the load
    step: int = 0
    total_steps: int = 0
    samples: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float = 0.0
    gradient_norm: float = 0.0
    part_tokens: int = 0
    recompute: bool = False
    retreats: int = 0  # times memory ran short and parts were made smaller
    checkpoint_step: int = -1
    checkpoint_at: float | None = None
    checkpoint_seconds: float = 0.0  # the last one took
    checkpoints: int = 0
    digest: str = ""
    architecture: str = ""
    revision: str = ""
    predicted_bytes: int = 0
    measured_bytes: int = 0
    peak_bytes: int = 0
    weights_bytes: int = 0
    base_bytes: int = 0
    limit_bytes: int = 0
    failure: tuple[str, str, bool] | None = None  # reason, message, whether it is permanent
    beat_at: float = 0.0  # last sign of life


@dataclass(slots=True)
class Board:
    """Where the report hangs."""

    clock: Clock
    now: Report = field(default_factory=Report)
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.now = replace(self.now, beat_at=self.clock.monotonic())

    def put(self, **changes: Any) -> None:
        """Change some of it; counts as a sign of life."""
        self.now = replace(self.now, beat_at=self.clock.monotonic(), **changes)

    def load(self, stage: LoadStage) -> None:
        """Take a load stage's progress."""
        self.put(state=stage.stage, stage=stage)

    def speed(self, tokens: int) -> float:
        """Return tokens a second, given how many were read until now."""
        now = self.clock.monotonic()
        marks = self._marks
        marks.append((now, tokens))
        while len(marks) > 2 and now - marks[0][0] > _SPEED_SECONDS:  # noqa: PLR2004 - two make a speed
            marks.popleft()
        began, before = marks[0]
        return (tokens - before) / (now - began) if now > began else 0.0
