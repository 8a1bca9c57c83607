"""`llmos simulate --failures`: a fleet through weeks of published failures, in virtual time."""

from __future__ import annotations

from llmos_operator.cli import render
from llmos_operator.cli.failures import USAGE, CommandFailed

_LEAST_GPUS = 64


def live_through(gpus: int, days: str, rate: float, seed: int, *, as_json: bool) -> None:
    """Run and print what came of it. Raises `CommandFailed` for a size that cannot be simulated."""
    from llmos_operator.sim.fleet import Fleet  # noqa: PLC0415 - as below
    from llmos_operator.sim.month import Month  # noqa: PLC0415 - numpy: only some commands pay for it

    try:
        length = float(days)
    except ValueError:
        raise CommandFailed(f"--days {days}: with --failures it is a number of days", status=USAGE) from None
    if gpus < _LEAST_GPUS or not 0 < length <= 365:  # noqa: PLR2004 - a year
        raise CommandFailed(f"--failures takes {_LEAST_GPUS} GPUs or more and up to 365 days", status=USAGE)
    found = Month(Fleet(gpus=gpus, days=length, rate=rate, seed=seed)).run()
    part = found.wanted or 1.0
    told: dict[str, object] = {
        "gpus": gpus,
        "days": length,
        "rate": rate,
        "seed": seed,
        "faults": found.faults,
        "applicationXids": found.noise,
        "evictions": found.evictions,
        "falseEvictions": found.false_evictions,
        "heldByBreaker": found.held,
        "mostNodesActedOn": found.most_acted,
        "treatments": found.treatments,
        "released": found.released,
        "swaps": found.swaps,
        "lostWorkloads": found.lost_workloads,
        "longestWaitSeconds": round(found.longest_wait),
        "effectivePercent": round(100 * found.effective, 3),
        "downPercent": round(100 * found.down / part, 3),
        "redonePercent": round(100 * found.redone / part, 3),
        "slowedPercent": round(100 * found.slowed / part, 3),
        "history": found.history,
    }
    if as_json:
        render.print_json(told)
        return
    rows = [[name, str(value)] for name, value in told.items() if name != "history"]
    render.console().print(render.table(["", ""], rows))
