"""Frames between front and engine."""

import asyncio
import dataclasses
import sys

import msgpack
import pytest

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.errors import Permanent
from llmos_operator.runtime.ipc import codec, messages, orders
from llmos_operator.runtime.ipc.oom import OomCounter
from llmos_operator.runtime.ipc.zygote import SECRET_VARIABLES, engine_environment

TOKEN = "hf_" + "x" * 20
MESSAGES = [
    messages.Load("hf://a/b", token=TOKEN, base_pids=(1, 2)),
    messages.Submit(
        "r", (1, 2, 3), messages.SamplingParams(logit_bias=((5, -1.5),), seed=3, stop_token_ids=(7,))
    ),
    messages.Submit("r", (), deadline_at=12.5),
    messages.Cancel("r"),
    messages.Embed("e", ((1, 2), (3,)), dimensions=8),
    messages.SetBudget(1 << 40),
    messages.Sleep(2),
    messages.Wake(),
    messages.Unload(),
    messages.Shutdown(),
    messages.Progress(RuntimeState.LOADING, 1, 2, 3, None, (("Downloading", 1.5),)),
    messages.Ready(
        messages.EngineInfo("d", "A", "x", "main", "int8", "cpu", 1, 2, (3, 4)), messages.EngineMemory(1)
    ),
    messages.StepOutput(
        (
            messages.RequestOutput("a", (1, 2), logprobs=(messages.TokenLogprob(1, -0.5, 1, ((1, -0.5),)),)),
            messages.RequestOutput("b", (), "stop", 2, timing=messages.Timing(1.0, 2.0, 3.0, 4.0)),
        )
    ),
    messages.EmbedResult("e", b"\x00\xff", 2, 3),
    messages.Stats(running=1, memory=messages.EngineMemory(peak_bytes=9)),
    messages.Failed("OutOfMemory", "too large"),
    messages.Load("hf://a/b", adapters=(messages.AdapterSource("a", "hf://a/c", demanded=False),)),
    messages.LoadAdapter("r", "a", "/x/a", ("/x", "/y")),
    messages.UnloadAdapter("r", "a"),
    messages.AdapterResult(
        "r", (messages.AdapterInfo("a", "hf://a/c", "sha256:1", 8, 900),), "e", "Corrupted", 0.5
    ),
    messages.Stats(adapters=(messages.AdapterUse("a", 1, 2),)),
    messages.Stats(memory=messages.EngineMemory(ranks=(messages.RankMemory(1, 2, 3),))),
]
ORDERS = [
    orders.Fetch("int8", "sha256:1"),
    orders.Build(
        messages.Load("hf://a/b", meeting=("leader", 29500), tensor=4), "/m", "/c", "leader:1", 512, 9
    ),
    orders.Tune((("Int8Linear-1-2", 12),)),
    orders.Step((orders.Piece(1, 2, (3, 4), 1),), ((1, 2, 16),), ((3, 0),)),
    orders.Look((1, 2)),
    orders.Columns(0, 9),
    orders.Release(((1, 16), (2, 0))),
    orders.Drop(),
    orders.End(),
    orders.Built(5),
    orders.Refused("OutOfMemory", "too large", permanent=False),
    orders.Beat(7),
    orders.Hello(3, 1, b"\x00\xff"),
]


@pytest.mark.parametrize("message", MESSAGES + ORDERS, ids=lambda m: type(m).__name__)
def test_a_message_arrives_as_it_was_sent(message):
    assert codec.FrameReader().feed(codec.encode(message)) == [message]


def test_frames_may_arrive_in_any_pieces():
    stream = b"".join(codec.encode(message) for message in MESSAGES)
    reader = codec.FrameReader()
    got = [message for at in range(0, len(stream), 7) for message in reader.feed(stream[at : at + 7])]
    assert got == MESSAGES


def test_an_older_sender_lacks_the_last_fields_and_a_newer_one_has_more():
    fields = msgpack.unpackb(codec.encode(messages.Stats(running=4))[4:], use_list=True)
    for body in (fields[:3], [*fields, "new"]):
        decoded = codec.decode(msgpack.packb(body))
        assert decoded.running == 4


@pytest.mark.parametrize("body", [b"", b"\xc1", msgpack.packb([99]), msgpack.packb({}), msgpack.packb([1])])
def test_what_is_no_frame_is_refused(body):
    with pytest.raises(Permanent, match="not a frame"):
        codec.decode(body)


def test_an_endless_frame_is_refused_before_it_is_read():
    with pytest.raises(Permanent, match="exceeds"):
        codec.FrameReader().feed(b"\xff\xff\xff\xff")


def test_every_message_class_is_covered_here():
    known = {
        cls for cls in vars(messages).values() if isinstance(cls, type) and dataclasses.is_dataclass(cls)
    }
    inner = {messages.SamplingParams, messages.EngineInfo, messages.EngineMemory, messages.RequestOutput}
    inner |= {messages.TokenLogprob, messages.Timing}
    inner |= {messages.AdapterSource, messages.AdapterInfo, messages.AdapterUse, messages.RankMemory}
    assert {type(message) for message in MESSAGES} == known - inner
    own = {cls for cls in vars(orders).values() if dataclasses.is_dataclass(cls)} - {
        messages.Load,
        orders.Piece,
    }
    assert {type(order) for order in ORDERS} == own


def test_a_token_is_not_shown():
    assert TOKEN not in repr(MESSAGES[0])


def test_the_engine_does_not_inherit_secrets(monkeypatch):
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, TOKEN)
    assert TOKEN not in engine_environment().values()
    assert engine_environment()["MALLOC_ARENA_MAX"] == "2"
    assert engine_environment()["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "16"


def test_the_front_side_imports_no_model_library():
    async def fresh():
        code = (
            "import sys, llmos_operator.runtime.ipc as ipc\n"
            "ipc.EngineClient()\n"
            "print([m for m in ('torch', 'transformers', 'numpy', 'huggingface_hub') if m in sys.modules])"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
        )
        return (await process.communicate())[0].decode().strip()

    assert asyncio.run(fresh()) == "[]"


@pytest.mark.parametrize(
    "text",
    [
        "low 0\nhigh 0\nmax 3\noom 1\noom_kill {}\noom_group_kill 0\n",  # memory.events
        "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n",  # memory.oom_control of version 1
    ],
    ids=["v2", "v1"],
)
def test_a_kill_for_memory_is_seen_in_either_version_of_control_groups(tmp_path, text):
    file = tmp_path / "events"
    file.write_text(text.format(2))
    counter = OomCounter((tmp_path / "not-there", file))
    assert not counter.rose()
    file.write_text(text.format(3))
    assert counter.rose()
    file.unlink()
    assert not counter.rose()
