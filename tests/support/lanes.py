"""Test runs that go on beside each other and end as one: the pytest plugin of scripts/test.sh.

A lane is a run of its own that also writes its reports to a file (``--lane=FILE``). The last run takes them over
(``--join=FILE``, as often as there are lanes): it reports them as if they were its own, so its progress, failures, slowest
tests, closing line and exit status are those of all runs. A lane that ended without a word, by a crash or a signal,
counts as a failure.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]
_END = "lane ended with"
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


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("lane"):
        config.pluginmanager.register(Lane(config, file))
    if files := config.getoption("join"):
        config.pluginmanager.register(Joined(config, files))


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

    def __init__(self, config: pytest.Config, files: list[Path]) -> None:
        self._config = config
        self._files = files

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
            if one.when == "setup":
                self._config.hook.pytest_runtest_logstart(nodeid=one.nodeid, location=one.location)
            self._config.hook.pytest_runtest_logreport(report=one)
        told = any(one.failed for one in reports)
        if ended is None or (ended not in _WELL and not told):
            self._config.hook.pytest_runtest_logreport(report=_broken(file, ended))

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
