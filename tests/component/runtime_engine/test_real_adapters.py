"""LoRA adapters on a real model: exact, and swapped while streams run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.errors import Permanent
from llmos_operator.runtime.ipc import SamplingParams, Submit
from llmos_operator.runtime.ipc.messages import AdapterSource
from tests.support.loras import CHAT_LAYERS, CHAT_SHAPES, TARGETS, write_random_adapter

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model

PROMPTS = [[504, 3575, 282, 4649, 314], [57, 5248, 260], list(range(1000, 1020))]


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two"), 1):
        write_random_adapter(folder / name, CHAT_SHAPES, CHAT_LAYERS, rank=8, seed=seed, width=0.03)
    return folder


def test_an_adapter_answers_as_the_model_with_its_weights_merged(chat_model: Path, adapters: Path) -> None:
    import torch  # noqa: PLC0415 - other tests of this folder do without
    from safetensors.torch import load_file  # noqa: PLC0415

    from llmos_operator.runtime.formats.adapter import WEIGHTS, read_adapter  # noqa: PLC0415
    from tests.unit.runtime_engine.conftest import Driver  # noqa: PLC0415

    model = Driver(chat_model, "fp32")
    causal = model.built.causal
    for name in ("one", "two"):
        files = read_adapter(adapters / name, causal.adapters.layers, max_rank=8)
        causal.adapters.add(name, causal.adapters.read(files))
    names = ["one", "", "two"]
    mixed, _ = model.run(PROMPTS, 6, adapters=names)
    plain, _ = model.run(PROMPTS, 6)
    assert mixed[1] == plain[1]
    assert mixed[0] != plain[0]

    tensors = load_file(adapters / "one" / WEIGHTS)
    causal.adapters.remove("one")
    causal.adapters.remove("two")
    with torch.inference_mode():
        for layer, place in model.built.places.items():
            weight = model.empty.model.get_submodule(place.module).weight
            a, b = (tensors[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
            weight[place.begin : place.begin + place.outputs] += 2.0 * b @ a  # alpha is twice the rank
    assert len(model.built.places) == CHAT_LAYERS * len(TARGETS)
    merged, _ = model.run(PROMPTS[:1], 6)
    assert merged[0] == mixed[0]


def test_swapping_adapters_under_running_streams_drops_nothing_and_changes_no_answer(
    bench: Any, chat_model: Path, adapters: Path
) -> None:
    status = bench.load(chat_model, format="fp32", max_adapters=2, max_adapter_rank=8)
    assert status.state is RuntimeState.READY

    async def answers(tag: str, adapter: str = "") -> list[list[int]]:
        return list(
            await asyncio.gather(*(_answer(bench, f"{tag}{i}", p, adapter) for i, p in enumerate(PROMPTS)))
        )

    async def swap() -> None:
        expected = await answers("alone")
        await bench.client.load_adapter("two", str(adapters / "two"))
        with_two = await answers("two-", "two")
        assert with_two != expected
        streams = asyncio.gather(answers("s-"), answers("t-", "two"))
        swaps = 0
        while not streams.done():
            result = await bench.client.load_adapter("one", str(adapters / "one"))
            assert {info.name for info in result.adapters} == {"one", "two"}
            await bench.client.unload_adapter("one")
            swaps += 1
        assert swaps > 0
        assert await streams == [expected, with_two]

    bench.run(swap())


def test_an_adapter_in_use_leaves_when_its_last_request_has_ended(
    bench: Any, chat_model: Path, adapters: Path
) -> None:
    bench.load(chat_model, format="fp32", max_adapters=2, max_adapter_rank=8)

    async def leave() -> None:
        await bench.client.load_adapter("one", str(adapters / "one"))
        running = asyncio.create_task(_answer(bench, "last", PROMPTS[0], "one", LONG))
        await bench.stats_until(
            lambda stats: any(one.name == "one" and one.running for one in stats.adapters)
        )
        leaving = asyncio.create_task(bench.client.unload_adapter("one"))
        await asyncio.sleep(0)  # the order goes out first
        async with bench.client.generate(Submit("late", tuple(PROMPTS[0]), adapter="one")) as outputs:
            late = [output async for output in outputs]
        assert late[-1].message == "adapter 'one' is not loaded"
        result = await leaving
        assert running.done(), "its last token came before it was freed"
        assert len(await running) == LONG
        assert "one" not in {info.name for info in result.adapters}

    bench.run(leave())


def test_bad_orders_are_refused_without_harm(
    bench: Any, chat_model: Path, adapters: Path, tmp_path: Path
) -> None:
    bench.load(chat_model, format="fp32", max_adapters=2, max_adapter_rank=8)
    write_random_adapter(tmp_path / "large", CHAT_SHAPES, CHAT_LAYERS, rank=16, seed=3)
    write_random_adapter(tmp_path / "other", CHAT_SHAPES | {"q_proj": (576, 64)}, CHAT_LAYERS, rank=4, seed=3)

    async def refused(name: str, folder: Path, reason: str, **options: Any) -> None:
        with pytest.raises(Permanent) as caught:
            await bench.client.load_adapter(name, str(folder), **options)
        assert caught.value.reason == reason

    async def orders() -> None:
        await refused("large", tmp_path / "large", "Unsupported")
        await refused("other", tmp_path / "other", "Corrupted")
        await refused("none", tmp_path / "none", "ModelNotFound")
        await refused("model", chat_model, "ModelNotFound")
        await refused("out", adapters / "one", "SourceNotAllowed", folders=(str(tmp_path),))
        with pytest.raises(Permanent, match="not loaded"):
            await bench.client.unload_adapter("none")
        before = {info.name for info in bench.client.status().adapters}
        for name in ("a", "b"):
            if len(before) < 2:
                await bench.client.load_adapter(name, str(adapters / "one"))
                before.add(name)
        await refused("c", adapters / "one", "OutOfMemory")
        await refused(next(iter(before)), adapters / "one", "NameTaken")
        assert len(await _answer(bench, "after", PROMPTS[0], next(iter(before)))) == TOKENS

    bench.run(orders())


def test_adapters_of_the_order_are_there_with_the_model_or_the_load_says_why(
    bench: Any, chat_model: Path, adapters: Path
) -> None:
    options: dict[str, Any] = {"format": "bf16", "max_adapters": 2, "max_adapter_rank": 8}
    missing = AdapterSource("gone", str(adapters / "gone"))
    failed = bench.load(chat_model, adapters=(missing,), **options)
    assert failed.state is RuntimeState.FAILED
    assert failed.failure.reason == "ModelNotFound"
    assert failed.failure.message.startswith("adapter 'gone': ")
    one = AdapterSource("one", f"file://{adapters / 'one'}")
    status = bench.load(
        chat_model, adapters=(one, AdapterSource("gone", missing.uri, demanded=False)), **options
    )
    assert [(info.name, info.rank) for info in status.adapters] == [("one", 8)]
    assert len(bench.run(_answer(bench, "x", PROMPTS[0], "one"))) == TOKENS


TOKENS = 8
LONG = 128  # takes longer than the time between two statistics of an engine


async def _answer(
    bench: Any, request_id: str, prompt: list[int], adapter: str = "", tokens_wanted: int = TOKENS
) -> list[int]:
    params = SamplingParams(max_tokens=tokens_wanted, temperature=0.0, ignore_eos=True)
    tokens: list[int] = []
    async with bench.client.generate(Submit(request_id, tuple(prompt), params, adapter=adapter)) as outputs:
        async for output in outputs:
            tokens += output.tokens
            assert output.finish_reason in {"", "length"}, output.message
    return tokens
