"""Small parts of the local cluster: probes' thresholds, images, logs, volumes, endpoints, node objects, options."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.api.quantity import parse_bytes
from llmos_operator.errors import Permanent
from llmos_operator.local import images, nodes
from llmos_operator.local.hub.store import Store
from llmos_operator.local.kubelet import logs
from llmos_operator.local.kubelet.kubelet import AddressPool
from llmos_operator.local.kubelet.probes import Threshold
from llmos_operator.local.kubelet.volumes import write_atomically
from llmos_operator.local.processes import ProcessRecord, marked_processes, start_ticks
from llmos_operator.local.proxy.endpoints import endpoints_of
from llmos_operator.local.spec import ClusterSpec, GpuModel, uniform_nodes
from llmos_operator.local.state import ClusterState, RecordedProcess
from llmos_operator.telemetry.announced import parse_devices

# -- thresholds


def test_a_verdict_changes_after_enough_equal_outcomes_in_a_row() -> None:
    threshold = Threshold(success=2, failure=3, verdict=True)
    assert [threshold.add(passed) for passed in (False, False, True, False, False, False)] == [
        False,
        False,
        False,
        False,
        False,
        True,
    ]
    assert threshold.verdict is False
    assert not threshold.add(passed=True)
    assert threshold.verdict is False
    assert threshold.add(passed=True)
    assert threshold.verdict is True


# -- images


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("ghcr.io/org/app:1.0", "ghcr.io/org/app"),
        ("localhost:5000/app", "localhost:5000/app"),
        ("localhost:5000/app:tag@sha256:00", "localhost:5000/app"),
        ("app", "app"),
        ("app:latest", "app"),
    ],
)
def test_tags_and_digests_are_no_part_of_a_repository(reference, repository) -> None:
    assert images.repository_of(reference) == repository


def test_the_projects_images_run_this_installation(tmp_path) -> None:
    table = images.ImageTable(tmp_path / "absent.yaml")
    for name in ("operator", "agent", "gateway", "runtime"):
        image = table.find(f"ghcr.io/llmos-dev/llmos-{name}:0.1.0")
        assert image is not None
        assert image.command([], [name]) == [sys.executable, "-m", "llmos_operator", name]
    assert table.find("docker.io/library/nginx:1") is None


def test_command_and_args_follow_the_rules_of_images() -> None:
    image = images.Image(repository="x", entrypoint=("e",), args=("a", "b"))
    assert image.command([], []) == ["e", "a", "b"]
    assert image.command([], ["c"]) == ["e", "c"]
    assert image.command(["d"], []) == ["d"]
    assert image.command(["d"], ["c"]) == ["d", "c"]


def test_additions_win_and_are_read_again_when_they_change(tmp_path) -> None:
    path = tmp_path / "images.yaml"
    table = images.ImageTable(path)
    assert table.find("example.org/echo") is None
    images.write_images(path, [images.parse_option("example.org/echo=echo 'a b'")])
    assert table.find("example.org/echo:1").entrypoint == ("echo", "a b")
    images.write_images(path, [images.parse_option("*/llmos-agent=true")])
    assert table.find("example.org/echo:1") is None
    assert table.find("ghcr.io/llmos-dev/llmos-agent:1").entrypoint == ("true",)


@pytest.mark.parametrize(
    "text", ["images: [{entrypoint: [x]}]", "images: 3", "{", "images: [{repository: a, color: red}]"]
)
def test_a_broken_table_names_its_file(tmp_path, text) -> None:
    path = tmp_path / "images.yaml"
    path.write_text(text)
    with pytest.raises(Permanent, match=r"images\.yaml"):
        images.ImageTable(path).find("x")


# -- logs


@given(st.lists(st.text(alphabet="ab", max_size=5), max_size=30), st.integers(0, 40), st.booleans())
def test_the_tail_of_a_log_begins_at_a_line(tmp_path_factory, lines, count, closed) -> None:
    path = tmp_path_factory.getbasetemp() / "tail.log"
    text = "\n".join(lines) + ("\n" if closed and lines else "")
    path.write_text(text)
    expected = "".join(text.splitlines(keepends=True)[-count:]) if count else ""
    with path.open() as file:
        file.seek(logs.tail_offset(path, count))
        assert file.read() == expected


def test_a_log_past_its_bound_keeps_its_last_whole_lines(tmp_path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"".join(b"line %06d\n" % number for number in range(300_000)))
    assert logs.bound(path, max_bytes=2 << 20)
    kept = path.read_bytes().splitlines()
    assert b"cut" in kept[0]
    assert kept[-1] == b"line 299999"
    assert all(len(line) == 11 for line in kept[1:])
    assert not logs.bound(path, max_bytes=2 << 20)


def test_following_a_log_waits_for_more_and_ends_with_the_run(tmp_path) -> None:
    path = tmp_path / "0.log"
    path.write_text("one\n")
    going = [True, True, True]

    def follow() -> bool:
        if len(going) == 2:
            with path.open("a") as file:
                file.write("two\n")
        return bool(going and going.pop())

    async def read() -> bytes:
        return b"".join([block async for block in logs.read_log(path, tail=None, limit=None, follow=follow)])

    assert asyncio.run(read()) == b"one\ntwo\n"


def test_only_the_present_and_the_previous_run_are_kept(tmp_path) -> None:
    keeper = logs.LogKeeper(keep_pods=1)
    for run in range(4):
        keeper.drop_run(tmp_path, "c", run)
        path = logs.log_file(tmp_path, "c", run)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2.log", "3.log"]


def test_logs_of_the_pods_that_ended_last_are_kept(tmp_path) -> None:
    keeper = logs.LogKeeper(keep_pods=2)
    folders = [tmp_path / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
        keeper.pod_gone(folder)
    assert [folder.exists() for folder in folders] == [False, False, True, True]


# -- volumes


def test_files_are_swapped_all_at_once(tmp_path) -> None:
    target = tmp_path / "volume"
    write_atomically(target, {"a": (b"1", 0o644), "sub/b": (b"2", 0o400)})
    first = (target / "..data").readlink()
    assert (target / "a").read_bytes() == b"1"
    assert (target / "sub" / "b").read_bytes() == b"2"
    assert (target / "sub" / "b").stat().st_mode & 0o777 == 0o400
    write_atomically(target, {"a": (b"1", 0o644), "sub/b": (b"2", 0o400)})
    assert (target / "..data").readlink() == first
    write_atomically(target, {"a": (b"3", 0o644)})
    assert (target / "..data").readlink() != first
    assert (target / "a").read_bytes() == b"3"
    assert sorted(entry.name for entry in target.iterdir()) == sorted(
        ["..data", (target / "..data").readlink().name, "a"]
    )


# -- addresses of pods


def test_addresses_are_not_reused_soon() -> None:
    pool = AddressPool(["a", "b", "c"])
    assert pool.take() == "a"
    pool.free("a")
    assert [pool.take(), pool.take(), pool.take("c")] == ["b", "c", "a"]
    with pytest.raises(RuntimeError, match="all 3"):
        pool.take()
    pool.free("b")
    assert pool.take("b") == "b"


# -- endpoints


def _pod(name: str, ip: str = "127.8.0.1", *, ready: bool = True, **meta) -> dict:
    return {
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": "x"}, **meta},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8000}]}]},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def _service(**spec) -> dict:
    return {"metadata": {"name": "s", "namespace": "n"}, "spec": {"selector": {"app": "x"}, **spec}}


def test_only_ready_pods_of_the_namespace_that_stay_are_endpoints() -> None:
    pods = [
        _pod("good", "127.8.0.2"),
        _pod("unready", "127.8.0.3", ready=False),
        _pod("going", "127.8.0.4", deletionTimestamp="now"),
        _pod("elsewhere", "127.8.0.5", namespace="m"),
        _pod("other", "127.8.0.6", labels={"app": "y"}),
        _pod("new", ""),
    ]
    port = {"port": 80, "targetPort": "http"}
    assert endpoints_of(_service(), port, pods) == (("127.8.0.2", 8000),)
    unready_too = endpoints_of(_service(publishNotReadyAddresses=True), port, pods)
    assert unready_too == (("127.8.0.2", 8000), ("127.8.0.3", 8000))
    assert endpoints_of(_service(selector={}), port, pods) == ()
    assert endpoints_of(_service(), {"port": 80, "targetPort": "absent"}, pods) == ()
    assert endpoints_of(_service(), {"port": 80}, pods) == (("127.8.0.2", 80),)


# -- nodes and options


def test_a_node_without_devices_announces_none() -> None:
    (spec,) = uniform_nodes(1, 0, ())
    body = nodes.node_object(spec)
    assert body["metadata"]["annotations"] == {}
    assert "nvidia.com/gpu.product" not in body["metadata"]["labels"]
    assert "nvidia.com/gpu" not in nodes.capacity(spec)


def test_devices_are_announced_in_the_units_they_are_read_in() -> None:
    (spec,) = uniform_nodes(1, 3, (GpuModel.parse("A100-80G:80Gi"),))
    devices = json.loads(nodes.devices_annotation(spec))
    assert [device["index"] for device in devices] == [0, 1, 2]
    assert len({device["uuid"] for device in devices}) == 3
    assert devices[0]["memoryBytes"] == parse_bytes("80Gi")
    assert nodes.labels(spec)["nvidia.com/gpu.memory"] == "81920"


def test_a_gpu_that_is_cut_is_handed_out_by_instances_and_read_as_announced() -> None:
    cut = GpuModel.parse("SIM-M:8Gi:3g.4gb,1g.1gb,1g.1gb")
    (spec,) = uniform_nodes(1, 2, (cut,))
    capacity = nodes.capacity(spec)
    assert "nvidia.com/gpu" not in capacity
    assert (capacity["nvidia.com/mig-1g.1gb"], capacity["nvidia.com/mig-3g.4gb"]) == ("4", "2")
    assert nodes.labels(spec)["nvidia.com/mig.strategy"] == "mixed"
    found = [info for info, _ in parse_devices(nodes.devices_annotation(spec))]
    assert [one.is_mig for one in found] == [False, True, True, True] * 2
    assert sorted(one.uuid for one in found if one.is_mig) == sorted(
        uuid for uuids in nodes.plugin_devices(spec).values() for uuid in uuids
    )
    assert [str(one.mig_profile) for one in found[1:4]] == ["3g.4gb", "1g.1gb", "1g.1gb"]
    assert (found[1].memory_bytes, found[1].parent, found[1].index) == (4 << 30, found[0].uuid, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SIM-M:8Gi:1g", "write one like 1g.10gb"),
        ("SIM-M:80Gi:4g.4gb,4g.4gb", "8 compute slices, a GPU has 7"),
        ("SIM-M:4Gi:3g.4gb,1g.1gb", "5 GiB, the GPU has 4.0 GiB"),
        ("SIM-M", "PRODUCT:MEMORY:PROFILE"),
    ],
)
def test_a_gpu_that_cannot_be_cut_like_that_is_refused(text, words) -> None:
    with pytest.raises(Permanent, match=words):
        GpuModel.parse(text)


def test_racks_and_zones_are_spread() -> None:
    specs = uniform_nodes(33, 1, (GpuModel.parse("A:1Gi"),))
    assert len({spec.rack for spec in specs}) == 9
    assert len({spec.zone for spec in specs}) == 3


@pytest.mark.parametrize(
    "text", ["", "A", "A:", ":1Gi", "A:0", "A:-1Gi", "A B:1Gi", "A:1Q", "A" * 64 + ":1Gi"]
)
def test_bad_gpu_options_are_quoted_in_the_message(text) -> None:
    with pytest.raises(Permanent, match="--gpu") as failure:
        GpuModel.parse(text)
    assert repr(text) in str(failure.value)


def test_a_spec_survives_its_file(tmp_path) -> None:
    spec = ClusterSpec(index=3, nodes=uniform_nodes(2, 2, (GpuModel.parse("A:1Gi"),)), hub_store="/x")
    spec.write(tmp_path / "cluster.json")
    assert ClusterSpec.read(tmp_path / "cluster.json") == spec


# -- processes and their records


def test_a_record_tells_a_process_from_a_later_one_with_its_pid() -> None:
    mine = ProcessRecord.of("me", os.getpid())
    assert mine.alive()
    assert not ProcessRecord("me", mine.pid, mine.started + 1).alive()
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert start_ticks(ended.pid) is None


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen(["sleep", "600"])
    record = ProcessRecord.of("z", process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not record.alive()
    process.wait()


def test_processes_are_found_by_their_mark_and_not_by_a_part_of_it() -> None:
    marks = {"LLMOS_TEST_MARK": "/tmp/here"}
    process = subprocess.Popen(
        ["cat"], env={**os.environ, **marks}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    try:
        process.stdin.write(b"\n")
        process.stdout.readline()  # it runs: its environment can be read
        assert [record.pid for record in marked_processes("LLMOS_TEST_MARK=/tmp/here")] == [process.pid]
        assert not list(marked_processes("LLMOS_TEST_MARK=/tmp/her"))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("text", ["", "{", '{"stage": "unknown"}', "[]"])
def test_a_state_file_of_another_version_is_no_state(tmp_path, text) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    assert ClusterState.read(path) is None


def test_a_state_survives_its_file(tmp_path) -> None:
    state = ClusterState(
        stage="ready", supervisor=RecordedProcess(name="s", pid=1, started=2), marks={"api": 1.5}
    )
    state.write(tmp_path / "state.json")
    assert ClusterState.read(tmp_path / "state.json") == state


# -- the hub's store


def test_identities_are_those_of_git_and_of_large_files(tmp_path) -> None:
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"hello\n")
    (folder / "w.safetensors").write_bytes(b"hello\n")
    repository = Store(tmp_path).repository("org/model")
    small, large = repository.files["a.txt"], repository.files["w.safetensors"]
    assert small.oid == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert small.sha256 == ""
    assert large.sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert repository.at("main")
    assert repository.at(repository.commit)
    assert not repository.at("dev")


@pytest.mark.parametrize(
    "name", ["org", "org/", "/model", "../org/model", "org/..", "org/model/x", ".access/x"]
)
def test_names_that_are_no_repository(tmp_path, name) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / ".access" / "x").mkdir(parents=True)
    assert Store(tmp_path).repository(name) is None


def test_the_package_finds_its_own_source() -> None:
    image = images.builtin_images()[0]
    assert (Path(image.env["PYTHONPATH"]) / "llmos_operator" / "__init__.py").is_file()
