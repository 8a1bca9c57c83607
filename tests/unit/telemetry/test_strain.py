"""How strain comes and goes: heat within minutes, ageing over hours, nothing out of what a device does not tell."""

from __future__ import annotations

from llmos_operator.telemetry.sample import ClockReason, Sample
from llmos_operator.telemetry.strain import DAY, HOUR, MOST_RISK, Strain, Strains, fold
from tests.support.devices import a_device, a_sample

HOT = frozenset({ClockReason.HW_THERMAL})
COOL = frozenset({ClockReason.POWER_CAP, ClockReason.IDLE})


def after(seconds: int, state: Strain, start: float = 0.0, **sample: object) -> Strain:
    """Return the strain after a second-by-second run of the same sample."""
    for second in range(1, seconds + 1):
        state = fold(state, a_sample(**sample), start + second)
    return state


def watched(state: Strain, hours: float, per_hour: int, counted: int = 0, start: float = 0.0) -> Strain:
    """Return the strain after hours with so many corrected errors each, read every minute."""
    for minute in range(1, int(hours * 60) + 1):
        errors = counted + per_hour * minute // 60
        state = fold(state, a_sample(ecc_volatile_corrected=errors), start + minute * 60.0)
    return state


def test_heat_counts_by_the_time_it_lasts_and_is_forgotten_by_the_time_it_is_gone() -> None:
    cool = after(10, Strain(), clock_reasons=COOL)
    assert cool.throttled_milli == 0
    hot = after(120, cool, 10, clock_reasons=HOT)
    assert hot.throttled_milli == 500
    assert after(120, hot, 130, clock_reasons=HOT).throttled_milli == 750
    assert after(120, hot, 130, clock_reasons=COOL).throttled_milli == 250


def test_heat_now_and_then_is_a_part() -> None:
    state = Strain()
    for second in range(2400):
        state = fold(state, a_sample(clock_reasons=HOT if second % 4 == 0 else COOL), float(second))
    assert 200 <= (state.throttled_milli or 0) <= 300


def test_a_gap_is_not_filled_with_what_was_seen_after_it() -> None:
    state = fold(after(2, Strain(), clock_reasons=COOL), a_sample(clock_reasons=HOT), 10_000.0)
    assert (state.throttled_milli or 0) < 300


def test_what_is_not_told_is_not_zero() -> None:
    state = after(5, Strain())
    assert (state.throttled_milli, state.risk_milli) == (None, None)
    hot = after(60, after(2, Strain(), clock_reasons=HOT), 2, clock_reasons=HOT)
    assert fold(hot, Sample("GPU-a", 63.0), 63.0).throttled_milli is None


def test_corrected_errors_that_become_more_are_a_risk() -> None:
    day = watched(Strain(), 24, 20)
    assert day.risk_milli == 0, "twenty an hour all day are no trend"
    assert (watched(day, 2, 400, counted=480, start=DAY).risk_milli or 0) >= 100


def test_few_errors_and_a_short_time_say_nothing() -> None:
    assert watched(watched(Strain(), 24, 0), 2, 5, start=DAY).risk_milli == 0
    assert watched(Strain(), 0.5, 5000).risk_milli == 0


def test_errors_stop_being_a_trend_once_they_have_stopped() -> None:
    rising = watched(watched(Strain(), 24, 20), 3, 400, counted=480, start=DAY)
    later = watched(rising, 12, 0, counted=480 + 1200, start=DAY + 3 * HOUR)
    assert later.risk_milli == 0


def test_a_driver_that_was_loaded_anew_is_no_burst_of_errors() -> None:
    day = watched(Strain(), 24, 20)
    assert watched(day, 2, 20, counted=0, start=DAY).risk_milli == 0


def test_rows_that_were_remapped_count_and_the_sum_has_an_end() -> None:
    one = fold(Strain(), a_sample(remapped_uncorrectable=1, remapped_correctable=2), 1.0)
    assert one.risk_milli == 70
    many = fold(Strain(), a_sample(remapped_uncorrectable=9), 1.0)
    assert many.risk_milli == 100
    worst = watched(watched(many, 24, 20), 3, 100_000, counted=480, start=DAY)
    assert worst.risk_milli == MOST_RISK


def test_an_instance_bears_the_strain_of_its_gpu_and_what_is_gone_is_forgotten() -> None:
    gpu, instance = a_device("GPU-0", mig_enabled=True), a_device("MIG-0", parent="GPU-0")
    strains = Strains()
    for second in range(121):
        samples = {
            "GPU-0": a_sample("GPU-0", clock_reasons=HOT if second else COOL),
            "MIG-0": a_sample("MIG-0"),
        }
        strains.observe((gpu, instance), samples, float(second))
    assert strains.of("MIG-0") == (500, None)
    strains.observe((), {}, 200.0)
    assert strains.of("GPU-0") == (None, None)
