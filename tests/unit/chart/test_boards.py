"""The pictures of dashboards: as many panels as have data, values as a reader says them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

from scripts.dashboards.panels import Board, Panel, Row, stat
from tests.support.boards import Series, draw, said

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.0, "percentunit", "0%"),
        (0.004, "percentunit", "0.4%"),
        (0.37, "percentunit", "37%"),
        (3 << 30, "bytes", "3 GiB"),
        (12.0, "bytes", "12 B"),
        (0.02, "s", "20 ms"),
        (4.0, "s", "4s"),
        (300.0, "watt", "300W"),
        (0.25, "short", "0.25"),
        (12_300.0, "ops", "12.3k"),
    ],
)
def test_values_are_told_in_the_panels_unit(value: float, unit: str, expected: str) -> None:
    assert said(value, unit) == expected


def test_a_picture_shows_what_has_data_and_says_what_has_none(tmp_path: Path) -> None:
    panels = (
        stat("One", "", "short", "one"),
        Panel("Many", "", "s", {"many": "{{node}}"}),
        Panel("None", "", "s", {"none": ""}),
        Panel("Undefined", "", "s", {"undefined": ""}),
    )
    values = {"one": 3.0, "many": 0.5, "undefined": float("nan")}

    def answer(query: str) -> list[Series]:
        return (
            [({"node": "n1"}, [(1000.0, values[query]), (1002.0, values[query])])] if query in values else []
        )

    path = tmp_path / "board.png"
    assert draw(Board("b", "B", "", {}, (Row("A row", panels),)), answer, path) == 2
    with Image.open(path) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors() or []}
    assert (255, 255, 255) in colours
    assert len(colours) > 2
