"""`llmos logs mw/NAME`: what the replicas of a workload write, one after the other or as it comes."""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

import typer

from llmos_operator.api import names
from llmos_operator.cli import session
from llmos_operator.cli.failures import CommandFailed
from llmos_operator.cli.options import AsJson, Context, Kubeconfig, Namespace, Target, workload_name
from llmos_operator.cli.render import dig, print_json
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import from_response

if TYPE_CHECKING:
    from llmos_operator.cli.session import Session
    from llmos_operator.cluster.port import Json


def command(
    workload: Annotated[str, typer.Argument(help="mw/NAME")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    tail: Annotated[int, typer.Option("--tail", help="Only the last lines; -1 for all.", min=-1)] = -1,
    container: Annotated[str, typer.Option("--container", "-c", help="Container of the pod.")] = "runtime",
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="The run before the last restart.")
    ] = False,
    namespace: Namespace = "",
    as_json: AsJson = False,
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Show the logs of a workload's replicas."""
    name = workload_name(workload)
    query = {"container": container}
    if tail >= 0:
        query["tailLines"] = str(tail)
    if previous:
        query["previous"] = "true"
    target = Target(kubeconfig, context, namespace)
    if as_json:
        print_json(session.run(target, lambda one: _read(one, name, query)))
        return
    if follow:
        query["follow"] = "true"
    session.run(target, lambda one: _print(one, name, query, together=follow))


async def pods_of(connected: Session, name: str) -> list[Json]:
    """Return the pods of a workload in ordinal order. Raises `CommandFailed` if there are none."""
    item = await connected.workload(name)
    uid = item["metadata"]["uid"]
    pods = await connected.every(
        port.PODS, namespace=connected.namespace, labels=f"{names.LABEL_WORKLOAD_UID}={uid}"
    )
    if not pods:
        decision = dig(item, "status", "decision", "message", default="no decision yet")
        raise CommandFailed(f"{connected.namespace}/{name} has no pods: {decision}")
    return sorted(pods, key=lambda pod: int(dig(pod, "metadata", "labels", names.LABEL_ORDINAL, default="0")))


async def _read(connected: Session, name: str, query: dict[str, str]) -> dict[str, list[str]]:
    """Return the lines of every pod by its name."""
    lines: dict[str, list[str]] = {}
    for pod in await pods_of(connected, name):
        path = _path(pod)
        async with connected.transport.open("GET", path, query=query) as response:
            text = await response.read()
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise from_response("GET", path, response.status, text)
        lines[pod["metadata"]["name"]] = text.decode(errors="replace").splitlines()
    return lines


async def _print(connected: Session, name: str, query: dict[str, str], *, together: bool) -> None:
    """Write every pod's lines, prefixed by the pod's name where there are several."""
    pods = await pods_of(connected, name)
    copies = [_copy(connected, pod, query, prefix=len(pods) > 1) for pod in pods]
    if together:
        await asyncio.gather(*copies)
        return
    for copy in copies:
        await copy


async def _copy(connected: Session, pod: Json, query: dict[str, str], *, prefix: bool) -> None:
    path = _path(pod)
    head = f"{pod['metadata']['name']}: ".encode() if prefix else b""
    async with connected.transport.open("GET", path, query=query) as response:
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise from_response("GET", path, response.status, await response.read())
        async for line in response.content:
            sys.stdout.buffer.write(head + line)
            sys.stdout.buffer.flush()


def _path(pod: Json) -> str:
    meta = pod["metadata"]
    return port.PODS.path(meta["namespace"], meta["name"], "log")
