from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llmos_operator.api import names
from llmos_operator.errors import Permanent
from llmos_operator.manifests import pod as manifest
from llmos_operator.manifests import service
from llmos_operator.state import convert
from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.convert.pods import requests
from llmos_operator.state.types import Sharing
from tests.support.replicas import SETTINGS, a_claim_of, a_work


def build(workload: Any = None, claim: Any = None, **options: Any) -> dict[str, Any]:
    workload = workload or a_work()
    return manifest.build(
        workload, claim or a_claim_of(workload), options.pop("settings", SETTINGS), **options
    )


def env_of(pod: dict[str, Any], section: str = "containers", index: int = 0) -> dict[str, Any]:
    container = pod["spec"][section][index]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_the_same_inputs_give_the_same_pod() -> None:
    assert build() == build()


def test_the_claim_is_read_back_from_the_pod_exactly() -> None:
    claim = a_claim_of(a_work(), devices=("GPU-7", "GPU-9"), kv_tokens=77, min_runtime=12.5)
    pod = build(claim=claim)
    pod["metadata"]["uid"] = "p"
    assert convert.pod(pod).claim == claim


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
        {
            "containers": [
                {"name": "app", "image": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
            ],
            "initContainers": [
                {"name": "i", "image": "a", "resources": {"requests": {"cpu": "3", "memory": "4Gi"}}}
            ],
        },
    ],
)
def test_a_pods_requests_add_up_to_what_the_claim_counts(template: dict[str, Any]) -> None:
    workload = a_work(podTemplate={"spec": template})
    claim = a_claim_of(
        workload,
        cpu_milli=500 + workload.cpu_milli,
        memory_bytes=(512 << 20) + workload.host_memory_bytes,
    )
    cpu, memory, gpus = requests(Fields(build(workload, claim)["spec"]))
    assert (cpu, memory, gpus) == (claim.cpu_milli, claim.memory_bytes, 1)


def test_the_runtime_is_told_what_the_scheduler_decided() -> None:
    env = env_of(build(claim=a_claim_of(a_work(), format="int8", max_model_len=4096), simulated=True))
    assert env["LLMOS_FORMAT"] == "int8"
    assert env["LLMOS_MAX_MODEL_LEN"] == "4096"
    assert env["LLMOS_MEMORY_LIMIT_BYTES"] == str(1 << 30)
    assert env["NVIDIA_VISIBLE_DEVICES"] == "GPU-0"
    assert env["HF_ENDPOINT"] == "http://hub"


@pytest.mark.parametrize(
    ("asked", "formats", "limit"),
    [
        ({"mode": "Auto", "allowed": ["bf16", "int8", "int4"], "minBits": 8}, "bf16,int8", "5000"),
        ({"mode": "Fixed", "format": "int8", "maxQualityLoss": "1.5%"}, "int8", "1500"),
        ({"mode": "None"}, "int8", "5000"),
    ],
)
def test_the_runtime_is_told_what_its_model_may_be_changed_to_and_what_that_may_cost(
    asked: dict[str, Any], formats: str, limit: str
) -> None:
    work = a_work(quantization={"maxQualityLoss": "5%", **asked})
    env = env_of(build(work, a_claim_of(work, format="int8")))
    assert (env["LLMOS_FORMATS"], env["LLMOS_MAX_QUALITY_LOSS_MILLI"]) == (formats, limit)


def test_whole_devices_of_a_real_node_are_named_by_its_device_plugin() -> None:
    pod = build()
    assert "NVIDIA_VISIBLE_DEVICES" not in env_of(pod)
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_shared_devices_are_named_and_not_asked_of_the_plugin() -> None:
    pod = build(claim=a_claim_of(a_work(), sharing=Sharing.SHARED))
    assert env_of(pod)["NVIDIA_VISIBLE_DEVICES"] == "GPU-0"
    assert "limits" not in pod["spec"]["containers"][0]["resources"]


def test_a_mig_instance_is_asked_of_the_plugin_that_knows_it_and_named_where_none_does() -> None:
    workload = a_work(resources={"sharing": "MIG", "migProfile": "1g.10gb"})
    claim = a_claim_of(
        workload, devices=("MIG-a",), sharing=Sharing.MIG, partition_resource="nvidia.com/mig-1g.10gb"
    )
    pod = build(workload, claim)
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/mig-1g.10gb": "1"}
    assert pod["spec"]["containers"][0]["resources"]["requests"]["nvidia.com/mig-1g.10gb"] == "1"
    assert "NVIDIA_VISIBLE_DEVICES" not in env_of(pod)
    pod["metadata"]["uid"] = "p"
    assert convert.pod(pod).claim == claim
    assert env_of(build(workload, claim, simulated=True))["NVIDIA_VISIBLE_DEVICES"] == "MIG-a"
    alone = build(workload, replace(claim, partition_resource=""))
    assert env_of(alone)["NVIDIA_VISIBLE_DEVICES"] == "MIG-a"
    assert "limits" not in alone["spec"]["containers"][0]["resources"]
    alone["metadata"]["uid"] = "p"
    assert convert.pod(alone).claim == replace(claim, partition_resource="")


def test_a_cpu_only_runtime_sees_no_device_and_has_a_memory_limit() -> None:
    pod = build(claim=a_claim_of(a_work(), devices=(), bytes_per_device=0, memory_bytes=1 << 30))
    assert env_of(pod)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert int(pod["spec"]["containers"][0]["resources"]["limits"]["memory"]) > 1 << 30


def test_pods_of_one_machine_bind_their_own_address_others_every_one() -> None:
    assert env_of(build(simulated=True))["LLMOS_HOST"] == "$(POD_IP)"
    assert env_of(build())["LLMOS_HOST"] == "0.0.0.0"


def test_the_runtime_joins_an_application_as_a_sidecar_that_is_up_first() -> None:
    workload = a_work(podTemplate={"spec": {"containers": [{"name": "app", "image": "a"}]}})
    pod = build(workload)
    first = pod["spec"]["initContainers"][0]
    assert (first["name"], first["restartPolicy"]) == ("runtime", "Always")
    assert [one["name"] for one in pod["spec"]["containers"]] == ["app"]
    assert env_of(pod)["LLMOS_ENDPOINT"] == "http://$(POD_IP):8000/v1"


def test_containers_beside_the_runtime_see_no_device_whatever_their_image_asks_for() -> None:
    template = {
        "containers": [{"name": "app", "image": "cuda"}],
        "initContainers": [{"name": "i", "image": "cuda"}],
    }
    pod = build(a_work(podTemplate={"spec": template}))
    assert env_of(pod)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert env_of(pod, "initContainers", 1)["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_a_pod_meets_the_restricted_security_profile() -> None:
    pod = build()
    security = pod["spec"]["containers"][0]["securityContext"]
    assert security["runAsNonRoot"]
    assert security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not security["allowPrivilegeEscalation"]
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert not any("hostPath" in volume for volume in pod["spec"]["volumes"])


def test_secrets_are_referred_to_and_never_copied() -> None:
    env = env_of(
        build(
            a_work(
                model={"uri": "hf://a/b", "secretRef": {"name": "hf"}},
                serving={"apiKeySecretRef": {"name": "k"}},
            )
        )
    )
    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "hf", "key": "token"}}
    assert env["LLMOS_API_KEYS"] == {"secretKeyRef": {"name": "k", "key": "keys"}}
    assert env["LLMOS_CONTROL_TOKEN"]["secretKeyRef"]["name"] == "llmos-runtime-control"


def test_a_bucket_gets_the_keys_its_secret_has() -> None:
    env = env_of(build(a_work(model={"uri": "s3://b/m", "secretRef": {"name": "bucket"}})))
    key = {"name": "bucket", "key": "AWS_SECRET_ACCESS_KEY", "optional": True}
    assert env["AWS_SECRET_ACCESS_KEY"] == {"secretKeyRef": key}
    assert env["AWS_ENDPOINT_URL"]["secretKeyRef"]["key"] == "AWS_ENDPOINT_URL"
    assert "HF_TOKEN" not in env
    env = env_of(build(a_work(model={"uri": "oci://r.example/m", "secretRef": {"name": "pull"}})))
    assert env["LLMOS_REGISTRY_PASSWORD"]["secretKeyRef"]["key"] == "password"


def test_a_run_gets_the_keys_of_its_data_apart_from_those_of_its_model() -> None:
    data = {"input": {"uri": "s3://b/in"}, "output": {"uri": "pvc://c/out"}, "secretRef": {"name": "data"}}
    model = {"uri": "s3://b/m", "secretRef": {"name": "model"}}
    env = env_of(build(a_work(type="Batch", model=model, batch=data)))
    key = {"name": "data", "key": "AWS_SECRET_ACCESS_KEY"}
    assert env["LLMOS_DATA_AWS_SECRET_ACCESS_KEY"] == {"secretKeyRef": key}
    assert env["LLMOS_DATA_AWS_REGION"]["secretKeyRef"]["optional"] is True
    assert env["AWS_SECRET_ACCESS_KEY"]["secretKeyRef"]["name"] == "model"
    assert "secretRef" not in env["LLMOS_JOB"]
    nowhere = {**data, "input": {"uri": "pvc://c/in"}}
    assert "LLMOS_DATA_AWS_SECRET_ACCESS_KEY" not in env_of(build(a_work(type="Batch", batch=nowhere)))


def test_adapters_are_fetched_with_keys_of_the_models_secret() -> None:
    model = {"uri": "hf://a/b", "secretRef": {"name": "m"}}
    env = env_of(build(a_work(model=model, adapters=[{"name": "t", "uri": "s3://b/t"}])))
    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "m", "key": "token"}}
    assert env["AWS_ACCESS_KEY_ID"] == {
        "secretKeyRef": {"name": "m", "key": "AWS_ACCESS_KEY_ID", "optional": True}
    }


def test_a_pod_lives_longer_than_it_drains() -> None:
    pod = build(a_work(serving={"drainTimeout": "90s"}))
    assert pod["spec"]["terminationGracePeriodSeconds"] == 100


def test_a_cache_on_the_node_is_mounted_where_the_administrator_says() -> None:
    pod = build(settings=replace(SETTINGS, cache_host_path="/srv/models"))
    (cache,) = [one for one in pod["spec"]["volumes"] if one["name"] == "llmos-cache"]
    assert cache["hostPath"]["path"] == "/srv/models"


DANGEROUS = [
    ({"hostNetwork": True}, "hostNetwork"),
    ({"hostPID": True}, "hostPID"),
    ({"hostIPC": True}, "hostIPC"),
    ({"shareProcessNamespace": True}, "shareProcessNamespace"),
    ({"serviceAccountName": "cluster-admin"}, "serviceAccountName"),
    ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "hostPath"),
    ({"volumes": [{"name": "llmos-cache", "emptyDir": {}}]}, "llmos-cache"),
    (
        {"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {}}]}}]},
        "serviceAccountToken",
    ),
    ({"containers": [{"name": "a", "securityContext": {"privileged": True}}]}, "privileged"),
    (
        {"containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": True}}]},
        "allowPrivilegeEscalation",
    ),
    (
        {"containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]},
        "capabilities",
    ),
    ({"containers": [{"name": "a", "env": [{"name": "LD_PRELOAD", "value": "x"}]}]}, "LD_PRELOAD"),
    (
        {"initContainers": [{"name": "a", "env": [{"name": "NVIDIA_VISIBLE_DEVICES"}]}]},
        "NVIDIA_VISIBLE_DEVICES",
    ),
    ({"containers": [{"name": "a", "resources": {"limits": {"nvidia.com/gpu": 1}}}]}, "accelerators"),
    ({"containers": [{"name": "a", "resources": {"claims": [{"name": "llmos-devices"}]}}]}, "accelerators"),
    ({"containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 80}]}]}, "hostPort"),
]


@pytest.mark.parametrize(("spec", "named"), DANGEROUS)
def test_what_tenants_must_not_have_is_refused_by_name(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(Permanent, match=named) as caught:
        build(a_work(podTemplate={"spec": spec}))
    assert caught.value.reason == "InvalidSpec"


@pytest.mark.parametrize("name", ["LD_PRELOAD", "NVIDIA_DRIVER_CAPABILITIES", "LLMOS_HOST", "PYTHONPATH"])
def test_an_engines_environment_cannot_change_what_runs(name: str) -> None:
    with pytest.raises(Permanent, match=name):
        build(a_work(engine={"env": [{"name": name, "value": "x"}]}))


def test_fields_of_a_template_nobody_listed_do_not_reach_the_pod() -> None:
    pod = build(a_work(podTemplate={"spec": {"someNewField": True, "tolerations": [{"operator": "Exists"}]}}))
    assert "someNewField" not in pod["spec"]
    assert pod["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_a_template_cannot_take_over_the_operators_labels() -> None:
    labels = {"llmos.dev/workload-uid": "forged", "mine": "1"}
    pod = build(a_work(podTemplate={"metadata": {"labels": labels}}))
    assert pod["metadata"]["labels"]["llmos.dev/workload-uid"] == "uid-1"
    assert pod["metadata"]["labels"]["mine"] == "1"


def a_member(rank: int) -> dict[str, Any]:
    work = a_work(
        resources={"accelerators": 4},
        parallelism={"pipeline": 2, "pods": 2, "data": 2},
        engine={"name": "custom", "image": "trainer", "args": ["torchrun", "train.py"]},
    )
    pod = f"team/{names.pod_name('chat', 'uid-1', 1, member=rank)}"
    return build(work, a_claim_of(work, 1, member=rank, pod=pod, devices=("GPU-1", "GPU-2")))


def test_members_of_a_gang_find_each_other_by_stable_names() -> None:
    leader, last = a_member(0), a_member(3)
    env = env_of(last)
    meeting = f"{leader['spec']['hostname']}.{leader['spec']['subdomain']}.team.svc"
    assert env["MASTER_ADDR"] == env["PET_MASTER_ADDR"] == meeting
    assert (env["NNODES"], env["NODE_RANK"], env["WORLD_SIZE"], env["RANK"]) == ("4", "3", "4", "3")
    assert env["PET_NPROC_PER_NODE"] == "2"
    assert last["spec"]["hostname"] == last["metadata"]["name"]
    assert last["metadata"]["name"].endswith("-1-3")
    assert leader["metadata"]["name"] == a_member(0)["metadata"]["name"]


def test_the_builtin_engine_is_told_over_how_many_devices_it_splits_the_model() -> None:
    work = a_work(resources={"accelerators": 2})
    both = a_claim_of(work, devices=("GPU-1", "GPU-2"))
    assert env_of(build(work, both))[names.ENV_TENSOR_PARALLEL] == "2"
    assert names.ENV_TENSOR_PARALLEL not in env_of(build(a_work()))
    own = a_work(resources={"accelerators": 2}, engine={"name": "custom", "image": "x"})
    assert names.ENV_TENSOR_PARALLEL not in env_of(build(own, both))


def test_the_builtin_engine_is_told_of_all_stages_of_all_pods() -> None:
    work = a_work(resources={"accelerators": 4}, parallelism={"pipeline": 4, "pods": 2})
    pod = f"team/{names.pod_name('chat', 'uid-1', 0, member=1)}"
    env = env_of(build(work, a_claim_of(work, member=1, pod=pod, devices=("GPU-1", "GPU-2"))))
    assert (env["NNODES"], env[names.ENV_PIPELINE_PARALLEL]) == ("2", "4")
    assert names.ENV_TENSOR_PARALLEL not in env


def test_pods_that_share_a_model_know_their_place_in_it() -> None:
    work = a_work(resources={"accelerators": 4}, parallelism={"pods": 2})
    pod = f"team/{names.pod_name('chat', 'uid-1', 0, member=1)}"
    env = env_of(build(work, a_claim_of(work, member=1, pod=pod, devices=("GPU-1", "GPU-2"))))
    assert (env["NNODES"], env["NODE_RANK"], env[names.ENV_TENSOR_PARALLEL]) == ("2", "1", "2")


def test_only_the_leader_of_a_gang_serves() -> None:
    leader, worker = a_member(0), a_member(1)
    assert leader["metadata"]["labels"][names.LABEL_ROLE] == "runtime"
    assert worker["metadata"]["labels"][names.LABEL_ROLE] == "worker"
    assert "readinessProbe" in leader["spec"]["containers"][0]
    assert "readinessProbe" not in worker["spec"]["containers"][0]


def test_a_custom_engine_is_started_as_it_is() -> None:
    assert a_member(0)["spec"]["containers"][0]["args"] == ["torchrun", "train.py"]


def test_the_headless_service_names_members_before_they_are_ready() -> None:
    work = a_work(parallelism={"data": 2})
    body = service.build_headless(work)
    assert body["spec"]["clusterIP"] == "None"
    assert body["spec"]["publishNotReadyAddresses"]
    assert body["metadata"]["name"] == a_member(0)["spec"]["subdomain"]
    assert body["spec"]["selector"].items() <= a_member(1)["metadata"]["labels"].items()


def test_a_member_is_read_back_from_the_pod_exactly() -> None:
    work = a_work(parallelism={"data": 2})
    claim = a_claim_of(work, member=1)
    pod = build(work, claim)
    pod["metadata"]["uid"] = "p"
    assert convert.pod(pod).claim == claim


def test_a_stuck_server_is_ended_sooner_than_one_that_drains() -> None:
    pod = build(a_work())
    (container,) = pod["spec"]["containers"]
    assert container["livenessProbe"]["terminationGracePeriodSeconds"] == 10
    assert pod["spec"]["terminationGracePeriodSeconds"] == 70


def test_work_that_ends_runs_its_program_once_with_its_data() -> None:
    work = a_work(
        type="Batch",
        batch={
            "input": {"uri": "pvc://questions/in.jsonl"},
            "output": {"uri": "pvc://answers/out.jsonl"},
            "completionWindow": "24h",
            "backoffLimit": 3,
        },
    )
    pod = build(work)
    (container,) = pod["spec"]["containers"]
    assert (pod["spec"]["restartPolicy"], container["args"]) == ("Never", ["batch"])
    assert "readinessProbe" not in container
    assert {"startupProbe", "livenessProbe"} <= container.keys()
    assert "terminationGracePeriodSeconds" not in container["livenessProbe"]  # it saves what it has done
    assert json.loads(env_of(pod)["LLMOS_JOB"]) == {
        "input": {"uri": "pvc://questions/in.jsonl"},
        "output": {"uri": "pvc://answers/out.jsonl"},
    }
    claims = {
        one["name"]: one["persistentVolumeClaim"]["claimName"]
        for one in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in one
    }
    mounted = {
        claims[one["name"]]: (one["mountPath"], one.get("readOnly", False))
        for one in container["volumeMounts"]
        if one["name"] in claims
    }
    assert mounted == {
        "questions": ("/llmos/volumes/questions", True),
        "answers": ("/llmos/volumes/answers", False),
    }


def test_what_a_workload_says_never_becomes_the_value_of_another_variable() -> None:
    work = a_work(
        type="Batch",
        model={"uri": "https://models.example/$(LLMOS_CONTROL_TOKEN)", "revision": "$(HF_TOKEN)"},
        batch={"input": {"uri": "pvc://in/$(LLMOS_API_KEYS)"}, "output": {"uri": "pvc://out/o"}},
    )
    env = env_of(build(work))
    assert env[names.ENV_MODEL_URI] == "https://models.example/$$(LLMOS_CONTROL_TOKEN)"
    told = (env[names.ENV_MODEL_REVISION], env["LLMOS_JOB"])
    assert not any("$(" in text.replace("$$(", "") for text in told)
    assert env[names.ENV_HOST] in {"0.0.0.0", f"$({names.ENV_POD_IP})"}


def test_the_claims_of_adapters_are_mounted_to_be_read() -> None:
    adapters = [{"name": "a", "uri": "pvc://out/a"}, {"name": "b", "uri": "pvc://out/b"}]
    pod = build(a_work(adapters=adapters))
    (container,) = pod["spec"]["containers"]
    mounts = [one for one in container["volumeMounts"] if one["mountPath"].startswith("/llmos/volumes")]
    assert [(one["mountPath"], one["readOnly"]) for one in mounts] == [("/llmos/volumes/out", True)]
    volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
    assert volumes[mounts[0]["name"]]["persistentVolumeClaim"] == {"claimName": "out"}
    assert env_of(pod)[names.ENV_VOLUMES_ROOT] == "/llmos/volumes/out/.."
    assert names.ENV_JOB not in env_of(pod)


def test_the_claim_of_a_model_is_mounted_once_and_to_be_read() -> None:
    pod = build(
        a_work(
            model={"uri": "pvc://models/qwen", "cacheRef": {"name": "kept"}},
            adapters=[{"name": "a", "uri": "pvc://models/tone"}],
        )
    )
    (container,) = pod["spec"]["containers"]
    mounts = [one for one in container["volumeMounts"] if one["mountPath"].startswith("/llmos/volumes")]
    assert [(one["mountPath"], one["readOnly"]) for one in mounts] == [("/llmos/volumes/models", True)]
    volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
    assert volumes[mounts[0]["name"]]["persistentVolumeClaim"] == {"claimName": "models"}
    env = env_of(pod)
    assert env[names.ENV_MODEL_URI] == "pvc://models/qwen"
    assert env[names.ENV_VOLUMES_ROOT] == "/llmos/volumes/models/.."


def test_a_claim_that_a_run_writes_to_may_hold_its_model_too() -> None:
    pod = build(
        a_work(
            type="Batch",
            model={"uri": "pvc://run/qwen"},
            batch={"input": {"uri": "pvc://run/in.jsonl"}, "output": {"uri": "pvc://run/out.jsonl"}},
        )
    )
    (container,) = pod["spec"]["containers"]
    mounts = [one for one in container["volumeMounts"] if one["mountPath"].startswith("/llmos/volumes")]
    assert [(one["mountPath"], one.get("readOnly", False)) for one in mounts] == [
        ("/llmos/volumes/run", False)
    ]


def test_adapters_and_the_room_for_them_reach_the_runtime() -> None:
    sources = [
        {"name": "tone", "uri": "hf://org/tone"},
        {"name": "law", "uri": "https://h/$(LLMOS_CONTROL_TOKEN)"},
    ]
    env = env_of(build(a_work(adapters=sources)))
    assert json.loads(env[names.ENV_ADAPTERS].replace("$$(", "$(")) == sources
    assert "$(LLMOS" not in env[names.ENV_ADAPTERS].replace("$$(", ""), (
        "Kubernetes puts no secret in its place"
    )
    assert (env[names.ENV_MAX_ADAPTERS], env[names.ENV_MAX_ADAPTER_RANK]) == ("2", "16")
    env = env_of(build(a_work(adapterLimits={"maxAdapters": 4, "maxRank": 64})))
    assert (env[names.ENV_MAX_ADAPTERS], env[names.ENV_MAX_ADAPTER_RANK]) == ("4", "64")
    assert names.ENV_ADAPTERS not in env_of(build())
