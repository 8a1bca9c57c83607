"""The runtime's environment."""

from __future__ import annotations

import pytest

from llmos_operator.runtime import server
from llmos_operator.runtime.settings import BadEnvironment, from_environment

URI = {"LLMOS_MODEL_URI": "hf://org/name"}


def test_little_is_needed() -> None:
    settings = from_environment(URI)
    assert (settings.model_name, settings.model_revision, settings.format) == ("org/name", "main", "bf16")
    assert (settings.port, settings.control_port, settings.max_num_seqs) == (8000, 8001, 64)
    assert (settings.api_keys, settings.apis, settings.max_model_len) == ((), (), 0)


def test_everything_the_operator_writes_is_read() -> None:
    settings = from_environment(
        {
            **URI,
            "LLMOS_MODEL_NAME": "chat",
            "LLMOS_MODEL_REVISION": "abc",
            "LLMOS_MODEL_DIGEST": "sha256:1",
            "LLMOS_FORMAT": "int8",
            "LLMOS_FORMATS": "bf16,int8",
            "LLMOS_MAX_QUALITY_LOSS_MILLI": "1500",
            "LLMOS_KV_CACHE_DTYPE": "auto",
            "LLMOS_MEMORY_LIMIT_BYTES": "1073741824",
            "LLMOS_MAX_MODEL_LEN": "auto",
            "LLMOS_MAX_NUM_SEQS": "16",
            "LLMOS_HOST": "127.8.0.2",
            "LLMOS_PORT": "9000",
            "LLMOS_CONTROL_PORT": "9001",
            "LLMOS_CONTROL_TOKEN": "t",
            "LLMOS_API_KEYS": "a, b\nc\n\na",
            "LLMOS_APIS": "chat,embeddings",
            "LLMOS_CACHE_DIR": "/cache",
            "LLMOS_GRACE_SECONDS": "70",
            "NVIDIA_VISIBLE_DEVICES": "void",
            "HF_ENDPOINT": "http://hub",
            "HF_TOKEN": "hf",
            "LLMOS_TRACING__ENDPOINT": "http://collector:4318",
            "LLMOS_TRACING__SAMPLE_RATIO": "0.1",
            "TRACEPARENT": "00-aa-bb-01",
        }
    )
    traced = (settings.trace_endpoint, settings.trace_ratio, settings.trace_parent)
    assert traced == ("http://collector:4318", 0.1, "00-aa-bb-01")
    assert (settings.model_name, settings.model_revision, settings.model_digest) == (
        "chat",
        "abc",
        "sha256:1",
    )
    assert (settings.format, settings.memory_limit_bytes, settings.max_model_len) == ("int8", 1 << 30, 0)
    assert settings.formats == ("bf16", "int8")
    assert settings.load_order().max_quality_loss_milli == 1500
    assert (settings.host, settings.port, settings.control_port) == ("127.8.0.2", 9000, 9001)
    assert (settings.api_keys, settings.apis, settings.device) == (
        ("a", "b", "c"),
        ("chat", "embeddings"),
        "cpu",
    )
    assert (settings.cache_dir, settings.grace_seconds, settings.hub_endpoint) == ("/cache", 70, "http://hub")


def test_pods_that_share_a_model_are_told_by_the_variables_of_a_gang() -> None:
    gang = {
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "chat-0-0.chat.team.svc",
        "LLMOS_TENSOR_PARALLEL": "4",
    }
    settings = from_environment({**URI, **gang, "LLMOS_CONTROL_TOKEN": "t"})
    assert (settings.node_rank, settings.meeting) == (1, ("chat-0-0.chat.team.svc", 29500))
    order = settings.load_order()
    assert (order.tensor, order.local, order.rank) == (8, 4, 0)
    assert order.meeting_token, "pods of a replica know each other by it"
    assert "t" != order.meeting_token not in repr(order), "engines do not get the control token"
    alone = from_environment({**URI, "LLMOS_TENSOR_PARALLEL": "2"}).load_order()
    assert (alone.tensor, alone.local, alone.meeting_token) == (2, 2, "")
    with pytest.raises(BadEnvironment, match="NODE_RANK = 2 must be below NNODES = 2"):
        from_environment({**URI, **gang, "NODE_RANK": "2"})
    with pytest.raises(BadEnvironment, match="MASTER_ADDR"):
        from_environment({**URI, **gang, "MASTER_ADDR": ""})


def test_pipeline_stages_are_counted_over_all_pods() -> None:
    gang = {
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "chat-0-0.chat.team.svc",
        "LLMOS_PIPELINE_PARALLEL": "4",
    }
    settings = from_environment({**URI, **gang})
    order = settings.load_order()
    assert (order.tensor, order.pipeline, order.ranks, order.here) == (1, 4, 4, 2)
    assert settings.local_ranks == 2
    one_each = from_environment({**URI, **gang, "LLMOS_PIPELINE_PARALLEL": "2"}).load_order()
    assert (one_each.tensor, one_each.ranks, one_each.here) == (1, 2, 1)
    with pytest.raises(BadEnvironment, match="LLMOS_PIPELINE_PARALLEL = 3 must be a multiple of NNODES = 2"):
        from_environment({**URI, **gang, "LLMOS_PIPELINE_PARALLEL": "3"})
    with pytest.raises(BadEnvironment, match="one of them must be 1"):
        from_environment({**URI, **gang, "LLMOS_TENSOR_PARALLEL": "2"})


def test_secrets_are_not_shown() -> None:
    settings = from_environment(
        {**URI, "LLMOS_CONTROL_TOKEN": "s1", "LLMOS_API_KEYS": "s2", "HF_TOKEN": "s3"}
    )
    assert not any(secret in repr(settings) for secret in ("s1", "s2", "s3"))


@pytest.mark.parametrize(
    ("uri", "name"),
    [("hf://org/name", "org/name"), ("file:///models/tiny/", "tiny"), ("https://x.y/a/m.gguf", "m.gguf")],
)
def test_a_model_without_a_name_is_served_under_its_own(uri: str, name: str) -> None:
    assert from_environment({"LLMOS_MODEL_URI": uri}).model_name == name


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LLMOS_MODEL_URI", ""),
        ("LLMOS_PORT", "http"),
        ("LLMOS_MAX_NUM_SEQS", "0"),
        ("LLMOS_MAX_MODEL_LEN", "-1"),
        ("LLMOS_MEMORY_LIMIT_BYTES", "1Gi"),
        ("LLMOS_APIS", "chat,telepathy"),
        ("LLMOS_ALLOW_FILE", "maybe"),
        ("LLMOS_TRACING__ENDPOINT", "collector:4318"),
        ("LLMOS_TRACING__SAMPLE_RATIO", "2"),
        ("LLMOS_TRACING__SAMPLE_RATIO", "some"),
    ],
)
def test_a_bad_value_ends_the_start_and_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadEnvironment, match=variable):
        from_environment({**URI, variable: value})
    monkeypatch.setenv("LLMOS_MODEL_URI", "hf://org/name")
    monkeypatch.setenv(variable, value)
    assert server.main([]) == 1
    assert variable in capsys.readouterr().err
