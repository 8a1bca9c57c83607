"""Settings of the runtime, from the environment only: the operator writes it, see `manifests.container`.

Numbers are plain integers: bytes, seconds, tokens. A bad value raises :class:`BadEnvironment` naming variable, value
and fix.
"""

from __future__ import annotations

import hmac
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names, vllm
from llmos_operator.api.runtime.data import VOLUMES_ROOT
from llmos_operator.api.runtime.uris import SOURCE_VARIABLES
from llmos_operator.errors import Permanent
from llmos_operator.observability.receivers import check_endpoint
from llmos_operator.runtime.ipc.messages import AdapterSource, Load

if TYPE_CHECKING:
    from collections.abc import Mapping

APIS = ("chat", "completions", "embeddings", "transcriptions", "classify", "score")


class BadEnvironment(Permanent):
    """A variable cannot be used; the process must not start."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="BadSettings")


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """What one runtime serves, and how."""

    model_uri: str
    model_name: str  # name clients use
    model_revision: str = "main"
    model_digest: str = ""
    format: str = "bf16"
    formats: tuple[str, ...] = ()  # that it may be changed to while it runs; (): any
    max_quality_loss_milli: int = 5000  # of perplexity, thousandths of a percent
    kv_dtype: str = "auto"
    memory_limit_bytes: int = 0  # 0: none
    max_model_len: int = 0  # tokens; 0: what model and memory allow
    max_num_seqs: int = 64
    host: str = "0.0.0.0"  # noqa: S104 - a pod serves on its own address
    port: int = names.PORT_SERVING
    control_port: int = names.PORT_CONTROL
    control_token: str = field(default="", repr=False)  # "": the control API refuses everybody
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # (): no key is asked for
    apis: tuple[str, ...] = ()  # (): what the model can do
    cache_dir: str = ""
    grace_seconds: int = 60  # between SIGTERM and SIGKILL
    device: str = "auto"  # auto | cpu | cuda
    hub_endpoint: str = ""
    hub_token: str = field(default="", repr=False)
    secrets: tuple[tuple[str, str], ...] = field(
        default=(), repr=False
    )  # of the model's source, by key of its Secret
    kept_dir: str = ""
    allow_file: bool = False
    max_body_bytes: int = 8 << 20
    max_audio_bytes: int = 25 << 20  # of a form with sound
    max_audio_seconds: int = 1500  # of its sound
    adapters: tuple[AdapterSource, ...] = ()  # LoRA adapters to have from the start
    max_adapters: int = 0  # that memory is kept for
    max_adapter_rank: int = 16
    volumes: str = VOLUMES_ROOT  # folder that claims are mounted in
    adapter_dirs: tuple[str, ...] = ()  # where clients may load adapters from; (): nowhere
    tensor: int = 1  # devices of this pod that share each layer of the model
    pipeline: int = 1  # stages its layers are laid over, of all pods; more than 1: tensor is 1
    nodes: int = 1  # pods whose devices share it
    node_rank: int = 0  # of this pod; 0 serves
    meeting: tuple[str, int] = ("", 0)  # where the pods' ranks meet
    max_queue: int = 512  # requests waiting in the engine; more get 429
    max_wait_seconds: int = 30  # expected wait beyond which a request gets 429
    max_choices: int = 128  # prompts x n of one request
    log_level: str = "info"
    log_format: str = "json"
    trace_endpoint: str = ""  # of an OTLP receiver; "": no spans
    trace_ratio: float = 1.0
    trace_parent: str = ""  # the placement's span, as a traceparent
    engine: str = ""  # "": our own | vllm: one in the container beside this
    engine_dir: Path = Path()  # folder shared with that container
    engine_url: str = ""  # where it listens; "": on the socket in that folder
    engine_sleeps: bool = False  # it was started so that it can
    engine_stuck_seconds: int = (
        60  # without an answer to /health: longer than any step of an engine that works
    )
    engine_has_devices: bool = False  # its KV cache is on devices, and its size the pod's business

    def most_bytes(self, path: str) -> int:
        """Return how large a body of a request for ``path`` may be."""
        return self.max_audio_bytes if path.startswith(names.AUDIO_PATHS) else self.max_body_bytes

    @property
    def local_ranks(self) -> int:
        """Ranks of this pod: one for each of its devices."""
        return self.tensor if self.pipeline == 1 else self.pipeline // self.nodes

    def load_order(self) -> Load:
        """Return what the engine is told to load."""
        return Load(
            uri=self.model_uri,
            revision=self.model_revision,
            digest=self.model_digest,
            format=self.format,
            max_quality_loss_milli=self.max_quality_loss_milli,
            cache_dir=self.cache_dir,
            memory_limit_bytes=self.memory_limit_bytes,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            kv_dtype=self.kv_dtype,
            allow_file=self.allow_file,
            hf_endpoint=self.hub_endpoint,
            token=self.hub_token,
            secrets=self.secrets,
            kept_dir=self.kept_dir,
            device=self.device,
            pvc_root=self.volumes,
            adapters=self.adapters,
            max_adapters=self.max_adapters,
            max_adapter_rank=self.max_adapter_rank,
            tensor=self.tensor * self.nodes if self.pipeline == 1 else 1,
            pipeline=self.pipeline,
            local=self.local_ranks,
            meeting=self.meeting,
            listen=self.host,
            meeting_token=self._meeting_token(),
        )

    def _meeting_token(self) -> str:
        """Return what ranks of several pods know each other by: engines get it, and the control token stays with the front."""
        if self.nodes == 1:
            return ""
        return hmac.digest(self.control_token.encode(), b"llmos ranks", "sha256").hex()


def from_environment(environ: Mapping[str, str] | None = None) -> RuntimeSettings:
    """Return the settings this process was started with. Raises BadEnvironment."""
    env = _Reader(os.environ if environ is None else environ)
    uri = env.text(names.ENV_MODEL_URI)
    if not uri:
        raise BadEnvironment(f"{names.ENV_MODEL_URI} is not set; name the model to serve, like hf://org/name")
    devices = env.text(names.ENV_DEVICES)
    adapters = env.adapters(names.ENV_ADAPTERS)
    return RuntimeSettings(
        model_uri=uri,
        model_name=env.text(names.ENV_MODEL_NAME) or _name_of(uri),
        model_revision=env.text(names.ENV_MODEL_REVISION) or "main",
        model_digest=env.text(names.ENV_MODEL_DIGEST),
        format=env.text(names.ENV_FORMAT) or "bf16",
        formats=env.words(names.ENV_FORMATS),
        max_quality_loss_milli=env.number(names.ENV_MAX_QUALITY_LOSS, 5000),
        kv_dtype=env.text(names.ENV_KV_DTYPE) or "auto",
        memory_limit_bytes=env.number(names.ENV_MEMORY_LIMIT, 0),
        max_model_len=0
        if env.text(names.ENV_MAX_MODEL_LEN) == "auto"
        else env.number(names.ENV_MAX_MODEL_LEN, 0),
        max_num_seqs=env.number(names.ENV_MAX_NUM_SEQS, 64, least=1),
        host=env.text(names.ENV_HOST) or "0.0.0.0",  # noqa: S104 - a pod serves on its own address
        port=env.number(names.ENV_PORT, names.PORT_SERVING),
        control_port=env.number(names.ENV_CONTROL_PORT, names.PORT_CONTROL),
        control_token=env.text(names.ENV_CONTROL_TOKEN),
        api_keys=env.words(names.ENV_API_KEYS),
        apis=env.choices(names.ENV_APIS, APIS),
        cache_dir=env.text(names.ENV_CACHE_DIR),
        grace_seconds=env.number(names.ENV_GRACE_SECONDS, 60, least=1),
        device="cpu" if devices == "void" else env.text("LLMOS_DEVICE") or "auto",
        hub_endpoint=env.text("HF_ENDPOINT"),
        hub_token=env.text("HF_TOKEN"),
        secrets=env.secrets(SOURCE_VARIABLES),
        kept_dir=env.text(names.ENV_KEPT_DIR),
        allow_file=env.flag("LLMOS_ALLOW_FILE"),
        max_body_bytes=env.number("LLMOS_MAX_BODY_BYTES", 8 << 20, least=1024),
        max_audio_bytes=env.number("LLMOS_MAX_AUDIO_BYTES", 25 << 20, least=1024),
        max_audio_seconds=env.number("LLMOS_MAX_AUDIO_SECONDS", 1500, least=1),
        adapters=adapters,
        max_adapters=max(len(adapters), env.number(names.ENV_MAX_ADAPTERS, 0)),
        max_adapter_rank=env.number(names.ENV_MAX_ADAPTER_RANK, 16, least=1),
        volumes=env.text(names.ENV_VOLUMES_ROOT) or VOLUMES_ROOT,
        adapter_dirs=env.folders("LLMOS_ADAPTER_DIRS"),
        **_split(env),
        max_queue=env.number("LLMOS_MAX_QUEUE", 512),
        max_wait_seconds=env.number("LLMOS_MAX_WAIT_SECONDS", 30, least=1),
        max_choices=env.number("LLMOS_MAX_CHOICES", 128, least=1),
        log_level=env.text("LLMOS_LOG__LEVEL") or "info",
        log_format=env.text("LLMOS_LOG__FORMAT") or "json",
        trace_endpoint=env.receiver(names.ENV_TRACE_ENDPOINT),
        trace_ratio=env.ratio(names.ENV_TRACE_RATIO, 1.0),
        trace_parent=env.text(names.ENV_TRACEPARENT),
        **_engine(env, devices),
    )


def _engine(env: _Reader, devices: str) -> dict[str, Any]:
    """Return the settings of an engine beside the runtime, none without one."""
    engine = env.text(names.ENV_ENGINE)
    if not engine:
        return {}
    if engine != vllm.ENGINE:
        raise BadEnvironment(
            f"{names.ENV_ENGINE} = {engine!r} is not an engine this runtime fronts: {vllm.ENGINE}"
        )
    folder, url = env.text(names.ENV_ENGINE_DIR), env.text(names.ENV_ENGINE_URL)
    if not folder.startswith("/"):
        raise BadEnvironment(
            f"{names.ENV_ENGINE_DIR} = {folder!r} must be the absolute folder shared with the engine"
        )
    return {
        "engine": engine,
        "engine_dir": Path(folder),
        "engine_url": url,
        "engine_stuck_seconds": env.number("LLMOS_ENGINE_STUCK_SECONDS", 60, least=1),
        "engine_sleeps": env.flag(names.ENV_ENGINE_SLEEPS),
        # Simulated devices are the host's memory; the engine has an address there.
        "engine_has_devices": devices != "void" and not url,
    }


def _split(env: _Reader) -> dict[str, Any]:
    """Return how the devices of one pod or several share the model."""
    tensor = env.number(names.ENV_TENSOR_PARALLEL, 1, least=1)
    pipeline = env.number(names.ENV_PIPELINE_PARALLEL, 1, least=1)
    pods = _pods(env)
    if pipeline > 1 and tensor > 1:
        raise BadEnvironment(
            f"{names.ENV_PIPELINE_PARALLEL} = {pipeline} and {names.ENV_TENSOR_PARALLEL} = {tensor}: one of them must be 1"
        )
    nodes = pods.get("nodes", 1)
    if pipeline > 1 and pipeline % nodes:
        raise BadEnvironment(
            f"{names.ENV_PIPELINE_PARALLEL} = {pipeline} must be a multiple of NNODES = {nodes}, or 1"
        )
    return {"tensor": tensor, "pipeline": pipeline, **pods}


def _pods(env: _Reader) -> dict[str, Any]:
    """Return how several pods share a model, from the variables that every member of a gang has; nothing for one pod."""
    nodes = env.number("NNODES", 1, least=1)
    if nodes == 1:
        return {}
    rank, host = env.number("NODE_RANK", 0), env.text("MASTER_ADDR")
    if rank >= nodes:
        raise BadEnvironment(f"NODE_RANK = {rank} must be below NNODES = {nodes}")
    if not host:
        raise BadEnvironment("MASTER_ADDR is not set; with NNODES above 1 it is the leader's host name")
    port = env.number("MASTER_PORT", names.PORT_RENDEZVOUS, least=1)
    return {"nodes": nodes, "node_rank": rank, "meeting": (host, port)}


class _Reader:
    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str) -> str:
        return self._env.get(name, "").strip()

    def number(self, name: str, default: int, *, least: int = 0) -> int:
        text = self.text(name)
        if not text:
            return default
        if not text.isdecimal() or int(text) < least:
            raise BadEnvironment(f"{name} = {text!r} must be a whole number of at least {least}")
        return int(text)

    def ratio(self, name: str, default: float) -> float:
        text = self.text(name)
        try:
            found = float(text) if text else default
        except ValueError:
            found = -1.0
        if not 0.0 <= found <= 1.0:
            raise BadEnvironment(f"{name} = {text!r} must be a number from 0 to 1")
        return found

    def receiver(self, name: str) -> str:
        text = self.text(name)
        try:
            return check_endpoint(text) if text else ""
        except ValueError as error:
            raise BadEnvironment(f"{name} {error}") from None

    def flag(self, name: str) -> bool:
        text = self.text(name).lower()
        if text not in {"", "0", "1", "false", "true"}:
            raise BadEnvironment(f"{name} = {text!r} must be true or false")
        return text in {"1", "true"}

    def words(self, name: str) -> tuple[str, ...]:
        """Comma or newline separated, without repetition."""
        parts = (part.strip() for line in self.text(name).splitlines() for part in line.split(","))
        return tuple(dict.fromkeys(part for part in parts if part))

    def secrets(self, variables: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Return what is set of ``variables`` (variable by key), as (key, value)."""
        return tuple((key, self.text(name)) for key, name in variables.items() if self.text(name))

    def folders(self, name: str) -> tuple[str, ...]:
        found = self.words(name)
        bad = [one for one in found if not one.startswith("/") or one == "/"]
        if bad:
            raise BadEnvironment(f"{name} names {bad[0]!r}; absolute folders below / are expected")
        return found

    def adapters(self, name: str) -> tuple[AdapterSource, ...]:
        text = self.text(name)
        if not text:
            return ()
        try:
            found = tuple(AdapterSource(str(one["name"]), str(one["uri"])) for one in json.loads(text))
        except (ValueError, TypeError, KeyError):
            raise BadEnvironment(
                f'{name} must be a JSON list like [{{"name": "a", "uri": "hf://org/a"}}]'
            ) from None
        if len({one.name for one in found}) < len(found):
            raise BadEnvironment(f"{name} has two adapters of one name")
        return found

    def choices(self, name: str, known: tuple[str, ...]) -> tuple[str, ...]:
        found = self.words(name)
        unknown = [one for one in found if one not in known]
        if unknown:
            raise BadEnvironment(
                f"{name} names {unknown[0]!r}, which this runtime cannot serve; it knows {', '.join(known)}"
            )
        return found


def _name_of(uri: str) -> str:
    """Return the served name of a model that was given none: its repository or the last part of its path."""
    scheme, _, rest = uri.rpartition("://")
    rest = rest.rstrip("/")
    return rest if scheme == "hf" else rest.rsplit("/", 1)[-1]
