"""The pod of engine vllm: two containers, who has what, and in which order they come and go."""

from __future__ import annotations

from typing import Any

import pytest

from llmos_operator.errors import Permanent
from llmos_operator.manifests import pod as manifest
from llmos_operator.manifests.vllm import memory_share
from llmos_operator.state import convert
from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.convert.pods import requests
from llmos_operator.state.types import Sharing
from tests.support.replicas import SETTINGS, a_claim_of, a_work

IMAGE = "vllm/vllm-openai:v0.32.0"


def work(args: tuple[str, ...] = (), **spec: Any) -> Any:
    env = [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}, {"name": "HF_HUB_OFFLINE", "value": "0"}]
    return a_work(engine={"name": "vllm", "image": IMAGE, "args": list(args), "env": env}, **spec)


def build(workload: Any = None, **options: Any) -> dict[str, Any]:
    workload = workload or work()
    claim = a_claim_of(workload, max_model_len=4096, **options.pop("claim", {}))
    return manifest.build(workload, claim, SETTINGS, **options)


def engine_of(pod: dict[str, Any]) -> dict[str, Any]:
    found = [one for one in pod["spec"]["initContainers"] if one["name"] == "engine"]
    assert len(found) == 1
    return found[0]


def env_of(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def option(container: dict[str, Any], name: str) -> str:
    args = container["args"]
    return str(args[args.index(name) + 1])


def test_the_runtime_is_ours_and_stands_before_the_users_image() -> None:
    pod = build(work(("--max-num-batched-tokens", "2048")))
    runtime, engine = pod["spec"]["containers"][0], engine_of(pod)
    assert (runtime["name"], runtime["image"], runtime["args"]) == ("runtime", SETTINGS.image, ["runtime"])
    assert (engine["image"], engine["restartPolicy"]) == (IMAGE, "Always")
    assert engine["args"][:2] == ["--max-num-batched-tokens", "2048"]
    assert env_of(runtime)["LLMOS_ENGINE"] == "vllm"
    assert "readinessProbe" in runtime
    assert "ports" not in engine, "nobody but the runtime reaches it"


def test_keys_and_credentials_stay_with_the_runtime() -> None:
    spec = {
        "serving": {"apiKeySecretRef": {"name": "k"}},
        "model": {"uri": "hf://a/b", "secretRef": {"name": "s"}},
    }
    pod = build(work(**spec))
    sources = [one for one in engine_of(pod)["env"] if "valueFrom" in one]
    assert [one["name"] for one in sources] == ["POD_IP"]
    assert {"LLMOS_API_KEYS", "HF_TOKEN", "LLMOS_CONTROL_TOKEN"} <= set(env_of(pod["spec"]["containers"][0]))


def test_what_the_scheduler_decided_is_on_the_command_line() -> None:
    claim = {"devices": ("GPU-0", "GPU-1"), "format": "fp8"}
    spec = {
        "adapters": [{"name": "a", "uri": "hf://a/l"}],
        "adapterLimits": {"maxAdapters": 4, "maxRank": 20},
    }
    engine = engine_of(build(work(**spec), claim=claim, share="0.4375"))
    assert option(engine, "--gpu-memory-utilization") == "0.4375"
    assert (option(engine, "--dtype"), option(engine, "--quantization")) == ("bfloat16", "fp8")
    assert (option(engine, "--max-model-len"), option(engine, "--max-num-seqs")) == ("4096", "64")
    assert (option(engine, "--tensor-parallel-size"), option(engine, "--pipeline-parallel-size")) == (
        "2",
        "1",
    )
    assert (option(engine, "--max-loras"), option(engine, "--max-lora-rank")) == ("4", "32")
    assert option(engine, "--uds") == "/var/llmos/engine/vllm.sock"
    assert "--enable-sleep-mode" not in engine["args"]
    assert env_of(engine)["VLLM_SERVER_DEV_MODE"] == "0"


@pytest.mark.parametrize(
    ("mode", "fmt", "dtype"),
    [("None", "bf16", "auto"), ("Auto", "bf16", "bfloat16"), ("Auto", "awq", "auto")],
)
def test_a_checkpoint_that_is_to_stay_as_it_is_says_itself_how(mode: str, fmt: str, dtype: str) -> None:
    engine = engine_of(build(work(quantization={"mode": mode}), claim={"format": fmt}))
    assert option(engine, "--dtype") == dtype
    assert "--quantization" not in engine["args"]


def test_pipeline_stages_are_taken_from_the_devices() -> None:
    workload = work(resources={"accelerators": 4}, parallelism={"pipeline": 2})
    engine = engine_of(build(workload, claim={"devices": ("a", "b", "c", "d")}, share="0.9"))
    assert (option(engine, "--tensor-parallel-size"), option(engine, "--pipeline-parallel-size")) == (
        "2",
        "2",
    )


def test_the_share_of_memory_is_never_above_the_claim() -> None:
    assert memory_share(1 << 30, 3 << 30) == "0.3333"
    assert memory_share(5, 3) == "1.0000"


def test_a_shared_device_is_named_to_the_engine_which_may_sleep() -> None:
    pod = build(claim={"sharing": Sharing.SHARED}, share="0.5")
    engine = engine_of(pod)
    assert env_of(engine)["NVIDIA_VISIBLE_DEVICES"] == "GPU-0"
    assert "--enable-sleep-mode" in engine["args"]
    assert env_of(engine)["VLLM_SERVER_DEV_MODE"] == "1"
    assert env_of(pod["spec"]["containers"][0])["LLMOS_ENGINE_SLEEPS"] == "true"


def test_devices_of_a_resource_claim_are_asked_for_by_the_engine_alone() -> None:
    pod = build(claim={"resource_claim": "chat-0-abc"})
    assert engine_of(pod)["resources"]["claims"] == [{"name": "llmos-devices"}]
    assert "NVIDIA_VISIBLE_DEVICES" not in env_of(engine_of(pod))
    (runtime,) = pod["spec"]["containers"]
    assert "claims" not in runtime["resources"]


def test_whole_devices_are_asked_for_by_the_engine_alone() -> None:
    pod = build(share="0.9")
    assert engine_of(pod)["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "nvidia.com/gpu" not in pod["spec"]["containers"][0]["resources"]["requests"]
    assert "NVIDIA_VISIBLE_DEVICES" not in env_of(engine_of(pod))


@pytest.mark.parametrize(
    "template",
    [
        {},
        {
            "containers": [
                {"name": "app", "image": "a", "resources": {"requests": {"cpu": "2", "memory": "1Gi"}}}
            ]
        },
        {
            "initContainers": [
                {"name": "i", "image": "a", "resources": {"requests": {"cpu": "3", "memory": "4Gi"}}}
            ]
        },
    ],
)
def test_requests_of_both_containers_add_up_to_what_the_claim_counts(template: dict[str, Any]) -> None:
    workload = work(podTemplate={"spec": template})
    memory = (4 << 30) + workload.host_memory_bytes
    claim = a_claim_of(workload, cpu_milli=500 + workload.cpu_milli, memory_bytes=memory)
    pod = manifest.build(workload, claim, SETTINGS)
    assert requests(Fields(pod["spec"])) == (claim.cpu_milli, claim.memory_bytes, 1)
    pod["metadata"]["uid"] = "p"
    assert convert.pod(pod).claim == claim


def test_without_a_device_the_engine_has_the_memory_limit_and_as_many_threads_as_cpus_were_claimed() -> None:
    pod = build(claim={"devices": (), "bytes_per_device": 0, "memory_bytes": 4 << 30, "cpu_milli": 2000})
    env = env_of(engine_of(pod))
    assert (env["OMP_NUM_THREADS"], env["VLLM_CPU_OMP_THREADS_BIND"]) == ("2", "nobind")
    assert "VLLM_CPU_OMP_THREADS_BIND" not in env_of(engine_of(build()))
    assert int(engine_of(pod)["resources"]["limits"]["memory"]) > 4 << 30
    assert "limits" not in pod["spec"]["containers"][0]["resources"]
    assert env_of(engine_of(pod))["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_sidecars_start_before_the_runtime_and_so_end_after_it() -> None:
    template = {
        "containers": [{"name": "app", "image": "a"}],
        "initContainers": [{"name": "i", "image": "a"}],
    }
    pod = build(work(podTemplate={"spec": template}))
    assert [one["name"] for one in pod["spec"]["initContainers"]] == ["engine", "runtime", "i"]
    alone = build(work(podTemplate={"spec": {"initContainers": template["initContainers"]}}))
    assert [one["name"] for one in alone["spec"]["initContainers"]] == ["i", "engine"]


def test_models_are_read_only_to_the_engine_and_its_root_is_too() -> None:
    engine = engine_of(build(kept=True))
    mounts = {one["name"]: one.get("readOnly", False) for one in engine["volumeMounts"]}
    assert mounts == {
        "llmos-cache": True,
        "llmos-model": True,
        "llmos-engine": False,
        "llmos-engine-tmp": False,
    }
    assert engine["securityContext"]["readOnlyRootFilesystem"]
    assert engine["securityContext"]["runAsNonRoot"]


def test_a_users_environment_reaches_the_engine_but_does_not_undo_what_the_operator_sets() -> None:
    env = env_of(engine_of(build()))
    assert (env["VLLM_LOGGING_LEVEL"], env["HF_HUB_OFFLINE"]) == ("DEBUG", "1")


def test_a_users_text_is_no_way_to_another_variable() -> None:
    assert "$$(POD_IP)" in engine_of(build(work(("--tool-call-parser", "$(POD_IP)"))))["args"]


def test_on_simulated_nodes_the_engine_has_an_address_instead_of_a_socket() -> None:
    pod = build(simulated=True)
    engine = engine_of(pod)
    assert (option(engine, "--host"), option(engine, "--port")) == ("$(POD_IP)", "8002")
    assert "--uds" not in engine["args"]
    assert env_of(pod["spec"]["containers"][0])["LLMOS_ENGINE_URL"] == "http://$(POD_IP):8002"


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"name": "vllm"}, "spec.engine.image"),
        ({"name": "vllm", "image": IMAGE, "args": ["--max-model-len=1"]}, "spec.engine.args[0]"),
    ],
)
def test_what_came_past_the_schema_is_refused_here(engine: dict[str, Any], words: str) -> None:
    workload = a_work(engine=engine)
    with pytest.raises(Permanent) as refused:
        manifest.build(workload, a_claim_of(workload), SETTINGS)
    assert words in str(refused.value)
    assert refused.value.reason == "InvalidSpec"
