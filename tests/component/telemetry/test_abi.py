"""The double's structures are laid out as pynvml's, or every other test here would prove nothing."""

from __future__ import annotations

import ctypes

import pynvml
import pytest

from llmos_operator.telemetry.nvml import calls
from tests.support.nvml import Double, load

STRUCTURES = {
    "nvmlMemory_t": pynvml.c_nvmlMemory_t,
    "nvmlMemory_v2_t": pynvml.c_nvmlMemory_v2_t,
    "nvmlUtilization_t": pynvml.c_nvmlUtilization_t,
    "nvmlTemperature_v1_t": pynvml.c_nvmlTemperature_v1_t,
    "nvmlPciInfo_t": pynvml.nvmlPciInfo_t,
    "nvmlProcessInfo_t": pynvml.c_nvmlProcessInfo_v3_t,
    "nvmlEventData_t": pynvml.c_nvmlEventData_t,
    "nvmlFieldValue_t": pynvml.c_nvmlFieldValue_t,
    "nvmlEccSramErrorStatus_v1_t": pynvml.c_nvmlEccSramErrorStatus_v1_t,
    "nvmlGpmSupport_t": pynvml.c_nvmlGpmSupport_t,
    "nvmlGpmMetric_t": pynvml.c_nvmlGpmMetric_t,
    "nvmlGpmMetricsGet_t": pynvml.c_nvmlGpmMetricsGet_t,
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_has_pynvmls_size_and_offsets(double: Double, name: str) -> None:
    library, structure = load(double), STRUCTURES[name]
    assert library.nvmlDoubleLayout(name.encode(), b"") == ctypes.sizeof(structure)
    compared = 0
    for field, *_ in structure._fields_:
        offset = library.nvmlDoubleLayout(name.encode(), field.encode())
        if offset >= 0:
            assert offset == getattr(structure, field).offset, field
            compared += 1
    assert compared, "no member of this structure is compared"


def test_structure_versions_are_pynvmls(double: Double) -> None:
    # The double refuses other versions, so a wrong number here would fail every reading.
    assert pynvml.nvmlMemory_v2 == 0x02000000 | ctypes.sizeof(pynvml.c_nvmlMemory_v2_t)
    assert pynvml.nvmlTemperature_v1 == 0x01000000 | ctypes.sizeof(pynvml.c_nvmlTemperature_v1_t)
    assert pynvml.nvmlEccSramErrorStatus_v1 == 0x01000000 | ctypes.sizeof(
        pynvml.c_nvmlEccSramErrorStatus_v1_t
    )
    assert double.path.exists()


@pytest.mark.parametrize("call", calls.ALL, ids=lambda call: f"{call.name}{call.args or ''}")
def test_the_double_has_every_call_of_the_table(double: Double, call: calls.Call) -> None:
    assert hasattr(load(double), call.name)
