from __future__ import annotations

import math

import pytest

from llmos_operator.scheduler.autoscaling import fleet
from llmos_operator.scheduler.autoscaling.autoscaler import Autoscaler
from llmos_operator.scheduler.autoscaling.capacity import Counters, Speed
from llmos_operator.scheduler.autoscaling.erlang import slots_needed
from llmos_operator.scheduler.autoscaling.forecast import CAREFUL, DAY, PLAIN, VIEWS, DayShape, Forecast
from llmos_operator.scheduler.autoscaling.margin import FIRST, Choice, Margins
from llmos_operator.scheduler.autoscaling.values import Aim, Arrivals, Capacity

CHAT = Capacity(slots=16.0, service_seconds=8.0, cold_seconds=60.0)  # two requests per second and replica


def erlang_c(slots: int, load: float) -> float:
    """The textbook sum, which overflows early but shares no line with the recursion."""
    head = sum(load**k / math.factorial(k) for k in range(slots))
    tail = load**slots / math.factorial(slots) * slots / (slots - load)
    return tail / (head + tail)


@pytest.mark.parametrize("load", [0.1, 0.9, 3.0, 10.0, 40.0, 90.0])
@pytest.mark.parametrize("wait", [0.0, 2.0, 20.0])
def test_slots_are_the_fewest_that_keep_the_wait(load: float, wait: float) -> None:
    slots = int(slots_needed(load / 8.0, 8.0, wait, 0.05))

    def late(number: int) -> float:
        return erlang_c(number, load) * math.exp(-(number - load) * wait / 8.0) if number > load else 1.0

    assert late(slots) <= 0.05 < late(slots - 1)


def test_the_limit_for_many_slots_meets_the_formula() -> None:
    below, beyond = slots_needed(199.9, 1.0, 0.0, 0.05), slots_needed(200.1, 1.0, 0.0, 0.05)
    assert beyond == pytest.approx(below, abs=2.0)


def test_no_requests_need_no_slots_and_nonsense_is_refused() -> None:
    assert slots_needed(0.0, 8.0, 1.0, 0.05) == 0.0
    for service, tail in ((0.0, 0.05), (8.0, 0.0), (8.0, 1.0)):
        with pytest.raises(ValueError, match="tail"):
            slots_needed(1.0, service, 1.0, tail)


# -- forecast ---------------------------------------------------------------------------------------------------


def test_a_steady_rate_is_expected_to_stay() -> None:
    forecast = Forecast()
    for minute in range(1, 30):
        forecast.add(minute * 60.0, 300.0, 60.0, 120.0)
    assert forecast.rates(1800.0, 120.0) == pytest.approx((5.0, 5.0))


def test_a_collapse_is_believed_only_after_two_hours() -> None:
    forecast = Forecast()
    for minute in range(1, 121):
        forecast.add(minute * 60.0, 600.0, 60.0, 120.0)
    for minute in range(121, 300):
        forecast.add(minute * 60.0, 0.0, 60.0, 120.0)
        if minute == 220:
            careful, plain = forecast.rates(minute * 60.0, 120.0)
            assert careful > 6.0
            assert plain < 6.0
    assert max(forecast.rates(300 * 60.0, 120.0)) < 1.5


def test_rest_forgets_what_ran_before() -> None:
    forecast = Forecast()
    for minute in range(1, 60):
        forecast.add(minute * 60.0, 600.0, 60.0, 120.0)
    forecast.rest()
    forecast.add(3660.0, 6.0, 60.0, 120.0)
    assert forecast.rates(3660.0, 120.0) == pytest.approx((0.1, 0.1))


def ramp(when: float) -> float:
    return 10.0 + 9.0 * math.sin(2.0 * math.pi * when / DAY)


def test_the_shape_of_a_day_is_followed_once_it_pays() -> None:
    ahead, errors = 1800.0, {True: 0.0, False: 0.0}
    forecast, flat = Forecast(), DayShape()
    assert flat.growth(0.0, ahead) == 1.0
    assert not flat.pays
    for minute in range(1, 3 * 1440):
        now = minute * 60.0
        forecast.add(now, ramp(now) * 60.0, 60.0, ahead)
        if now > 2 * DAY and ramp(now + ahead) > ramp(now):  # the half of the day in which it matters
            errors[True] += abs(math.log(forecast.rates(now, ahead)[0] / ramp(now + ahead)))
            errors[False] += abs(math.log(ramp(now) / ramp(now + ahead)))
    assert errors[True] < 0.5 * errors[False]


# -- margin -----------------------------------------------------------------------------------------------------


def margin_after(burst: float, seconds: float = 2 * DAY) -> float:
    """The margin learned when each tenth minute brings ``burst`` times the mean that is forecast."""
    margins = Margins(0.999, 1)
    for step in range(1, int(seconds / 60.0)):
        requests = 600.0 * (burst if step % 10 == 0 else 1.0)
        margins.step(step * 60.0, requests, 60.0, (10.0,), 300.0, CHAT, Aim(2.0))
    return margins.choice.margin


def view_after(falls_to: float, doubted: float) -> int:
    """Which forecast is followed when load falls for an hour in three; the second expects it at once, the first not so low."""
    margins = Margins(0.999, 2)
    for minute in range(1, 3 * 1440):
        low = minute % 180 < 60
        rate = 20.0 * (falls_to if low else 1.0)
        careful = 20.0 * doubted if low else 20.0
        # A load that was said to have fallen comes back for some minutes, more than can be started in time.
        requests = 60.0 * (20.0 if falls_to < 0.5 and minute % 60 > 55 else rate)
        margins.step(minute * 60.0, requests, 60.0, (careful, rate), 60.0, CHAT, Aim(2.0))
    return margins.choice.view


def test_the_first_margin_is_used_until_there_is_experience() -> None:
    assert Margins(0.999, 2).choice == Choice(0, FIRST)
    margins = Margins(0.999, 2)
    margins.step(60.0, 600.0, 60.0, (10.0, 10.0), 300.0, CHAT, Aim(2.0))
    assert margins.choice.view == 0
    assert margins.choice.margin == pytest.approx(FIRST, rel=0.05)


def test_bursts_widen_the_margin_and_calm_narrows_it() -> None:
    calm, rough = margin_after(1.0), margin_after(2.2)
    assert calm < FIRST < rough


def test_the_forecast_that_doubts_less_is_followed_where_that_costs_less_and_nothing_is_late() -> None:
    assert view_after(falls_to=0.6, doubted=1.0) == 1
    assert view_after(falls_to=0.2, doubted=1.0) == 0
    assert view_after(falls_to=0.6, doubted=0.6) == 0, (
        "what costs the same is no reason to leave the careful one"
    )


def test_the_first_forecast_is_the_one_that_doubts_most() -> None:
    assert VIEWS == (CAREFUL, PLAIN)
    assert CAREFUL.peak_part > PLAIN.peak_part


# -- number of replicas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("need", "steady", "have", "wanted"),
    [
        (4.2, 4.2, 4, 4),  # what is missing is less than is worth a start
        (4.4, 4.4, 4, 5),
        (3.4, 3.4, 4, 4),  # one that could nearly go stays
        (2.9, 2.9, 4, 3),
        (2.0, 3.9, 4, 4),  # more was needed a moment ago
        (0.0, 0.0, 1, 1),  # the last goes by idleness alone
    ],
)
def test_a_number_moves_only_for_a_reason(need: float, steady: float, have: int, wanted: int) -> None:
    assert fleet.replicas(need, steady, have) == wanted


def test_the_largest_need_of_a_while_counts() -> None:
    steady = fleet.Steadiness()
    assert steady.largest(0.0, 3.0, 60.0) == 3.0
    assert steady.largest(30.0, 5.0, 60.0) == 5.0
    assert steady.largest(80.0, 1.0, 60.0) == 5.0
    assert steady.largest(91.0, 1.0, 60.0) == 1.0


def test_a_queue_that_will_be_gone_by_itself_starts_nothing() -> None:
    scaler = Autoscaler(Aim(2.0))
    for step in range(1, 200):
        scaler.learn(Arrivals(step * 15.0, 60.0, 15.0), CHAT)
    now = 200 * 15.0
    calm = scaler.need(now, CHAT, 4, 4, 0.0).replicas
    assert scaler.need(now, CHAT, 4, 4, 50.0).replicas == calm
    assert scaler.need(now, CHAT, 4, 4, 5000.0).replicas > calm


def test_what_is_left_of_a_queue_is_worked_off_soon() -> None:
    # Two replicas serve four a second; of 200 that wait 80 will be left in a minute if two a second come.
    assert fleet.draining(2.0, 2, 200.0, CHAT) == pytest.approx(80.0 / fleet.DRAIN_SECONDS)
    assert fleet.draining(2.0, 2, 100.0, CHAT) == 0.0
    assert fleet.draining(9.0, 2, 0.0, CHAT) == 0.0, "nothing waits"


# -- what a replica can do ----------------------------------------------------------------------------------------


def test_service_time_comes_from_what_is_in_progress_and_what_is_finished() -> None:
    speed = Speed()
    for poll in range(10):
        speed.learn((Counters("a", poll * 10.0, 8, poll * 20, poll * 400),))
        if poll == 0:
            assert speed.service_seconds is None
    assert speed.service_seconds == pytest.approx(4.0)  # 8 in progress, 2 finished per second


def test_a_restarted_runtime_and_a_repeated_report_are_no_measurement() -> None:
    speed = Speed()
    for report in (
        Counters("a", 0.0, 8, 500, 9000),
        Counters("a", 10.0, 8, 3, 60),
        Counters("a", 10.0, 8, 3, 60),
        Counters("a", 500.0, 8, 900, 90000),
    ):
        speed.learn((report,))
    assert speed.service_seconds is None


def test_slots_are_what_the_time_per_token_allows() -> None:
    speed = Speed()
    assert speed.slots(64, 0.08) == 64.0
    tokens = at = 0
    for poll in range(60):
        running = 8 + poll % 3 * 8
        tokens += round(running * 10 / (0.02 + 0.002 * running))  # a step gets slower with the batch
        at += 10
        speed.learn((Counters("a", float(at), running, poll * 20, tokens),))
        speed.learn((Counters("a", float(at) + 0.001, running, poll * 20, tokens),))
    assert speed.slots(64, None) == 64.0
    assert 15.0 <= speed.slots(64, 0.08) <= 45.0
    assert speed.slots(64, 0.08) > speed.slots(64, 0.06)
    assert speed.slots(64, 0.0001) == 1.0
