"""Loads that cannot succeed, and loads over a hub: what the front is told, and what becomes of the process."""

import asyncio
import json

import pytest
from aiohttp import web

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.local.hub.server import HubServer
from llmos_operator.local.hub.store import Store
from tests.support.models import write_random

pytestmark = pytest.mark.model


@pytest.fixture
def tiny(tmp_path):
    """A random model on the disk."""
    write_random(tmp_path / "org" / "tiny")
    return tmp_path / "org" / "tiny"


def failed(bench, uri, **options):
    status = bench.load(uri, fresh=True, **options)
    assert status.state is RuntimeState.FAILED, status
    assert status.pid is None
    return status.failure


def test_a_pickle_is_refused_and_the_next_model_loads(bench, tiny):
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    failure = failed(bench, tiny)
    assert (failure.reason, failure.permanent) == ("UnsafeFormat", True)
    write_random(tiny)
    assert bench.load(tiny, fresh=True).state is RuntimeState.READY


def test_a_truncated_file_is_corrupted(bench, tiny):
    data = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(data[:-100])
    assert failed(bench, tiny).reason == "Corrupted"


def test_a_config_that_asks_for_code_is_unsafe(bench, tiny):
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    assert failed(bench, tiny).reason == "UnsafeConfig"


def test_another_digest_is_refused(bench, tiny):
    failure = failed(bench, tiny, digest="sha256:" + "0" * 64)
    assert failure.reason == "Corrupted"
    assert "demands sha256:000" in failure.message


def test_a_limit_below_the_models_need_is_out_of_memory_with_the_numbers(bench, tiny):
    failure = failed(bench, tiny, memory_limit_bytes=64 << 20)
    assert (failure.reason, failure.permanent) == ("OutOfMemory", True)
    assert "may use 64 MiB" in failure.message


def test_a_format_that_costs_too_much_is_refused_now_and_from_the_record(bench, tiny):
    vocabulary = {f"<{i}>": i for i in range(319)} | {chr(c): 319 for c in [0]}
    write_tokenizer(tiny, vocabulary)
    for _ in range(2):
        failure = failed(bench, tiny, format="int4", max_quality_loss_milli=1)
        assert failure.reason == "QualityLossExceeded"
        assert "KL divergence" in failure.message
    assert bench.load(tiny, format="int4", max_quality_loss_milli=-1, fresh=True).state is RuntimeState.READY


def write_tokenizer(folder, vocabulary):
    """Write a tokenizer that makes some token of every word."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<7>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_damaged_cache_entry_is_made_again(bench, tiny):
    assert bench.load(tiny, format="int8", fresh=True).info.load_path == "cold"
    digest = bench.client.status().info.digest.removeprefix("sha256:")
    path = bench.cache / "quant" / digest / "int8" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert bench.load(tiny, format="int8", fresh=True).info.load_path == "cold"
    assert bench.load(tiny, format="int8", fresh=True).info.load_path == "warm"


@pytest.fixture
def hub(bench, tiny):
    """A hub that serves the tiny model; (url, stop)."""

    async def start():
        runner = web.AppRunner(HubServer(Store(tiny.parent.parent)).app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

    runner, url = bench.run(start())
    yield url, lambda: bench.run(runner.cleanup())
    bench.run(runner.cleanup())


def test_a_model_comes_from_the_hub_with_progress_and_again_without_it(bench, hub):
    url, stop = hub
    status = bench.load("hf://org/tiny", hf_endpoint=url, fresh=True)
    assert status.state is RuntimeState.READY, status.failure
    assert status.info.load_path == "cold"
    assert dict(status.info.stage_seconds)["Downloading"] > 0
    assert len(status.info.revision) == 40
    assert bench.load("hf://org/tiny", hf_endpoint=url, fresh=True).info.load_path == "warm"
    stop()
    assert bench.load("hf://org/tiny", hf_endpoint=url, fresh=True).info.load_path == "warm"


def test_an_unknown_repository_is_not_found(bench, hub):
    assert failed(bench, "hf://org/nothing", hf_endpoint=hub[0]).reason == "ModelNotFound"
    assert failed(bench, "hf://org/tiny", hf_endpoint=hub[0], revision="v9").reason == "ModelNotFound"


def test_a_hub_that_is_down_is_tried_again(bench, tmp_path):
    async def go():
        await bench.client.load(bench.loaded)
        while bench.client.status().restarts == 0:
            await asyncio.sleep(0.05)
        return bench.client.status()

    bench.loaded = type(bench.loaded)(
        "hf://org/other", hf_endpoint="http://127.0.0.1:9", cache_dir=str(tmp_path)
    )
    status = bench.run(go())
    assert (status.failure.reason, status.failure.permanent) == ("DownloadFailed", False)
    bench.run(bench.client.unload())
