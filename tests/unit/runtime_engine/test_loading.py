"""The load path's parts: sources, progress, the memory plan, the KV store's memory, the judge of formats."""

import dataclasses
import math

import pytest
import torch

from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.clock import FakeClock
from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.kvstore import KvGeometry, KvStore
from llmos_operator.runtime.backends.quality import Quality, compare_generative, compare_vectors
from llmos_operator.runtime.batching import Copy
from llmos_operator.runtime.ipc.messages import Load
from llmos_operator.runtime.loader.memory import free_bytes, machine_available_bytes, plan_kv, resident_bytes
from llmos_operator.runtime.loader.pipeline import format_needs
from llmos_operator.runtime.loader.progress import Stages
from llmos_operator.runtime.loader.sources import resolve

MIB = 1 << 20
SHAPE = ModelShape("LlamaForCausalLM", 106_168_320, 28_311_552, 35_136, 30, 576, 1536, 9, 3, 64, 49_152, 8192)


def stages(emit=lambda _: None):
    return Stages(FakeClock(), emit)


# ------------------------------------------------------------ sources


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("oci://registry.example/Not A Name", "InvalidSpec"),
        ("ftp://host/model", "UnsupportedScheme"),
        ("http://host/model", "UnsupportedScheme"),
        ("file:///etc", "SourceNotAllowed"),
        ("/etc", "SourceNotAllowed"),
        ("pvc://claim/../../etc", "SourceNotAllowed"),
        ("pvc://claim/none", "ModelNotFound"),
    ],
)
def test_a_source_that_is_not_served_says_which(tmp_path, uri, reason):
    with pytest.raises(Permanent) as caught:
        resolve(Load(uri, pvc_root=str(tmp_path), cache_dir=str(tmp_path / "cache")), stages())
    assert caught.value.reason == reason


@pytest.mark.parametrize("uri", ["https://me:hunter2@host.example/m", "hf://hunter2@org/m", "://hunter2@x"])
def test_credentials_in_a_uri_are_refused_and_not_shown(uri):
    with pytest.raises(Permanent, match=r"spec\.model\.uri .* spec\.model\.secretRef") as refused:
        resolve(Load(uri), stages())
    assert "hunter2" not in str(refused.value)


def test_a_model_with_links_out_of_its_claim_is_refused(tmp_path):
    model = tmp_path / "claim" / "m"
    model.mkdir(parents=True)
    (tmp_path / "claim" / "shared.json").write_text("{}")
    (model / "config.json").symlink_to("../shared.json")
    load = Load("pvc://claim/m", pvc_root=str(tmp_path))
    assert resolve(load, stages()).path == model, "a link within the claim harms nobody"
    (model / "model.safetensors").symlink_to("/proc/self/environ")
    with pytest.raises(Permanent, match=r"m/model\.safetensors is a link that leaves") as refused:
        resolve(load, stages())
    assert refused.value.reason == "SourceNotAllowed"


def test_a_claim_and_an_allowed_path_are_folders(tmp_path):
    (tmp_path / "claim" / "m").mkdir(parents=True)
    assert resolve(Load("pvc://claim/m", pvc_root=str(tmp_path)), stages()).path == tmp_path / "claim" / "m"
    allowed = Load(f"file://{tmp_path}/claim/m", allow_file=True)
    assert resolve(allowed, stages()).path == tmp_path / "claim" / "m"


def test_a_speech_models_plan_counts_what_it_hears():
    speech = dataclasses.replace(SHAPE, max_positions=448, cross_tokens=1500)
    options = {"base_bytes": 500 * MIB, "wanted_len": 0, "max_num_seqs": 8}
    wide = plan_kv(speech, "bf16", limit_bytes=4000 * MIB, **options)
    assert wide.max_model_len == 448
    assert wide.blocks >= 8 * -(-1948 // 16), "eight sequences at full length"
    tight = plan_kv(speech, "bf16", limit_bytes=920 * MIB, **options)
    assert tight.blocks * 16 >= tight.max_model_len + 1500
    assert tight.estimate.total_bytes <= 920 * MIB
    with pytest.raises(Permanent, match="KV cache of 1948 tokens"):
        plan_kv(speech, "bf16", limit_bytes=700 * MIB, **(options | {"wanted_len": 448}))


# ------------------------------------------------------------ progress


def test_progress_has_speed_time_left_and_the_durations_behind_it():
    clock, seen = FakeClock(), []
    progress = Stages(clock, seen.append)
    progress.enter(RuntimeState.DOWNLOADING, 1000)
    clock.advance(1)
    progress.advance(250)
    assert (seen[-1].bytes_done, seen[-1].bytes_per_second, seen[-1].eta_seconds) == (250, 250, 3)
    clock.advance(3)
    progress.enter(RuntimeState.LOADING)
    assert dict(seen[-1].stage_seconds) == {"Downloading": 4}
    progress.leave()
    assert dict(progress.seconds) == {"Downloading": 4, "Loading": 0}


def test_progress_is_told_at_most_five_times_a_second():
    clock, seen = FakeClock(), []
    progress = Stages(clock, seen.append)
    progress.enter(RuntimeState.VERIFYING, 1000)
    for _ in range(1000):
        clock.advance(0.001)
        progress.advance(1)
    assert len(seen) <= 7


# ------------------------------------------------------------ memory plan


def a_plan(limit_mib, **changes):
    options = {"base_bytes": 500 * MIB, "limit_bytes": limit_mib * MIB, "wanted_len": 0, "max_num_seqs": 8}
    return plan_kv(SHAPE, "bf16", **(options | changes))


def test_the_prediction_never_passes_the_limit():
    for limit in (900, 1000, 2000, 4000):
        assert a_plan(limit).estimate.total_bytes <= limit * MIB


def test_a_tight_limit_shortens_the_context_and_a_demanded_one_is_refused_with_the_numbers():
    assert a_plan(900).max_model_len < 8192
    with pytest.raises(Permanent, match=r"KV cache of 8192 tokens .* MiB short") as caught:
        a_plan(900, wanted_len=8192)
    assert caught.value.reason == "OutOfMemory"
    assert a_plan(900, wanted_len=512).max_model_len == 512


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(Permanent, match="weights 256"):
        a_plan(700)


def test_the_cache_is_never_larger_than_every_sequence_at_full_length():
    plan = a_plan(1_000_000)
    assert plan.blocks * 16 <= 8192 * 8 + 16


def test_an_encoder_needs_no_cache():
    encoder = dataclasses.replace(SHAPE, generative=False, max_positions=512)
    plan = plan_kv(encoder, "bf16", base_bytes=0, limit_bytes=1000 * MIB, wanted_len=0, max_num_seqs=4)
    assert (plan.blocks, plan.max_model_len) == (0, 512)
    with pytest.raises(Permanent, match="MiB short"):
        plan_kv(encoder, "bf16", base_bytes=0, limit_bytes=100 * MIB, wanted_len=0, max_num_seqs=4)


def test_what_each_format_needs_is_what_a_plan_for_one_context_counts():
    load = Load("hf://a/b", max_num_seqs=8)
    needs = dict(format_needs(load, SHAPE, 8192))
    assert list(needs) == ["fp32", "bf16", "int8", "int4"]
    assert needs["fp32"] > needs["bf16"] > needs["int8"] > needs["int4"]
    # With exactly that beside the base a load of the whole context fits, with less it does not.
    enough = {"base_bytes": 500 * MIB, "wanted_len": 8192, "max_num_seqs": 8}
    assert plan_kv(SHAPE, "int8", limit_bytes=500 * MIB + needs["int8"], **enough).max_model_len == 8192
    with pytest.raises(Permanent, match="short"):
        plan_kv(SHAPE, "int8", limit_bytes=499 * MIB + needs["int8"], **enough)
    assert list(dict(format_needs(load, dataclasses.replace(SHAPE, quantized="int4"), 512))) == ["int4"]


def test_free_memory_is_the_machines_or_less_where_the_container_has_less(tmp_path):
    assert free_bytes(tmp_path) == pytest.approx(machine_available_bytes(), rel=0.2)  # no control group
    (tmp_path / "memory.current").write_text(f"{700 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {100 * MIB}\nother 2\n")
    (tmp_path / "memory.max").write_text(f"{800 * MIB}\n")
    assert free_bytes(tmp_path) == 200 * MIB  # files that can be dropped are free
    (tmp_path / "memory.max").write_text(f"{500 * MIB}\n")
    assert free_bytes(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(tmp_path) > 200 * MIB


# ------------------------------------------------------------ KV store


def a_store(slots=4, slot_tokens=4096):
    return KvStore(KvGeometry(4, 2, 64, slots, slot_tokens, torch.bfloat16, torch.device("cpu")))


def resident(store):
    import os  # noqa: PLC0415

    del store
    return resident_bytes([os.getpid()])


def test_a_slot_costs_what_is_written_and_gives_it_back():
    before = resident(None)
    store = a_store(slots=64, slot_tokens=65536)  # 8 GiB of addresses
    assert resident(store) - before < 20 * MIB
    for layer in range(4):
        store.layer(layer)[: 32 * 1024] = 1
    full = resident(store)
    assert full - before > 55 * MIB  # 32768 tokens x 4 layers x 512 bytes
    store.release([(0, 1024)])
    assert full - resident(store) > 55 * MIB
    assert float(store.layer(3)[1023].sum()) > 0
    assert float(store.layer(3)[2048].sum()) == 0


def test_copies_happen_in_order():
    store = a_store()
    rows = store.slot_tokens
    for layer in range(4):
        store.layer(layer)[:8] = 7
    store.copy([Copy(0, 1, 8), Copy(1, 2, 4)])
    assert float(store.layer(2)[2 * rows : 2 * rows + 4].float().mean()) == 7
    assert float(store.layer(2)[2 * rows + 4].sum()) == 0


def test_spans_are_views_of_what_is_stored():
    store = a_store()
    keys, values = store.spans(1, 10)
    store.layer(2)[store.slot_tokens + 3, 0] = 5
    store.layer(2)[store.slot_tokens + 3, 1] = 6
    assert keys[2].shape == (2, 10, 64)
    assert float(keys[2][0, 3, 0]) == 5
    assert float(values[2][1, 3, 63]) == 6


# ------------------------------------------------------------ quality


@pytest.mark.parametrize("vocabulary", [50, 8192, 20_000])
def test_slices_give_the_divergence_and_perplexity_of_the_whole(vocabulary):
    torch.manual_seed(0)
    source = torch.randn(12, vocabulary) * 3
    served = source + torch.randn(12, vocabulary) * 0.3
    targets = torch.randint(0, vocabulary, (12,))
    found = compare_generative(lambda a, b: source[:, a:b], lambda a, b: served[:, a:b], vocabulary, targets)
    p, q = source.log_softmax(-1), served.log_softmax(-1)
    assert found.kl_micro == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()) * 1e6, rel=1e-2)
    rows = torch.arange(12)
    assert found.perplexity == pytest.approx(math.exp(-float(q[rows, targets].mean())), rel=1e-3)
    assert found.source_perplexity == pytest.approx(math.exp(-float(p[rows, targets].mean())), rel=1e-3)


def test_a_format_equal_to_its_source_loses_nothing():
    logits = torch.randn(5, 300)
    found = compare_generative(lambda a, b: logits[:, a:b], lambda a, b: logits[:, a:b], 300, torch.arange(5))
    assert (found.loss_milli, found.kl_micro) == (0, 0)
    assert compare_vectors(torch.ones(2, 4), torch.ones(2, 4)).loss_milli == 0


@pytest.mark.parametrize(
    ("quality", "limit", "refused"),
    [
        (Quality(4000, 1000), 5000, False),
        (Quality(6000, 1000), 5000, True),
        (Quality(100, 60_000), 5000, True),
        (Quality(90_000, 900_000), -1, False),
        (Quality(200), 100, True),
    ],
)
def test_the_limit_decides(quality, limit, refused):
    assert quality.refused(limit) is refused
