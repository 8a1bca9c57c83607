"""Building a served model: empty modules, fused and quantised as the format asks, weights, KV store, first warm pass."""

from __future__ import annotations

import mmap
import os
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from llmos_operator.api.runtime.memory import KV_BLOCK_TOKENS, sequence_tokens
from llmos_operator.api.runtime.staging import stage_layers
from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.adapters import AdapterSet, Place, linear_places
from llmos_operator.runtime.backends.attention import PackedContext
from llmos_operator.runtime.backends.causal import CausalModel
from llmos_operator.runtime.backends.encoder import Classifier, Encoder, read_pooling
from llmos_operator.runtime.backends.families import (
    FAMILIES,
    Family,
    attach_context,
    build_empty,
    parameter_counts,
)
from llmos_operator.runtime.backends.fused import fuse
from llmos_operator.runtime.backends.hearing import HearingContext
from llmos_operator.runtime.backends.kvstore import KvGeometry, KvStore
from llmos_operator.runtime.backends.seeing import PictureModel
from llmos_operator.runtime.backends.sharding import shard
from llmos_operator.runtime.backends.split import Split
from llmos_operator.runtime.backends.staged import Stage, StagedModel, keep_stage
from llmos_operator.runtime.backends.surgery import plan_units, quantize_modules
from llmos_operator.runtime.backends.weights import (
    adjacent,
    check_shapes,
    load_converted,
    load_converted_part,
    load_part,
    load_plain,
    name_map,
    sources,
)
from llmos_operator.runtime.batching import Running, StepPlan, Work
from llmos_operator.runtime.formats.config import shape_of
from llmos_operator.runtime.formats.mapped import RowReader, read_pages
from llmos_operator.runtime.formats.packed import PACKED, PackedReader, plain_entries
from llmos_operator.runtime.ipc.messages import SamplingParams, Submit
from llmos_operator.runtime.ipc.orders import RankLost
from llmos_operator.runtime.pictures.rules import read_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from llmos_operator.api.runtime.memory import ModelShape
    from llmos_operator.runtime.backends.collective import Group
    from llmos_operator.runtime.formats.checkpoint import Checkpoint
    from llmos_operator.runtime.formats.config import ModelConfig
    from llmos_operator.runtime.formats.quantize import Unit
    from llmos_operator.runtime.formats.safetensors_file import TensorEntry

CONVERTED = ("int8", "int4")  # formats that are made from the source once and cached
_DTYPES = {"fp32": torch.float32}
_WARM_TOKENS = 32
_MAPPED_MILLI = 900  # of the weights' bytes that must be pages of files for a light sleep to be of use


@dataclass(slots=True)
class Empty:
    """A model without weights; ``names`` are its tensors' names in the checkpoint."""

    config: ModelConfig
    model: nn.Module
    names: Mapping[str, str]
    entries: Mapping[str, tuple[Path, TensorEntry]]
    folder: Path
    shape: ModelShape
    stored: Mapping[str, tuple[Path, TensorEntry]] | None = (
        None  # where the files are quantised: what they hold
    )

    def fuse(self, fmt: str, *, split: bool = False) -> None:
        """Fuse projections: all for a converted format or a split model, for a mapped one those that lie side by side."""
        names, entries = self.names, self.entries
        always = split or fmt in CONVERTED
        fuse(self.model, lambda parts: always or adjacent(entries, [names[part] for part in parts]))

    def units(self, fmt: str) -> list[Unit]:
        """Return what a converted file holds; the model must be fused."""
        return plan_units(self.model, self.names, fmt, self._wide())

    def quantize(self, fmt: str) -> None:
        """Replace the layers of the model, which must be fused, by their quantised kind."""
        quantize_modules(self.model, fmt, self._wide())

    def reader(self) -> RowReader:
        """Return a reader of ``entries``; to be entered."""
        if self.stored is None or self.config.stored is None:
            return RowReader(self.entries)
        return PackedReader(self.entries, self.stored, self.config.stored)

    def _wide(self) -> frozenset[str]:
        """Return the layers whose publisher has kept them from the format that the others are stored at."""
        if self.stored is None:
            return frozenset()
        return frozenset(
            name.rpartition(".")[0]
            for name, parts in sources(self.model, self.names)
            if any(self.entries[part][1].dtype != PACKED for part in parts)
        )


@dataclass(slots=True)
class Built:
    """A model that answers: exactly one of ``causal``, ``encoder`` and ``pictures``."""

    model: nn.Module
    device: torch.device
    weights_bytes: int
    places: Mapping[str, Place] = field(default_factory=dict)  # of the linear layers, for adapters
    dtype: torch.dtype = torch.bfloat16  # of activations
    causal: CausalModel | None = None
    encoder: Encoder | None = None
    pictures: PictureModel | None = None
    maps: tuple[mmap.mmap, ...] = ()  # files whose pages are weights
    mapped_bytes: int = 0  # of the weights, that are pages of those files
    split: Split | None = None  # set if this is one rank's part of every layer
    stage: Stage | None = None  # set if this is one rank's layers

    def let_go(self) -> bool:
        """Give the pages of the weights back to the machine, which keeps them in its page cache while it has room.

        `take_back` has them again. False: the weights are not (nearly all) pages of files, as on a GPU; nothing was done.
        """
        if self.device.type != "cpu" or self.mapped_bytes * 1000 < self.weights_bytes * _MAPPED_MILLI:
            return False
        for one in self.maps:
            one.madvise(mmap.MADV_DONTNEED)  # nobody writes to weights, so no private copy is lost
        return True

    def take_back(self) -> None:
        """Have the weights' pages again, after `let_go`, and run on them once."""
        for one in self.maps:
            deque(read_pages(one, 0, len(one), "a file of weights"), maxlen=0)
        self.warm()

    def warm(self) -> None:
        """Run one prompt and one step, so that weights are in memory before the first request."""
        if self.encoder is not None:
            self.encoder.embed([[0] * _WARM_TOKENS], normalize=True, dimensions=0)
        if self.pictures is not None:
            self.pictures.classify([bytes(self.pictures.rules.pixel_bytes)])
        if self.causal is not None:
            prompt = tuple([0] * _WARM_TOKENS)
            sequence = Running(
                Submit("warm", prompt, SamplingParams(temperature=0, seed=0)), 0.0, 0, list(prompt)
            )
            for start, tokens in ((0, prompt), (_WARM_TOKENS, (0,))):
                sequence.tokens = [*prompt[:start], *tokens]
                self.causal.execute(StepPlan((Work(sequence, 0, start, tokens, 1),)), ())
            self.causal.release([(0, 0)])
            self.causal.forget("warm")


def prepare(config: ModelConfig, checkpoint: Checkpoint) -> Empty:
    """Return the model of ``config`` without weights. Raises Permanent(reason=Corrupted) if the files do not fit it."""
    model = build_empty(config)
    completed = {key: getattr(model.config, key, None) for key in ("head_dim", "num_key_value_heads")}
    values = {**config.values, **{key: value for key, value in completed.items() if value}}
    full = replace(config, values=values)
    stored = checkpoint.tensors()
    entries = plain_entries(config.stored, stored) if config.stored is not None else stored
    names = name_map(model, entries)
    check_shapes(model, names, entries)
    return Empty(
        full,
        model,
        names,
        entries,
        checkpoint.folder,
        shape_of(full, parameter_counts(model)),
        stored if config.stored is not None else None,
    )


def use_threads(wanted: int, ranks: int = 1) -> int:
    """Set torch's threads and return their number: an equal share of what all ``ranks`` have, at least one.

    All have ``wanted``, else OMP_NUM_THREADS, else the CPUs this process may run on.
    """
    whole = wanted or int(os.environ.get("OMP_NUM_THREADS") or 0) or len(os.sched_getaffinity(0))
    count = max(1, whole // ranks)
    torch.set_num_threads(count)
    return count


def choose_device(wanted: str, rank: int = 0, ranks: int = 1) -> torch.device:
    """Return the device that a rank serves on. Raises Permanent(reason=Unsupported) for a GPU that is not there."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise Permanent("a GPU was demanded and none is visible to this process", reason="Unsupported")
    if not available or wanted == "cpu":
        return torch.device("cpu")
    if ranks == 1:
        return torch.device("cuda")
    if ranks > torch.cuda.device_count():
        raise Permanent(
            f"{ranks} GPUs are to share the model and {torch.cuda.device_count()} are visible to this process",
            reason="Unsupported",
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def device_free_bytes(device: torch.device) -> int:
    """Return what nobody uses of a GPU's memory, neighbours in other pods included."""
    return int(torch.cuda.mem_get_info(device)[0])


def open_meeting(host: str) -> str:
    """Return the address of a new meeting of ranks in several pods, which reach this process as ``host``."""
    from llmos_operator.runtime.backends import collective  # noqa: PLC0415 - most engines run alone

    return collective.open_meeting(host)


def meet(rank: int, ranks: int, device: torch.device, meeting: str) -> Group:
    """Return the group of all ranks, once all have come to the file ``meeting``. Raises RankLost if they do not."""
    from llmos_operator.runtime.backends.collective import Group  # noqa: PLC0415 - most engines run alone

    try:
        return Group(rank, ranks, device, meeting)
    except RuntimeError as error:
        raise RankLost(f"the {ranks} ranks of the model did not meet: {error}") from error


def load_weights(
    empty: Empty,
    fmt: str,
    converted: Mapping[str, tuple[Path, TensorEntry]] | None,
    device: torch.device,
    progress: Callable[[int], None],
    group: Group | None = None,
    stages: int = 1,
) -> Built:
    """Load the weights of a fused model: from ``converted`` where the format has such a file, else from the source.

    With a ``group`` only this rank's part of them: its cut of each layer, or with ``stages`` its own layers.
    """
    dtype = _DTYPES.get(fmt, torch.bfloat16)
    places = linear_places(empty.model)
    if converted is not None:
        empty.quantize(fmt)
    if group is not None and stages > 1:
        counts = stage_layers(empty.shape, fmt, group.count)
        stage = Stage.of(group, counts, empty.shape.hidden, dtype)
        return _load_stage(empty, converted, device, progress, stage)
    if group is not None:
        return _load_part(empty, converted, dtype, device, progress, group)
    if converted is None:
        maps = load_plain(empty.model, empty.names, empty.entries, dtype, device, progress)
    else:
        maps = load_converted(empty.model, converted, device, progress)
    seen = _tensor_bytes(empty.model)
    mapped = _mapped_bytes(seen, maps)
    return Built(empty.model, device, sum(seen.values()), places, dtype, maps=maps, mapped_bytes=mapped)


def _load_part(
    empty: Empty,
    converted: Mapping[str, tuple[Path, TensorEntry]] | None,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int], None],
    group: Group,
) -> Built:
    cuts, vocabulary = shard(empty.model, group)
    if converted is None:
        load_part(empty.model, cuts, empty.names, empty.entries, dtype, device, progress)
    else:
        load_converted_part(empty.model, cuts, converted, device, progress)
    weights = sum(_tensor_bytes(empty.model).values())
    return Built(empty.model, device, weights, dtype=dtype, split=Split(group, vocabulary))


def _load_stage(
    empty: Empty,
    converted: Mapping[str, tuple[Path, TensorEntry]] | None,
    device: torch.device,
    progress: Callable[[int], None],
    stage: Stage,
) -> Built:
    keep_stage(empty.model, FAMILIES[empty.config.model_type].backbone, stage)
    if converted is None:
        load_part(empty.model, {}, empty.names, empty.entries, stage.dtype, device, progress)
    else:
        load_converted(empty.model, converted, device, progress)
    # Projections are fused, which published files are not, so these are copies; a converted file is mapped, and counts
    # as memory that sleep drops like that of every other rank.
    weights = sum(_tensor_bytes(empty.model).values())
    return Built(empty.model, device, weights, dtype=stage.dtype, stage=stage)


def _tensor_bytes(model: nn.Module) -> dict[int, int]:
    """Return the size of each tensor by its address; those that are tied count once."""
    return {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}


def _mapped_bytes(tensors: Mapping[int, int], maps: tuple[mmap.mmap, ...]) -> int:
    """Return how many bytes of tensors (address -> size) lie in mapped files."""
    ranges = [(torch.frombuffer(one, dtype=torch.uint8, count=1).data_ptr(), len(one)) for one in maps]
    return sum(size for at, size in tensors.items() if any(0 <= at - start < long for start, long in ranges))


def attach(
    built: Built, empty: Empty, *, kv_fp32: bool, max_model_len: int, blocks: int, max_num_seqs: int
) -> None:
    """Give a loaded model what it runs on: the KV store and the packed attention, or the pooling."""
    if empty.config.generative:
        shape, device = empty.shape, built.device
        if device.type == "cpu":
            slots = max(1, min(2 * max_num_seqs, blocks))  # running sequences and as many kept prefixes
        else:
            slots = max(
                1, blocks * KV_BLOCK_TOKENS // sequence_tokens(shape, max_model_len)
            )  # memory there is not lazy
        kv_heads = shape.kv_heads // (built.split.group.count if built.split is not None else 1)
        dtype = torch.float32 if kv_fp32 else torch.bfloat16
        layers = built.stage.layers if built.stage is not None else shape.layers
        geometry = KvGeometry(layers, kv_heads, shape.head_dim, slots, max_model_len, dtype, device)
        attach_causal(built, empty, geometry)
    else:
        attach_encoder(built, empty)


def attach_causal(built: Built, empty: Empty, geometry: KvGeometry) -> None:
    """Make a generative model run over a KV store of ``geometry``."""
    store = KvStore(geometry)
    context = HearingContext(store) if empty.config.speech else PackedContext(store)
    attach_context(empty.model, context)
    adapters = AdapterSet(empty.model, built.places, built.dtype, built.device)
    family = FAMILIES[empty.config.model_type]
    if isinstance(context, HearingContext):
        built.causal = _speech(empty, family, store, context, adapters)
    elif built.stage is not None:
        built.causal = StagedModel(empty.model, family.backbone, store, context, adapters, built.stage)
    else:
        built.causal = CausalModel(empty.model, family.backbone, store, context, adapters, built.split)


def _speech(
    empty: Empty, family: Family, store: KvStore, context: HearingContext, adapters: AdapterSet
) -> CausalModel:
    from llmos_operator.runtime.backends.listening import (  # noqa: PLC0415 - most models hear nothing
        SpeechModel,
        read_extractor,
    )

    values = empty.config.values
    extractor = read_extractor(
        empty.folder, int(values.get("num_mel_bins", 80)), int(values["max_source_positions"])
    )
    return SpeechModel(empty.model, family.backbone, family.head, store, context, adapters, extractor)


def attach_encoder(built: Built, empty: Empty) -> None:
    """Make an encoder run over packed rows, or an image classifier over pictures."""
    if empty.config.pictures:
        kind = str(empty.config.values.get("problem_type") or "")
        rules = read_rules(empty.folder)
        built.pictures = PictureModel(empty.model, rules, kind, built.dtype, built.device)
        return
    context = PackedContext(None)
    attach_context(empty.model, context)
    values = empty.config.values
    first = 0 if empty.config.model_type == "bert" else int(values.get("pad_token_id") or 0) + 1
    if empty.config.labels:
        kind = str(values.get("problem_type") or "")
        built.encoder = Classifier(empty.model, context, empty.config.model_type, kind, first, built.device)
    else:
        built.encoder = Encoder(empty.model, context, read_pooling(empty.folder), first, built.device)
