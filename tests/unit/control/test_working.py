"""Devices work by their multiprocessors, memory and power; the utilisation counter decides nothing; absent is not zero."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmos_operator.control.working import FRESH_SECONDS, DeviceWork, Judgement, Sign, Work
from llmos_operator.state.ledger import DeviceState
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import Device

GIB = 1 << 30


@dataclass
class Bench:
    """One device with a limit of 400 W that is sampled once a second."""

    mig: bool = False
    limit: int | None = 400_000
    work: DeviceWork = field(default_factory=DeviceWork)
    now: float = 1000.0

    def tells(self, seconds: int = 60, **signs: int | None) -> Judgement:
        for _ in range(seconds):
            self.now += 1.0
            self.work.sampled([Reading("g", **signs)], self.now)
        return self.judged()

    def judged(self) -> Judgement:
        device = Device("g", 0, "A100", 80 * GIB, mig=self.mig, limit_milliwatts=self.limit)
        return self.work.judge(DeviceState(device), self.now)


def test_a_busy_utilisation_counter_alone_says_nothing() -> None:
    assert Bench().tells(busy_percent=100).work is Work.UNCLEAR


def test_a_kernel_that_spins_on_one_multiprocessor_is_quiet() -> None:
    found = Bench().tells(busy_percent=100, sm_active_milli=8, dram_active_milli=0, power_milliwatts=90_000)
    assert found.work is Work.QUIET
    assert found.evidence.startswith("multiprocessors active 1 % of the time, memory active 0 %")


def test_memory_alone_makes_it_work_as_decoding_one_request_does() -> None:
    found = Bench().tells(sm_active_milli=40, dram_active_milli=600)
    assert (found.work, found.sign, found.share) == (Work.BUSY, Sign.DRAM, 0.6)


def test_power_counts_where_nothing_else_is_told_and_against_the_range_above_idle() -> None:
    assert Bench().tells(power_milliwatts=130_000).work is Work.QUIET  # a quarter of the range
    found = Bench().tells(power_milliwatts=300_000)
    assert (found.work, found.sign, found.share) == (Work.BUSY, Sign.POWER, None)


def test_power_without_a_limit_or_of_an_instance_says_nothing() -> None:
    assert Bench(limit=None).tells(power_milliwatts=300_000).work is Work.UNCLEAR
    assert Bench(mig=True).tells(power_milliwatts=300_000).work is Work.UNCLEAR


def test_between_high_and_low_it_stays_what_it_was() -> None:
    bench = Bench()
    assert bench.tells(sm_active_milli=70).work is Work.UNCLEAR
    assert bench.tells(sm_active_milli=300).work is Work.BUSY
    assert bench.tells(sm_active_milli=70).work is Work.BUSY
    assert bench.tells(sm_active_milli=10).work is Work.QUIET
    assert bench.tells(sm_active_milli=70).work is Work.UNCLEAR


def test_one_sample_between_others_moves_nothing() -> None:
    bench = Bench()
    bench.tells(sm_active_milli=0)
    assert bench.tells(1, sm_active_milli=800).work is not Work.BUSY
    bench = Bench()
    bench.tells(sm_active_milli=800)
    assert bench.tells(1, sm_active_milli=0).work is Work.BUSY


def test_what_is_not_told_any_more_says_nothing() -> None:
    bench = Bench()
    bench.tells(sm_active_milli=300)
    assert bench.tells(1, sm_active_milli=None).work is Work.UNCLEAR
    bench.tells(sm_active_milli=300)
    bench.now += FRESH_SECONDS + 1
    assert bench.judged().work is Work.UNCLEAR


def test_a_device_that_is_gone_is_forgotten() -> None:
    bench = Bench()
    bench.tells(sm_active_milli=300)
    bench.work.forget(["other"])
    assert bench.judged().work is Work.UNCLEAR
