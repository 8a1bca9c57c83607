"""A fleet through failures with the real decisions: nothing is lost, nobody is moved for nothing, seeds replay."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from llmos_operator.api.telemetry import Verdict
from llmos_operator.cli.app import app
from llmos_operator.cli.failures import CommandFailed
from llmos_operator.sim.failures import GPU_DAYS, KINDS, NOISE, TOTAL, Fault, draw
from llmos_operator.sim.fleet import Fleet
from llmos_operator.sim.month import Month
from llmos_operator.telemetry.policy import Reason

SMALL = Fleet(gpus=160, days=1.0, rate=200.0)


def test_the_published_counts_are_what_is_drawn() -> None:
    assert sum(kind.weight for kind in KINDS) == pytest.approx(419)
    assert pytest.approx(0.474, abs=0.001) == TOTAL / GPU_DAYS * 1000
    drawn = draw(random.Random(1), 1000, 600.0, 20.0)
    faults = [one for one in drawn if isinstance(one, Fault)]
    assert len(faults) == pytest.approx(0.474 * 20 * 600, rel=0.05)
    assert (len(drawn) - len(faults)) / len(faults) == pytest.approx(NOISE, rel=0.1)
    counts = Counter(one.kind.name for one in faults)
    for kind in KINDS:
        assert counts[kind.name] / len(faults) == pytest.approx(kind.weight / 419, abs=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_workload_is_lost_and_nobody_is_moved_for_nothing(seed: int) -> None:
    found = Month(Fleet(**{**_fields(SMALL), "seed": seed})).run()
    assert found.faults > 5
    assert found.evictions > 0
    assert found.treatments > 0
    assert (found.lost_workloads, found.false_evictions) == (0, 0)
    assert found.most_acted <= max(1, SMALL.gpus // 8 // 10)
    assert found.effective >= 0.97


def test_the_same_seed_has_the_same_history() -> None:
    first, second = Month(SMALL).run(), Month(SMALL).run()
    assert first == second
    assert first.history != Month(Fleet(**{**_fields(SMALL), "seed": 9})).run().history


def test_application_faults_alone_move_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_noise(*arguments: object) -> list[object]:
        return [one for one in draw(*arguments) if not isinstance(one, Fault)]  # type: ignore[arg-type]

    monkeypatch.setattr("llmos_operator.sim.month.draw", only_noise)
    found = Month(SMALL).run()
    assert found.noise > 100
    assert (found.evictions, found.treatments, found.effective) == (0, 0, 1.0)


def test_a_sick_mig_instance_is_a_treatment_of_its_gpu_as_in_the_operator() -> None:
    month = Month(Fleet(gpus=8))
    month._add_node("n0000")
    state = month.store.node("n0000")
    assert state is not None
    assert state.gpu is not None
    device = replace(state.gpu.devices[0], uuid="MIG-a", parent="GPU-n0000-0")
    sick = replace(device, verdict=Verdict.UNHEALTHY, reason=Reason.GPU_HALTED.value)
    month.store.apply_gpu_node(replace(state.gpu, devices=(sick,)))
    month._treat(["n0000"])
    month._now += 60.0
    month._treat(["n0000"])
    care = month.store.care("n0000")
    assert care is not None
    assert [one.target for one in care.treatments] == ["GPU-n0000-0"]


def test_the_command_tells_what_came_of_it() -> None:
    arguments = [
        "simulate",
        "--failures",
        "--gpus",
        "64",
        "--days",
        "1",
        "--rate",
        "60",
        "--seed",
        "3",
        "--json",
    ]
    told = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert (told["lostWorkloads"], told["falseEvictions"]) == (0, 0)
    assert told["effectivePercent"] > 97
    refused = CliRunner().invoke(app, ["simulate", "--failures", "--days", "1-2"])
    assert isinstance(refused.exception, CommandFailed)


def _fields(fleet: Fleet) -> dict[str, float]:
    return {name: getattr(fleet, name) for name in ("gpus", "days", "rate", "spare")}
