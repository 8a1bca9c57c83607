"""The stages of the story, in order. Each shows something and claims only what it has checked."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from demo import asking, figures
from demo.watching import is_ready, until_ready
from llmos_operator.api import names
from llmos_operator.cli.render import dig
from llmos_operator.local.models import model_store

if TYPE_CHECKING:
    from demo.lab import Json, Lab
    from demo.screen import Screen

MANIFESTS = Path(__file__).parent / "manifests"
MODELS = ("chat", "embeddings", "writer")
QUESTION = "What is the capital of France?"
NODES, GPUS, GPU = 2, 2, ("SIM-A:2304Mi", "SIM-B:1240Mi")  # a node of each kind
LOAD_SECONDS = 180.0  # generous: a busy machine is slow, not wrong


def tell(lab: Lab, screen: Screen, *, keep: bool) -> None:
    """Tell the story up to its last but one stage, taking everything down. ``keep``: the cluster outlives us."""
    start(lab, screen, attached=not keep)
    serve(lab, screen)
    answer(lab, screen)
    fill_and_crash(lab, screen)
    displace(lab, screen)
    measure(lab, screen)


def start(lab: Lab, screen: Screen, *, attached: bool) -> None:
    """Bring the cluster up and install the chart."""
    with screen.stage("A Kubernetes control plane, and two nodes with two kinds of simulated GPUs"):
        lab.up(nodes=NODES, gpus=GPUS, gpu=GPU, hub_store=str(model_store()), attached=attached)
        screen.show("kubectl get nodes", lab.kubectl("get", "nodes", "-L", names.LABEL_GPU_PRODUCT))
    with screen.stage("LLMOS, installed by its Helm chart"):
        lab.install({"priorityClasses": {"create": True}})
        pods = f"--namespace={names.SYSTEM_NAMESPACE}"
        screen.show("kubectl -n llmos-system get pods", lab.kubectl("get", "pods", pods))
        lab.wait("the agents to report their devices", lambda: len(lab.items("gn")) == NODES, 30)


def serve(lab: Lab, screen: Screen) -> None:
    """Apply three workloads and watch them become ready."""
    with screen.stage("Three models are asked for; size, precision and place are the operator's choice"):
        path = MANIFESTS / "models.yaml"
        screen.show("kubectl apply -f demo/manifests/models.yaml", lab.apply_file(path))
        rows = until_ready(lab, screen, MODELS, LOAD_SECONDS)
        screen.show("kubectl get mw", lab.kubectl("get", "mw"))
        for name in MODELS:
            screen.say(f"{name}: {decision(lab, name)}")
        screen.show("llmos top", llmos(lab, "top"))
        screen.claim(
            "chat got bf16: a SIM-A has room for full precision",
            rows["chat"].precision == "bf16",
            rows["chat"].precision,
        )
        shared = set(rows["chat"].devices) == set(rows["embeddings"].devices)
        screen.claim("chat and embeddings share one device", shared, ", ".join(rows["chat"].devices))
        precision = rows["writer"].precision
        screen.claim(
            "writer got int8: bf16 and its long context are too large for a SIM-B",
            precision == "int8",
            precision,
        )


def answer(lab: Lab, screen: Screen) -> None:
    """Ask the chat model and the embeddings model through the gateway."""
    with screen.stage("Answers through one endpoint"):
        url = lab.service_url("llmos-gateway")
        screen.show(f'llmos chat --model smollm2 --message "{QUESTION}"', "")
        screen.write("   ")
        found = asking.ask(url, "smollm2", QUESTION, screen.write)
        screen.write("\n")
        detail = (
            f"first token after {found.first_token_seconds:.2f} s, {found.tokens_per_second:.0f} tokens/s"
        )
        screen.claim("the streamed answer says Paris", "Paris" in found.text, detail)
        near, far = asking.similarities(lab, url, "minilm")
        screen.say(f"{asking.SENTENCES[0]!r} ~ {asking.SENTENCES[1]!r}: {near:.2f}")
        screen.say(f"{asking.SENTENCES[0]!r} ~ {asking.SENTENCES[2]!r}: {far:.2f}")
        screen.claim("embeddings tell like from unlike", near > far + 0.2, f"{near:.2f} and {far:.2f}")


def fill_and_crash(lab: Lab, screen: Screen) -> None:
    """Fill the cluster, and kill the leading operator while it is at work."""
    with screen.stage("The cluster fills up, and the leading operator is killed in the middle of it"):
        before = running(lab)
        screen.show(
            "kubectl apply -f demo/manifests/background.yaml", lab.apply_file(MANIFESTS / "background.yaml")
        )
        lab.wait("the first pod of background", lambda: len(lab.pods()) > len(before), 20)
        victim = lab.leader()
        pids = lab.kill_pod_process(victim)
        screen.show(f"kill -9 {' '.join(map(str, pids))}", f"{victim} was the leader")
        successor = lab.wait("another leader", lambda: other_leader(lab, victim), 30)
        screen.say(f"{successor} leads now")
        until_ready(lab, screen, [*MODELS, "background"], LOAD_SECONDS)
        pods = lab.pods()
        screen.claim(
            "nothing was lost: every pod from before still runs, unrestarted", survived(before, running(lab))
        )
        doubles = doubled(pods)
        screen.claim("nothing was doubled: one pod for each replica", not doubles, ", ".join(doubles))


def displace(lab: Lab, screen: Screen) -> None:
    """Apply a workload of high priority to the full cluster."""
    with screen.stage("Somebody important comes, and there is no room"):
        before = running(lab)
        screen.show("kubectl apply -f demo/manifests/urgent.yaml", lab.apply_file(MANIFESTS / "urgent.yaml"))
        until_ready(lab, screen, ["urgent"], LOAD_SECONDS)
        events = [
            f"{dig(event, 'regarding', 'name', default='')}: {event.get('note', '')}"
            for event in lab.items("events.events.k8s.io")
            if event.get("reason") == "Evicted" and dig(event, "regarding", "kind") == "ModelWorkload"
        ]
        screen.show("kubectl get events --field-selector reason=Evicted", "\n".join(events) or "none")
        screen.show("llmos explain mw/background", llmos(lab, "explain", "mw/background"))
        gone = {key: pod for key, pod in before.items() if key not in running(lab)}
        owners = Counter(workload_of(pod) for pod in gone.values())
        screen.claim(
            "exactly one replica had to go, of the lowest priority",
            owners == {"background": 1},
            str(dict(owners)),
        )
        rows = lab.rows()
        screen.claim(
            "the models of normal priority were not touched", all(is_ready(rows[name]) for name in MODELS)
        )
        screen.show("kubectl get mw", lab.kubectl("get", "mw"))


def measure(lab: Lab, screen: Screen) -> None:
    """Show the metrics the dashboards draw."""
    with screen.stage("What Grafana would show"):
        found = figures.collect(lab)
        screen.console.print(figures.table(found))
        missing = [one.title for one in found if one.value is None]
        screen.claim("every figure has a value", not missing, ", ".join(missing))


# -- reading


def llmos(lab: Lab, *arguments: str) -> str:
    """Run the command line against the demo's cluster and return what it printed."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llmos_operator",
            *arguments,
            "--kubeconfig",
            str(lab.cluster.paths.kubeconfig),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def decision(lab: Lab, name: str) -> str:
    """Return why a workload is where it is."""
    return str(dig(lab.get("mw", name), "status", "decision", "message", default="no decision"))


def workload_of(pod: Json) -> str:
    """Return the name of the workload a pod belongs to."""
    return str(dig(pod, "metadata", "labels", names.LABEL_WORKLOAD, default=""))


def running(lab: Lab) -> dict[str, Json]:
    """Return the workloads' pods that are not being deleted, by UID."""
    return {
        pod["metadata"]["uid"]: pod for pod in lab.pods() if not dig(pod, "metadata", "deletionTimestamp")
    }


def survived(before: dict[str, Json], after: dict[str, Json]) -> bool:
    """Whether every pod of ``before`` is there, with as many restarts as it had."""
    return all(uid in after and restarts(after[uid]) == restarts(pod) for uid, pod in before.items())


def restarts(pod: Json) -> int:
    """Return how often containers of a pod were restarted."""
    kinds = ("containerStatuses", "initContainerStatuses")
    return sum(one["restartCount"] for kind in kinds for one in dig(pod, "status", kind, default=[]))


def doubled(pods: list[Json]) -> list[str]:
    """Return workload/ordinal of replicas that have more than one pod."""
    replicas = Counter(
        f"{workload_of(pod)}/{dig(pod, 'metadata', 'labels', names.LABEL_ORDINAL, default='')}"
        for pod in pods
        if not dig(pod, "metadata", "deletionTimestamp")
    )
    return sorted(replica for replica, count in replicas.items() if count > 1)


def other_leader(lab: Lab, former: str) -> str:
    """Return the leader if it is not ``former``."""
    leader = lab.leader()
    return leader if leader != former else ""
