"""The container of engine vllm: an image of the user's beside our runtime, which fetches, fronts and watches it.

A native sidecar that starts before the runtime and is stopped after it, so that it still answers while the runtime
drains. It has the devices; the runtime has the keys, the credentials and the port. The two share a folder: vLLM waits
there for its order (the model's path, written when the model is on the disk), and listens on a socket in it, which no
other container of the pod can reach. Why so: docs/adr/0027.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api import names, vllm
from llmos_operator.state.types import QuantizationMode, Sharing

if TYPE_CHECKING:
    from llmos_operator.manifests.settings import PodSettings
    from llmos_operator.state.types import Claim, Workload

Json = dict[str, Any]

NAME: Final = "engine"
VOLUME: Final = "llmos-engine"
FOLDER: Final = "/var/llmos/engine"
SHARED_MEMORY: Final = "llmos-shm"
SCRATCH: Final = "llmos-engine-tmp"
SCRATCH_DIR: Final = "/var/llmos/engine-tmp"
SOCKET: Final = f"{FOLDER}/vllm.sock"
# Of the claim, for the runtime in front; what is left is the engine's.
FRONT_CPU_MILLI: Final = 100
FRONT_MEMORY_BYTES: Final = 192 << 20
_SHM_LIMIT = "8Gi"  # ranks of one replica pass their tensors' descriptions through it
_STUCK_PERIOD = 10

# Waits for the order, the model and then one argument a line, and becomes vLLM: signals and exit status are its own.
# The model goes first: argparse takes an optional positional argument for absent once it has met an option. A socket of
# an earlier run would be in its way.
_START: Final = """\
folder=$1; shift
trap 'exit 0' TERM INT
until [ -s "$folder/order" ]; do sleep 1; done
{ IFS= read -r model; while IFS= read -r one; do set -- "$@" "$one"; done; } < "$folder/order"
rm -f "$folder/stuck" "$folder/vllm.sock"
echo started >> "$folder/starts"
exec vllm serve "$model" "$@"
"""


def fronts(workload: Workload) -> bool:
    """Return whether the workload's runtime fronts a vLLM."""
    return workload.engine == vllm.ENGINE


def container(
    workload: Workload,
    claim: Claim,
    settings: PodSettings,
    resources: Json,
    mounts: list[Json],
    *,
    simulated: bool,
    share: str = "",
) -> Json:
    """Return the container of vLLM.

    ``share`` is the part of each device's memory that was claimed, as a decimal fraction; "" without real devices.
    ``mounts`` are those of models and adapters, which it reads only.
    """
    engine = workload.spec.get("engine") or {}
    arguments = _arguments(workload, claim, simulated=simulated, share=share)
    own = [{"name": VOLUME, "mountPath": FOLDER}, {"name": SCRATCH, "mountPath": SCRATCH_DIR}]
    if len(claim.devices) > 1:
        own.append({"name": SHARED_MEMORY, "mountPath": "/dev/shm"})  # noqa: S108 - the path is Linux's
    return {
        "name": NAME,
        "image": engine.get("image"),
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "command": ["/bin/sh", "-c", _START, vllm.ENGINE, FOLDER],
        # A user's text must not become another variable's value, nor an option of ours by way of one.
        "args": [*(str(one).replace("$(", "$$(") for one in engine.get("args", ())), *arguments],
        "env": _environment(workload, claim, settings, simulated=simulated),
        # The runtime leaves a note when vLLM has not answered for long: it cannot be asked over HTTP from outside.
        "livenessProbe": {
            "exec": {"command": ["/bin/sh", "-c", 'test ! -e "$1/stuck"', vllm.ENGINE, FOLDER]},
            "periodSeconds": _STUCK_PERIOD,
            "timeoutSeconds": 5,
            "failureThreshold": 1,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": resources,
        "volumeMounts": [*({**one, "readOnly": True} for one in mounts), *own],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": settings.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def volumes(claim: Claim) -> list[Json]:
    """Return the volumes the container needs beside the runtime's."""
    shm = {"name": SHARED_MEMORY, "emptyDir": {"medium": "Memory", "sizeLimit": _SHM_LIMIT}}
    return [
        {"name": VOLUME, "emptyDir": {}},
        {"name": SCRATCH, "emptyDir": {}},
        *([shm] if len(claim.devices) > 1 else []),
    ]


def front_environment(claim: Claim, *, simulated: bool) -> dict[str, str]:
    """Return what the runtime is told of the vLLM beside it."""
    return {
        names.ENV_ENGINE: vllm.ENGINE,
        names.ENV_ENGINE_DIR: FOLDER,
        names.ENV_ENGINE_URL: f"http://$({names.ENV_POD_IP}):{names.PORT_ENGINE}" if simulated else "",
        names.ENV_ENGINE_SLEEPS: "true" if sleeps(claim, simulated=simulated) else "",
    }


def sleeps(claim: Claim, *, simulated: bool) -> bool:
    """Return whether vLLM is started so that it can sleep: on real devices that others may want a part of."""
    return bool(claim.devices) and claim.sharing is Sharing.SHARED and not simulated


def memory_share(claimed: int, capacity: int) -> str:
    """Return claimed / capacity for `--gpu-memory-utilization`, rounded down to four digits, so never above the claim."""
    part = min(10_000, claimed * 10_000 // max(1, capacity))
    return f"{part / 10_000:.4f}"


def _arguments(workload: Workload, claim: Claim, *, simulated: bool, share: str) -> list[str]:
    address = ["--host", f"$({names.ENV_POD_IP})", "--port", str(names.PORT_ENGINE)]
    found = [
        *(address if simulated else ["--uds", SOCKET]),
        "--disable-uvicorn-access-log",
        "--served-model-name",
        _literal(workload.model.name),
        *_precision(workload, claim),
        "--max-num-seqs",
        str(workload.max_num_seqs),
    ]
    length = claim.max_model_len or workload.max_model_len
    if length:
        found += ["--max-model-len", str(length)]
    if share:
        found += ["--gpu-memory-utilization", share]
    if len(claim.devices) > 1:
        stages = int((workload.spec.get("parallelism") or {}).get("pipeline") or 1)
        found += ["--tensor-parallel-size", str(len(claim.devices) // stages)]
        found += ["--pipeline-parallel-size", str(stages)]
    if workload.max_adapters:
        most, rank = str(workload.max_adapters), str(vllm.lora_rank(workload.adapter_rank))
        found += ["--enable-lora", "--max-loras", most, "--max-cpu-loras", most, "--max-lora-rank", rank]
    if sleeps(claim, simulated=simulated):
        found.append("--enable-sleep-mode")
    return found


def _precision(workload: Workload, claim: Claim) -> list[str]:
    """Return the options of the format that was chosen; a checkpoint that is to stay as it is says itself how."""
    as_published = workload.quantization.mode is QuantizationMode.NONE
    dtype = "auto" if as_published else vllm.DTYPES.get(claim.format, "auto")
    method = vllm.METHODS.get(claim.format)
    kv_dtype = vllm.KV_DTYPES.get(workload.quantization.kv_cache_dtype, "auto")
    converted = ["--quantization", method] if method else []
    return ["--dtype", dtype, *converted, "--kv-cache-dtype", kv_dtype]


def _environment(workload: Workload, claim: Claim, settings: PodSettings, *, simulated: bool) -> list[Json]:
    """Return vLLM's environment: neither keys nor tokens, nothing that reaches out, and what the operator decided last."""
    engine = (workload.spec.get("engine") or {}).get("env", ())
    plain = {name: value for name, value in settings.env.items() if not name.startswith("LLMOS_")}
    if not claim.devices or simulated:
        # On CPUs vLLM takes every core of a NUMA node, unless OMP_NUM_THREADS is to count.
        plain["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    plain |= {str(one["name"]): _literal(str(one.get("value", ""))) for one in engine}
    plain |= {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # /sleep and /wake_up belong to vLLM's development mode, whose other routes nobody but the runtime can reach.
        "VLLM_SERVER_DEV_MODE": "1" if sleeps(claim, simulated=simulated) else "0",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1" if workload.max_adapters else "0",
        "HOME": SCRATCH_DIR,
        "TMPDIR": SCRATCH_DIR,
        "USER": NAME,  # libraries look up the name of a user id that no image knows
        "OMP_NUM_THREADS": str(max(1, claim.cpu_milli // 1000)),
    }
    if not (claim.resource or claim.resource_claim) or simulated:
        # What a real node's device plugin or DRA driver gives out, that names.
        plain[names.ENV_DEVICES] = ",".join(claim.devices) or "void"
    address: Json = {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    return [address, *({"name": name, "value": value} for name, value in plain.items())]


def _literal(text: str) -> str:
    return text.replace("$(", "$$(")
