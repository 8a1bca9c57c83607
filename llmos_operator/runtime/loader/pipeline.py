"""One load from beginning to end, stage by stage."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.abilities import formats_of
from llmos_operator.api.runtime.memory import estimate, kv_bytes_per_token, sequence_tokens
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.api.runtime.staging import stage_shapes
from llmos_operator.errors import Permanent
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.formats.checkpoint import (
    Checkpoint,
    digest_of,
    find_gguf,
    is_gguf,
    open_checkpoint,
)
from llmos_operator.runtime.formats.config import (
    ModelConfig,
    read_config,
    read_eos,
    sizes_of,
    window_samples,
)
from llmos_operator.runtime.ipc.messages import AdapterInfo, EngineInfo, EngineMemory, RankMemory
from llmos_operator.runtime.ipc.orders import Build, Tune
from llmos_operator.runtime.loader.adapters import load_adapters
from llmos_operator.runtime.loader.converted import Converted, converted
from llmos_operator.runtime.loader.gguf_cache import converted_gguf
from llmos_operator.runtime.loader.memory import (
    KvPlan,
    Meter,
    free_bytes,
    machine_available_bytes,
    plan_stages,
)
from llmos_operator.runtime.loader.refusing import refuse_format, refuse_split
from llmos_operator.runtime.loader.sources import Resolved, resolve
from llmos_operator.runtime.pictures.rules import read_rules as picture_rules
from llmos_operator.runtime.speech.rules import read_rules

if TYPE_CHECKING:
    from llmos_operator.api.runtime.memory import ModelShape
    from llmos_operator.runtime.backends.build import Built, Empty
    from llmos_operator.runtime.backends.quality import Quality
    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.loader.progress import Stages
    from llmos_operator.runtime.ranks.crew import Crew
    from llmos_operator.runtime.speech.rules import SpeechRules

log = logger(__name__)

FORMATS = ("fp32", "bf16", "int8", "int4")
_SHARE_WITHOUT_LIMIT = 2  # without a limit the runtime takes at most half of what the machine has free


@dataclass(slots=True)
class Loaded:
    """A model that answers, and what is known of it."""

    load: Load
    shape: ModelShape
    built: Built
    info: EngineInfo
    plan: KvPlan
    meter: Meter
    adapters: tuple[AdapterInfo, ...] = ()
    rules: SpeechRules | None = None  # of a speech model
    host_bytes: int = 0  # of weights that wait in host memory while the model sleeps

    def memory(self, *, kv_used_tokens: int = 0, kv_most_tokens: int = 0) -> EngineMemory:
        """Return predicted and measured bytes now. Tokens in the KV cache: those whose memory is touched, the most so far."""
        guess, meter = self.plan.estimate, self.meter
        measured = meter.measure()
        meter.load_peak_bytes = meter.load_peak_bytes or meter.peak_bytes
        parts = stage_shapes(self.shape, self.load.format, self.load.pipeline)
        per_token = -(-max(map(kv_bytes_per_token, parts)) // self.load.tensor)
        causal = self.built.causal
        lazy = causal is not None and causal.store.gives_back
        meter.rest_bytes = max(
            meter.rest_bytes, measured - (kv_used_tokens * per_token if lazy else guess.kv_bytes)
        )
        one = sequence_tokens(self.shape, self.plan.max_model_len)
        kv_needed = max(kv_most_tokens * 5 // 4, one) * per_token
        return EngineMemory(
            full_bytes=max(meter.peak_bytes, meter.rest_bytes + guess.kv_bytes),
            needed_bytes=max(meter.load_peak_bytes, meter.rest_bytes + min(kv_needed, guess.kv_bytes)),
            predicted_bytes=guess.total_bytes,
            measured_bytes=measured,
            peak_bytes=self.meter.peak_bytes,
            weights_bytes=self.built.weights_bytes,
            kv_bytes=guess.kv_bytes,
            base_bytes=self.meter.base_bytes,
            limit_bytes=self.meter.limit_bytes,
            host_bytes=self.host_bytes,
            ranks=self._ranks(measured),
            free_bytes=self._free(),
        )

    def _free(self) -> int:
        from llmos_operator.runtime.backends import build  # noqa: PLC0415 - torch is not needed to refuse a model

        device = self.built.device
        return free_bytes() if device.type == "cpu" else build.device_free_bytes(device)

    def _ranks(self, measured: int) -> tuple[RankMemory, ...]:
        crew = self.meter.crew
        if crew is None:
            return ()
        return (RankMemory(0, self.built.weights_bytes, measured), *crew.measured())


def load_model(load: Load, stages: Stages, base_bytes: int = 0, crew: Crew | None = None) -> Loaded:
    """Load ``load`` and return it warm. Raises Permanent or Retryable; the stages say how far it came.

    ``crew`` are the other ranks, if the load asks for several.

    ``base_bytes`` is R0 as a former load of this process measured it: what that one left behind is no base. 0: measure.
    """
    if load.format not in FORMATS:
        raise Permanent(
            f"format {load.format!r} is not served here; served: {', '.join(FORMATS)}", reason="Unsupported"
        )
    stages.enter(RuntimeState.STARTING)
    meter = Meter(load.base_pids, limit_bytes=load.memory_limit_bytes, crew=crew)
    meter.base_bytes = base_bytes or meter.measure()
    source = resolve(load, stages)
    folder = standard_folder(source, load, stages)
    config = read_config(folder)
    refuse_format(load, config)
    rules = read_rules(folder, int(config.values["vocab_size"])) if config.speech else None
    checkpoint = open_checkpoint(folder)
    digest = verify(checkpoint, load, stages)
    meter.check("verifying")

    from llmos_operator.runtime.backends import build  # noqa: PLC0415 - torch is not needed to refuse a model

    threads = build.use_threads(load.threads, load.here)
    empty = build.prepare(config, checkpoint)
    refuse_split(load, empty.shape)
    plan = plan_of(load, meter, empty.shape)
    made = None
    empty.fuse(load.format, split=load.ranks > 1)
    if load.format in build.CONVERTED:
        made = converted(empty, load, digest, stages)
        _refuse_known(made, load)
        meter.check("quantising")
    if crew is not None and crew.spread:
        crew.fetched(load.format, digest, lambda: stages.advance(0))
    built = _build(empty, made, load, plan, stages, crew)
    stages.enter(RuntimeState.WARMING)
    built.warm()
    quality = (
        _settle(made, built, empty.config, checkpoint, load, threads, crew) if made is not None else None
    )
    fresh = bool(source.fetched) or (made is not None and made.fresh)
    info = replace(
        _info(load, source, folder, empty.config, digest, plan, built.device.type, quality, fresh=fresh),
        format_bytes=format_needs(load, empty.shape, plan.max_model_len),
    )
    loaded = Loaded(load, empty.shape, built, info, plan, meter, rules=rules)
    load_adapters(loaded, stages)
    trim_memory()
    meter.check("loading")
    stages.leave()
    _log_loaded(loaded, stages)
    return loaded


def _build(
    empty: Empty,
    made: Converted | None,
    load: Load,
    plan: KvPlan,
    stages: Stages,
    crew: Crew | None,
) -> Built:
    """Return the model with its weights and its KV store, once every rank has its part."""
    from llmos_operator.runtime.backends import build  # noqa: PLC0415 - as above

    entries = made.checkpoint.tensors() if made is not None else None
    total = (
        made.checkpoint.total_bytes if made is not None else sum(e.nbytes for _, e in empty.entries.values())
    )
    stages.enter(RuntimeState.LOADING, total)
    device = build.choose_device(load.device, 0, load.here)
    if crew is not None:
        meeting = _gather(crew, empty, made, load, plan)
        crew.group = crew.group or build.meet(0, crew.count, device, meeting)
    group = crew.group if crew is not None else None
    built = build.load_weights(empty, load.format, entries, device, stages.advance, group, load.pipeline)
    for place in (built.split, built.stage):
        if place is not None and crew is not None:
            place.tell = crew.tell
    build.attach(
        built,
        empty,
        kv_fp32="fp32" in (load.kv_dtype, load.format),
        max_model_len=plan.max_model_len,
        blocks=plan.blocks,
        max_num_seqs=load.max_num_seqs,
    )
    if crew is not None:
        crew.built(lambda: stages.advance(0))
    return built


def _gather(crew: Crew, empty: Empty, made: Converted | None, load: Load, plan: KvPlan) -> str:
    """Order the other ranks to load their parts; return where they and this one meet, "" if they have met."""
    from llmos_operator.runtime.backends import build  # noqa: PLC0415 - as above

    known = crew.group is not None
    meeting = build.open_meeting(load.meeting[0]) if crew.spread and not known else crew.meeting
    plain = replace(load, token="", secrets=(), meeting_token="")  # nothing is fetched any more
    folder = str(made.checkpoint.folder) if made is not None else ""
    crew.tell(Build(plain, str(empty.folder), folder, meeting, plan.max_model_len, plan.blocks))
    return meeting


def _refuse_known(made: Converted, load: Load) -> None:
    """Raise Permanent(reason=QualityLossExceeded) if an earlier load found the format too costly."""
    from llmos_operator.runtime.backends.judge import refuse_beyond  # noqa: PLC0415 - as above

    known = made.quality()
    if known is not None:
        refuse_beyond(known, load.format, load.max_quality_loss_milli)


def _settle(
    made: Converted,
    built: Built,
    config: ModelConfig,
    source: Checkpoint,
    load: Load,
    threads: int,
    crew: Crew | None,
) -> Quality | None:
    """Tune a warm converted model and judge its format, each once for a cache entry; return its quality."""
    from llmos_operator.runtime.backends.judge import judge, refuse_beyond  # noqa: PLC0415 - as above
    from llmos_operator.runtime.backends.tuning import tune  # noqa: PLC0415

    if built.device.type == "cpu":
        known = made.crossovers(threads)
        results = tune(built.model, known)
        if results != known:
            made.remember_crossovers(threads, known | results)
        if crew is not None:
            crew.tell(Tune(tuple(results.items())))
    quality = made.quality()
    if quality is None:
        quality = judge(config, source, built)
        if quality is not None:
            made.remember(quality)
            refuse_beyond(quality, load.format, load.max_quality_loss_milli)
    return quality


def _log_loaded(loaded: Loaded, stages: Stages) -> None:
    log.info(
        "model loaded",
        uri=loaded.load.uri,
        format=loaded.load.format,
        measured_mib=loaded.meter.measure() >> 20,
        predicted_mib=loaded.plan.estimate.total_bytes >> 20,
        weights_mib=loaded.built.weights_bytes >> 20,
        kv_blocks=loaded.plan.blocks,
        max_model_len=loaded.plan.max_model_len,
        **{f"{name.lower()}_seconds": round(seconds, 2) for name, seconds in stages.seconds},
    )


def plan_of(load: Load, meter: Meter, shape: ModelShape, limit: int | None = None) -> KvPlan:
    """Return the KV plan under ``limit`` (default: the load's own)."""
    bytes_limit = load.memory_limit_bytes if limit is None else limit
    if not bytes_limit:
        bytes_limit = meter.base_bytes + machine_available_bytes() // _SHARE_WITHOUT_LIMIT
        meter.limit_bytes = 0
    return plan_stages(
        stage_shapes(shape, load.format, load.pipeline),
        load.format,
        base_bytes=meter.base_bytes,
        limit_bytes=bytes_limit,
        wanted_len=load.max_model_len,
        max_num_seqs=load.max_num_seqs,
        kv_element_bytes=4 if "fp32" in (load.kv_dtype, load.format) else 2,
        adapters=load.max_adapters,
        adapter_rank=load.max_adapter_rank,
        shards=load.tensor,
    )


def format_needs(load: Load, shape: ModelShape, max_model_len: int) -> tuple[tuple[str, int], ...]:
    """Return by format the bytes a device needs beside R0, with a KV cache of one context of ``max_model_len`` tokens."""
    found = []
    for name in formats_of(shape, FORMATS):
        parts = [
            estimate(
                part,
                name,
                base_bytes=0,
                max_model_len=max_model_len,
                max_num_seqs=load.max_num_seqs,
                kv_tokens=sequence_tokens(part, max_model_len),
                kv_bytes_per_element=4 if "fp32" in (load.kv_dtype, name) else 2,
                adapters=load.max_adapters,
                adapter_rank=load.max_adapter_rank,
                shards=load.tensor,
            )
            for part in stage_shapes(shape, name, load.pipeline)
        ]
        found.append((name, max(part.total_bytes for part in parts)))
    return tuple(found)


def standard_folder(source: Resolved, load: Load, stages: Stages) -> Path:
    """Return a folder with safetensors: the source itself, or the converted copy of a GGUF file."""
    if source.path.is_file():
        if not is_gguf(source.path):
            raise Permanent(
                f"{source.path.name} is not a GGUF file; name the model's folder", reason="Unsupported"
            )
        return converted_gguf(source.path, load, stages)
    gguf = find_gguf(source.path)
    return source.path if gguf is None else converted_gguf(gguf, load, stages)


def verify(checkpoint: Checkpoint, load: Load, stages: Stages) -> str:
    """Return the digest of the weights. Raises Permanent(reason=Corrupted) if it is not the one that is demanded."""
    total = sum(file.path.stat().st_size for file in checkpoint.files)
    stages.enter(RuntimeState.VERIFYING, total)
    name = str(checkpoint.folder.resolve()).strip("/").replace("/", "-")[-200:]
    cache = Path(load.cache_dir) / "digests" / f"{name}.json" if load.cache_dir else None
    digest = digest_of(checkpoint, cache, stages.advance)
    if load.digest and load.digest != digest:
        raise Permanent(
            f"the weights have digest {digest}, the workload demands {load.digest}", reason="Corrupted"
        )
    return digest


def _info(
    load: Load,
    source: Resolved,
    folder: Path,
    config: ModelConfig,
    digest: str,
    plan: KvPlan,
    device: str,
    quality: Quality | None,
    *,
    fresh: bool,
) -> EngineInfo:
    return EngineInfo(
        model_dir=str(folder),
        architecture=config.architecture,
        digest=digest,
        revision=source.revision or load.revision,
        format=load.format,
        device=device,
        max_model_len=plan.max_model_len,
        vocab_size=int(sizes_of(config)["vocab_size"]),
        eos_token_ids=read_eos(folder, config),
        generative=config.generative,
        embedding_size=0 if config.generative else int(sizes_of(config)["hidden_size"]),
        kv_blocks=plan.blocks,
        max_num_seqs=load.max_num_seqs,
        quality_loss_milli=quality.loss_milli if quality is not None else None,
        quality_kl_micro=quality.kl_micro if quality is not None else None,
        load_path="cold" if fresh else "warm",
        apis=config.apis,
        labels=config.labels,
        window_samples=window_samples(config),
        picture_bytes=picture_rules(folder).pixel_bytes if config.pictures else 0,
    )


def trim_memory() -> None:
    """Give freed heap back to the machine: glibc keeps it otherwise, and what is kept counts as used."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library; nothing to trim
