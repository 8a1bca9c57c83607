"""Every XID of NVIDIA's catalogue and what it means here. Data, no code.

`_CATALOGUE` repeats the catalogue's own facts (code, resolution bucket, mnemonic, text; "Analyzing Xid Errors with the
Xid Catalog", October 2025, Ampere and newer). What we do about a code follows from its bucket, and from `_OURS` where
our decision is finer or, with a reason beside it, another one. Application faults never concern the device: a bad
kernel must not cost its neighbours a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from llmos_operator.telemetry.policy import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping


class Effect(StrEnum):
    """Whom an XID concerns."""

    APPLICATION = "Application"  # the process that caused it; many different ones make the device suspect
    WORKLOAD = "Workload"  # the process that was hit, through no fault of its own
    DEVICE = "Device"  # see the reason
    NONE = "None"  # a consequence of another one, or no error


@dataclass(frozen=True, slots=True)
class Xid:
    """One code. `reason` only for those that concern the device."""

    code: int
    effect: Effect
    reason: Reason | None
    bucket: str
    mnemonic: str
    text: str


# Codes the catalogue lists as unused on Ampere and newer.
_UNUSED: Final = (
    *range(1, 8), 9, 10, 12, *range(15, 25), *range(26, 31), *range(33, 37), 42, 47, *range(49, 54), *range(55, 60),
    61, 65, 73, 81, 87, 90, 91, *range(111, 119), *range(122, 126), 138,
)  # fmt: skip

_CATALOGUE: Final = """
8|RESTART_APP|ROBUST_CHANNEL_FIFO_ERROR_IDLE_TIMEOUT|GPU stopped processing
11|RESTART_APP|ROBUST_CHANNEL_GR_ERROR_MISSING_HW|Invalid or corrupted push buffer stream
13|RESTART_APP|ROBUST_CHANNEL_GR_EXCEPTION|Graphics engine exception
14|IGNORE|ROBUST_CHANNEL_FAKE_ERROR|Unused
25|RESTART_APP|ROBUST_CHANNEL_GR_ILLEGAL_NOTIFY|Invalid or illegal push buffer stream
31|RESTART_APP|ROBUST_CHANNEL_FIFO_ERROR_MMU_ERR_FLT|GPU memory page fault
32|RESTART_APP|ROBUST_CHANNEL_PBDMA_ERROR|Invalid or corrupted push buffer stream
37|IGNORE|ROBUST_CHANNEL_FECS_ERR_UNIMP_FIRMWARE_METHOD|Driver firmware error
38|IGNORE|ROBUST_CHANNEL_FECS_ERR_WATCHDOG_TIMEOUT|Driver firmware error
39|RESTART_APP|ROBUST_CHANNEL_CE0_ERROR|Copy engine exception
40|RESTART_APP|ROBUST_CHANNEL_CE1_ERROR|Copy engine exception
41|RESTART_APP|ROBUST_CHANNEL_CE2_ERROR|Copy engine exception
43|IGNORE|ROBUST_CHANNEL_RESETCHANNEL_VERIF_ERROR|GPU stopped processing
44|IGNORE|ROBUST_CHANNEL_GR_FAULT_DURING_CTXSW|Graphics engine fault during context switch
45|WORKFLOW_XID_45|ROBUST_CHANNEL_PREEMPTIVE_REMOVAL|Preemptive cleanup due to previous errors
46|RESET_GPU|ROBUST_CHANNEL_GPU_TIMEOUT_ERROR|GPU stopped processing
48|WORKFLOW_XID_48|ROBUST_CHANNEL_GPU_ECC_DBE|Double bit ECC error
54|CHECK_MECHANICALS|SILENT_RUNNING_PWR_REDUCED_CLOCKING|Auxiliary power is not connected to the GPU board
60|RESTART_APP|ROBUST_CHANNEL_SEC2_ERROR|Video processor exception
62|RESET_GPU|PMU_HALT_ERROR|Internal micro-controller halt
63|IGNORE|INFOROM_DRAM_RETIREMENT_EVENT|GPU memory remapping event
64|RESET_GPU|INFOROM_DRAM_RETIREMENT_FAILURE|GPU memory remapping failure
66|IGNORE|ROBUST_CHANNEL_FECS_ERR_REG_ACCESS_VIOLATION|Illegal access by driver
67|IGNORE|ROBUST_CHANNEL_FECS_ERR_VERIF_VIOLATION|Illegal access by driver
68|RESTART_APP|ROBUST_CHANNEL_NVDEC0_ERROR|NVDEC0 exception
69|RESTART_APP|ROBUST_CHANNEL_GR_CLASS_ERROR|Graphics engine class error
70|RESTART_APP|ROBUST_CHANNEL_CE3_ERROR|CE3 error
71|RESTART_APP|ROBUST_CHANNEL_CE4_ERROR|CE4 error
72|RESTART_APP|ROBUST_CHANNEL_CE5_ERROR|CE5 error
74|WORKFLOW_NVLINK_ERR|NVLINK_ERROR|NVLink error
75|RESTART_APP|ROBUST_CHANNEL_CE6_ERROR|CE6 error
76|RESTART_APP|ROBUST_CHANNEL_CE7_ERROR|CE7 error
77|RESTART_APP|ROBUST_CHANNEL_CE8_ERROR|CE8 error
78|UPDATE_SWFW|VGPU_START_ERROR|vGPU start error
79|RESTART_BM|ROBUST_CHANNEL_GPU_HAS_FALLEN_OFF_THE_BUS|GPU has fallen off the bus
80|RESTART_APP|PBDMA_PUSHBUFFER_CRC_MISMATCH|Corrupted data sent to GPU
82|RESTART_APP|ROBUST_CHANNEL_NVJPG0_ERROR|NVJPG0 error
83|RESTART_APP|ROBUST_CHANNEL_NVDEC1_ERROR|NVDEC1 error
84|RESTART_APP|ROBUST_CHANNEL_NVDEC2_ERROR|NVDEC2 error
85|RESTART_APP|ROBUST_CHANNEL_CE9_ERROR|CE9 error
86|RESTART_APP|ROBUST_CHANNEL_OFA0_ERROR|OFA exception
88|RESTART_APP|ROBUST_CHANNEL_NVDEC3_ERROR|NVDEC3 error
89|RESTART_APP|ROBUST_CHANNEL_NVDEC4_ERROR|NVDEC4 error
92|IGNORE|EXCESSIVE_SBE_INTERRUPTS|High single-bit ECC error rate
93|IGNORE|INFOROM_ERASE_LIMIT_EXCEEDED|Non-fatal violation of provisioned infoROM wear limit
94|RESTART_APP|ROBUST_CHANNEL_CONTAINED_ERROR|Contained memory error
95|RESET_GPU|ROBUST_CHANNEL_UNCONTAINED_ERROR|Uncontained memory error
96|RESTART_APP|ROBUST_CHANNEL_NVDEC5_ERROR|NVDEC5 error
97|RESTART_APP|ROBUST_CHANNEL_NVDEC6_ERROR|NVDEC6 error
98|RESTART_APP|ROBUST_CHANNEL_NVDEC7_ERROR|NVDEC7 error
99|RESTART_APP|ROBUST_CHANNEL_NVJPG1_ERROR|NVJPG1 error
100|RESTART_APP|ROBUST_CHANNEL_NVJPG2_ERROR|NVJPG2 error
101|RESTART_APP|ROBUST_CHANNEL_NVJPG3_ERROR|NVJPG3 error
102|RESTART_APP|ROBUST_CHANNEL_NVJPG4_ERROR|NVJPG4 error
103|RESTART_APP|ROBUST_CHANNEL_NVJPG5_ERROR|NVJPG5 error
104|RESTART_APP|ROBUST_CHANNEL_NVJPG6_ERROR|NVJPG6 error
105|RESTART_APP|ROBUST_CHANNEL_NVJPG7_ERROR|NVJPG7 error
106|IGNORE|SMBPBI_TEST_MESSAGE|SMBPBI test message
107|IGNORE|SMBPBI_TEST_MESSAGE_SILENT|SMBPBI test message, silent
108|IGNORE|NVLINK_REMOTE_TRANSLATION_ERROR|Unused
109|RESET_GPU|ROBUST_CHANNEL_CTXSW_TIMEOUT_ERROR|Context switch timeout
110|RESET_GPU|SEC_FAULT_ERROR|Security fault
119|RESET_GPU|GSP_RPC_TIMEOUT|GSP RPC timeout
120|RESET_GPU|GSP_ERROR|GSP error
121|IGNORE|C2C_ERROR|C2C error
126|RESTART_APP|ROBUST_CHANNEL_CE10_ERROR|CE10 error
127|RESTART_APP|ROBUST_CHANNEL_CE11_ERROR|CE11 error
128|RESTART_APP|ROBUST_CHANNEL_CE12_ERROR|CE12 error
129|RESTART_APP|ROBUST_CHANNEL_CE13_ERROR|CE13 error
130|RESTART_APP|ROBUST_CHANNEL_CE14_ERROR|CE14 error
131|RESTART_APP|ROBUST_CHANNEL_CE15_ERROR|CE15 error
132|RESTART_APP|ROBUST_CHANNEL_CE16_ERROR|CE16 error
133|RESTART_APP|ROBUST_CHANNEL_CE17_ERROR|CE17 error
134|RESTART_APP|ROBUST_CHANNEL_CE18_ERROR|CE18 error
135|RESTART_APP|ROBUST_CHANNEL_CE19_ERROR|CE19 error
136|RESET_GPU|ALI_TRAINING_FAIL|NVLink training failed
137|IGNORE|NVLINK_PRIV_ERR|NVLink privilege error
139|RESTART_APP|ROBUST_CHANNEL_OFA1_ERROR|OFA1 error
140|RESET_GPU|UNRECOVERABLE_ECC_ERROR_ESCAPE|Unrecovered ECC error
141|IGNORE|ROBUST_CHANNEL_FAST_PATH_ERROR|CUDA fast path error
142|CONTACT_SUPPORT|ROBUST_CHANNEL_NVENC3_ERROR|NVENC3 error
143|RESET_GPU|GPU_INIT_ERROR|GPU initialisation error
144|WORKFLOW_NVLINK5_ERR|NVLINK_SAW_ERROR|NVLink SAW error
145|WORKFLOW_NVLINK5_ERR|NVLINK_RLW_ERROR|NVLink RLW error
146|WORKFLOW_NVLINK5_ERR|NVLINK_TLW_ERROR|NVLink TLW error
147|WORKFLOW_NVLINK5_ERR|NVLINK_TREX_ERROR|NVLink TREX error
148|WORKFLOW_NVLINK5_ERR|NVLINK_NVLPW_CTRL_ERROR|NVLink NVLPW control error
149|WORKFLOW_NVLINK5_ERR|NVLINK_NETIR_ERROR|NVLink NETIR error
150|WORKFLOW_NVLINK5_ERR|NVLINK_MSE_ERROR|NVLink MSE error
151|RESTART_VM|ROBUST_CHANNEL_KEY_ROTATION_ERROR|Key rotation error
152|IGNORE|ROBUST_CHANNEL_DLA_SMMU_ERROR|DLA SMMU error
153|IGNORE|ROBUST_CHANNEL_DLA_TIMEOUT|DLA timeout
154|XID_154|GPU_RECOVERY_ACTION_CHANGED|GPU recovery action changed
155|RESET_GPU|NVLINK_SW_DEFINED_ERROR|NVLink software-defined error
156|RESET_GPU|RESOURCE_RETIREMENT_EVENT|Resource retirement event
157|IGNORE|RESOURCE_RETIREMENT_FAILURE|Resource retirement failure
158|RESET_GPU|GPU_FATAL_TIMEOUT|GPU fatal timeout
159|CHECK_UVM|ROBUST_CHANNEL_CHI_NON_DATA_ERROR|CHI non-data error
160|IGNORE|CHANNEL_RETIREMENT_EVENT|Channel retirement event
161|IGNORE|CHANNEL_RETIREMENT_FAILURE|Channel retirement failure
162||PSHC_REENGAGED|Power smoothing hardware engaged again
163||PSHC_DISENGAGED|Power smoothing hardware disengaged
164||PSHC_LOW_LIFETIME|Power smoothing hardware has little lifetime left
165||PSHC_ZERO_LIFETIME|Power smoothing hardware has no lifetime left
166||NVLINK_SECURE_CRYPTO_ERR|Confidential traffic before the link was encrypted
167||PCIE_FATAL_TIMEOUT|PCIe fatal timeout
168||REDUCED_GPU_MEMORY_CAPACITY|Errors in the write protected region: memory capacity is reduced
169||SEC2_HALT_ERROR|Internal micro-controller halt
170||NVLINK_SECURE_OTHER|Interrupt in confidential mode
171||UNCORRECTABLE_DRAM_ERROR|Uncorrectable DRAM error, goes with XID 48
172||UNCORRECTABLE_SRAM_ERROR|Uncorrectable SRAM error, goes with XID 48
"""

_BUCKETS: Final[Mapping[str, tuple[Effect, Reason | None]]] = {
    "RESTART_APP": (Effect.APPLICATION, None),
    "IGNORE": (Effect.NONE, None),
    "RESET_GPU": (Effect.DEVICE, Reason.GPU_HALTED),
    "RESTART_BM": (Effect.DEVICE, Reason.FALLEN_OFF_BUS),
    "RESTART_VM": (Effect.DEVICE, Reason.REBOOT_REQUIRED),
    "CHECK_MECHANICALS": (Effect.DEVICE, Reason.POWER_CONNECTOR),
    "WORKFLOW_NVLINK_ERR": (Effect.DEVICE, Reason.NVLINK_ERROR),
    "WORKFLOW_NVLINK5_ERR": (Effect.DEVICE, Reason.NVLINK_ERROR),
}
_OTHER: Final = (Effect.DEVICE, Reason.UNCLASSIFIED_XID)

_OURS: Final[Mapping[int, tuple[Effect, Reason | None]]] = {
    45: (Effect.NONE, None),  # follows from the XID before it
    48: (Effect.DEVICE, Reason.DOUBLE_BIT_ECC),
    63: (Effect.DEVICE, Reason.REMAP_PENDING),  # harmless, but the remapping takes effect only with a reset
    64: (Effect.DEVICE, Reason.REMAP_FAILED),
    92: (Effect.DEVICE, Reason.CORRECTED_ECC_STORM),
    94: (Effect.WORKLOAD, None),  # contained: the card did what it should, the process it hit is lost
    95: (Effect.DEVICE, Reason.UNCONTAINED_ECC),
    # A context that does not yield is the application's until the driver itself asks for a reset (XID 154).
    109: (Effect.APPLICATION, None),
    110: (Effect.DEVICE, Reason.SECURITY_FAULT),
    119: (Effect.DEVICE, Reason.GSP_ERROR),
    120: (Effect.DEVICE, Reason.GSP_ERROR),
    136: (Effect.DEVICE, Reason.NVLINK_ERROR),
    140: (Effect.DEVICE, Reason.UNCONTAINED_ECC),
    142: (Effect.APPLICATION, None),  # as the other codec engines
    143: (Effect.DEVICE, Reason.INIT_ERROR),
    154: (Effect.NONE, None),  # its payload is read from the device: Counters.recovery_action
    155: (Effect.DEVICE, Reason.NVLINK_ERROR),
    156: (Effect.DEVICE, Reason.RESOURCE_RETIRED),
    157: (Effect.DEVICE, Reason.RETIREMENT_FAILED),
    162: (Effect.NONE, None),
    163: (Effect.NONE, None),
    167: (Effect.DEVICE, Reason.GPU_HALTED),
    168: (Effect.DEVICE, Reason.REDUCED_MEMORY),
    169: (Effect.DEVICE, Reason.GPU_HALTED),
    171: (Effect.DEVICE, Reason.DOUBLE_BIT_ECC),
    172: (Effect.DEVICE, Reason.SRAM_ECC),
}


def _read() -> dict[int, Xid]:
    table = {code: Xid(code, *_OTHER, "CONTACT_SUPPORT", "", "Unused") for code in _UNUSED}
    for line in _CATALOGUE.strip().splitlines():
        number, bucket, mnemonic, text = line.split("|")
        code = int(number)
        effect, reason = _OURS.get(code) or _BUCKETS.get(bucket, _OTHER)
        table[code] = Xid(code, effect, reason, bucket, mnemonic, text)
    return dict(sorted(table.items()))


XIDS: Final[Mapping[int, Xid]] = _read()


def describe(code: int) -> Xid:
    """Return what a code means. One the catalogue does not know is worth a look and no reason to stop work."""
    return XIDS.get(code) or Xid(code, *_OTHER, "", "", "Not in the catalogue")
