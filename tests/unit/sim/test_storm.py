"""Many nodes that look sick at once, with the real decisions: the circuit breaker bounds what is done, over time, too."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from llmos_operator.sim.failures import KINDS, Fault
from llmos_operator.sim.fleet import GPUS, Fleet
from llmos_operator.sim.month import Month, Outcome

FLEET = Fleet(gpus=320, days=1.0)
NODES = FLEET.gpus // GPUS
SHARE, WINDOW = 10, 600  # a tenth of the nodes in ten minutes, as documented
STRUCK_AT = 3600
_ACT = re.compile(r"(\d+) (?:evicts \S+ from|treats) (\S+)")


def storm(monkeypatch: pytest.MonkeyPatch, percent: int, kind: str) -> Outcome:
    """Strike one GPU of so many of the nodes in the same second."""
    (fault,) = (one for one in KINDS if one.name == kind)
    struck = [
        Fault(float(STRUCK_AT), fault, node * GPUS + node % GPUS, fault.mends, 6 * 3600.0)
        for node in range(NODES * percent // 100)
    ]
    monkeypatch.setattr("llmos_operator.sim.month.draw", lambda *_: struck)
    return Month(FLEET).run()


def acted_on(outcome: Outcome) -> dict[str, list[int]]:
    """Return when each node was acted on, in seconds."""
    found: dict[str, list[int]] = defaultdict(list)
    for line in outcome.history:
        if (act := _ACT.match(line)) is not None:
            found[act[2]].append(int(act[1]))
    return found


@pytest.mark.parametrize("kind", ["halted", "off the bus", "double bit"])
@pytest.mark.parametrize("percent", [5, 10, 25, 50, 100])
def test_never_more_than_a_tenth_of_the_nodes_is_acted_on_in_ten_minutes(
    monkeypatch: pytest.MonkeyPatch, percent: int, kind: str
) -> None:
    outcome = storm(monkeypatch, percent, kind)
    acts = acted_on(outcome)
    starts = sorted({at for times in acts.values() for at in times})
    assert starts[0] >= STRUCK_AT
    most = max(
        sum(any(start <= at < start + WINDOW for at in times) for times in acts.values()) for start in starts
    )
    sick = NODES * percent // 100
    assert most == min(sick, NODES // SHARE), "what is allowed is done, and no more"
    assert len(acts) == sick, "in the end every sick node is dealt with, and no other"
    assert (outcome.false_evictions, outcome.lost_workloads) == (0, 0)
    assert outcome.released == outcome.treatments >= sick


def test_application_faults_everywhere_move_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = storm(monkeypatch, 100, "software")
    assert outcome.faults == NODES
    assert (outcome.evictions, outcome.treatments) == (0, 0)
