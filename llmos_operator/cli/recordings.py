"""`llmos snapshot` and `llmos simulate --snapshot`: cycles as files, and the same plan made of them again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator import __version__
from llmos_operator.cli import picture, render, session, submission
from llmos_operator.cli.failures import USAGE, CommandFailed
from llmos_operator.cli.options import Context, Kubeconfig, Target
from llmos_operator.clock import SystemClock
from llmos_operator.control.policies import policy_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from llmos_operator.cli.session import Session
    from llmos_operator.scheduler.recording import Recording


def command(kubeconfig: Kubeconfig = "", context: Context = "") -> None:
    """Write what the scheduler sees now, and its plan, to standard output, for `llmos simulate --snapshot`."""
    now = SystemClock().now()
    sys.stdout.write(session.run(Target(kubeconfig, context), lambda one: take(one, now)))


async def take(connected: Session, now: float) -> str:
    """Return the file of a cycle on the cluster as it is."""
    from llmos_operator.scheduler import recording  # noqa: PLC0415 - numpy: only some commands pay for it
    from llmos_operator.scheduler.cycle import plan  # noqa: PLC0415

    seen = await picture.take(connected, now)
    settings = await picture.settings(connected)
    for workload in seen.store.snapshot().workloads.values():
        submission.hold_back(seen.store, workload, settings.sources)
    snapshot, policy = seen.store.snapshot(), policy_of(settings)
    made = recording.plan_document(plan(snapshot, policy, now))
    return recording.dump(recording.Recording(snapshot, policy, now, None, made), __version__)


def read(path: str) -> Recording:
    """Return the cycle of a file, or of standard input for "-". Raises `CommandFailed`."""
    from llmos_operator.scheduler import recording  # noqa: PLC0415

    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"cannot read {path}: {error}", status=USAGE) from error
    try:
        return recording.load(text)
    except recording.BadRecording as error:
        raise CommandFailed(f"{path}: {error}") from error


def replay(path: str, *, as_json: bool) -> None:
    """Make the plan of a file again and print it. `CommandFailed` if it is not the one that the file holds."""
    from llmos_operator.scheduler import recording  # noqa: PLC0415

    found = read(path)
    made = recording.plan_document(recording.replay(found))
    if as_json:
        sys.stdout.write(recording.plan_text(made))
    else:
        show(render.console(), made)
    if found.plan is None or recording.plan_text(found.plan) == recording.plan_text(made):
        return
    why = "this version decides otherwise, or the file was changed"
    if found.plan.get("interrupted"):
        why = "the recorded one was cut off by its time budget"
    raise CommandFailed(f"{path}: this is not the plan that was recorded: {why}")


def show(console: Console, made: Mapping[str, Any]) -> None:
    """Print a plan's document for people."""
    actions = [_action(one) for one in made["actions"]]
    if actions:
        columns = ["ACTION", "WORKLOAD", "NODE", "DEVICES", "PRECISION", "COST", "WHY"]
        console.print(render.table(columns, actions))
    waits = [[one["workload"], str(one["replicas"]), one["reason"], one["message"]] for one in made["waits"]]
    if waits:
        if actions:
            console.print()
        console.print(render.table(["WAITS", "REPLICAS", "REASON", ""], waits, right=("REPLICAS",)))
    if not actions and not waits:
        console.print("nothing to decide: everything that is wanted runs")


def _action(one: Mapping[str, Any]) -> list[str]:
    claim = one.get("claim") or one.get("target") or {}
    return [
        one["action"],
        str(one.get("victim") or one.get("workload")),
        str(claim.get("node") or one.get("node")),
        ", ".join(claim.get("devices", ())),
        str(claim.get("format", "")),
        f"{one['cost'] / 1000:.0f} s" if "cost" in one else "",
        one["explanation"],
    ]
