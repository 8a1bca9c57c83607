"""LoRA adapters at the front: who may load one, under which name it answers, and what the figures say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.errors import Permanent
from llmos_operator.runtime.ipc import Stats
from llmos_operator.runtime.ipc.messages import AdapterInfo, AdapterSource, AdapterUse
from llmos_operator.runtime.loader.adapters import _inside
from llmos_operator.runtime.settings import BadEnvironment, from_environment
from tests.support.engine import MODEL, ScriptedEngine, running_runtime, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ORDER = {"lora_name": "tone", "lora_path": "/adapters/tone"}
AS_OPERATOR = {"headers": {"Authorization": "Bearer control"}}


def served(name: str = "tone") -> ScriptedEngine:
    return ScriptedEngine(
        adapters={name: AdapterInfo(name, f"hf://org/{name}", "sha256:" + "cd" * 32, 8, 1000)}
    )


def asking(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": "Hi", "max_tokens": 4}


async def test_a_request_for_an_adapter_is_answered_by_it_and_says_so(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=served()) as bench:
        status, answer, _ = await bench.post("/v1/completions", asking("tone"))
        assert (status, answer["model"]) == (200, "tone")
        await bench.post("/v1/completions", asking(MODEL))
        assert [submit.adapter for submit in bench.engine.submits] == ["tone", ""]
        status, answer, _ = await bench.post("/v1/completions", asking("other"))
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert "tone" in answer["error"]["message"]


async def test_adapters_are_listed_with_their_parent(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=served()) as bench:
        async with bench.http.get(f"{bench.url}/v1/models") as answer:
            listed = (await answer.json())["data"]
        assert [(one["id"], one["parent"]) for one in listed] == [(MODEL, None), ("tone", MODEL)]
        async with bench.http.get(f"{bench.url}/v1/models/tone") as answer:
            assert (await answer.json())["parent"] == MODEL


async def test_an_adapter_is_loaded_served_and_unloaded(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, adapter_dirs=("/adapters",), max_adapters=2) as bench:
        async with bench.http.post(bench.url + LOAD, json=ORDER, **AS_OPERATOR) as answer:
            assert (answer.status, await answer.text()) == (
                200,
                "Success: LoRA adapter 'tone' added successfully.",
            )
        order = bench.engine.adapter_orders[0]
        assert (order.name, order.uri, order.folders) == ("tone", "/adapters/tone", ("/adapters",))
        assert (await bench.post("/v1/completions", asking("tone")))[0] == 200
        assert bench.metric("llmos_runtime_adapter_swap_seconds_count", action="load") == 1
        async with bench.http.post(bench.url + UNLOAD, json={"lora_name": "tone"}, **AS_OPERATOR) as answer:
            assert answer.status == 200
        assert (await bench.post("/v1/completions", asking("tone")))[0] == 404


async def test_adapters_outlive_a_crash_of_the_engine(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, adapter_dirs=("/adapters",), max_adapters=2) as bench:
        async with bench.http.post(bench.url + LOAD, json=ORDER, **AS_OPERATOR) as answer:
            assert answer.status == 200
        bench.engine.crash()
        await until(lambda: len(bench.engine.loads) == 2)
        assert bench.engine.loads[1].adapters == (AdapterSource("tone", "/adapters/tone", demanded=False),)


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_only_a_key_or_the_control_token_changes_adapters(tmp_path: Path, path: str) -> None:
    body = ORDER if path == LOAD else {"lora_name": "tone"}
    async with running_runtime(tmp_path, engine=served("old"), adapter_dirs=("/adapters",)) as bench:
        assert (await bench.post("/v1/completions", asking(MODEL)))[0] == 200, "answers are open"
        assert (await bench.post(path, body))[0] == 401
        assert (await bench.post(path, body, headers={"Authorization": "Bearer guess"}))[0] == 401
    async with running_runtime(
        tmp_path, adapter_dirs=("/adapters",), api_keys=("k",), control_token=""
    ) as bench:
        assert (await bench.post(path, body, headers={"Authorization": "Bearer "}))[0] == 401
        bench.engine.adapter_error = ("no", "ModelNotFound")
        assert (await bench.post(path, body, headers={"Authorization": "Bearer k"}))[0] == 404
    assert not bench.engine.adapters


async def test_without_allowed_folders_clients_load_nothing(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        status, answer, _ = await bench.post(LOAD, ORDER, **AS_OPERATOR)
        assert (status, answer["error"]["code"]) == (403, "adapters_not_allowed")
        assert not bench.engine.adapter_orders


async def test_clients_cannot_unload_what_the_workload_demands(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "adapters": (AdapterSource("tone", "hf://org/tone"),),
        "adapter_dirs": ("/adapters",),
    }
    async with running_runtime(tmp_path, engine=served(), **settings) as bench:
        status, answer, _ = await bench.post(UNLOAD, {"lora_name": "tone"}, **AS_OPERATOR)
        assert (status, answer["error"]["code"]) == (403, "adapter_protected")
        assert "tone" in bench.engine.adapters


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        ("Corrupted", 400, "adapter_corrupted"),
        ("ModelNotFound", 404, "adapter_model_not_found"),
        ("SourceNotAllowed", 403, "adapter_source_not_allowed"),
        ("OutOfMemory", 400, "adapter_out_of_memory"),
        ("NameTaken", 400, "adapter_name_taken"),
    ],
)
async def test_what_is_wrong_with_an_adapter_is_said(
    tmp_path: Path, reason: str, status: int, code: str
) -> None:
    async with running_runtime(tmp_path, adapter_dirs=("/adapters",)) as bench:
        bench.engine.adapter_error = ("adapter 'tone': tensor x lacks", reason)
        found, answer, _ = await bench.post(LOAD, ORDER, **AS_OPERATOR)
        assert (found, answer["error"]["code"], answer["error"]["param"]) == (status, code, "lora_path")
        assert "tensor x lacks" in answer["error"]["message"]


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 64, "a/b", MODEL])
async def test_a_name_that_cannot_be_asked_for_is_refused(tmp_path: Path, name: str) -> None:
    async with running_runtime(tmp_path, adapter_dirs=("/adapters",)) as bench:
        status, answer, _ = await bench.post(LOAD, {**ORDER, "lora_name": name}, **AS_OPERATOR)
        assert (status, answer["error"]["param"]) == (400, "lora_name")
        assert not bench.engine.adapter_orders


async def test_the_operator_has_the_same_on_the_control_port(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, max_adapters=1) as bench:
        order = {"name": "tone", "uri": "hf://org/tone"}
        async with bench.http.post(f"{bench.control}/adapters", json=order) as answer:
            assert answer.status == 401
        async with bench.http.post(f"{bench.control}/adapters", json=order, **AS_OPERATOR) as answer:
            assert answer.status == 200
        async with bench.http.get(f"{bench.control}/status", **AS_OPERATOR) as answer:
            told = (await answer.json())["adapters"]
        assert told == [
            {
                "name": "tone",
                "uri": "hf://org/tone",
                "digest": "sha256:" + "cd" * 32,
                "rank": 8,
                "weightsBytes": 1000,
            }
        ]
        async with bench.http.delete(f"{bench.control}/adapters/tone", **AS_OPERATOR) as answer:
            assert answer.status == 200
        assert not bench.engine.adapters


async def test_figures_name_the_adapters_in_use(tmp_path: Path) -> None:
    engine = served()
    engine.stats = Stats(adapters=(AdapterUse("one", 2, 0), AdapterUse("tone", 1, 3)))
    async with running_runtime(tmp_path, engine=engine, max_adapters=4) as bench:
        _, text = await bench.get("/metrics")
        line = next(one for one in text.splitlines() if one.startswith("vllm:lora_requests_info{"))
        assert 'max_lora="4"' in line
        assert 'running_lora_adapters="one,tone"' in line
        assert 'waiting_lora_adapters="tone"' in line
        assert float(line.rpartition(" ")[2]) > 1.7e9, "the moment"


# ---------------------------------------------------------------- paths and settings


def test_a_path_must_stay_below_an_allowed_folder_links_followed(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    for folder in (allowed / "good", allowed / "linked-file", outside, tmp_path / "allowed-not"):
        folder.mkdir(parents=True)
    (allowed / "linked").symlink_to(outside)
    (allowed / "linked-file" / "adapter_config.json").symlink_to("/etc/passwd")
    loop = allowed / "loop"
    loop.symlink_to(loop)
    assert _inside(str(allowed / "good"), [str(allowed)]) == (allowed / "good").resolve()
    answers = set()
    for path in (
        str(outside),
        str(tmp_path / "absent"),
        "/etc",
        f"{allowed}/../outside",
        f"{allowed}/linked",
        f"{allowed}/linked-file",
        f"{allowed}-not",
        str(loop),
        "good",
        "file:///etc",
        f"{allowed}/good\0",
        "/" + "x" * 5000,
    ):
        with pytest.raises(Permanent) as caught:
            _inside(path, [str(allowed)])
        answers.add((caught.value.reason, str(caught.value)))
    assert len(answers) == 1, "what exists elsewhere cannot be told from what does not"
    assert os.fspath(outside) not in str(answers)


def test_settings_read_adapters_and_refuse_what_cannot_be_meant() -> None:
    base = {"LLMOS_MODEL_URI": "hf://org/base"}
    found = from_environment(
        base
        | {
            "LLMOS_ADAPTERS": '[{"name": "a", "uri": "hf://org/a"}]',
            "LLMOS_MAX_ADAPTER_RANK": "32",
            "LLMOS_ADAPTER_DIRS": "/a, /b",
        }
    )
    assert found.adapters == (AdapterSource("a", "hf://org/a"),)
    assert (found.max_adapters, found.max_adapter_rank, found.adapter_dirs) == (1, 32, ("/a", "/b"))
    for bad in (
        {"LLMOS_ADAPTERS": "a=b"},
        {"LLMOS_ADAPTERS": '[{"name": "a"}]'},
        {"LLMOS_ADAPTERS": '[{"name": "a", "uri": "x"}, {"name": "a", "uri": "y"}]'},
        {"LLMOS_ADAPTER_DIRS": "relative"},
        {"LLMOS_ADAPTER_DIRS": "/"},
    ):
        with pytest.raises(BadEnvironment):
            from_environment(base | bad)
