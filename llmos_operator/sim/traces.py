"""The public traces by name, replayed with the functions that the operator decides with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.sim import lining, openb, philly, placing, racks, serving
from llmos_operator.sim.adapters import placement, placement_online, queueing, scaler
from llmos_operator.sim.report import Panel, Report
from llmos_operator.sim.trace_files import BadTrace

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.scheduler.service_index import Floats
    from llmos_operator.sim.report import Figures, Options

_SHOWN: Final = (80, 90, 95, 100, 110, 120, 130)  # percent of the devices asked for
_HOUR: Final = 3600.0
_NODES: Final = 80  # of the Philly replay: 640 devices
_LEAST_JOBS: Final = 50  # of a queue, to count its slowdown
_POINTS: Final = 2000  # of a curve that is drawn


def run(trace: str, options: Options) -> Report:
    """Replay a trace. Raises `BadTrace` for one that is not known or cannot be read."""
    known = TRACES.get(trace)
    if known is None:
        raise BadTrace(f"--trace {trace}: there are {', '.join(TRACES)}")
    return known(options)


def _openb(options: Options) -> Report:
    cluster = openb.read_cluster(options.data, options.nodes, options.gpus)
    tasks = openb.read_tasks(options.data, options.name or "default", cluster)
    stream = openb.arrivals(tasks, cluster.devices, options.seed)[: options.limit or None]
    mix = openb.mix_of(tasks)
    make = placement if options.known_mix else placement_online
    replayed = make(cluster, tasks.types, mix, options.seed)
    found = placing.replay(cluster, tasks.types, stream, replayed, mix)
    allocated, fragmented = found.curve(found.used), found.curve(found.fragmented)
    shown = [percent for percent in _SHOWN if not np.isnan(allocated[percent])]
    milliseconds = found.seconds * 1000
    figures: Figures = {
        "trace": "openb",
        "list": tasks.name,
        "seed": options.seed,
        "nodes": len(cluster.cpu),
        "gpus": cluster.devices,
        "tasks": len(stream),
        "rejected": int(len(stream) - found.taken.sum()),
        "declined": found.declined,
        "allocationPercent": {str(p): round(float(allocated[p]), 3) for p in shown},
        "fragmentationPercent": {str(p): round(float(fragmented[p]), 3) for p in shown},
        "decisionsPerCpuSecond": _rate(len(stream), float(found.seconds.sum())),
        "decisionMilliseconds": {
            str(p): round(float(np.percentile(milliseconds, p)), 3) for p in (50, 99, 100)
        },
    }
    percents = np.arange(placing.PERCENTS, dtype=np.float64)
    there = ~np.isnan(allocated)
    curves = {"allocated": allocated[there].tolist(), "fragmented": fragmented[there].tolist()}
    return Report(
        f"openb list {tasks.name}, seed {options.seed}: {len(stream)} tasks on {len(cluster.cpu)} nodes with "
        f"{cluster.devices} GPUs, mix of requests {'known' if options.known_mix else 'learned'}",
        figures,
        ("ASKED FOR", "ALLOCATED", "FRAGMENTED"),
        tuple((f"{p} %", f"{allocated[p]:.2f} %", f"{fragmented[p]:.2f} %") for p in shown),
        (Panel("Allocation", "GPUs asked for, %", percents[there].tolist(), "% of all GPUs", curves),),
    )


def _philly(options: Options) -> Report:
    jobs = philly.read_jobs(options.data, options.days, options.limit)
    nodes = options.nodes or -(-options.gpus // racks.PER_NODE) or _NODES
    found = lining.Line(jobs, queueing(), nodes).run()
    completion = jobs.finish - jobs.submit
    waits = completion - jobs.length
    span = float(jobs.finish.max() - jobs.submit.min())
    slowdowns = [
        completion[jobs.vc == queue].mean() / jobs.length[jobs.vc == queue].mean()
        for queue in np.unique(jobs.vc)
        if int((jobs.vc == queue).sum()) >= _LEAST_JOBS
    ]
    figures: Figures = {
        "trace": "philly",
        "nodes": nodes,
        "gpus": found.devices,
        "jobs": len(jobs.submit),
        "completionHours": _spread(completion),
        "waitHours": _spread(waits),
        "queueSlowdownWorst": round(float(max(slowdowns, default=np.nan)), 2) if slowdowns else 0.0,
        "preemptions": int(jobs.stops.sum()),
        "restartGpuHours": round(found.restarts / _HOUR, 1),
        "gpuHours": round(found.busy / _HOUR, 1),
        "busyPercent": round(100 * found.busy / (found.devices * span), 2),
        "millisecondsPerPass": round(1000 * found.seconds / found.passes, 3),
    }
    rows = tuple(
        (name, *(f"{value:.2f} h" for value in _spread(hours).values()))
        for name, hours in (("completion", completion), ("waiting", waits))
    )
    thin = slice(None, None, max(1, found.passes // _POINTS))
    hours = (found.at[thin] / _HOUR).tolist()
    panels = (
        Panel("Queue", "hours", hours, "jobs", {"waiting": found.waiting[thin].tolist()}),
        Panel("Allocation", "hours", hours, "GPUs", {"in use": found.used[thin].tolist()}),
    )
    title = f"philly: {len(jobs.submit)} jobs on {nodes} nodes with {found.devices} GPUs"
    return Report(title, figures, ("OF A JOB", "MEAN", "P50", "P99", "P99.9"), rows, panels)


def _servegen(options: Options) -> Report:
    if options.nodes or options.gpus:
        raise BadTrace(
            "--nodes and --gpus: the replay of servegen has as many replicas as the autoscaler wants"
        )
    model = options.name or "m-large"
    arrivals = serving.read_arrivals(options.data, model, options.seed, options.days)
    arrivals = arrivals[: options.limit or None]
    began = time.process_time()
    found = serving.replay(model, arrivals, scaler(serving.environment(model)))
    seconds = time.process_time() - began
    gpus = serving.MODELS[model].gpus
    in_time = 100 * found.in_time / found.requests if found.requests else 100.0
    waited = _weighted(found.waits, found.weights, 0.99)
    figures: Figures = {
        "trace": "servegen",
        "model": model,
        "seed": options.seed,
        "days": round(len(arrivals) * serving.STEP / philly.DAY, 3),
        "requests": int(found.requests),
        "inTimePercent": round(in_time, 3),
        "p99WaitSeconds": waited,
        "gpuHours": round(found.billed * gpus / _HOUR, 1),
        "starts": found.starts,
        "mostReplicas": int(found.replicas.max()),
        "stepsPerCpuSecond": _rate(len(arrivals), seconds),
    }
    rows = (
        ("requests", f"{int(found.requests)}"),
        (f"served within {serving.WITHIN:.0f} s", f"{in_time:.3f} %"),
        ("99 % waited at most", f"{waited:.0f} s"),
        ("GPU hours", f"{figures['gpuHours']}"),
        ("replicas started", f"{found.starts}"),
        ("replicas at most", f"{figures['mostReplicas']}"),
    )
    thin = slice(None, None, max(1, len(arrivals) // _POINTS))
    hours = (np.arange(len(arrivals))[thin] * serving.STEP / _HOUR).tolist()
    panels = (
        Panel("Queue", "hours", hours, "requests", {"waiting": found.queued[thin].tolist()}),
        Panel("Fleet", "hours", hours, "replicas", {"ready or starting": found.replicas[thin].tolist()}),
    )
    title = f"servegen {model}, seed {options.seed}: {figures['days']} days"
    return Report(title, figures, ("OF THE FLEET", "VALUE"), rows, panels)


TRACES: Final[dict[str, Callable[[Options], Report]]] = {
    "openb": _openb,
    "philly": _philly,
    "servegen": _servegen,
}


def _spread(seconds: Floats) -> dict[str, float]:
    p50, p99, p999 = (float(value) for value in np.percentile(seconds, (50, 99, 99.9)))
    named = {"mean": float(seconds.mean()), "p50": p50, "p99": p99, "p99.9": p999}
    return {name: round(value / _HOUR, 3) for name, value in named.items()}


def _weighted(values: Floats, weights: Floats, part: float) -> float:
    """Return the value below which `part` of all weight lies; `values` are sorted."""
    if not len(values):
        return 0.0
    running = np.cumsum(weights) / weights.sum()
    return float(values[min(len(values) - 1, int(np.searchsorted(running, part)))])


def _rate(count: int, seconds: float) -> float:
    return round(count / max(seconds, 1e-9), 1)
