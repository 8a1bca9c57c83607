"""The `llmos` command: sub-commands, one error format, exit statuses (see `cli.failures`)."""

from __future__ import annotations

import sys
from pathlib import PurePath
from typing import TYPE_CHECKING

import typer

from llmos_operator.cli import (
    chat,
    diagnose,
    explain,
    local,
    logs,
    queue,
    recordings,
    simulate,
    status,
    top,
    usage,
    version,
)
from llmos_operator.cli.failures import FAILED, CommandFailed
from llmos_operator.errors import LlmosError

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERRUPTED = 130

app = typer.Typer(
    name="llmos",
    help="An operating system for large models on Kubernetes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("status")(status.command)
app.command("top")(top.command)
app.command("usage")(usage.command)
app.command("queue")(queue.command)
app.command("explain")(explain.command)
app.command("diagnose")(diagnose.command)
app.command("simulate")(simulate.command)
app.command("snapshot")(recordings.command)
app.command("chat")(chat.command)
app.command("logs")(logs.command)
app.command("version")(version.command)
app.add_typer(local.app, name="local")


def main(argv: Sequence[str]) -> int:
    """Run one command; print failures as one message on standard error; return the exit status."""
    called = PurePath(sys.argv[0]).name if sys.argv else "llmos"
    name = "kubectl llmos" if called.startswith("kubectl-") else "llmos"
    try:
        app(args=list(argv), prog_name=name)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED
    except CommandFailed as error:
        sys.stderr.write(f"{name}: {error}\n")
        return error.status
    except LlmosError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # `llmos … | head`
        sys.stderr.close()
        return 0
    return 0
