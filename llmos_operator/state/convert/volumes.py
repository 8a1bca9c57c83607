"""PersistentVolumeClaim, PersistentVolume, and the claims that a ModelWorkload names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.convert.selectors import node_terms
from llmos_operator.state.types import ClaimUse
from llmos_operator.state.volumes import Volume, VolumeClaim

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DATA = ("input", "dataset", "validation", "output", "checkpoint")


def volume_claim(obj: Mapping[str, Any]) -> VolumeClaim:
    """Return a VolumeClaim from its JSON."""
    root = Fields(obj)
    meta, spec, status = root.child("metadata"), root.child("spec"), root.child("status")
    return VolumeClaim(
        key=f"{meta.text('namespace')}/{meta.required('name')}",
        phase=status.text("phase") or "Pending",
        volume=spec.text("volumeName"),
        modes=frozenset(spec.texts("accessModes")),
        storage_class=spec.text("storageClassName"),
    )


def volume(obj: Mapping[str, Any]) -> Volume:
    """Return a Volume from its JSON."""
    root = Fields(obj)
    required = root.child("spec").child("nodeAffinity").child("required")
    return Volume(name=root.child("metadata").required("name"), places=node_terms(required))


def claims(spec: Fields) -> tuple[ClaimUse, ...]:
    """Return the claims a ModelWorkload's pods mount, each with the first field that names it."""
    found: dict[str, str] = {}
    for field, uri in _uris(spec):
        scheme, _, rest = uri.partition("://")
        name = rest.partition("/")[0]
        if scheme == "pvc" and name:  # what else is wrong with it, the review of the workload says
            found.setdefault(name, field)
    for one in spec.child("podTemplate").child("spec").objects("volumes"):
        source = one.child("persistentVolumeClaim")
        if source.text("claimName"):
            found.setdefault(source.text("claimName"), source.at("claimName"))
    return tuple(ClaimUse(field, name) for name, field in found.items())


def _uris(spec: Fields) -> Iterator[tuple[str, str]]:
    places = [spec.child("model"), *spec.objects("adapters")]
    places += [spec.child(kind).child(name) for kind in ("batch", "fineTune") for name in _DATA]
    for one in places:
        uri = one.text("uri")
        if uri:
            yield one.at("uri"), uri
