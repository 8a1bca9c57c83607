"""Kubernetes quantities and durations as exact integers.

Capacity is counted in bytes and thousandths, time in milliseconds; a float never enters. The grammar of a quantity is
that of ``k8s.io/apimachinery/pkg/api/resource``: a signed decimal number, then a binary suffix (``Ki`` … ``Ei``), a
decimal suffix (``n u m k M G T P E``) or a decimal exponent (``e3``, ``E-3``). What does not divide evenly is rounded
up, as the API server does, so a request is never taken for less than it asks.
"""

from __future__ import annotations

import re
from typing import Final

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

MAX_VALUE: Final = (1 << 63) - 1  # the API's int64
_MAX_LENGTH: Final = 64  # longer text is refused before any arithmetic
_MAX_EXPONENT: Final = 40  # beyond int64 in either direction at 19 digits and milli scale

_QUANTITY = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?", re.ASCII)
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}

_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:h|ms|m|s))+", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+)(?:\.([0-9]+))?(h|ms|m|s)", re.ASCII)
_MS_PER_UNIT: Final = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}

_PERCENT = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,3}))?%", re.ASCII)
_CAPABILITY = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})", re.ASCII)


class QuantityError(Permanent, ValueError):
    """Text that is not the quantity, duration or percentage it should be. The message names the text and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.INVALID_SPEC)


def parse_bytes(value: str | int) -> int:
    """Return a memory quantity (``10Gi``, ``1.5G``, ``1073741824``) in whole bytes, rounded up; never negative."""
    return _scaled(value, 0, "bytes, like 10Gi, 512Mi or 1073741824")


def parse_milli(value: str | int) -> int:
    """Return a quantity (``500m``, ``2``, ``1.5``) in thousandths, rounded up; never negative. CPU is counted so."""
    return _scaled(value, 3, "a quantity, like 500m, 2 or 1.5")


def parse_count(value: str | int) -> int:
    """Return a whole number of things (``8`` of ``nvidia.com/gpu``, ``1k`` pods); fractions are refused."""
    milli = _scaled(value, 3, "a whole number, like 8")
    if milli % 1000:
        raise QuantityError(
            f"{value!r} is not a whole number: give one without a fraction, like {milli // 1000 + 1}"
        )
    return milli // 1000


def format_bytes(count: int) -> str:
    """Return bytes as the shortest exact binary quantity: ``1073741824`` is ``1Gi``, ``1500`` stays ``1500``."""
    _refuse_negative(count)
    for suffix, bits in reversed(_BINARY.items()):
        if count and not count & ((1 << bits) - 1):
            return f"{count >> bits}{suffix}"
    return str(count)


def format_milli(milli: int) -> str:
    """Return thousandths as a quantity: ``1500`` is ``1500m``, ``2000`` is ``2``."""
    _refuse_negative(milli)
    return f"{milli}m" if milli % 1000 else str(milli // 1000)


def human_bytes(count: int) -> str:
    """Return bytes for people, rounded to one decimal: ``1.2 GiB``. For messages only: it loses precision."""
    for unit, size in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            tenths = (abs(count) * 10 + size // 2) // size
            return f"{'-' if count < 0 else ''}{tenths // 10}.{tenths % 10} {unit}"
    return f"{count} B"


def parse_milliseconds(text: str) -> int:
    """Return a duration (``80ms``, ``5m``, ``1h30m``, ``1.5h``, ``0``) in milliseconds, rounded up."""
    if text == "0":
        return 0
    if len(text) > _MAX_LENGTH or not _DURATION.fullmatch(text):
        raise QuantityError(f"{_shown(text)} is not a duration: use h, m, s and ms, like 5m, 1h30m or 80ms")
    total = 0
    for whole, fraction, unit in _DURATION_PART.findall(text):
        scale = 10 ** len(fraction)
        total += -(-int(whole + fraction) * _MS_PER_UNIT[unit] // scale)
    if total > MAX_VALUE:
        raise QuantityError(f"{_shown(text)} is too long a duration")
    return total


def parse_seconds(text: str) -> int:
    """Return a duration in whole seconds, rounded up."""
    return -(-parse_milliseconds(text) // 1000)


def format_milliseconds(milliseconds: int) -> str:
    """Return milliseconds as a duration: ``5400000`` is ``1h30m``, ``0`` is ``0s``."""
    _refuse_negative(milliseconds)
    parts, rest = [], milliseconds
    for unit, size in _MS_PER_UNIT.items():
        amount, rest = divmod(rest, size)
        if amount:
            parts.append(f"{amount}{unit}")
    return "".join(parts) or "0s"


def format_seconds(seconds: int) -> str:
    """Return seconds as a duration: ``90`` is ``1m30s``."""
    return format_milliseconds(seconds * 1000)


def parse_percent_milli(text: str) -> int:
    """Return a percentage (``5%``, ``0.25%``) in thousandths of a percent; at most 100 %."""
    match = _PERCENT.fullmatch(text)
    milli = int(match[1]) * 1000 + int((match[2] or "").ljust(3, "0")) if match else -1
    if not 0 <= milli <= 100_000:  # noqa: PLR2004 - 100 %
        raise QuantityError(f"{_shown(text)} is not a percentage: use 0% to 100%, like 5% or 0.25%")
    return milli


def format_percent_milli(milli: int) -> str:
    """Return thousandths of a percent as a percentage: ``5000`` is ``5%``, ``250`` is ``0.25%``."""
    _refuse_negative(milli)
    whole, rest = divmod(milli, 1000)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".") + "%"


def parse_compute_capability(text: str) -> tuple[int, int]:
    """Return a CUDA compute capability (``8.0``) as (major, minor), which compares in the right order."""
    match = _CAPABILITY.fullmatch(text)
    if match is None:
        raise QuantityError(f"{_shown(text)} is not a compute capability: write major.minor, like 8.0")
    return int(match[1]), int(match[2])


def _scaled(value: str | int, power: int, expected: str) -> int:
    """Return ``value`` x 10^power as an integer, rounded up; ``expected`` completes the error message."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise QuantityError(f"{_shown(value)} is not {expected}")
    text = str(value)
    match = _QUANTITY.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None or not (match[2] or match[3]):
        raise QuantityError(f"{_shown(value)} is not {expected}")
    sign, whole, fraction, suffix = match[1], match[2], match[3] or "", match[4] or ""
    mantissa = int(whole + fraction or "0")
    bits = _BINARY.get(suffix, 0)
    exponent = power - len(fraction) + (0 if bits else _exponent(suffix))
    if mantissa and not -_MAX_EXPONENT - _MAX_LENGTH <= exponent <= _MAX_EXPONENT:
        raise QuantityError(f"{_shown(value)} is out of range: at most {MAX_VALUE}")
    if sign == "-" and mantissa:
        raise QuantityError(f"{_shown(value)} is negative: give {expected}")
    exact = mantissa << bits
    scale: int = 10 ** abs(exponent)
    scaled = exact * scale if exponent >= 0 else -(-exact // scale)
    if scaled > MAX_VALUE:
        raise QuantityError(f"{_shown(value)} is out of range: at most {MAX_VALUE}")
    return scaled


def _exponent(suffix: str) -> int:
    """Return the power of ten of a decimal suffix or exponent (``k``, ``e3``); a lone ``E`` is exa."""
    known = _DECIMAL.get(suffix)
    return known if known is not None else max(min(int(suffix[1:]), 10_000), -10_000)


def _refuse_negative(value: int) -> None:
    if value < 0:
        raise QuantityError(f"{value} is negative: capacities and durations are not")


def _shown(value: object) -> str:
    """Return the value for a message, cut so that hostile input cannot fill a log."""
    text = repr(value)
    return text if len(text) <= _MAX_LENGTH else text[:_MAX_LENGTH] + "…"
