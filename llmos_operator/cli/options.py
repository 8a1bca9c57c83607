"""Options that every command has, spelled as kubectl spells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from llmos_operator.cli.failures import USAGE, CommandFailed

Kubeconfig = Annotated[
    str,
    typer.Option(
        "--kubeconfig", help="Kubeconfig file (default: $KUBECONFIG, ~/.kube/config, the local cluster)."
    ),
]
Context = Annotated[str, typer.Option("--context", help="Context of the kubeconfig to use.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace (default: the context's).")]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table for people.")]


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster and which part of it a command is about."""

    kubeconfig: str = ""
    context: str = ""
    namespace: str = ""
    all_namespaces: bool = False


def workload_name(text: str) -> str:
    """Return the workload's name of `name`, `mw/name` or `modelworkload/name`.

    Raises `CommandFailed` for another kind.
    """
    kind, slash, name = text.rpartition("/")
    if slash and kind.lower().partition(".")[0] not in {"mw", "modelworkload", "modelworkloads"}:
        raise CommandFailed(f"{text!r}: this command is about model workloads; write mw/NAME", status=USAGE)
    return name
