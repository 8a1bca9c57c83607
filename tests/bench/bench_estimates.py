"""Memory of models: predicted, measured, and reserved after one run.

Real engines load the packaged models at every precision and five drawn configurations, and fill their KV cache.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.report import Table
from tests.support.estimating import outcomes, packaged_cases, random_cases

if TYPE_CHECKING:
    from tests.support.estimating import Outcome

_COLUMNS = ("model", "base", "predicted", "measured", "off", "reserved for a larger run", "it took", "off")
_NOTE = (
    "MiB. Predicted and measured are of a first run of 2 sequences; reserved is what the scheduler asks for a second run of 6 "
    "to 8 longer ones, once the first has been measured. Measured: the proportional size of the runtime's processes while they "
    "serve, the KV cache all but full, as if other processes with the same libraries neither started nor ended meanwhile. Base "
    "is the process without a model."
)


def run() -> list[Table]:
    """Run every case twice."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = outcomes([*packaged_cases(), *random_cases(folder)], folder)
    return [Table("Predicted and measured", _COLUMNS, [_row(one) for one in found], _NOTE)]


def _row(one: Outcome) -> list[str]:
    before = [_mib(one.base), _mib(one.predicted), _mib(one.peak), f"{one.prediction_error:+.1%}"]
    after = [_mib(one.reserved), _mib(one.reached), f"{one.reservation_error:+.1%}"]
    return [one.case.title, *before, *after]


def _mib(count: int) -> str:
    return str(count >> 20)
