"""What gateways report, and what of it is kept."""

from __future__ import annotations

from llmos_operator.api.telemetry import DemandBatch, DemandItem
from llmos_operator.control.demand import DemandBook


def a_report(gateway: str, *, waiting: int = 0, requests: int = 1) -> DemandBatch:
    item = DemandItem(namespace="team", name="chat", waiting=waiting, in_flight=0, requests=requests)
    return DemandBatch(gateway=gateway, items=[item])


def test_reports_of_several_gateways_add_up_while_they_are_fresh() -> None:
    book = DemandBook()
    book.take(a_report("g1", waiting=2), 100.0)
    book.take(a_report("g2", waiting=3), 104.0)
    assert book.demand("team/chat", 104.0).waiting == 5
    assert book.demand("team/chat", 106.0).waiting == 3


def test_a_workload_nobody_asks_for_does_not_fill_the_memory() -> None:
    book = DemandBook()
    for second in range(1000):
        book.take(a_report(f"g{second}"), float(second))
    flow = book._flows["team/chat"]
    assert len(flow.arrivals) <= 62
    assert len(flow.reports) <= 7
