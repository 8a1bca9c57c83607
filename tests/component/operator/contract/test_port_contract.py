"""What the package relies on of an API server, checked on the real one and on the in-memory port alike."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.cluster import port
from llmos_operator.cluster.failures import AlreadyExists, NotFound
from llmos_operator.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.component.operator.contract.conftest import Server

pytestmark = [pytest.mark.anyio, pytest.mark.component]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def service(name: str, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
    }


def pod(name: str, node: str = "", **labels: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 20}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": spec | ({"nodeName": node} if node else {}),
    }


async def listed(server: Server, kind: port.Kind, **selection: Any) -> tuple[list[str], str]:
    found: list[str] = []
    version = ""
    async for page in server.port.list_pages(kind, namespace=server.namespace, **selection):
        found += [item["metadata"]["name"] for item in page.items]
        version = page.resource_version
    return found, version


async def next_event(events: AsyncIterator[port.WatchEvent]) -> port.WatchEvent:
    while True:
        event = await asyncio.wait_for(anext(events), 60)
        if event.type != "BOOKMARK":
            return event


async def test_a_created_object_is_returned_and_read_back(server: Server) -> None:
    made = await server.port.create(port.SERVICES, service("a"), namespace=server.namespace)
    read = await server.port.get(port.SERVICES, "a", namespace=server.namespace)
    assert made["metadata"]["uid"] == read["metadata"]["uid"]
    assert int(made["metadata"]["resourceVersion"]) > 0
    assert read["kind"] == "Service"


async def test_reading_what_does_not_exist_raises_not_found(server: Server) -> None:
    with pytest.raises(NotFound):
        await server.port.get(port.SERVICES, "none", namespace=server.namespace)
    with pytest.raises(NotFound):
        await server.port.delete(port.SERVICES, "none", namespace=server.namespace)
    with pytest.raises(NotFound):
        await server.port.evict("none", namespace=server.namespace)


async def test_creating_a_name_twice_raises_already_exists(server: Server) -> None:
    await server.port.create(port.SERVICES, service("a"), namespace=server.namespace)
    with pytest.raises(AlreadyExists):
        await server.port.create(port.SERVICES, service("a"), namespace=server.namespace)


async def test_a_list_comes_in_pages_of_one_version(server: Server) -> None:
    for index in range(5):
        await server.port.create(port.SERVICES, service(f"s{index}"), namespace=server.namespace)
    pages = [
        page async for page in server.port.list_pages(port.SERVICES, namespace=server.namespace, limit=2)
    ]
    assert [len(page.items) for page in pages] == [2, 2, 1]
    assert len({page.resource_version for page in pages}) == 1
    assert all(item["kind"] == "Service" for page in pages for item in page.items)


async def test_a_list_of_metadata_has_versions_and_no_content(server: Server) -> None:
    made = [
        await server.port.create(port.SERVICES, service(f"s{index}"), namespace=server.namespace)
        for index in range(3)
    ]
    pages = [
        page
        async for page in server.port.list_pages(
            port.SERVICES, namespace=server.namespace, limit=2, metadata_only=True
        )
    ]
    found = [item for page in pages for item in page.items]
    assert [sorted(item) for item in found] == [["apiVersion", "kind", "metadata"]] * 3
    assert {item["kind"] for item in found} == {"Service"}
    versions = {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in found}
    assert versions == {one["metadata"]["uid"]: one["metadata"]["resourceVersion"] for one in made}


async def test_an_empty_list_has_a_version_to_watch_from(server: Server) -> None:
    found, version = await listed(server, port.SERVICES)
    assert found == []
    assert int(version) >= 0


async def test_selectors_choose_by_label_and_field(server: Server) -> None:
    await server.port.create(port.PODS, pod("on", "node-1", app="x"), namespace=server.namespace)
    await server.port.create(port.PODS, pod("off", app="x"), namespace=server.namespace)
    await server.port.create(port.PODS, pod("other", "node-2", app="y"), namespace=server.namespace)
    assert (await listed(server, port.PODS, label_selector="app=x"))[0] == ["off", "on"]
    assert (await listed(server, port.PODS, field_selector="spec.nodeName!="))[0] == ["on", "other"]
    assert (
        await listed(server, port.PODS, label_selector="app in (x,y)", field_selector="spec.nodeName=node-2")
    )[0] == ["other"]


async def test_a_watch_tells_changes_in_order_from_a_version_on(server: Server) -> None:
    _, version = await listed(server, port.SERVICES)
    await server.port.create(port.SERVICES, service("a"), namespace=server.namespace)
    await server.port.merge_patch(
        port.SERVICES, "a", {"metadata": {"labels": {"x": "1"}}}, namespace=server.namespace
    )
    await server.port.delete(port.SERVICES, "a", namespace=server.namespace)
    events = server.port.watch(port.SERVICES, resource_version=version, namespace=server.namespace)
    seen = [await next_event(events) for _ in range(3)]
    assert [event.type for event in seen] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(event.resource_version) for event in seen]
    assert versions == sorted(versions)
    assert len(set(versions)) == 3  # the deletion has a version of its own


async def test_a_watch_with_a_selector_tells_when_an_object_enters_and_leaves(server: Server) -> None:
    _, version = await listed(server, port.SERVICES)
    events = server.port.watch(
        port.SERVICES, resource_version=version, namespace=server.namespace, label_selector="x=1"
    )
    await server.port.create(port.SERVICES, service("a"), namespace=server.namespace)
    await server.port.merge_patch(
        port.SERVICES, "a", {"metadata": {"labels": {"x": "1"}}}, namespace=server.namespace
    )
    await server.port.merge_patch(
        port.SERVICES, "a", {"metadata": {"labels": {"x": "2"}}}, namespace=server.namespace
    )
    assert [(await next_event(events)).type for _ in range(2)] == ["ADDED", "DELETED"]


async def test_replacing_an_old_version_raises_conflict(server: Server) -> None:
    first = await server.port.create(port.SERVICES, service("a"), namespace=server.namespace)
    await server.port.merge_patch(
        port.SERVICES, "a", {"metadata": {"labels": {"x": "1"}}}, namespace=server.namespace
    )
    with pytest.raises(Conflict):
        await server.port.replace(port.SERVICES, first, namespace=server.namespace)


async def test_merge_patch_keeps_its_preconditions(server: Server) -> None:
    made = await server.port.create(port.SERVICES, service("a"), namespace=server.namespace)
    old = {"resourceVersion": made["metadata"]["resourceVersion"], "labels": {"x": "1"}}
    await server.port.merge_patch(port.SERVICES, "a", {"metadata": old}, namespace=server.namespace)
    with pytest.raises(Conflict):
        await server.port.merge_patch(
            port.SERVICES, "a", {"metadata": old | {"labels": {"x": "2"}}}, namespace=server.namespace
        )
    with pytest.raises(Conflict):
        await server.port.merge_patch(
            port.SERVICES,
            "a",
            {"metadata": {"uid": "another", "labels": {"x": "3"}}},
            namespace=server.namespace,
        )


async def test_apply_creates_changes_and_removes_what_it_owned(server: Server) -> None:
    body = service("a", x="1", y="1")
    await server.port.apply(port.SERVICES, body, manager="m", namespace=server.namespace)
    changed = await server.port.apply(
        port.SERVICES, service("a", x="2"), manager="m", namespace=server.namespace
    )
    assert changed["metadata"]["labels"] == {"x": "2"}


async def test_apply_leaves_what_another_manager_owns(server: Server) -> None:
    await server.port.apply(port.SERVICES, service("a", x="1"), manager="m", namespace=server.namespace)
    other = {"metadata": {"name": "a", "labels": {"y": "1"}}}
    await server.port.apply(port.SERVICES, other, manager="n", namespace=server.namespace)
    again = await server.port.apply(port.SERVICES, service("a"), manager="m", namespace=server.namespace)
    assert again["metadata"]["labels"] == {"y": "1"}


async def test_applying_the_same_again_changes_no_version(server: Server) -> None:
    first = await server.port.apply(
        port.SERVICES, service("a", x="1"), manager="m", namespace=server.namespace
    )
    second = await server.port.apply(
        port.SERVICES, service("a", x="1"), manager="m", namespace=server.namespace
    )
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


async def test_apply_to_another_uid_raises_conflict(server: Server) -> None:
    made = await server.port.create(port.SERVICES, service("a"), namespace=server.namespace)
    await server.port.delete(port.SERVICES, "a", namespace=server.namespace)
    body = service("a", x="1")
    body["metadata"]["uid"] = made["metadata"]["uid"]
    with pytest.raises(Conflict):
        await server.port.apply(port.SERVICES, body, manager="m", namespace=server.namespace)
    await server.port.create(port.SERVICES, service("a"), namespace=server.namespace)
    with pytest.raises(Conflict):
        await server.port.apply(port.SERVICES, body, manager="m", namespace=server.namespace)


async def test_status_is_applied_apart_from_spec_and_removed_when_left_out(server: Server) -> None:
    made = await server.port.create(port.PODS, pod("a", "node-1"), namespace=server.namespace)
    meta = {"name": "a", "uid": made["metadata"]["uid"]}
    status = {"metadata": meta, "status": {"message": "hello", "reason": "Why"}}
    await server.port.patch_status(port.PODS, status, manager="m", namespace=server.namespace)
    status = {"metadata": meta, "status": {"message": "bye"}}
    after = await server.port.patch_status(port.PODS, status, manager="m", namespace=server.namespace)
    assert after["status"]["message"] == "bye"
    assert "reason" not in after["status"]
    assert after["metadata"].get("generation", 1) == made["metadata"].get("generation", 1)


async def test_status_of_a_recreated_object_is_not_written(server: Server) -> None:
    made = await server.port.create(port.PODS, pod("a"), namespace=server.namespace)
    await server.port.delete(port.PODS, "a", namespace=server.namespace, grace_seconds=0)
    body = {"metadata": {"name": "a", "uid": made["metadata"]["uid"]}, "status": {"message": "late"}}
    with pytest.raises(NotFound):
        await server.port.patch_status(port.PODS, body, manager="m", namespace=server.namespace)
    await server.port.create(port.PODS, pod("a"), namespace=server.namespace)
    with pytest.raises(Conflict):
        await server.port.patch_status(port.PODS, body, manager="m", namespace=server.namespace)


async def test_delete_checks_uid_and_version(server: Server) -> None:
    made = await server.port.create(port.SERVICES, service("a"), namespace=server.namespace)
    with pytest.raises(Conflict):
        await server.port.delete(port.SERVICES, "a", namespace=server.namespace, uid="another")
    with pytest.raises(Conflict):
        await server.port.delete(port.SERVICES, "a", namespace=server.namespace, resource_version="1")
    await server.port.delete(port.SERVICES, "a", namespace=server.namespace, uid=made["metadata"]["uid"])
    with pytest.raises(NotFound):
        await server.port.get(port.SERVICES, "a", namespace=server.namespace)


async def test_a_pod_on_a_node_ends_gracefully_and_one_without_is_gone_at_once(server: Server) -> None:
    await server.port.create(port.PODS, pod("on", "node-1"), namespace=server.namespace)
    await server.port.create(port.PODS, pod("off"), namespace=server.namespace)
    await server.port.delete(port.PODS, "on", namespace=server.namespace)
    await server.port.delete(port.PODS, "off", namespace=server.namespace)
    ending = await server.port.get(port.PODS, "on", namespace=server.namespace)
    assert ending["metadata"]["deletionGracePeriodSeconds"] == 20
    assert ending["metadata"]["deletionTimestamp"]
    with pytest.raises(NotFound):
        await server.port.get(port.PODS, "off", namespace=server.namespace)
    await server.port.delete(port.PODS, "on", namespace=server.namespace, grace_seconds=0)
    with pytest.raises(NotFound):
        await server.port.get(port.PODS, "on", namespace=server.namespace)


async def test_eviction_ends_a_pod_gracefully_and_checks_the_uid(server: Server) -> None:
    made = await server.port.create(port.PODS, pod("a", "node-1"), namespace=server.namespace)
    with pytest.raises(Conflict):
        await server.port.evict("a", namespace=server.namespace, uid="another")
    await server.port.evict("a", namespace=server.namespace, uid=made["metadata"]["uid"])
    ending = await server.port.get(port.PODS, "a", namespace=server.namespace)
    assert ending["metadata"]["deletionTimestamp"]


async def test_a_token_of_nobody_is_nobody(server: Server) -> None:
    assert await server.port.token_review("not-a-token") is None


async def test_an_event_is_recorded(server: Server) -> None:
    body = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "e1", "namespace": server.namespace},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "type": "Normal",
        "reason": "Bound",
        "action": "Bind",
        "note": "hello",
        "reportingController": "llmos.dev/llmos-operator",
        "reportingInstance": "test",
        "regarding": {"kind": "Pod", "name": "a", "namespace": server.namespace},
    }
    await server.port.create_event(body, namespace=server.namespace)
