"""The control plane on real processes."""

import json
import signal
import time

import pytest

from llmos_operator.errors import Retryable
from llmos_operator.local.addresses import claim_block
from llmos_operator.local.controlplane import ControlPlane
from tests.support.cluster import control_plane as start_control_plane

pytestmark = pytest.mark.component


def test_controllers_collect_the_children_of_a_deleted_owner(
    control_plane: ControlPlane, cp_namespace: str
) -> None:
    control_plane.kubectl("create", "deployment", "web", "--image=none", "-n", cp_namespace)
    _eventually(lambda: _names(control_plane, "pods", cp_namespace))
    control_plane.kubectl("delete", "deployment", "web", "-n", cp_namespace)
    _eventually(lambda: not _names(control_plane, "replicasets", cp_namespace))


def test_services_get_a_loopback_address_of_this_cluster(
    control_plane: ControlPlane, cp_namespace: str
) -> None:
    control_plane.kubectl("create", "service", "clusterip", "web", "--tcp=80:8000", "-n", cp_namespace)
    address = control_plane.kubectl(
        "get", "service", "web", "-n", cp_namespace, "-o", "jsonpath={.spec.clusterIP}"
    )
    prefix = control_plane.block.service_cidr.split(".")[:2]
    assert address.split(".")[:2] == prefix


def test_two_control_planes_run_side_by_side(control_plane: ControlPlane, tmp_path) -> None:
    with start_control_plane(tmp_path) as other:
        assert other.url != control_plane.url
        other.kubectl("create", "namespace", "only-here")
        assert "only-here" not in control_plane.kubectl("get", "namespaces", "-o", "name")
        records = other.records()
        assert len(records) == 4
    assert not [record for record in records if record.alive()]


def test_restart_keeps_what_was_written_and_a_frozen_server_does_not_answer(tmp_path) -> None:
    with start_control_plane(tmp_path) as cp:
        cp.kubectl("create", "namespace", "kept")
        cp.restart("kube-apiserver")
        cp.wait_ready()
        assert "kept" in cp.kubectl("get", "namespaces", "-o", "name")
        with cp.frozen("kube-apiserver"), pytest.raises(Retryable):
            cp.request("/readyz", timeout=0.5)
        cp.wait_ready()


def test_a_part_that_ends_during_start_is_named_with_the_end_of_its_log(tmp_path) -> None:
    with start_control_plane(tmp_path) as cp:
        cp.process("etcd").send_signal(signal.SIGKILL)
        cp.process("etcd").wait()
        assert cp.failed() == "etcd"


def test_a_claimed_block_is_not_given_twice() -> None:
    first = claim_block()
    second = claim_block(preferred=first.block.index)
    try:
        assert first.block != second.block
    finally:
        first.close()
        second.close()


def _names(plane: ControlPlane, kind: str, namespace: str) -> list[str]:
    listing = json.loads(plane.kubectl("get", kind, "-n", namespace, "-o", "json"))
    return [item["metadata"]["name"] for item in listing["items"]]


def _eventually(check, timeout: float = 90.0) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
