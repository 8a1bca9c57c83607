"""What a local cluster was asked to be: written by `llmos local up`, read by the supervisor and the node process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from llmos_operator.api.mig import MigProfile, parse_profile
from llmos_operator.api.quantity import human_bytes, parse_bytes
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from pathlib import Path

NodeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]

MAX_NODES = 254
MAX_GPUS_PER_NODE = 64
MIG_SLICES = 7  # compute slices of a GPU that can be cut


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GpuModel(_Strict):
    """A simulated device's kind."""

    product: str = Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    memory_bytes: int = Field(gt=0)
    compute_capability: str = "8.0"
    mig: tuple[str, ...] = ()  # profiles of the instances it is cut into; (): it is whole

    @model_validator(mode="after")
    def _fits(self) -> Self:
        profiles = self.profiles
        slices = sum(one.slices for one in profiles)
        if slices > MIG_SLICES:
            raise ValueError(
                f"MIG instances {', '.join(self.mig)} have {slices} compute slices, a GPU has {MIG_SLICES}"
            )
        gigabytes = sum(one.gigabytes for one in profiles)
        if gigabytes << 30 > self.memory_bytes:
            have = human_bytes(self.memory_bytes)
            raise ValueError(f"MIG instances {', '.join(self.mig)} have {gigabytes} GiB, the GPU has {have}")
        return self

    @property
    def profiles(self) -> tuple[MigProfile, ...]:
        """Profiles of its instances."""
        return tuple(parse_profile(text) for text in self.mig)

    @classmethod
    def parse(cls, text: str) -> GpuModel:
        """Read ``PRODUCT:MEMORY[:PROFILE,…]``, like ``SIM-A:1Gi``; raise :class:`Permanent` saying what is wrong."""
        product, _, rest = text.partition(":")
        memory, _, instances = rest.partition(":")
        if not memory or not product:
            msg = (
                f"--gpu {text!r}: expected PRODUCT:MEMORY, for example SIM-A:1Gi, or with MIG instances "
                "PRODUCT:MEMORY:PROFILE,PROFILE, for example SIM-M:8Gi:3g.4gb,1g.1gb"
            )
            raise Permanent(msg, reason="InvalidGpu")
        mig = tuple(instances.split(",")) if instances else ()
        try:
            return cls(product=product, memory_bytes=parse_bytes(memory), mig=mig)
        except ValidationError as error:
            msg = f"--gpu {text!r}: {'; '.join(str(one['msg']) for one in error.errors())}"
            raise Permanent(msg, reason="InvalidGpu") from error
        except ValueError as error:
            msg = f"--gpu {text!r}: {error}"
            raise Permanent(msg, reason="InvalidGpu") from error


class NodeSpec(_Strict):
    """One simulated node."""

    name: NodeName
    gpus: tuple[GpuModel, ...] = Field(default=(), max_length=MAX_GPUS_PER_NODE)
    cpu: str = "32"
    memory: str = "64Gi"
    pods: int = Field(default=110, gt=0)
    rack: str = "rack-0"
    zone: str = "zone-0"


class ClusterSpec(_Strict):
    """All of it. Times are in seconds."""

    index: int = Field(ge=0)
    nodes: tuple[NodeSpec, ...] = Field(max_length=MAX_NODES)
    crash_backoff_initial: float = Field(default=1.0, gt=0)
    crash_backoff_max: float = Field(default=60.0, gt=0)
    keep_pod_logs: int = Field(default=100, ge=0)
    hub_store: str = ""

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> ClusterSpec:
        """Read what :meth:`write` wrote."""
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        return cls.model_validate(document)


def uniform_nodes(
    count: int, gpus_per_node: int, models: tuple[GpuModel, ...], *, cpu: str = "32", memory: str = "64Gi"
) -> tuple[NodeSpec, ...]:
    """Return ``count`` nodes of ``gpus_per_node`` devices; several models are dealt to the nodes in turn.

    Four nodes share a rack, four racks a zone.
    """
    return tuple(
        NodeSpec(
            name=f"sim-{ordinal}",
            gpus=(models[ordinal % len(models)],) * gpus_per_node if models else (),
            cpu=cpu,
            memory=memory,
            rack=f"rack-{ordinal // 4}",
            zone=f"zone-{ordinal // 16}",
        )
        for ordinal in range(count)
    )
