"""The runtime container: image, environment, probes, resources, security."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.api.quantity import parse_milliseconds
from llmos_operator.api.runtime.memory import FORMAT_BITS
from llmos_operator.api.runtime.uris import SECRET_KEYS, SOURCE_VARIABLES
from llmos_operator.manifests import gang, jobs, traces, vllm
from llmos_operator.state.types import QuantizationMode, WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.manifests.settings import PodSettings
    from llmos_operator.state.types import Claim, Workload

Json = dict[str, Any]

NAME = "runtime"
CACHE_DIR = "/var/llmos/cache"
TMP_DIR = "/var/llmos/tmp"
KEPT_DIR = "/var/llmos/model"
_GRACE_MARGIN = 10  # seconds beyond the drain: endpoint propagation and the engine's end
_STUCK_GRACE = 10  # seconds between SIGTERM and SIGKILL of a runtime that failed its liveness probe
_PROBE_SECONDS = 1
_CPU_ONLY_HEADROOM = 125  # percent of the claim at which a CPU-only runtime is stopped


def drain_seconds(workload: Workload) -> int:
    """Return spec.serving.drainTimeout in whole seconds, rounded up."""
    text = (workload.spec.get("serving") or {}).get("drainTimeout") or "60s"
    return -(-parse_milliseconds(str(text)) // 1000)


def grace_seconds(workload: Workload) -> int:
    """Return the pod's terminationGracePeriodSeconds."""
    return drain_seconds(workload) + _GRACE_MARGIN


def serving_port(workload: Workload) -> int:
    """Return the port the runtime serves on."""
    return int((workload.spec.get("serving") or {}).get("port") or names.PORT_SERVING)


def runtime_container(
    workload: Workload,
    claim: Claim,
    settings: PodSettings,
    requests: Json,
    *,
    simulated: bool,
    kept: bool = False,
) -> Json:
    """Return the container that loads and serves the model.

    ``requests`` are its resource requests; ``kept`` says whether the node's copy of the model is mounted.
    """
    engine = workload.spec.get("engine") or {}
    own = {} if vllm.fronts(workload) else engine  # image and arguments are those of the container beside it
    port = serving_port(workload)
    return {
        "name": NAME,
        "image": own.get("image") or settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": [*_command(workload, engine), *own.get("args", ())],
        "env": environment(workload, claim, settings, simulated=simulated, kept=kept),
        "ports": [
            {"name": "http", "containerPort": port, "protocol": "TCP"},
            {"name": "control", "containerPort": names.PORT_CONTROL, "protocol": "TCP"},
        ],
        **_probes(workload, port, claim, settings),
        **_last_words(workload),
        "resources": {"requests": requests} if vllm.fronts(workload) else _resources(claim, requests),
        "volumeMounts": [
            *_models(workload, kept=kept),
            {"name": "llmos-tmp", "mountPath": TMP_DIR},
            *([{"name": vllm.VOLUME, "mountPath": vllm.FOLDER}] if vllm.fronts(workload) else []),
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": settings.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def engine_container(
    workload: Workload,
    claim: Claim,
    settings: PodSettings,
    requests: Json,
    *,
    simulated: bool,
    kept: bool,
    share: str,
) -> Json:
    """Return the container of a vLLM beside the runtime; it has what the claim is for, devices and memory limit included."""
    return vllm.container(
        workload,
        claim,
        settings,
        _resources(claim, requests),
        _models(workload, kept=kept),
        simulated=simulated,
        share=share,
    )


def _models(workload: Workload, *, kept: bool) -> list[Json]:
    """Return the mounts that models and adapters are read from."""
    return [
        {"name": "llmos-cache", "mountPath": CACHE_DIR},
        *([{"name": "llmos-model", "mountPath": KEPT_DIR, "readOnly": True}] if kept else []),
        *jobs.mounts(workload),
    ]


def _last_words(workload: Workload) -> Json:
    """Return what makes the kubelet keep the end of the log of work that failed without a message of its own."""
    serves = workload.kind is WorkloadKind.INFERENCE
    return {} if serves else {"terminationMessagePolicy": "FallbackToLogsOnError"}


def _command(workload: Workload, engine: Json) -> list[str]:
    """Return the first arguments: the operator's own image holds several programs, a custom one is what it is."""
    return [] if engine.get("name") == "custom" else [jobs.PROGRAMS[workload.kind]]


def _probes(workload: Workload, port: int, claim: Claim, settings: PodSettings) -> Json:
    """Return the probes of a container; members of a gang beside its leader answer nobody, work that ends is never "ready"."""
    if claim.member != gang.LEADER:
        return {}
    alive = _probe("/livez", port, failures=3, period=10, timeout=5)
    startup = {"startupProbe": _probe("/startupz", port, failures=max(1, int(settings.startup_seconds)))}
    if workload.kind is not WorkloadKind.INFERENCE:
        return {**startup, "livenessProbe": alive}
    return {
        **startup,
        "readinessProbe": _probe("/readyz", port, failures=2),
        # It answers nobody any more, so it does not drain either: no use in waiting for that.
        "livenessProbe": {**alive, "terminationGracePeriodSeconds": _STUCK_GRACE},
    }


def _probe(path: str, port: int, *, failures: int, period: int = _PROBE_SECONDS, timeout: int = 2) -> Json:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _resources(claim: Claim, requests: Json) -> Json:
    limits: Json = {}
    claimed: Json = {}
    if claim.resource_claim:
        claimed["claims"] = [{"name": names.POD_CLAIM}]
    if claim.resource:
        # Extended resources need equal requests and limits.
        limits[claim.resource] = str(len(claim.devices))
        requests = {**requests, claim.resource: str(len(claim.devices))}
    if not claim.devices and claim.memory_bytes:
        limits["memory"] = str(claim.memory_bytes * _CPU_ONLY_HEADROOM // 100)
    return {"requests": requests} | ({"limits": limits} if limits else {}) | claimed


def environment(
    workload: Workload, claim: Claim, settings: PodSettings, *, simulated: bool, kept: bool = False
) -> list[Json]:
    """Return the runtime's environment; names of `api.names`, then the engine's own."""
    asked = {**_model_environment(workload, claim), **jobs.environment(workload)}
    plain = {name: _literal(value) for name, value in asked.items()} | {
        names.ENV_MEMORY_LIMIT: str(claim.bytes_per_device if claim.devices else claim.memory_bytes),
        names.ENV_PORT: str(serving_port(workload)),
        names.ENV_CONTROL_PORT: str(names.PORT_CONTROL),
        names.ENV_CACHE_DIR: CACHE_DIR,
        names.ENV_GRACE_SECONDS: str(grace_seconds(workload)),
        "TMPDIR": TMP_DIR,
        "HOME": TMP_DIR,
        "MALLOC_ARENA_MAX": "2",
        # As many compute threads as CPUs were requested: more would only wait for one another.
        "OMP_NUM_THREADS": str(max(1, claim.cpu_milli // 1000)),
    }
    if kept:
        plain[names.ENV_KEPT_DIR] = KEPT_DIR
    if settings.hub_endpoint:
        plain["HF_ENDPOINT"] = settings.hub_endpoint
    # Pods of one machine share its loopback in the local cluster, so each binds its own address there. Elsewhere the
    # wildcard keeps port-forwarding working, which connects to localhost.
    plain[names.ENV_HOST] = f"$({names.ENV_POD_IP})" if simulated else "0.0.0.0"  # noqa: S104
    device_mode = "void" if not claim.devices else ",".join(claim.devices)
    if not (claim.resource or claim.resource_claim) or simulated:
        # What a real node's device plugin or DRA driver gives out, that names.
        plain[names.ENV_DEVICES] = device_mode
    if settings.trace_endpoint:
        plain |= {
            names.ENV_TRACE_ENDPOINT: settings.trace_endpoint,
            names.ENV_TRACE_RATIO: str(settings.trace_ratio),
            names.ENV_TRACEPARENT: traces.traceparent(claim),
        }
    plain |= gang.environment(workload, claim)
    plain |= settings.env
    if vllm.fronts(workload):
        plain |= vllm.front_environment(claim, simulated=simulated)
        return [*_downward(), *_secrets(workload, settings), *_pairs(plain)]
    engine = {
        str(one["name"]): str(one.get("value", ""))
        for one in (workload.spec.get("engine") or {}).get("env", ())
    }
    return [*_downward(), *_secrets(workload, settings), *_pairs(plain | engine)]


def _model_environment(workload: Workload, claim: Claim) -> dict[str, str]:
    length = claim.max_model_len or workload.max_model_len
    return {
        names.ENV_MODEL_URI: workload.model.uri,
        names.ENV_MODEL_NAME: workload.model.name,
        names.ENV_MODEL_REVISION: workload.model.revision,
        names.ENV_MODEL_DIGEST: workload.model.digest,
        names.ENV_FORMAT: claim.format,
        **_precision_environment(workload, claim),
        names.ENV_KV_DTYPE: workload.quantization.kv_cache_dtype,
        names.ENV_MAX_MODEL_LEN: str(length) if length else "auto",
        names.ENV_MAX_NUM_SEQS: str(workload.max_num_seqs),
        **_adapter_environment(workload),
        **_split_environment(workload, claim),
        names.ENV_APIS: ",".join((workload.spec.get("serving") or {}).get("apis", ())),
    }


def _precision_environment(workload: Workload, claim: Claim) -> dict[str, str]:
    """Return what the model may be changed to while it runs, and what a format may cost."""
    asked = workload.quantization
    allowed = tuple(name for name in asked.allowed if FORMAT_BITS[name] >= asked.min_bits)
    formats = allowed if asked.mode is QuantizationMode.AUTO else (claim.format,)
    limit = asked.max_quality_loss_milli
    return {names.ENV_FORMATS: ",".join(formats)} | (
        {names.ENV_MAX_QUALITY_LOSS: str(limit)} if limit is not None else {}
    )


def _literal(value: str) -> str:
    """Return a workload's text for a variable: Kubernetes would put another's value, a secret too, in the place of $(NAME)."""
    return value.replace("$(", "$$(")


def _adapter_environment(workload: Workload) -> dict[str, str]:
    if not workload.max_adapters:
        return {}
    sources = [{"name": one.name, "uri": one.uri} for one in workload.adapters]
    return {
        names.ENV_ADAPTERS: json.dumps(sources, separators=(",", ":")),
        names.ENV_MAX_ADAPTERS: str(workload.max_adapters),
        names.ENV_MAX_ADAPTER_RANK: str(workload.adapter_rank),
    }


def _split_environment(workload: Workload, claim: Claim) -> dict[str, str]:
    """Return over how many devices the built-in engine splits the model: all that the pod has, or all stages there are."""
    ways = len(claim.devices)
    if workload.engine == "builtin" and workload.pipeline > 1:
        return {names.ENV_PIPELINE_PARALLEL: str(workload.pipeline)}
    return {names.ENV_TENSOR_PARALLEL: str(ways)} if workload.engine == "builtin" and ways > 1 else {}


def _pairs(plain: dict[str, str]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in plain.items()]


def _downward() -> list[Json]:
    fields = {
        names.ENV_POD_NAME: "metadata.name",
        names.ENV_POD_NAMESPACE: "metadata.namespace",
        names.ENV_POD_UID: "metadata.uid",
        names.ENV_POD_IP: "status.podIP",
        names.ENV_NODE_NAME: "spec.nodeName",
    }
    return [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]


def _secrets(workload: Workload, settings: PodSettings) -> list[Json]:
    found = [_from_secret(names.ENV_CONTROL_TOKEN, settings.control_secret, "token")]
    keys = ((workload.spec.get("serving") or {}).get("apiKeySecretRef") or {}).get("name")
    if keys:
        found.append(_from_secret(names.ENV_API_KEYS, str(keys), "keys"))
    model = ((workload.spec.get("model") or {}).get("secretRef") or {}).get("name")
    if model:
        found += source_secrets(workload.model.uri, str(model), tuple(one.uri for one in workload.adapters))
    found += [
        _from_secret(variable, secret, key, **({} if needed else {"optional": True}))
        for variable, secret, key, needed in jobs.secrets(workload)
    ]
    return found


def source_secrets(uri: str, secret: str, adapters: tuple[str, ...] = ()) -> list[Json]:
    """Return the variables with the credentials of the sources of a model and its adapters, as keys of its Secret."""
    keys = _keys(uri)
    # Where there are several kinds of proof, a Secret holds one of them; the runtime says what it misses.
    needed = keys if len(keys) == 1 else ()
    return [
        _from_secret(
            SOURCE_VARIABLES.get(key, "HF_TOKEN"),
            secret,
            key,
            **({} if key in needed else {"optional": True}),
        )
        for key in dict.fromkeys((*keys, *(key for one in adapters for key in _keys(one))))
    ]


def _keys(uri: str) -> tuple[str, ...]:
    return SECRET_KEYS.get(uri.partition("://")[0], ("token",))


def _from_secret(variable: str, secret: str, key: str, **more: bool) -> Json:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, **more}}}
