"""The NVML test double: building it, and a control file that reads as a machine room.

`python -m tests.support.nvml` builds the library and prints its folder, for LD_LIBRARY_PATH.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "nvml_double"
LIBRARY = "libnvidia-ml.so.1"
FLAGS = (
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fPIC",
    "-shared",
    "-pthread",
    f"-Wl,-soname,{LIBRARY}",
)
GIB = 1 << 30

# Error codes of NVML, spelled here because tests must not take the expectation from the code under test.
NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, GPU_IS_LOST, RESET_REQUIRED, UNKNOWN = 3, 4, 10, 15, 16, 999
UNINITIALIZED, INVALID_ARGUMENT, NOT_FOUND, DRIVER_NOT_LOADED, NO_DATA, NOT_READY = 1, 2, 6, 9, 21, 27
FUNCTION_NOT_FOUND, IN_USE, CORRUPTED_INFOROM, LIB_MISMATCH = 13, 19, 14, 18

# All of nvmlReturn_t: what the device cannot tell, what failed this once, what means a sick device or driver, and last a code of a
# later version.
MISSING = (NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, 22, 24, 25, 26, 30)
PASSING = (NOT_FOUND, INVALID_ARGUMENT, IN_USE, NO_DATA, NOT_READY, 5, 7, 20, 23, 29)
SICK = (
    GPU_IS_LOST,
    RESET_REQUIRED,
    UNKNOWN,
    TIMEOUT,
    CORRUPTED_INFOROM,
    UNINITIALIZED,
    LIB_MISMATCH,
    8,
    9,
    11,
    12,
    17,
    28,
    777,
)
EVERY_ERROR = (*MISSING, *PASSING, *SICK)
LATER = 2 * 3600.0  # seconds after which everything has been asked again

XID_EVENT, DOUBLE_BIT_EVENT, RECOVERY_EVENT = 0x8, 0x2, 0x8000
ALL_EVENTS = 0xFFFF
RECOVERY_FIELD, MEMORY_TEMPERATURE_FIELD = 230, 82


class NoCompilerError(RuntimeError):
    """The double cannot be built here."""


def build() -> Path:
    """Return the folder that holds the library; compile it if its sources changed."""
    sources = sorted((*SOURCES.glob("*.c"), *SOURCES.glob("*.h")))
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sources:
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmos" / "nvml-double"
    folder = cache / digest.hexdigest()[:16]
    if (folder / LIBRARY).exists():
        return folder
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise NoCompilerError(
            "the NVML test double needs a C compiler: install gcc or clang (Debian: apt-get install gcc libc6-dev), "
            "or name one in the variable CC"
        )
    folder.mkdir(parents=True, exist_ok=True)
    building = folder / f"{LIBRARY}.{os.getpid()}"
    command = [compiler, *FLAGS, "-o", str(building), *(str(s) for s in sources if s.suffix == ".c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the NVML test double does not compile:\n{' '.join(command)}\n{done.stderr}")
    building.replace(folder / LIBRARY)
    return folder


class Double:
    """The control file of the library. It has seen a change when :meth:`write` returns."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "control"
        self.lines: dict[str, object] = {
            "system.driver": "570.86.15",
            "system.nvml": "12.570.86.15",
            "system.cuda": 12080,
        }
        self._events = 0

    def environment(self) -> dict[str, str]:
        """Return the variables under which a process finds library and control file."""
        return {"LD_LIBRARY_PATH": str(build()), "LLMOS_NVML_CONTROL": str(self.path)}

    def write(self) -> Double:
        """Put the file in place."""
        text = "".join(f"{key}={value}\n" for key, value in self.lines.items())
        building = self.path.with_suffix(".new")
        building.write_text(text)
        building.replace(self.path)
        time.sleep(0.0015)  # the library looks once a millisecond: after this it has seen the change
        return self

    def set(self, **values: object) -> Double:
        """Set keys, `__` for the dot: `gpu__0__power=70000`."""
        self.lines.update({key.replace("__", "."): value for key, value in values.items()})
        return self

    def drop(self, *prefixes: str) -> Double:
        """Remove all keys that start so."""
        self.lines = {key: value for key, value in self.lines.items() if not key.startswith(prefixes)}
        return self

    def with_gpu(self, index: int, kind: str = "h100", uuid: str = "", **values: object) -> Double:
        """Add a GPU of a kind of `PROFILES`; ``values`` override its keys (`__` for the dot)."""
        profile = {
            **PROFILES[kind],
            "uuid": uuid or f"GPU-{index:08x}-0000-0000-0000-000000000000",
            "bus": f"0000:{index + 0x10:02x}:00",
            **{key.replace("__", "."): value for key, value in values.items()},
        }
        self.lines.update({f"gpu.{index}.{key}": value for key, value in profile.items()})
        return self

    def with_instance(self, gpu: int, slot: int, uuid: str, *, gib: int = 10, instance: int = 0) -> Double:
        """Add a MIG instance and switch MIG on."""
        key = f"gpu.{gpu}"
        self.lines.update(
            {
                f"{key}.mig.mode": 1,
                f"{key}.mig.slots": 7,
                f"{key}.mig.{slot}.uuid": uuid,
                f"{key}.mig.{slot}.name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
                f"{key}.mig.{slot}.gi": instance or slot + 1,
                f"{key}.mig.{slot}.ci": 0,
                f"{key}.mig.{slot}.memory.total": gib * GIB,
                f"{key}.mig.{slot}.memory.used": 0,
            }
        )
        return self

    def error(self, call: str, code: int, device: str = "") -> Double:
        """Make a call fail; "*" with a device makes all calls about it fail."""
        self.lines[f"error.{call}@{device}" if device else f"error.{call}"] = code
        return self

    def hang(self, call: str, device: str = "") -> Double:
        """Make a call block until :meth:`heal`."""
        self.lines[f"hang.{call}@{device}" if device else f"hang.{call}"] = 1
        return self

    def heal(self) -> Double:
        """Remove all errors, hangs and delays."""
        return self.drop("error.", "hang.", "delay.")

    def event(self, uuid: str, code: int = 0, kind: int = XID_EVENT, instance: int | None = None) -> Double:
        """Report an event; by default an XID."""
        self._events += 1
        tail = "" if instance is None else f" {instance}"
        self.lines[f"event.{self._events}"] = f"{uuid} {kind} {code}{tail}"
        return self

    def uuid(self, index: int) -> str:
        """Return the UUID of a GPU."""
        return str(self.lines[f"gpu.{index}.uuid"])


def load(double: Double) -> ctypes.CDLL:
    """Load the library into this process under the name pynvml asks for, and point it at ``double``."""
    os.environ["LLMOS_NVML_CONTROL"] = str(double.path)
    library = ctypes.CDLL(str(build() / LIBRARY), mode=ctypes.RTLD_GLOBAL)
    library.nvmlDoubleCalls.restype = ctypes.c_ulonglong
    library.nvmlDoubleCalls.argtypes = [ctypes.c_char_p]
    library.nvmlDoubleLayout.restype = ctypes.c_long
    library.nvmlDoubleLayout.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    library.nvmlDoubleRewind()
    return library


_COMMON: dict[str, object] = {
    "memory.used": 5 * GIB,
    "util.gpu": 40,
    "util.memory": 20,
    "temperature": 45,
    "power": 250_000,
    "powerlimit": 700_000,
    "reasons": 0,
    "clock.sm": 1755,
    "clock.memory": 2619,
    "pcie.replays": 0,
    "pcie.generation": 5,
    "pcie.width": 16,
}
_ECC: dict[str, object] = {
    "ecc.volatile.corrected": 0,
    "ecc.volatile.uncorrected": 0,
    "ecc.aggregate.corrected": 2,
    "ecc.aggregate.uncorrected": 0,
}

PROFILES: dict[str, dict[str, object]] = {
    "h100": {
        **_COMMON,
        **_ECC,
        "name": "NVIDIA H100 80GB HBM3",
        "capability": "9.0",
        "memory.total": 80 * GIB,
        "memory.reserved": GIB // 2,
        "energy": 123_456_789,
        "sram.exceeded": 0,
        "rows": "0 0 0 0",
        "mig.mode": 0,
        "events": ALL_EVENTS,
        "field.82": "u32:52",
        "field.138": "u64:2048",
        "field.139": "u64:1024",
        "field.197": "u64:1000000",
        "field.198": "u64:2000000",
        "field.230": "u32:0",
        "field.38": "u64:0",
        "field.52": "u64:0",
        "field.59": "u64:0",
        **{f"nvlink.{link}.state": 1 for link in range(4)},
        "gpm.support": 1,
        "gpm.2": "37.5",
        "gpm.3": "25.0",
        "gpm.5": "12.5",
        "gpm.10": "50.0",
    },
    "v100": {
        **_COMMON,
        **_ECC,
        "name": "Tesla V100-SXM2-16GB",
        "capability": "7.0",
        "memory.total": 16 * GIB,
        "energy": 5000,
        "retired.single": 1,
        "retired.double": 0,
        "retired.pending": 0,
        "events": 0x1F,
        **{f"nvlink.{link}.state": 1 for link in range(2)},
        **{f"nvlink.{link}.errors.{counter}": 1 for link in range(2) for counter in range(3)},
    },
    "geforce": {
        key: value
        for key, value in {
            **_COMMON,
            "name": "NVIDIA GeForce RTX 3060",
            "capability": "8.6",
            "memory.total": 12 * GIB,
            "events": XID_EVENT,
        }.items()
        if key != "pcie.replays"
    },
}


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except NoCompilerError as error:
        sys.exit(str(error))
