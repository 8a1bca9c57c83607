"""Prices beside decisions: when they are made, when not, and what becomes of those there were."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.clock import FakeClock
from llmos_operator.control import pricing
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.pricing import Pricing, Result, SolverLost, SolverProcess
from llmos_operator.control.solver import Answer, Question, serve
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.fragmentation.pricer import Pricer
from llmos_operator.scheduler.policy import Policy, ScoreKind
from llmos_operator.settings import PriceSettings
from llmos_operator.state.types import DeviceSelector
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

POLICY = Policy(require_queue=False)
A10 = DeviceSelector(("A10",))


def busy_cluster(small: int = 30) -> ClusterBuilder:
    """Return a cluster where nearly everybody asks for one kind, and best fit would take that kind first."""
    cluster = a_cluster(a_node("a").with_gpus(2, "A10-24G"), a_node("b").with_gpus(2, "A100-80G"))
    cluster.add(
        *(a_workload(f"w{i}").needing("10Gi").with_(suspended=True, selector=A10) for i in range(small))
    )
    return cluster


class Here:
    """Solves in this process, as the child does; slow or broken where a test wants it."""

    def __init__(self) -> None:
        self.pricer = Pricer(draws=2)
        self.asked: list[Question] = []
        self.closed = 0
        self.seconds = 0.0
        self.error = ""
        self.lost = False

    async def solve(self, question: Question) -> Answer:
        self.asked.append(question)
        await asyncio.sleep(self.seconds)
        if self.lost:
            raise SolverLost("gone")
        if self.error:
            return Answer(None, self.error)
        return Answer(self.pricer.price(question.stock, question.mix, question.kinds, question.now))

    async def close(self) -> None:
        self.closed += 1


class Bench:
    """A Pricing over a cluster, with a clock and metrics to look at."""

    def __init__(self, cluster: ClusterBuilder, solver: Any = None, **settings: Any) -> None:
        self.registry = CollectorRegistry()
        self.clock = FakeClock(NOW)
        self.solver = solver or Here()
        self.pricing = Pricing(
            store=cluster.store,
            policy=POLICY,
            settings=PriceSettings(**({"solve_budget": PATIENCE} | settings)),
            metrics=OperatorMetrics(self.registry),
            clock=self.clock,
            solver=self.solver,
            may_act=lambda: True,
        )

    def shown(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"llmos_operator_{name}", labels)


PATIENCE = 240.0  # seconds: a process that imports a solver takes long to start on a busy machine


@asynccontextmanager
async def a_process() -> AsyncIterator[SolverProcess]:
    process = SolverProcess()
    try:
        yield process
    finally:
        await process.close()


async def test_the_prices_of_what_was_asked_for_decide_the_next_placement() -> None:
    cluster = busy_cluster()
    bench = Bench(cluster)
    assert await bench.pricing.renew() is Result.SOLVED
    cluster.add(a_workload("any").needing("10Gi"))
    (by_prices,) = plan(cluster.snapshot(), POLICY, NOW, prices=bench.pricing.current()).binds
    (by_fit,) = plan(cluster.snapshot(), POLICY, NOW).binds
    assert (by_prices.claim.node, by_prices.scored_by) == ("b", ScoreKind.FRAGMENTATION)
    assert (by_fit.claim.node, by_fit.scored_by) == ("a", ScoreKind.BEST_FIT)
    assert bench.shown("prices_timestamp_seconds") == NOW
    assert bench.shown("prices_total", result="solved") == 1


async def test_too_few_requests_make_no_prices() -> None:
    bench = Bench(busy_cluster(small=19))
    assert await bench.pricing.renew() is Result.TOO_FEW
    assert bench.pricing.current() is None
    assert bench.solver.asked == []


async def test_what_did_not_change_is_not_solved_again_until_prices_grow_old() -> None:
    cluster = busy_cluster()
    bench = Bench(cluster, max_age=100.0)
    await bench.pricing.renew()
    assert await bench.pricing.renew() is Result.UNCHANGED
    bench.clock.advance(51)
    assert await bench.pricing.renew() is Result.SOLVED
    assert bench.pricing.current().at == NOW + 51
    cluster.add(a_node("c").with_gpus(1))
    assert await bench.pricing.renew() is Result.SOLVED
    assert len(bench.solver.asked) == 3


async def test_a_solver_that_is_late_is_ended_and_the_former_prices_stay() -> None:
    cluster = busy_cluster()
    bench = Bench(cluster, solve_budget=0.01)
    bench.solver.seconds = 60
    assert await bench.pricing.renew() is Result.LATE
    assert bench.solver.closed == 1
    assert bench.pricing.current() is None
    bench.solver.seconds = 0
    assert await bench.pricing.renew() is Result.SOLVED
    former = bench.pricing.current()
    cluster.add(a_node("c").with_gpus(1))
    bench.solver.seconds = 60
    assert await bench.pricing.renew() is Result.LATE
    assert bench.pricing.current() is former


@pytest.mark.parametrize("trouble", [{"lost": True}, {"error": "no solution"}])
async def test_a_solver_that_fails_is_asked_again_the_next_time(trouble: dict[str, Any]) -> None:
    bench = Bench(busy_cluster())
    for name, value in trouble.items():
        setattr(bench.solver, name, value)
    assert await bench.pricing.renew() is Result.FAILED
    bench.solver.lost, bench.solver.error = False, ""
    assert await bench.pricing.renew() is Result.SOLVED


async def test_prices_that_are_not_wanted_are_not_made() -> None:
    bench = Bench(busy_cluster(), enabled=False)
    await asyncio.wait_for(bench.pricing.run(), timeout=60)
    assert bench.solver.asked == []


async def test_the_process_answers_as_the_pricer_does_and_ends_when_told() -> None:
    cluster = busy_cluster()
    here = Bench(cluster, Here())
    here.solver.pricer = Pricer()
    await here.pricing.renew()
    async with a_process() as process:
        there = Bench(cluster, process)
        assert await there.pricing.renew() is Result.SOLVED
        assert there.pricing.current().of == here.pricing.current().of
        child = process._process
    assert child is not None
    assert child.returncode == -signal.SIGKILL


async def test_a_process_that_died_is_started_again() -> None:
    async with a_process() as process:
        bench = Bench(busy_cluster(), process, max_age=1.0)
        assert await bench.pricing.renew() is Result.SOLVED
        os.kill(process._process.pid, signal.SIGKILL)
        bench.clock.advance(10)
        assert await bench.pricing.renew() is Result.FAILED
        assert await bench.pricing.renew() is Result.SOLVED


@pytest.mark.parametrize("trouble", ["cannot be started", "answers nonsense"])
async def test_a_solver_in_trouble_costs_the_prices_alone(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_process() as process:
        bench = Bench(busy_cluster(), process, interval=0.01)
        if trouble == "cannot be started":
            monkeypatch.setattr("sys.executable", "/nowhere/python")
        else:
            monkeypatch.setattr(pricing, "_COMMAND", "input(); print('[]', flush=True); input()")
        assert await bench.pricing.renew() is Result.FAILED
        assert bench.pricing.current() is None


async def test_a_defect_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(busy_cluster(), interval=0.01)
    tries = []

    async def broken() -> Result:
        tries.append(1)
        raise RuntimeError("a defect")

    monkeypatch.setattr(bench.pricing, "renew", broken)
    running = asyncio.create_task(bench.pricing.run())
    async with asyncio.timeout(60):
        while len(tries) < 2:
            await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_process_ends_with_its_input() -> None:
    async with a_process() as process:
        bench = Bench(busy_cluster(), process)
        await bench.pricing.renew()
        child = process._process
        child.stdin.close()
        assert await asyncio.wait_for(child.wait(), timeout=60) == 0


def test_nobody_listening_ends_the_service() -> None:
    class Deaf(io.BytesIO):
        def write(self, _: Any) -> int:
            raise BrokenPipeError

    bench = Bench(busy_cluster())
    question = bench.pricing._question(busy_cluster().snapshot(), NOW)
    serve(io.BytesIO(question.line() * 2), Deaf())  # returns


def test_questions_and_answers_go_through_lines_unharmed() -> None:
    bench = Bench(busy_cluster())
    question = bench.pricing._question(busy_cluster().snapshot(), NOW)
    answers = io.BytesIO()
    serve(io.BytesIO(question.line() * 2), answers)
    first, second = answers.getvalue().splitlines(keepends=True)
    pricer = Pricer()
    for line in (first, second):
        there = Answer.to(question, line).prices
        here = pricer.price(question.stock, question.mix, question.kinds, question.now)
        assert (there.of, there.kinds, there.at) == (here.of, here.kinds, NOW)
        assert (there.worth.shares == here.worth.shares).all()
        assert (there.worth.gangs == here.worth.gangs).all()
    assert Answer.to(question, Answer(None, "gave up").line()) == Answer(None, "gave up")


def test_a_cluster_without_nodes_can_be_asked_about() -> None:
    question = Question.of(Bench(a_cluster()).pricing._question(a_cluster().snapshot(), NOW).line())
    assert question.stock.free.shape[0] == 0
