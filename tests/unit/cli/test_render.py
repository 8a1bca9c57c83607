from __future__ import annotations

import io
import json
from dataclasses import dataclass

import pytest
from rich.console import Console

from llmos_operator.cli import render


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0s"),
        (0.4, "0s"),
        (59, "59s"),
        (60, "1m"),
        (95, "1m35s"),
        (600, "10m"),
        (3_600, "1h"),
        (5_400, "1h30m"),
        (90_000, "1d1h"),
        (86_400 * 12, "12d"),
        (-5, "0s"),
    ],
)
def test_ages_read_as_kubectl_writes_them(seconds: float | None, text: str) -> None:
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("quantity", "count"), [("2Gi", 2 << 30), ("512", 512), ("", None), (None, None), ("x", None)]
)
def test_quantities_of_a_status_may_be_absent_or_unreadable(quantity: object, count: int | None) -> None:
    assert render.bytes_of(quantity) == count


def test_progress_needs_a_total() -> None:
    assert render.bar(5, 0) == ""
    assert render.bar(5, 10, 10) == "█████░░░░░  50%"
    assert render.bar(20, 10, 4) == "████ 100%"


def test_digging_stops_at_the_first_gap() -> None:
    item = {"a": {"b": None, "c": {"d": 1}}}
    assert render.dig(item, "a", "c", "d") == 1
    assert render.dig(item, "a", "b", "d", default="none") == "none"
    assert render.dig(None, "a") is None


@dataclass(frozen=True, slots=True)
class Inner:
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Outer:
    two_words: str
    inner: tuple[Inner, ...]


def test_json_has_camel_case_keys_and_unknown_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_json([Outer("Zürich", (Inner(None), Inner(3)))])
    text = capsys.readouterr().out
    assert json.loads(text) == [{"twoWords": "Zürich", "inner": [{"usedBytes": None}, {"usedBytes": 3}]}]
    assert "Zürich" in text


def test_a_piped_table_is_cut_nowhere() -> None:
    out = io.StringIO()
    console = Console(file=out, width=240, markup=False, highlight=False)
    console.print(render.table(["NAME", "MESSAGE"], [["a", "x" * 150], ["", "[bold]as written[/bold]"]]))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[1].split() == ["a", "x" * 150]
    assert lines[2].split(maxsplit=1) == ["-", "[bold]as written[/bold]"]
