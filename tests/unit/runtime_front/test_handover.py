"""The pieces before a vLLM that need none: figures, the order to start, what is fetched, settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmos_operator.clock import FakeClock
from llmos_operator.errors import Permanent
from llmos_operator.runtime.handover import fetching, figures
from llmos_operator.runtime.ipc.messages import AdapterSource, Load
from llmos_operator.runtime.loader.progress import Stages
from llmos_operator.runtime.settings import BadEnvironment, from_environment
from tests.support.tinymodels import safetensors, write_model
from tests.support.vllm_double import METRICS

SHOWN = (METRICS % {"running": 3, "prompt": 70, "generated": 40, "finished": 5, "name": "m"}).encode()


def stages() -> Stages:
    return Stages(FakeClock(), lambda _: None)


def fetched(folder: Path, weights: int = 100 << 20) -> fetching.Fetched:
    return fetching.Fetched(folder, "sha256:1", "main", "LlamaForCausalLM", weights, cold=False)


def test_figures_are_read_and_several_engines_add_up() -> None:
    found = figures.read(SHOWN + SHOWN.replace(b'engine="0"', b'engine="1"'))
    assert (found.running, found.waiting, found.prompt_tokens, found.generation_tokens) == (6, 0, 140, 80)
    assert (found.finished, found.aborted, found.kv_usage_milli) == (10, 0, 250)
    assert (found.first_tokens, found.first_token_millis) == (10, 2500)
    assert (found.stats().running, found.stats().waiting) == (6, 0)


def test_only_vllms_own_families_are_passed_on_and_those_unchanged() -> None:
    passed = figures.own_families(SHOWN)
    assert b"python_info" not in passed
    own = [line for line in SHOWN.splitlines() if b"vllm:" in line]
    assert passed.splitlines() == own


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"vllm:num_requests_running nonsense\n",
        b"vllm:num_requests_running 1.2.3\n",
        b"vllm:num_requests_running 1e999\n",
        b"\xff\n",
    ],
)
def test_what_is_no_exposition_counts_as_nothing(text: bytes) -> None:
    assert figures.read(text) == figures.Figures()


def test_the_order_is_the_model_and_on_the_host_what_is_left_for_its_cache(tmp_path: Path) -> None:
    limit = (4 << 30) + (100 << 20)
    lines = fetching.order(fetched(tmp_path), memory_limit=limit, on_host=True)
    assert lines == [str(tmp_path), "--kv-cache-memory-bytes", str(2 << 30)]
    assert fetching.order(fetched(tmp_path), memory_limit=limit, on_host=False) == [str(tmp_path)]
    least = fetching.order(fetched(tmp_path), memory_limit=1 << 30, on_host=True)
    assert int(least[-1]) == fetching.LEAST_KV_BYTES


def test_an_order_is_given_whole(tmp_path: Path) -> None:
    assert fetching.starts(tmp_path) == 0
    fetching.give(tmp_path, ["/m", "--x", "1"])
    assert (tmp_path / fetching.ORDER).read_text() == "/m\n--x\n1\n"
    assert [path.name for path in tmp_path.iterdir()] == [fetching.ORDER]


def test_a_model_is_checked_before_vllm_may_open_it(tmp_path: Path) -> None:
    write_model(tmp_path, "good")
    load = Load(uri=str(tmp_path / "good"), allow_file=True)
    found = fetching.fetch(load, stages())
    assert found.architecture == "LlamaForCausalLM"
    assert found.digest.startswith("sha256:")
    assert found.weights_bytes > 0
    with pytest.raises(Permanent, match="demands sha256:0"):
        fetching.fetch(Load(uri=str(tmp_path / "good"), allow_file=True, digest="sha256:0"), stages())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"auto_map": {"AutoModel": "m.py"}}, "UnsafeConfig"), ({"pickle_only": True}, "UnsafeFormat")],
)
def test_code_in_a_model_never_reaches_vllm(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    write_model(tmp_path, "bad", **changes)
    with pytest.raises(Permanent) as refused:
        fetching.fetch(Load(uri=str(tmp_path / "bad"), allow_file=True), stages())
    assert refused.value.reason == reason


def an_adapter(folder: Path, *, rank: int = 8, head: bytes = b"") -> AdapterSource:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (folder / "adapter_model.safetensors").write_bytes(head or safetensors({"a": (2, 2)}))
    return AdapterSource("tone", str(folder))


def test_an_adapter_is_checked_too(tmp_path: Path) -> None:
    load = Load(uri="hf://a/b", allow_file=True, max_adapter_rank=16)
    folder, report = fetching.fetch_adapter(an_adapter(tmp_path / "good"), load, stages())
    assert (folder, report.rank, report.name) == (tmp_path / "good", 8, "tone")
    with pytest.raises(Permanent, match=r"rank 32; room is kept for rank 16 \(spec.adapterLimits.maxRank\)"):
        fetching.fetch_adapter(an_adapter(tmp_path / "wide", rank=32), load, stages())
    with pytest.raises(Permanent, match="pickle"):
        fetching.fetch_adapter(an_adapter(tmp_path / "pickle", head=b"\x80\x04abcd"), load, stages())


def test_settings_of_an_engine_beside_the_runtime() -> None:
    env = {"LLMOS_MODEL_URI": "hf://a/b", "LLMOS_ENGINE": "vllm", "LLMOS_ENGINE_DIR": "/e"}
    found = from_environment({**env, "LLMOS_ENGINE_SLEEPS": "true"})
    assert (found.engine_dir, found.engine_url, found.engine_sleeps) == (Path("/e"), "", True)
    assert found.engine_has_devices
    assert not from_environment({**env, "NVIDIA_VISIBLE_DEVICES": "void"}).engine_has_devices
    simulated = from_environment({**env, "NVIDIA_VISIBLE_DEVICES": "G", "LLMOS_ENGINE_URL": "http://h:1"})
    assert not simulated.engine_has_devices
    for wrong in ({"LLMOS_ENGINE": "sglang"}, {"LLMOS_ENGINE_DIR": "relative"}):
        with pytest.raises(BadEnvironment, match=next(iter(wrong))):
            from_environment({**env, **wrong})
