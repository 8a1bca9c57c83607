"""Devices of an acceptable product, size and compute capability; MIG instances for MIG, whole devices otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.api.quantity import human_bytes
from llmos_operator.scheduler.instances import profiles
from llmos_operator.scheduler.table import CAPABILITY, CAPACITY, PRODUCT, PROFILE, capability_number
from llmos_operator.state.types import Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints

_SHOWN_PRODUCTS = 5


class DeviceKind:
    """Turns away nodes without enough devices of the kind asked for."""

    reason = "NoMatchingDevice"
    static = True
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> None:
        """Keep matching devices."""
        table, rows, selector = scene.table, candidates.rows, request.constraints.selector
        kept = candidates.devices
        mig = table.mig[rows]
        kept &= mig if request.constraints.sharing is Sharing.MIG else ~mig
        asked = request.constraints.mig_profile
        if asked is not None:
            large = [
                n for profile, n in table.profiles.items() if profile is not None and profile.holds(asked)
            ]
            kept &= np.isin(table.fixed[PROFILE][rows], large)
        if selector.products:
            numbers = [n for name, n in table.products.items() if product_matches(name, selector.products)]
            kept &= np.isin(table.fixed[PRODUCT][rows], numbers)
        if selector.min_memory_bytes:
            kept &= table.fixed[CAPACITY][rows] >= selector.min_memory_bytes
        if selector.min_compute_capability > (0, 0):
            kept &= table.fixed[CAPABILITY][rows] >= capability_number(selector.min_compute_capability)

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return what the rows have instead."""
        if request.constraints.sharing is Sharing.MIG:
            return f"they have {profiles(scene.table.states[int(row)] for row in rows)}"
        have: dict[str, int] = {}
        most = 0
        for row in rows:
            state = scene.table.states[int(row)]
            most = max(most, len(state.devices))
            for product in {
                f"{d.device.product} {human_bytes(d.device.memory_bytes)}" for d in state.devices
            }:
                have[product] = have.get(product, 0) + 1
        if not have:
            return "none of them has devices"
        shown = sorted(have, key=lambda name: (-have[name], name))[:_SHOWN_PRODUCTS]
        return f"they have {', '.join(shown)}; at most {most} on a node"


def product_matches(product: str, words: tuple[str, ...]) -> bool:
    """Return whether a word is the product or a part of it between dashes (spaces count as dashes), in any case."""
    name = f"-{product.replace(' ', '-')}-".casefold()
    return any(f"-{word.replace(' ', '-')}-".casefold() in name for word in words)
