"""`promtool` and `prometheus` for tests; a machine that cannot have them skips, and only such a machine."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.errors import Permanent
from scripts.debian import NO_PACKAGE
from scripts.prometheus import resolve
from tests.support.hub import free_port
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SCRAPE = "1s"


def program(name: str) -> Path:
    """Return `prometheus` or `promtool`; skip where no package of it exists, fail where it could not be had."""
    try:
        return resolve(name)
    except Permanent as error:
        if error.reason == NO_PACKAGE:
            pytest.skip(str(error))
        raise


def promtool(*arguments: str, cwd: Path | None = None, stdin: str = "") -> tuple[int, str]:
    """Run promtool; return its exit status and everything it wrote."""
    command = [str(program("promtool")), *arguments]
    done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


class QueryError(Exception):
    """Prometheus refused a query; the message is its own."""


class Prometheus:
    """A running Prometheus and its HTTP API."""

    def __init__(self, port: int, targets: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._targets = targets

    def watch(self, targets: Sequence[tuple[str, dict[str, str]]]) -> None:
        """Scrape these (address, labels) from now on, and no others."""
        groups = [{"targets": [address], "labels": labels} for address, labels in targets]
        draft = self._targets.with_suffix(".draft")
        draft.write_text(json.dumps(groups))
        draft.replace(self._targets)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the vector (or the scalar as a vector) of an expression now. Raises `QueryError`."""
        data = self._get("query", query=expression)
        result: list[dict[str, Any]] = data["result"] if data["resultType"] == "vector" else [data]
        return result

    def history(self, expression: str, seconds: float, step: float) -> list[dict[str, Any]]:
        """Return the series of an expression over the last ``seconds``, a value every ``step``. Raises `QueryError`."""
        now = time.time()
        data = self._get("query_range", query=expression, start=now - seconds, end=now, step=step)
        series: list[dict[str, Any]] = data["result"]
        return series

    def names(self) -> set[str]:
        """Return the names of all series it has."""
        return set(self._get("label/__name__/values"))

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules with their health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """Return the targets with their health."""
        found: list[dict[str, Any]] = self._get("targets", state="active")["activeTargets"]
        return found

    def _get(self, path: str, **parameters: str) -> Any:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as response:  # noqa: S310 - our own server
                return json.loads(response.read())["data"]
        except urllib.error.HTTPError as error:
            raise QueryError(f"{parameters}: {error.read().decode()}") from error


@contextlib.contextmanager
def running(folder: Path, rules: dict[str, Any]) -> Iterator[Prometheus]:
    """Start Prometheus with its files in ``folder``; it ends with the block. ``rules`` is a rule file."""
    binary, port, targets = program("prometheus"), free_port(), folder / "targets.json"
    targets.write_text("[]")
    (folder / "rules.json").write_text(json.dumps(rules))
    job = {
        "job_name": "llmos",
        "honor_labels": True,  # as the chart's monitors have it
        "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
    }
    config = {
        "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
        "rule_files": [str(folder / "rules.json")],
        "scrape_configs": [job],
    }
    (folder / "prometheus.json").write_text(json.dumps(config))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                str(binary),
                f"--config.file={folder / 'prometheus.json'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready"):
                return True
            return False

        eventually(ready, "Prometheus to be ready", timeout=30)
        yield Prometheus(port, targets)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
