"""Which workload a model's name means."""

from __future__ import annotations

from dataclasses import replace

from llmos_operator.gateway.catalog import Ambiguous, Catalog, Replica, Route, Unknown, Workload, WorkloadKey


def _workload(namespace: str, name: str, served: str = "", uid: str = "") -> Workload:
    return Workload(WorkloadKey(namespace, name), uid or f"uid-{namespace}-{name}", served or name)


def _catalog(*workloads: Workload) -> Catalog:
    catalog = Catalog()
    for workload in workloads:
        catalog.put_workload(workload)
    return catalog


def _keys(found: object) -> list[str]:
    assert isinstance(found, Route), found
    return [str(w.key) for w in found.workloads]


def test_a_served_name_finds_its_workload() -> None:
    catalog = _catalog(_workload("a", "chat-v1", "org/Chat"), _workload("b", "embed"))
    assert _keys(catalog.resolve("org/Chat")) == ["a/chat-v1"]


def test_a_workload_name_works_where_no_served_name_does() -> None:
    catalog = _catalog(_workload("a", "chat-v1", "org/Chat"))
    assert _keys(catalog.resolve("chat-v1")) == ["a/chat-v1"]


def test_the_namespaced_form_always_works_for_workload_and_served_name() -> None:
    catalog = _catalog(_workload("a", "one", "chat"), _workload("b", "two", "chat"))
    assert _keys(catalog.resolve("a/one")) == ["a/one"]
    assert _keys(catalog.resolve("b/chat")) == ["b/two"]


def test_a_name_served_in_two_namespaces_is_ambiguous_and_says_how_to_choose() -> None:
    catalog = _catalog(_workload("a", "one", "chat"), _workload("b", "two", "chat"))
    assert catalog.resolve("chat") == Ambiguous(("a/one", "b/two"))


def test_a_namespace_breaks_the_tie() -> None:
    catalog = _catalog(_workload("a", "one", "chat"), _workload("b", "two", "chat"))
    assert _keys(catalog.resolve("chat", namespace="b")) == ["b/two"]


def test_a_namespace_without_the_name_does_not_hide_the_only_one() -> None:
    catalog = _catalog(_workload("a", "one", "chat"))
    assert _keys(catalog.resolve("chat", namespace="elsewhere")) == ["a/one"]


def test_a_served_name_cannot_take_over_the_namespaced_form_of_another_team() -> None:
    catalog = _catalog(_workload("meta", "llama"), _workload("evil", "x", "meta/llama"))
    assert _keys(catalog.resolve("meta/llama")) == ["meta/llama"]


def test_what_a_client_may_not_use_does_not_exist_for_it() -> None:
    catalog = _catalog(_workload("a", "one", "chat"), _workload("b", "two", "chat"))
    only_a = catalog.resolve("chat", allowed=lambda key: key.namespace == "a")
    assert _keys(only_a) == ["a/one"]
    nothing = catalog.resolve("a/one", allowed=lambda _: False)
    assert nothing == Unknown((), 0)


def test_an_unknown_name_names_the_known_ones_in_their_shortest_form() -> None:
    catalog = _catalog(_workload("a", "one", "chat"), _workload("b", "two", "chat"), _workload("b", "embed"))
    assert catalog.resolve("nope") == Unknown(("a/one", "b/two", "embed"), 0)


def test_many_known_names_are_cut() -> None:
    catalog = _catalog(*[_workload("a", f"w{i:03}") for i in range(50)])
    found = catalog.resolve("nope")
    assert isinstance(found, Unknown)
    assert (len(found.known), found.more) == (20, 30)


def test_workloads_of_one_namespace_that_share_a_name_share_its_requests() -> None:
    catalog = _catalog(_workload("a", "old", "chat"), _workload("a", "new", "chat"))
    assert _keys(catalog.resolve("chat")) == ["a/new", "a/old"]


def test_a_renamed_model_is_found_by_its_new_name_only() -> None:
    catalog = _catalog(_workload("a", "one", "before"))
    catalog.put_workload(_workload("a", "one", "after"))
    assert isinstance(catalog.resolve("before"), Unknown)
    assert _keys(catalog.resolve("after")) == ["a/one"]


def test_a_deleted_workload_is_unknown_and_its_name_free() -> None:
    catalog = _catalog(_workload("a", "one", "chat"))
    catalog.remove_workload(WorkloadKey("a", "one"))
    assert catalog.resolve("chat") == Unknown((), 0)
    assert list(catalog.workloads()) == []


def test_a_workload_made_anew_is_not_the_old_one() -> None:
    old = _workload("a", "one", uid="first")
    catalog = _catalog(old)
    catalog.put_workload(_workload("a", "one", uid="second"))
    assert catalog.current(old) is None


def test_listeners_hear_of_changes_and_only_of_changes() -> None:
    catalog = Catalog()
    heard: list[str] = []
    catalog.subscribe(heard.append)
    workload = _workload("a", "one", uid="w")
    replica = Replica("r", "w", "a/r", "10.0.0.1", 8000)
    catalog.put_workload(workload)
    catalog.put_workload(workload)
    catalog.put_replica(replica)
    catalog.put_replica(replica)
    catalog.remove_replica("r")
    catalog.remove_replica("r")
    catalog.remove_workload(workload.key)
    assert heard == ["w"] * 4


def test_a_replica_with_a_new_address_replaces_its_old_self() -> None:
    catalog = _catalog(_workload("a", "one", uid="w"))
    catalog.put_replica(Replica("r", "w", "a/r", "10.0.0.1", 8000))
    catalog.put_replica(Replica("r", "w", "a/r", "10.0.0.2", 8000))
    assert [r.host for r in catalog.replicas("w")] == ["10.0.0.2"]
    assert catalog.replica_count() == 1


def _with_adapters(workload: Workload, *adapters: str) -> Workload:
    return replace(workload, adapters=adapters)


def test_an_adapter_is_found_by_its_name_with_and_without_the_namespace() -> None:
    catalog = _catalog(
        _with_adapters(_workload("a", "chat", "org/Chat"), "tone", "law"), _workload("b", "other")
    )
    for name in ("tone", "a/tone"):
        found = catalog.resolve(name)
        assert _keys(found) == ["a/chat"]
        assert isinstance(found, Route)
        assert found.model_of(found.lead) == "tone"
    plain = catalog.resolve("org/Chat")
    assert isinstance(plain, Route)
    assert plain.model_of(plain.lead) == "org/Chat"
    assert isinstance(catalog.resolve("b/tone"), Unknown)


def test_an_adapter_can_never_hide_a_model() -> None:
    catalog = _catalog(
        _with_adapters(_workload("evil", "x"), "chat", "chat-v1"), _workload("a", "chat-v1", "chat")
    )
    assert _keys(catalog.resolve("chat")) == ["a/chat-v1"]
    assert _keys(catalog.resolve("chat-v1")) == ["a/chat-v1"]
    evil = catalog.find(WorkloadKey("evil", "x"))
    assert evil is not None
    assert catalog.adapter_name(evil, "chat") == "evil/chat"


def test_an_adapter_of_two_namespaces_is_ambiguous_and_of_one_is_shared() -> None:
    catalog = _catalog(
        _with_adapters(_workload("a", "one"), "tone"),
        _with_adapters(_workload("a", "two"), "tone"),
        _with_adapters(_workload("b", "one"), "tone"),
    )
    assert catalog.resolve("tone") == Ambiguous(("a/tone", "b/tone"))
    assert _keys(catalog.resolve("tone", namespace="a")) == ["a/one", "a/two"]
    assert _keys(catalog.resolve("tone", allowed=lambda key: key.namespace == "b")) == ["b/one"]
