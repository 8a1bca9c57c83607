"""Binds that are carried out all or none: which pods of an attempt exist, and whether it was given up.

The pods of a gang are created one by one, so a create may fail when others have succeeded. Then the attempt is given
up: what was created is deleted at once, what was not is not created any more, and the next plan places all anew. An
attempt that ends with this process is found by its successor as a gang with a part missing (`control.gangs`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.actuators.outcomes import Retire
from llmos_operator.api.conditions import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmos_operator.scheduler.plan import Action, Bind


@dataclass(slots=True)
class _Attempt:
    open: set[str]  # pods whose create is not settled
    created: dict[str, Bind] = field(default_factory=dict)  # by pod UID
    given_up: bool = False


class Attempts:
    """All attempts under way, by gang."""

    def __init__(self) -> None:
        self._attempts: dict[str, _Attempt] = {}

    def begin(self, binds: Iterable[Bind]) -> None:
        """Note that the pods of a gang are going to be created."""
        for bind in binds:
            self._attempts.setdefault(bind.gang, _Attempt(set())).open.add(bind.claim.pod)

    def given_up(self, bind: Bind) -> bool:
        """Return whether the pod must not be there any more."""
        attempt = self._attempts.get(bind.gang)
        return attempt is not None and attempt.given_up

    def settle(self, bind: Bind) -> None:
        """Note that it is certain that the pod was not created. The last one forgets the attempt."""
        attempt = self._attempts.get(bind.gang)
        if attempt is not None:
            attempt.open.discard(bind.claim.pod)
            if not attempt.open:
                del self._attempts[bind.gang]

    def created(self, bind: Bind, uid: str) -> Retire | None:
        """Note that the pod was created; return its removal if the attempt was given up meanwhile."""
        attempt = self._attempts.get(bind.gang)
        if attempt is None:
            return None
        attempt.created[uid] = bind
        given_up = attempt.given_up
        self.settle(bind)
        return _removal(bind, uid) if given_up else None

    def give_up(self, bind: Bind) -> Sequence[Retire] | None:
        """Give the attempt up because this pod could not be created; return the removal of the others.

        None: it had been given up before, for another pod.
        """
        attempt = self._attempts.get(bind.gang)
        if attempt is None:
            return ()
        first, attempt.given_up = not attempt.given_up, True
        created = [_removal(one, uid) for uid, one in attempt.created.items()]
        self.settle(bind)
        return created if first else None


def _removal(bind: Bind, uid: str) -> Retire:
    text = "Another pod of its gang could not be created; all of them are tried again together."
    return Retire(
        bind.claim.pod, uid, bind.workload.key, bind.workload.uid, str(Reason.GANG_INCOMPLETE), text
    )


def in_gangs(actions: Iterable[Action]) -> Iterable[list[Action]]:
    """Yield the actions in order: the binds of a gang together, every other one alone."""
    gang: list[Action] = []
    for action in actions:
        name = getattr(action, "gang", "")
        if gang and (not name or name != getattr(gang[0], "gang", "")):
            yield gang
            gang = []
        gang.append(action)
        if not name:
            yield gang
            gang = []
    if gang:
        yield gang
