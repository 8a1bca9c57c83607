"""`llmos local`: a cluster on this machine, with simulated GPU nodes whose pods are processes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from llmos_operator.api.quantity import QuantityError, parse_bytes, parse_milli
from llmos_operator.cli.failures import UNREACHABLE, CommandFailed
from llmos_operator.cli.render import NONE, print_json, size, table
from llmos_operator.cli.steps import Steps
from llmos_operator.local.binaries import NAMES, Binaries, resolve
from llmos_operator.local.cluster import LocalCluster, Request
from llmos_operator.local.images import parse_option
from llmos_operator.local.installation import install as install_chart
from llmos_operator.local.layout import default_state
from llmos_operator.local.models import model_store, prepare_models
from llmos_operator.local.processes import resident_bytes
from llmos_operator.local.spec import ClusterSpec, GpuModel, NodeSpec, uniform_nodes

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from llmos_operator.local.state import ClusterState

_POLL_SECONDS = 0.2

app = typer.Typer(
    help="A cluster on this machine: real control plane, simulated GPU nodes.", no_args_is_help=True
)

Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        help="State directory; one cluster each (default: $LLMOS_LOCAL_DIR or the user's state folder).",
    ),
]


@dataclass(frozen=True, slots=True)
class Part:
    """A process of the cluster."""

    name: str
    pid: int
    running: bool
    memory_bytes: int | None
    restarts: int


@dataclass(frozen=True, slots=True)
class LocalStatus:
    """What `llmos local status --json` prints. `seconds` are from the start to each stage."""

    stage: str
    directory: str
    kubeconfig: str
    api_url: str
    hub_url: str
    nodes: int
    gpus: int
    seconds: dict[str, float]
    parts: tuple[Part, ...]


def _cluster(directory: Path | None) -> LocalCluster:
    return LocalCluster((directory or default_state()).expanduser().absolute())


@app.command("up")
def up(
    nodes: Annotated[int, typer.Option(min=0, max=254, help="Simulated nodes.")] = 2,
    gpus_per_node: Annotated[int, typer.Option(min=0, max=64, help="GPUs of each node.")] = 2,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRODUCT:MEMORY[:PROFILE,...]",
            help="Kind of the GPUs, and MIG instances each of them is cut into; several are dealt to the nodes in turn.",
        ),
    ] = None,
    cpu: Annotated[str, typer.Option(help="CPUs of each node, as a quantity.")] = "32",
    memory: Annotated[str, typer.Option(help="Memory of each node, as a quantity.")] = "64Gi",
    image: Annotated[
        list[str] | None, typer.Option(metavar="REPO=COMMAND", help="Add an image: what its containers run.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Also write the administrator's kubeconfig here.")
    ] = None,
    directory: Directory = None,
    install: Annotated[bool, typer.Option("--install/--no-install", help="Install LLMOS with Helm.")] = False,
    models: Annotated[
        bool | None,
        typer.Option(
            "--models/--no-models",
            help="Prepare models and serve them from a hub mirror (default: with --install).",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it is up; `llmos local down` ends it.")
    ] = False,
) -> None:
    """Start a cluster and stay until Ctrl-C ends it."""
    cluster = _cluster(directory)
    spec = ClusterSpec(index=0, nodes=_nodes(nodes, gpus_per_node, gpu or ["SIM-A:1Gi"], cpu, memory))
    images = tuple(parse_option(text) for text in image or [])
    signal.signal(signal.SIGTERM, _interrupt)
    steps = Steps()
    steps.run("programs", _programs)
    if install if models is None else models:
        steps.run("models", lambda say: prepare_models(model_store(), say))
    if install or models:
        spec = spec.model_copy(update={"hub_store": str(model_store())})
    try:
        steps.run("cluster", lambda _say: cluster.up(Request(spec, images), attached=not detach))
        if kubeconfig is not None:
            cluster.copy_kubeconfig(kubeconfig.expanduser().absolute())
        if install:
            steps.run("LLMOS", lambda _say: install_chart(cluster))
    except BaseException:  # Ctrl-C included: half a cluster is of no use
        if cluster.started_here:
            cluster.down(keep_logs=True)
        raise
    _print_hints(cluster, kubeconfig, detached=detach)
    if not detach:
        _stay(cluster)


def _programs(say: Callable[[str], None]) -> Binaries:
    return resolve(NAMES, lambda name, what: say(f"{name}: {what}"))


def _nodes(count: int, gpus: int, kinds: list[str], cpu: str, memory: str) -> tuple[NodeSpec, ...]:
    models = tuple(GpuModel.parse(text) for text in kinds)
    for option, text, read in (("--cpu", cpu, parse_milli), ("--memory", memory, parse_bytes)):
        try:
            read(text)
        except QuantityError as error:
            raise typer.BadParameter(str(error), param_hint=option) from error
    return uniform_nodes(count, gpus, models, cpu=cpu, memory=memory)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _stay(cluster: LocalCluster) -> None:
    try:
        sys.stderr.write("running; Ctrl-C ends the cluster\n")
        while cluster.running():
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        sys.stderr.write("ending\n")
        cluster.down()
        return
    state = cluster.state()
    ended_by_down = state is None or state.stage == "stopping"
    cluster.down(keep_logs=not ended_by_down)
    if not ended_by_down:
        raise CommandFailed(f"the cluster has ended by itself; logs are in {cluster.paths.logs}")


def _print_hints(cluster: LocalCluster, kubeconfig: Path | None, *, detached: bool) -> None:
    where = kubeconfig or cluster.paths.kubeconfig
    lines = [f"export KUBECONFIG={where}"]
    if shutil.which("kubectl") is None:
        lines.append(f"export PATH={Path(resolve(['kubectl'])['kubectl']).parent}:$PATH   # kubectl and helm")
    if detached:
        default = cluster.paths.root == default_state()
        lines.append("llmos local down" + ("" if default else f" --dir {cluster.paths.root}"))
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


@app.command("down")
def down(
    directory: Directory = None,
    keep_logs: Annotated[
        bool, typer.Option("--keep-logs", help="Leave logs of the control plane and of pods.")
    ] = False,
) -> None:
    """End the cluster and remove its files; no error if there is none."""
    cluster = _cluster(directory)
    was = cluster.state() is not None
    killed = cluster.down(keep_logs=keep_logs)
    for record in killed:
        sys.stderr.write(f"had to kill {record.pid}\n")
    sys.stderr.write("ended\n" if was else f"no cluster in {cluster.paths.root}\n")


@app.command("status")
def status(
    directory: Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Show what runs; the exit status is 0 only while the cluster is up."""
    cluster = _cluster(directory)
    state = cluster.state()
    if state is None or not state.alive():
        hint = "" if state is None else " (one was, and has crashed; `llmos local down` cleans up)"
        raise CommandFailed(f"no cluster is running in {cluster.paths.root}{hint}", status=UNREACHABLE)
    found = _describe(cluster, state)
    if as_json:
        print_json(found)
    else:
        _print_status(found)
    if state.stage != "ready":
        raise CommandFailed(f"the cluster is {state.stage} {state.message}".rstrip(), status=UNREACHABLE)


def _describe(cluster: LocalCluster, state: ClusterState) -> LocalStatus:
    spec = cluster.spec()
    parts = tuple(
        Part(
            name=process.name,
            pid=process.pid,
            running=process.record().alive(),
            memory_bytes=resident_bytes(process.pid),
            restarts=state.restarts.get(process.name, 0),
        )
        for process in (state.supervisor, *state.processes)
    )
    return LocalStatus(
        stage=state.stage,
        directory=str(cluster.paths.root),
        kubeconfig=str(cluster.paths.kubeconfig),
        api_url=state.api_url,
        hub_url=state.hub_url,
        nodes=len(spec.nodes),
        gpus=sum(len(node.gpus) for node in spec.nodes),
        seconds=dict(state.marks),
        parts=parts,
    )


def _print_status(found: LocalStatus) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    facts = {
        "stage": found.stage,
        "directory": found.directory,
        "kubeconfig": found.kubeconfig,
        "API server": found.api_url,
        "hub mirror": found.hub_url or NONE,
        "nodes": f"{found.nodes} with {found.gpus} GPUs",
        "up after": f"{found.seconds.get('ready', 0.0):.1f} s",
    }
    for name, value in facts.items():
        console.print(f"{name:<12}{value}")
    console.print()
    rows = [
        (
            part.name,
            str(part.pid),
            "running" if part.running else "ended",
            size(part.memory_bytes),
            str(part.restarts),
        )
        for part in found.parts
    ]
    console.print(
        table(["PART", "PID", "STATE", "MEMORY", "RESTARTS"], rows, right=["PID", "MEMORY", "RESTARTS"])
    )


@app.command("install")
def install(directory: Directory = None) -> None:
    """Install LLMOS into the running cluster with Helm, or upgrade it to this checkout."""
    cluster = _running(directory)
    Steps().run("LLMOS", lambda _say: install_chart(cluster))


@app.command("binaries")
def binaries() -> None:
    """Find, download or build the control plane's programs, and say where they are."""
    found = Steps().run("programs", _programs)
    for name, path in found.paths.items():
        sys.stdout.write(f"{name}\t{path}\n")


@app.command("env")
def env(directory: Directory = None) -> None:
    """Print shell commands that point kubectl at the cluster: `eval "$(llmos local env)"`."""
    cluster = _running(directory)
    folder = Path(resolve(["kubectl"])["kubectl"]).parent
    sys.stdout.write(f"export KUBECONFIG={cluster.paths.kubeconfig}\nexport PATH={folder}:$PATH\n")


_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("kubectl", context_settings=_PASS_ON)
def kubectl(context: typer.Context) -> None:
    """Run kubectl against the default cluster ($LLMOS_LOCAL_DIR); all arguments are passed on."""
    _become("kubectl", context.args)


@app.command("helm", context_settings=_PASS_ON)
def helm(context: typer.Context) -> None:
    """Run Helm against the default cluster ($LLMOS_LOCAL_DIR); all arguments are passed on."""
    _become("helm", context.args)


def _become(name: str, arguments: list[str]) -> NoReturn:
    cluster = _running(None)
    program = resolve([name])[name]
    environment = {**os.environ, "KUBECONFIG": str(cluster.paths.kubeconfig)}
    os.execve(program, [name, *arguments], environment)  # noqa: S606 - the pinned program in our place


def _running(directory: Path | None) -> LocalCluster:
    cluster = _cluster(directory)
    if not cluster.running():
        raise CommandFailed(
            f"no cluster is running in {cluster.paths.root}; start one with `llmos local up`",
            status=UNREACHABLE,
        )
    return cluster
