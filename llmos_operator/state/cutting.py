"""A node whose GPUs are being cut anew by NVIDIA's mig-manager, as its labels and our annotation say.

mig-manager watches the label `nvidia.com/mig.config`; it sets `nvidia.com/mig.config.state` to pending (or rebooting) while
it works and to success or failed afterwards. Whoever asks takes the state off, so that an old success is not read as a new one.
https://docs.nvidia.com/datacenter/cloud-native/gpu-operator/latest/gpu-operator-mig.html
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmos_operator.api import names
from llmos_operator.api.mig import parse_profile
from llmos_operator.clock import parse_rfc3339, rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.api.mig import MigProfile

PENDING: Final = frozenset({"pending", "rebooting"})
SUCCESS: Final = "success"
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class Recut:
    """That the operator asked for a node's GPUs to be cut: kept in the node's annotation `llmos.dev/mig-recut`."""

    at: float  # epoch seconds, whole ones
    layout: str
    profiles: tuple[MigProfile, ...]  # that there will be


def state_of(labels: Mapping[str, str]) -> str:
    """Return where mig-manager stands, "" where it has not begun or is not there."""
    return labels.get(names.LABEL_MIG_STATE, "")


def asked(labels: Mapping[str, str], recut: Recut | None) -> bool:
    """Return whether mig-manager was asked by us and has not begun."""
    return recut is not None and not state_of(labels) and labels.get(names.LABEL_MIG_CONFIG) == recut.layout


def being_cut(labels: Mapping[str, str], recut: Recut | None) -> bool:
    """Return whether the node's GPUs are being cut, or are about to be."""
    return state_of(labels) in PENDING or asked(labels, recut)


def dump(recut: Recut) -> str:
    """Return the annotation's value."""
    fields = {
        "at": rfc3339(recut.at),
        "layout": recut.layout,
        "profiles": [str(one) for one in recut.profiles],
    }
    return json.dumps(fields, separators=(",", ":"))


def load(text: str) -> Recut:
    """Return what an annotation says. ValueError, TypeError: it cannot be read."""
    fields = json.loads(text)
    if not isinstance(fields, dict) or not isinstance(fields.get("profiles"), list):
        raise TypeError("is not what the operator writes")
    profiles = tuple(parse_profile(str(one)) for one in fields["profiles"])
    return Recut(parse_rfc3339(str(fields.get("at"))), str(fields.get("layout")), profiles)
