"""Arguments of `vllm serve`: what a user may say, and what the operator decides."""

from __future__ import annotations

import re

import pytest

from llmos_operator.api import vllm

REFUSED = [
    ("--gpu-memory-utilization=0.95", "spec.resources"),
    ("--gpu_memory_utilization", "spec.resources"),
    ("--kv-cache-memory-bytes", "spec.resources"),
    ("--tensor-parallel-size=2", "spec.parallelism"),
    ("--data-parallel-size-local=2", "spec.parallelism"),
    ("-tp", "spec.parallelism"),
    ("-tp=2", "spec.parallelism"),
    ("--max-model-len=1", "spec.context.maxModelLen"),
    ("--max-num-seqs", "spec.context.maxNumSeqs"),
    ("--served-model-name=x", "spec.model.name"),
    ("--dtype=half", "spec.quantization"),
    ("--quantization", "spec.quantization"),
    ("--api-key=k", "spec.serving.apiKeySecretRef"),
    ("--host=0.0.0.0", "spec.serving"),
    ("--ssl-keyfile=/k", "spec.serving"),
    ("--enable-lora", "spec.adapters"),
    ("--no-enable-lora", "spec.adapters"),
    ("--enable-sleep-mode", "spec.scheduling.disruption"),
    ("--trust-remote-code", "code"),
]
TAKEN = [
    "--max-num-batched-tokens=4096",
    "--no-enable-prefix-caching",
    "--chat-template=/x.jinja",
    "--model-impl=transformers",
    "--enable-auto-tool-choice",
    "--tokenizer-mode=slow",
    "--hf-overrides.rope_theta=1",
    "-O3",
    "hermes",
    "-1",
]


@pytest.mark.parametrize(("argument", "field"), REFUSED)
def test_what_the_operator_decides_is_refused_and_its_field_named(argument: str, field: str) -> None:
    found = vllm.refused_argument(["--enforce-eager", argument])
    assert found.startswith(f"spec.engine.args[1]: {argument.partition('=')[0]} ")
    assert field in found
    assert "=" not in found, "values may be secrets"


@pytest.mark.parametrize("argument", ["--gpu-mem=0.9", "--tensor-par", "--trust-remote", "--served=x"])
def test_an_abbreviation_argparse_would_take_is_refused(argument: str) -> None:
    assert vllm.refused_argument([argument])


@pytest.mark.parametrize("argument", TAKEN)
def test_everything_else_goes_through(argument: str) -> None:
    assert vllm.refused_argument([argument]) == ""


def test_the_rule_of_the_crd_refuses_whole_names_and_nothing_more() -> None:
    rule = re.compile(vllm.pattern())
    assert [argument for argument, _ in REFUSED if not rule.match(argument)] == ["--no-enable-lora"]
    assert [argument for argument in TAKEN if rule.match(argument)] == []


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (9, 16), (100, 128), (512, 512)])
def test_room_for_adapters_is_a_rank_vllm_knows(rank: int, room: int) -> None:
    assert vllm.lora_rank(rank) == room
