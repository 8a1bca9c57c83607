"""`llmos simulate -f new.yaml`: the plan for work that is not submitted yet, and whom it would displace or delay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from llmos_operator.cli import (
    explain,
    fleets,
    manifests,
    picture,
    recordings,
    render,
    session,
    submission,
    traces,
)
from llmos_operator.cli.failures import USAGE, CommandFailed
from llmos_operator.cli.options import AsJson, Context, Kubeconfig, Namespace, Target
from llmos_operator.cli.render import duration, size
from llmos_operator.clock import SystemClock
from llmos_operator.cluster import port
from llmos_operator.control.policies import policy_of
from llmos_operator.sim.report import Options

if TYPE_CHECKING:
    from rich.console import Console

    from llmos_operator.cli.manifests import Document, Manifests
    from llmos_operator.cli.session import Session
    from llmos_operator.cluster.port import Json
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.recording import Recording
    from llmos_operator.sim.whatif import Answer, Forecast, Placed
    from llmos_operator.state.snapshot import Snapshot

_OUTCOMES = {
    "Starts": "would start now",
    "StartsAfterEviction": "would start once others have made room",
    "StartsInPart": "would start in part",
    "Waits": "would wait",
    "NothingToPlace": "has nothing to place",
}
_BY_BEST_FIT = (
    "nodes are chosen by best fit here; the operator also weighs what a placement costs expected work, by prices that "
    "only it has, and may take another node of those that fit (its recorded cycles hold the prices)"
)


@dataclass(frozen=True, slots=True)
class Simulated:
    """A forecast, and what a reader has to know about how it was made."""

    forecast: Forecast
    notes: tuple[str, ...] = ()


def command(
    file: Annotated[
        str, typer.Option("--file", "-f", help="Manifests of the new work; `-` reads standard input.")
    ] = "",
    snapshot: Annotated[
        str,
        typer.Option("--snapshot", help="File of `llmos snapshot` or of the operator, instead of a cluster."),
    ] = "",
    trace: Annotated[str, typer.Option("--trace", help="Public trace: openb, philly or servegen.")] = "",
    data: Annotated[str, typer.Option("--data", help="Folder of the traces.")] = "",
    name: Annotated[
        str, typer.Option("--list", help="List of openb (default: default), model of servegen (m-large).")
    ] = "",
    nodes: Annotated[int, typer.Option("--nodes", min=0, help="Nodes (default: the trace's).")] = 0,
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs, about, instead of --nodes.")] = 0,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Tasks, jobs or 5 s steps at most (0: all).")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of what is drawn.")] = 42,
    days: Annotated[str, typer.Option("--days", help="Days of philly or servegen, like 14-42.")] = "",
    known_mix: Annotated[
        bool, typer.Option("--known-mix", help="openb: the mix of requests is known before they arrive.")
    ] = False,
    failures: Annotated[
        bool,
        typer.Option(
            "--failures", help="A fleet through published failures: --gpus, --days, --rate, --seed."
        ),
    ] = False,
    rate: Annotated[
        float, typer.Option("--rate", min=0.1, help="--failures: how many times the published rate.")
    ] = 20.0,
    plot: Annotated[str, typer.Option("--plot", help="PNG file to draw the curves into.")] = "",
    namespace: Namespace = "",
    as_json: AsJson = False,
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Show what the scheduler would do: with new work (-f), with a recorded cycle (--snapshot), over a trace (--trace), or through failures (--failures).

    Nothing is written to the cluster.
    """
    if failures:
        fleets.live_through(gpus or 1000, days or "30", rate, seed, as_json=as_json)
        return
    if trace:
        options = Options(data, name, nodes, gpus, limit, seed, traces.days(days), known_mix)
        traces.replay(trace, options, plot=plot, as_json=as_json)
        return
    if snapshot and not file:
        recordings.replay(snapshot, as_json=as_json)
        return
    if not file:
        raise CommandFailed(
            "say what to simulate: -f FILE, --snapshot FILE, --trace NAME or --failures", status=USAGE
        )
    now = SystemClock().now()
    target = Target(kubeconfig, context, namespace)
    if snapshot:
        found = ask_recorded(recordings.read(snapshot), manifests.read(file, namespace or "default"))
    else:
        found = session.run(target, lambda one: ask(one, manifests.read(file, one.namespace), now))
    if as_json:
        render.print_json(document(found))
    else:
        show(render.console(), found)


async def ask(connected: Session, wanted: Manifests, now: float) -> Simulated:
    """Forecast documents on the cluster as it is. Raises `CommandFailed` for those that would be refused."""
    from llmos_operator.scheduler.cycle import plan  # noqa: PLC0415 - numpy: only some commands pay for it
    from llmos_operator.sim.whatif import forecast  # noqa: PLC0415

    seen = await picture.take(connected, now)
    settings = await picture.settings(connected)
    policy = policy_of(settings)
    known = {(kind, session.key(item)): item for kind, items in seen.listed.items() for item in items}

    def current(one: Document) -> Json | None:
        return known.get((one.kind, one.key))

    bodies, notes = await submission.rehearse(connected, wanted.documents, current)
    for workload in seen.store.snapshot().workloads.values():
        submission.hold_back(seen.store, workload, settings.sources)
    first = seen.store.snapshot()
    before = plan(first, policy, now)
    priced = _places_by_prices(first, policy, settings.scheduling.prices.least_requests)
    pairs = list(zip(wanted.documents, bodies, strict=True))
    submitted = submission.submit(seen.store, pairs, settings.sources, now)
    found = forecast(seen.store, policy, now, submitted.asked, before, submitted.leaving)
    if priced:
        notes.append(_BY_BEST_FIT)
    notes += [f"{where}: plays no part in scheduling, left out" for where in wanted.left_out]
    notes += [f"{key} of the cluster cannot be read, left out: {why}" for key, why in seen.left_out.items()]
    return Simulated(found, tuple(notes))


def _places_by_prices(snapshot: Snapshot, policy: Policy, least_requests: int) -> bool:
    """Return whether enough has been asked for on this cluster for the operator to make prices."""
    from llmos_operator.scheduler.outlook import mix_of  # noqa: PLC0415 - as above
    from llmos_operator.scheduler.policy import ScoreKind  # noqa: PLC0415
    from llmos_operator.scheduler.shares import kinds_of  # noqa: PLC0415
    from llmos_operator.scheduler.table import NodeTable  # noqa: PLC0415

    if policy.score is not ScoreKind.FRAGMENTATION:
        return False
    table = NodeTable()
    table.sync(snapshot.nodes)
    return sum(mix_of(snapshot, policy, kinds_of(table)).values()) >= least_requests


def ask_recorded(recorded: Recording, wanted: Manifests) -> Simulated:
    """Forecast documents on a recorded cycle. There is no API server: the types alone check them."""
    from llmos_operator.scheduler.recording import replay  # noqa: PLC0415
    from llmos_operator.sim.whatif import forecast  # noqa: PLC0415
    from llmos_operator.state.store import Store  # noqa: PLC0415

    for one in wanted.documents:
        if one.kind is port.MODEL_WORKLOADS and one.key in recorded.snapshot.workloads:
            raise CommandFailed(
                f"{one.where}: {one.key} is in the snapshot, which holds no specs to change: use another name"
            )
    store, policy, now = Store.of(recorded.snapshot), recorded.policy, recorded.now
    pairs = [(one, one.body) for one in wanted.documents]
    submitted = submission.submit(store, pairs, None, now)
    before = replay(recorded)
    found = forecast(store, policy, now, submitted.asked, before, submitted.leaving, recorded.prices)
    notes = ["no API server was asked: rules between fields were not checked"]
    return Simulated(found, (*notes, *(f"{where}: plays no part in scheduling" for where in wanted.left_out)))


def document(found: Simulated) -> dict[str, object]:
    """Return what `--json` prints."""
    told = found.forecast
    return {
        "now": told.now,
        "cycles": len(told.cycles),
        "workloads": [
            {
                "outcome": one.outcome,
                "waiting": one.waiting,
                "placed": one.placed,
                "explanation": one.explanation,
            }
            for one in told.answers
        ],
        "displaced": told.displaced,
        "delayed": told.delayed,
        "notes": found.notes,
    }


def show(console: Console, found: Simulated) -> None:
    """Print a forecast for people."""
    for number, answer in enumerate(found.forecast.answers):
        if number:
            console.print()
        _answer(console, answer, found.forecast.now)
    displaced, delayed = found.forecast.displaced, found.forecast.delayed
    if displaced:
        rows = [
            [one.workload, one.pod.partition("/")[2], one.node, f"{one.cost_milliseconds / 1000:.0f} s",
             one.preemptor, one.afterwards]
            for one in displaced
        ]  # fmt: skip
        console.print("\nit would displace:")
        console.print(render.table(["WORKLOAD", "POD", "NODE", "COST", "FOR", "AFTERWARDS"], rows))
    if delayed:
        console.print("\nit would delay:")
        delays = [[one.workload, one.before, one.after] for one in delayed]
        console.print(render.table(["WORKLOAD", "WITHOUT IT", "WITH IT"], delays))
    for note in found.notes:
        console.print(f"\nnote: {note}")


def _answer(console: Console, answer: Answer, now: float) -> None:
    told = answer.explanation
    console.print(f"{told.workload}  {_OUTCOMES[answer.outcome]}")
    if told.message and answer.outcome != "NothingToPlace":
        console.print(f"{told.reason}: {told.message}")
    position = f", position {told.queue_position}" if told.queue_position is not None else ""
    console.print(f"queue       {told.queue}{position}")
    console.print(f"priority    {told.priority}")
    if told.expected_start is not None:
        console.print(f"expected    to start in {duration(told.expected_start - now)}")
    if answer.placed:
        several = any(one.member for one in answer.placed)
        rows = [
            [_replica(one, several=several), one.node, ", ".join(one.devices), one.format, size(one.bytes_per_device),
             str(one.max_model_len or ""), duration(one.after) if one.after else "now"]
            for one in answer.placed
        ]  # fmt: skip
        console.print()
        columns = ["REPLICA", "NODE", "DEVICES", "PRECISION", "PER DEVICE", "CONTEXT", "AFTER"]
        console.print(render.table(columns, rows))
    if answer.waiting:
        console.print(f"\n{answer.waiting} of {told.replicas_wanted} replicas wait")
        explain.tables(console, told)
    if answer.waiting and told.would_help:
        console.print("\nwhat would help:")
        for change in told.would_help:
            console.print(f"  - {change}")


def _replica(one: Placed, *, several: bool) -> str:
    return f"{one.ordinal}, pod {one.member}" if several else str(one.ordinal)
