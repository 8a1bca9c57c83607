"""Logs: stdlib logging with key-values, as JSON lines or as text.

`log = logger(__name__)`, then `log.info("bound pod", pod=name, node=node)`: a constant message and values beside it,
so that lines can be searched and counted. `context(cycle=7)` adds values to every line below it, also across awaits.
Values under a key that names a credential are masked; that is a net, not a permission to pass them.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_MASKED = ("token", "secret_value", "password", "authorization", "api_key", "apikey", "credential")
_context: ContextVar[dict[str, object] | None] = ContextVar("llmos_log_context", default=None)


class Log:
    """A named logger that takes key-values."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **values: object) -> None:
        """Write detail that only a developer wants."""
        self._write(logging.DEBUG, message, values)

    def info(self, message: str, **values: object) -> None:
        """Write what an operator of the system wants to see in good times."""
        self._write(logging.INFO, message, values)

    def warning(self, message: str, **values: object) -> None:
        """Write what went wrong and was handled."""
        self._write(logging.WARNING, message, values)

    def error(self, message: str, **values: object) -> None:
        """Write what went wrong and needs somebody."""
        self._write(logging.ERROR, message, values)

    def exception(self, message: str, **values: object) -> None:
        """Write an error with the traceback of the exception being handled."""
        self._write(logging.ERROR, message, values, trace=True)

    def _write(self, level: int, message: str, values: dict[str, object], *, trace: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            bound = _context.get()
            merged = {**bound, **values} if bound else values
            self._logger.log(level, "%s", message, extra={"values": merged}, exc_info=trace)


def logger(name: str) -> Log:
    """Return the key-value logger of a module; pass ``__name__``."""
    return Log(name)


@contextmanager
def context(**values: object) -> Iterator[None]:
    """Add ``values`` to every line written inside, in this task and what it awaits."""
    token = _context.set({**(_context.get() or {}), **values})
    try:
        yield
    finally:
        _context.reset(token)


def setup(level: str = "info", style: str = "json", *, process: str = "") -> None:
    """Send all logging to standard error. ``style`` is ``json`` or ``text``; ``process`` is added to every JSON line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Access lines of the health server would be one line a second of nothing.
    for noisy in ("aiohttp.access", "kopf", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the key-values."""

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        line: dict[str, object] = {
            "time": _stamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._process:
            line["process"] = self._process
        line.update(_values(record))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`12:00:00.123 INFO logger: message key=value` for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        values = " ".join(f"{key}={_plain(value)}" for key, value in _values(record).items())
        name = record.name.removeprefix("llmos_operator.")
        stamp = _stamp(record.created)[11:23]
        line = f"{stamp} {record.levelname:<7} {name}: {record.getMessage()}" + (
            f" {values}" if values else ""
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _stamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _values(record: logging.LogRecord) -> dict[str, Any]:
    values: dict[str, Any] = getattr(record, "values", None) or {}
    return {
        key: "***" if any(word in key.lower() for word in _MASKED) else value for key, value in values.items()
    }


def _plain(value: object) -> str:
    text = str(value)
    return json.dumps(text) if " " in text or "=" in text or not text else text
