"""What import contracts cannot see: pure packages read no clock and draw no unseeded random numbers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "llmos_operator"
PURE = ("api", "manifests", "scheduler", "state")
FILES = sorted(path for name in PURE for path in (PACKAGE / name).rglob("*.py"))
# Attribute calls that read the wall clock, the environment or shared random state.
IMPURE = {
    ("datetime", "now"),
    ("datetime", "today"),
    ("datetime", "utcnow"),
    ("date", "today"),
    ("np.random", None),
    ("numpy.random", None),
    ("SystemClock", None),
}


def offences(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            name = f"{owner}.{node.attr}"
            seeded = node.attr in {"Generator", "default_rng", "SeedSequence", "PCG64"}
            for left, right in IMPURE:
                hit = owner.endswith(left) and node.attr == right if right else owner == left and not seeded
                if hit:
                    found.append(f"line {node.lineno}: {name}")
        if isinstance(node, ast.Name) and node.id == "SystemClock":
            found.append(f"line {node.lineno}: SystemClock")
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("default_rng") and not node.args:
            found.append(f"line {node.lineno}: default_rng() without a seed")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_pure_module_takes_clock_and_seed_as_arguments(path: Path) -> None:
    assert not offences(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "code",
    [
        "import datetime\ndatetime.datetime.now()",
        "from datetime import date\ndate.today()",
        "import numpy as np\nnp.random.shuffle(x)",
        "import numpy as np\nnp.random.default_rng()",
        "from llmos_operator.clock import SystemClock\nSystemClock().now()",
    ],
)
def test_the_check_sees_clocks_and_random_state(code: str) -> None:
    assert offences(ast.parse(code))


def test_a_seeded_generator_is_fine() -> None:
    assert not offences(ast.parse("import numpy as np\nnp.random.default_rng(7)"))
