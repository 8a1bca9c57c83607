"""Replays of small traces made here, and of the real ones where `LLMOS_DATA` names their folder."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos_operator.cli.app import main
from llmos_operator.sim import lining, openb, philly, placing, serving
from llmos_operator.sim.adapters_queueing import Queueing
from llmos_operator.sim.racks import Racks
from llmos_operator.sim.report import Options
from llmos_operator.sim.trace_files import BadTrace
from llmos_operator.sim.traces import run

DATA = os.environ.get("LLMOS_DATA", "")
ROOT = Path(__file__).parents[3]
PNG = b"\x89PNG"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def an_openb(folder: Path, tasks: str = "") -> str:
    nodes = "sn,cpu_milli,memory_mib,gpu,model\n" + "".join(
        f"n{i},64000,262144,{4 if i % 2 else 2},{'T4' if i % 2 else 'P100'}\n" for i in range(24)
    )
    write(folder / "openb/openb_node_list_gpu_node.csv.gz", nodes)
    rows = tasks or "".join(
        f"p{i:02},4000,8192,1,{1000 if i % 3 else 500},{'T4' if i % 5 == 0 else ''}\n" for i in range(12)
    )
    write(
        folder / "openb/openb_pod_list_default.csv",
        f"name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n{rows}",
    )
    return str(folder)


def a_philly(folder: Path, *jobs: tuple[int, float, int]) -> str:
    lines = [
        f"2017-10-09 {minute // 60:02}:{minute % 60:02}:00,{seconds},{gpus},1,vc{number % 2}"
        for number, (minute, seconds, gpus) in enumerate(jobs)
    ]
    write(
        folder / "philly/philly_log.csv.gz",
        "timestamp,duration,num_gpus,gpu_time,cluster\n" + "\n".join(lines),
    )
    return str(folder)


def a_servegen(folder: Path, rate: float) -> str:
    lines = "".join(f"{600 * i},{rate},{rate},{rate}\n" for i in range(12))
    write(folder / "servegen_rates.csv", "t_s,m-small,m-mid,m-large\n" + lines)
    return str(folder)


def test_a_list_of_tasks_fills_a_cluster_and_nothing_that_fits_is_declined(tmp_path: Path) -> None:
    figures = run("openb", Options(an_openb(tmp_path))).figures
    assert (figures["nodes"], figures["gpus"], figures["declined"]) == (24, 72, 0)
    allocation = figures["allocationPercent"]
    assert isinstance(allocation, dict)
    assert 90 < allocation["130"] <= 100
    small = run("openb", Options(str(tmp_path), limit=3, gpus=6)).figures
    assert (small["tasks"], small["nodes"], small["gpus"]) == (3, 2, 6)


def test_the_stream_ends_where_130_percent_are_asked_for_and_a_seed_repeats_it(tmp_path: Path) -> None:
    cluster = openb.read_cluster(an_openb(tmp_path))
    tasks = openb.read_tasks(str(tmp_path), "default", cluster)
    streams = [openb.arrivals(tasks, cluster.devices, seed) for seed in (1, 1, 2)]
    asked = sum(tasks.types[kind].amount for kind in streams[0])
    assert 92_600 < asked <= 93_600
    assert np.array_equal(streams[0], streams[1])
    assert not np.array_equal(streams[0], streams[2])
    few = openb.arrivals(tasks, 4, 1)  # the list alone asks for more: tasks are left out
    assert sum(tasks.types[kind].amount for kind in few) <= 5_200
    assert len(few) < len(tasks.order)


def test_books_refuse_a_placement_beyond_capacity_or_on_another_product(tmp_path: Path) -> None:
    cluster = openb.read_cluster(an_openb(tmp_path))
    books = placing.Books(cluster)
    whole = openb.Task(0, 1000, 1024, 1, 1000, 0)
    books.take(whole, 0, (0,))
    with pytest.raises(RuntimeError, match="beyond its capacity"):
        books.take(whole, 0, (0,))
    only_t4 = openb.Task(1, 1000, 1024, 1, 500, 1 << cluster.models.index("T4"))
    with pytest.raises(RuntimeError, match="did not ask for"):
        books.take(only_t4, 2, (0,))
    assert books.could_take(only_t4)


def test_what_no_request_can_use_is_fragmented(tmp_path: Path) -> None:
    cluster = openb.read_cluster(an_openb(tmp_path))
    books = placing.Books(cluster)
    whole = np.array([1000])
    mix = openb.Mix(np.array([1000]), np.array([1]), whole, np.array([0]), np.array([1.0]))
    fragments = placing.Fragments(books, mix)
    assert fragments.total == 0
    books.take(openb.Task(0, 1000, 1024, 1, 600, 0), 0, (0,))
    fragments.update(0)
    assert fragments.total == 400


def test_jobs_that_fit_start_at_the_next_tick_and_take_their_time(tmp_path: Path) -> None:
    data = a_philly(tmp_path, (0, 600.0, 4), (1, 300.0, 4), (2, 900.0, 16))
    jobs = philly.read_jobs(data)
    found = lining.Line(jobs, Queueing(), 3).run()
    assert (jobs.finish - jobs.submit - jobs.length).tolist() == [
        60.0,
        0.0,
        0.0,
    ]  # the first tick is after a minute
    assert found.busy == 600 * 4 + 300 * 4 + 900 * 16
    assert found.used.max() == 24
    figures = run("philly", Options(data, nodes=3)).figures
    assert (figures["jobs"], figures["preemptions"], figures["gpuHours"]) == (3, 0, 5.0)


class YoungestFirst:
    min_run = 0.0

    def rank(self, _: float, jobs: philly.Jobs, ids: np.ndarray) -> np.ndarray:
        return -jobs.submit[ids]


def test_a_job_behind_is_stopped_keeps_its_progress_and_pays_a_restart() -> None:
    jobs = philly.Jobs(
        np.array([0.0, 14_400.0]), np.array([36_000.0, 600.0]), np.array([8, 8]), np.array([0, 0])
    )
    found = lining.Line(jobs, YoungestFirst(), 1).run()
    assert jobs.stops.tolist() == [1, 0]
    assert jobs.finish[1] == 14_400 + 600
    assert jobs.finish[0] == 60 + 36_000 + 600 + 30
    assert found.restarts == 30 * 8
    assert found.busy == (36_000 + 600 + 30) * 8


def test_a_job_larger_than_the_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="a job asks for 16 devices, 1 nodes have 8: raise --nodes"):
        run("philly", Options(a_philly(tmp_path, (0, 60.0, 16)), nodes=1))


def test_racks_take_the_fullest_node_and_the_fewest_victims() -> None:
    racks, sizes = Racks(3), np.array([6, 3, 3, 2, 20])
    assert [racks.place(job, int(sizes[job])) for job in range(4)] == [True] * 4
    assert racks.free.tolist() == [0, 2, 8]  # job 3 filled the node of job 0
    assert not racks.place(4, 20)
    assert racks.victims(8, [3, 2, 1, 0], sizes) == [1, 2] or racks.victims(8, [3, 2, 1, 0], sizes) == [0, 3]
    assert racks.victims(24, [3, 2, 1, 0], sizes) == [3, 2, 1, 0]
    racks.release(0)
    racks.release(3)
    assert racks.free.tolist() == [8, 2, 8]
    assert racks.place(4, 10)
    assert racks.free.tolist() == [0, 2, 6]


def test_replicas_follow_a_steady_load_and_serve_it_in_time(tmp_path: Path) -> None:
    figures = run("servegen", Options(a_servegen(tmp_path, 50.0), "m-large", seed=1)).figures
    needed = 50 * 12 / 48
    assert figures["inTimePercent"] > 99  # type: ignore[operator]
    assert needed <= figures["mostReplicas"] < 2.5 * needed  # type: ignore[operator]


def test_requests_wait_where_nobody_scales() -> None:
    class Stubborn:
        def decide(self, *_: object) -> int:
            return 1

    found = serving.replay("m-large", np.full(720, 40.0), Stubborn())
    assert found.starts == 0
    assert found.in_time < found.requests / 2
    assert found.billed <= 720 * serving.STEP * 2
    assert found.queued[-1] > found.queued[100] > 0


@pytest.mark.parametrize(
    ("trace", "options", "words"),
    [
        ("other", Options("."), "there are openb, philly, servegen"),
        ("openb", Options("/nonexistent"), "is not a folder"),
        ("openb", Options("{data}", "gone"), "the list 'gone'; there are: default"),
        ("philly", Options("{data}", days=(90, 91)), "holds no job of days 90 to 91"),
        ("servegen", Options("{data}", "m-huge"), "there are m-small, m-mid, m-large"),
        ("servegen", Options("{data}", nodes=3), "as many replicas as the autoscaler wants"),
    ],
)
def test_what_cannot_be_replayed_says_what_there_is(
    tmp_path: Path, trace: str, options: Options, words: str
) -> None:
    an_openb(tmp_path)
    a_philly(tmp_path, (0, 60.0, 1))
    a_servegen(tmp_path, 1.0)
    made = Options(options.data.format(data=tmp_path), options.name, nodes=options.nodes, days=options.days)
    with pytest.raises(BadTrace, match=words):
        run(trace, made)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("p0,1,1,one,1000,\n", "num_gpu = 'one' is not a whole number"),
        ("p0,1\n", "line 2: memory_mib is missing"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(BadTrace, match=words):
        run("openb", Options(an_openb(tmp_path, row)))


def test_the_command_prints_a_table_json_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, picture = a_philly(tmp_path, (0, 600.0, 4), (1, 300.0, 8)), tmp_path / "queue.png"
    assert main(["simulate", "--trace", "philly", "--data", data, "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "philly: 2 jobs on 80 nodes with 640 GPUs" in text
    assert picture.read_bytes().startswith(PNG)
    assert main(["simulate", "--trace", "philly", "--data", data, "--json", "--gpus", "16"]) == 0
    assert json.loads(capsys.readouterr().out)["gpus"] == 16
    assert main(["simulate", "--trace", "philly"]) == 2
    assert main(["simulate", "--trace", "philly", "--data", data, "--days", "5"]) == 2
    assert "like 14-42" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "trace"), [("matplotlib", "philly"), ("highspy", "openb")])
def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path, package: str, trace: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass A:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == '{package}':\n"
        f"            raise ModuleNotFoundError('No module named {package}', name='{package}')\n"
        "sys.meta_path.insert(0, A())\n"
    )
    an_openb(tmp_path)
    a_philly(tmp_path, (0, 60.0, 1))
    plot = ["--plot", "x.png"] if package == "matplotlib" else []
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llmos_operator",
            "simulate",
            "--trace",
            trace,
            "--data",
            str(tmp_path),
            *plot,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert f"{package} is not installed" in done.stderr
    assert "pip install 'llmos-operator[cli,sim]'" in done.stderr
    assert "Traceback" not in done.stderr


# Figures of another replay of the same lists with the same adapters (the public benchmarks' own programs).
KNOWN: dict[str, tuple[Options, dict[str, Any]]] = {
    "philly": (
        Options(DATA, nodes=20, days=(14, 28)),
        {"jobs": 7011, "preemptions": 3441, "restartGpuHours": 69.8, "busyPercent": 71.17},
    ),
    "servegen": (
        Options(DATA, "m-large", seed=1, days=(0, 2)),
        {"requests": 41_981_448, "starts": 2202, "gpuHours": 21_367.0, "inTimePercent": 99.876},
    ),
}


@pytest.mark.skipif(not DATA, reason="LLMOS_DATA does not name the folder of the public traces")
@pytest.mark.parametrize("trace", sorted(KNOWN))
def test_the_real_traces_give_the_figures_of_the_public_benchmarks(trace: str) -> None:
    options, expected = KNOWN[trace]
    figures = run(trace, options).figures
    assert {name: figures[name] for name in expected} == expected


@pytest.mark.skipif(not DATA, reason="LLMOS_DATA does not name the folder of the public traces")
def test_a_real_list_of_tasks_is_placed_without_declining_anything() -> None:
    figures = run("openb", Options(DATA, nodes=60, known_mix=True)).figures
    assert (figures["nodes"], figures["declined"]) == (60, 0)
    assert figures["allocationPercent"]["100"] > 88  # type: ignore[index]
