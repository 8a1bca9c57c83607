"""No difference between the kubelets is silent: the documentation's table and the contract suite's marks name the same."""

from __future__ import annotations

import ast

from tests.support.differences import SUITE, documented


def marked() -> set[str]:
    """Return what the suite's tests are marked to differ in."""
    calls = [
        call
        for path in SUITE.glob("test_*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "differs"
    ]
    return {ast.literal_eval(call.args[0]) for call in calls}


def test_every_difference_is_documented_and_shown_by_a_test() -> None:
    assert marked() == documented().keys()
