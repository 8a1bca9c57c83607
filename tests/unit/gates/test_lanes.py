"""Several test runs end as one: `make test` says what all of them found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import lanes

ROOT = Path(__file__).parents[3]
TESTS = {
    "good": "def test_one(): pass\ndef test_two(): pass\n",
    "bad": "import pytest\ndef test_wrong():\n    assert 1 == 2, 'ones are not twos'\n"
    "def test_fine(): pass\n@pytest.mark.skip(reason='not here')\ndef test_left_out(): pass\n",
    "broken": "import no_such_module\n",
    "deadly": "import os\ndef test_fine(): pass\ndef test_dies(): os._exit(9)\n",
    "shy": "from pathlib import Path\ndef test_shy():\n"
    "    assert Path('alone').exists(), 'somebody is there'\ndef test_wrong(): assert False, 'never right'\n",
    "last": "def test_last(): pass\n",
}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.support.lanes", "-ra", "--rootdir=.", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def joined(folder: Path, *lanes: str, last: tuple[str, ...] = ("test_last.py",)) -> tuple[int, str]:
    """Run each lane, then a run that takes them over; return its exit status and what it printed."""
    for name, text in TESTS.items():
        (folder / f"test_{name}.py").write_text(text)
    for name in lanes:
        run(folder, f"--lane={name}.reports", f"test_{name}.py", *last[1:])
    done = run(folder, *(f"--join={name}.reports" for name in lanes), *last)
    return done.returncode, done.stdout


def test_what_all_runs_passed_is_counted_in_the_last_line(tmp_path: Path) -> None:
    status, text = joined(tmp_path, "good")
    assert status == 0, text
    assert "3 passed" in text.splitlines()[-1]


def test_a_failure_in_a_lane_is_shown_at_the_end_and_fails_the_whole(tmp_path: Path) -> None:
    status, text = joined(tmp_path, "good", "bad")
    assert status == 1
    assert "ones are not twos" in text
    assert "FAILED test_bad.py::test_wrong" in text
    assert "1 failed, 4 passed, 1 skipped" in text.splitlines()[-1]


def test_a_lane_that_cannot_be_collected_fails_the_whole(tmp_path: Path) -> None:
    status, text = joined(tmp_path, "broken")
    assert status == 1
    assert "no_such_module" in text
    assert "1 passed, 1 error" in text.splitlines()[-1]


def test_a_lane_that_dies_fails_the_whole(tmp_path: Path) -> None:
    status, text = joined(tmp_path, "deadly", "good")
    assert status == 1
    assert "FAILED lane deadly - The lane ended without saying how" in text
    assert "1 failed, 4 passed" in text.splitlines()[-1]


def test_a_lane_that_never_began_fails_the_whole(tmp_path: Path) -> None:
    (tmp_path / "test_last.py").write_text(TESTS["last"])
    done = run(tmp_path, "--join=nowhere.reports", "test_last.py")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("word", "status", "count"), [("test_one", 0, "1 passed"), ("nothing", 5, "1 deselected")]
)
def test_a_selection_may_be_in_one_run_only(tmp_path: Path, word: str, status: int, count: str) -> None:
    found, text = joined(tmp_path, "good", "bad", last=("test_last.py", "-k", word))
    assert found == status, text
    assert count in text.splitlines()[-1]


def test_a_test_that_passes_alone_is_unsteady_and_one_that_does_not_fails_the_whole(tmp_path: Path) -> None:
    done = tried_again(tmp_path, "test_shy.py")
    assert done.returncode == 1
    assert "somebody is there" in done.stdout
    assert "FAILED test_shy.py::test_wrong" in done.stdout
    assert "FAILED test_shy.py::test_shy" not in done.stdout
    assert "1 failed, 1 passed, 1 unsteady" in done.stdout.splitlines()[-1]


def test_a_whole_whose_failures_all_passed_alone_passes(tmp_path: Path) -> None:
    done = tried_again(tmp_path, "test_shy.py::test_shy")
    assert done.returncode == 0, done.stdout
    assert "somebody is there" in done.stdout
    assert "1 passed, 1 unsteady" in done.stdout.splitlines()[-1]


def tried_again(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """Run ``tests`` beside others, what failed of them alone, and then a run that tells of both."""
    for name in ("shy", "last"):
        (folder / f"test_{name}.py").write_text(TESTS[name])
    run(folder, "--lane=shy.reports", tests)
    (folder / "alone").touch()
    run(folder, "--lane=again.reports", *lanes.failed([folder / "shy.reports"]))
    return run(folder, "--join=shy.reports", "--again=again.reports", "test_last.py")
