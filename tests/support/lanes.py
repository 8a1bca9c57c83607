"""Test runs that go on beside each other and end as one: the pytest plugin of scripts/test.sh.

A lane is a run of its own that also writes its reports to a file (``--lane=FILE``). The last run takes them over
(``--join=FILE``, as often as there are lanes): it reports them as if they were its own, so its progress, failures, slowest
tests, closing line and exit status are those of all runs. A lane that ended without a word, by a crash or a signal,
counts as a failure.

A test that failed in a lane may be tried again, alone (``python -m tests.support.lanes FILE...`` names them); what that
run wrote is told to the last one by ``--again=FILE``. A test that passed then is *unsteady*: shown with its failure and
counted, but no failure of the whole.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]
_END = "lane ended with"
UNSTEADY: Final = "unsteady"
_WELL = frozenset({pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED})


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lanes", "runs that end as one")
    group.addoption("--lane", type=Path, metavar="FILE", help="write this run's reports to FILE")
    group.addoption(
        "--join",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="report what a lane has written to FILE",
    )
    group.addoption(
        "--again", type=Path, metavar="FILE", help="FILE: reports of the lanes' failed tests, tried again"
    )


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("lane"):
        config.pluginmanager.register(Lane(config, file))
    if files := config.getoption("join"):
        config.pluginmanager.register(Joined(config, files, config.getoption("again")))


class Lane:
    """Writes reports, one JSON object a line; the last line says how the run ended."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self._config = config
        self._out = file.open("w", buffering=1, encoding="utf-8")  # by lines: a run may die

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._write(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._write({_END: int(exitstatus)})
        self._out.close()

    def _write(self, data: Json) -> None:
        self._out.write(json.dumps(data) + "\n")


class Joined:
    """Reports what lanes have written, after the tests of this run."""

    def __init__(self, config: pytest.Config, files: list[Path], again: Path | None) -> None:
        self._config = config
        self._files = files
        self._passed_again = _passed(again) if again else frozenset()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        try:
            return (yield)
        finally:  # a run that ends early, by -x, tells of the lanes, too
            for file in self._files:
                self._report(session, file)

    def _report(self, session: pytest.Session, file: Path) -> None:
        reports, ended = self._read(file)
        tests = {one.nodeid for one in reports if isinstance(one, pytest.TestReport)}
        session.testscollected += len(tests)
        for one in reports:
            if isinstance(one, pytest.CollectReport):
                self._config.hook.pytest_collectreport(report=one)
                continue
            if one.failed and one.nodeid in self._passed_again:
                one.outcome = UNSTEADY  # type: ignore[assignment] # plugins may add outcomes, which pytest then counts
            if one.when == "setup":
                self._config.hook.pytest_runtest_logstart(nodeid=one.nodeid, location=one.location)
            self._config.hook.pytest_runtest_logreport(report=one)
        told = any(one.outcome not in {"passed", "skipped"} for one in reports)
        if ended is None or (ended not in _WELL and not told):
            self._config.hook.pytest_runtest_logreport(report=_broken(file, ended))

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return (UNSTEADY, "U", "UNSTEADY") if str(report.outcome) == UNSTEADY else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show every unsteady test with its failure: it is to be mended, though this run does not fail for it."""
        reports = terminalreporter.stats.get(UNSTEADY, ())
        if reports:
            terminalreporter.section("unsteady: failed, and passed when tried again alone")
        for one in reports:
            terminalreporter.write_sep("_", one.nodeid)
            terminalreporter.write_line(one.longreprtext)

    def _read(self, file: Path) -> tuple[list[pytest.TestReport | pytest.CollectReport], int | None]:
        reports, ended = [], None
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                data = json.loads(line)
            except ValueError:  # the run was killed in the middle of a line
                break
            if _END in data:
                ended = data[_END]
            else:
                _with_tuples(data)
                reports.append(
                    self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
                )
        return reports, ended


def failed(files: list[Path]) -> list[str]:
    """Return the tests that failed in the lanes that wrote ``files``, in order."""
    return list(
        dict.fromkeys(nodeid for file in files for nodeid, outcome in _outcomes(file) if outcome == "failed")
    )


def _passed(file: Path) -> frozenset[str]:
    """Return the tests of a run of which every phase went well."""
    outcomes: dict[str, set[str]] = {}
    for nodeid, outcome in _outcomes(file):
        outcomes.setdefault(nodeid, set()).add(outcome)
    return frozenset(nodeid for nodeid, found in outcomes.items() if found == {"passed"})


def _outcomes(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            data = json.loads(line)
        except ValueError:
            return
        if data.get("$report_type") == "TestReport":
            yield data["nodeid"], data["outcome"]


def _with_tuples(data: Json) -> None:
    """Make those lists tuples again that pytest wants as such: where a test is, and where and why it was skipped."""
    for name in ("location", "longrepr"):
        if isinstance(data.get(name), list):
            data[name] = tuple(data[name])


def _broken(file: Path, ended: int | None) -> pytest.TestReport:
    how = "without saying how: it was killed, or never began" if ended is None else f"with status {ended}"
    return pytest.TestReport(
        nodeid=f"lane {file.stem}",
        location=(f"lane {file.stem}", None, ""),
        keywords={},
        outcome="failed",
        longrepr=f"The lane ended {how}. Its log: {file.with_suffix('.log')}",
        when="call",
    )


if __name__ == "__main__":
    print("\n".join(failed([Path(one) for one in sys.argv[1:]])))
