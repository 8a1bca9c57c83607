"""The table of known causes: what speaks for each, what it means, and what to do. Data; `verdict` reads it.

Order is meaning: a cause stands above those it brings about. Where two fit, the upper one is the verdict, and what it
`explains` is not told as a second trouble. Reasons are those of `api.conditions`, of the scheduler's filters and of the
kubelet (https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llmos_operator.cli.diagnosis.clues import Source

_STATUS: Final = frozenset({Source.CONDITION, Source.DECISION, Source.FAILURE})
_ANY_POD: Final = frozenset({Source.CONTAINER, Source.POD, Source.EVENT, Source.FAILURE, Source.CONDITION})


@dataclass(frozen=True, slots=True)
class Sign:
    """What speaks for a cause: a clue of these sources whose whole reason, and whose text, match the patterns."""

    sources: frozenset[Source]
    reason: str  # of the whole word
    text: str = ""  # anywhere, in any case; "" for any text
    about: str = ""  # the whole name of what it is about, such as the type of a condition; "" for any


@dataclass(frozen=True, slots=True)
class Cause:
    """One known cause. `{workload}` and `{namespace}` in steps stand for the workload's."""

    name: str
    verdict: str
    signs: tuple[Sign, ...]
    steps: tuple[str, ...] = ()
    explains: tuple[str, ...] = ()
    trouble: bool = True  # False: as it should be, or as somebody wants it


def _of(*sources: Source, reason: str, text: str = "", about: str = "") -> Sign:
    return Sign(frozenset(sources), reason, text, about)


def _status(reason: str, text: str = "") -> Sign:
    return Sign(_STATUS, reason, text)


_START: Final = ("CrashLoop", "ProbeFailing", "LoadFailed", "Loading", "BackingOff")
_LOOK: Final = "kubectl llmos explain mw/{workload} -n {namespace}"
_LOGS: Final = "kubectl llmos logs mw/{workload} -n {namespace} --tail 100 (--previous for the run before)"

CAUSES: Final[tuple[Cause, ...]] = (
    Cause(
        "NoLeader",
        "No operator leads: nothing is decided, repaired or written until one does.",
        (_of(Source.OPERATOR, reason="NoLeader"),),
        (
            "kubectl -n llmos-system get pods -l app.kubernetes.io/component=operator",
            "kubectl -n llmos-system logs -l app.kubernetes.io/component=operator --tail 50",
        ),
        explains=("NotObserved",),
    ),
    Cause(
        "Deleting",
        "It is being deleted.",
        (_of(Source.SPEC, reason="Deleting"),),
        ("wait for its pods to end; kubectl get pods -l llmos.dev/workload={workload} -n {namespace}",),
        explains=(*_START, "NoCapacity"),
        trouble=False,
    ),
    Cause(
        "Paused",
        "Somebody has paused it: spec.suspend is true.",
        (_of(Source.SPEC, Source.CONDITION, reason="Suspended"),),
        ("""kubectl patch mw {workload} -n {namespace} --type merge -p '{{"spec":{{"suspend":false}}}}'""",),
        explains=("NoCapacity", "ScaledToZero", *_START),
        trouble=False,
    ),
    Cause(
        "WaitingForKueue",
        "Kueue has not admitted it, or not any more: nothing of it starts until it does.",
        (_status("WaitingForKueue"),),
        (
            "kubectl get workloads.kueue.x-k8s.io -n {namespace} -o wide; kubectl describe tells what it waits for",
            "check that the LocalQueue in its label kueue.x-k8s.io/queue-name exists: kubectl get localqueues -n {namespace}",
        ),
        explains=("NoCapacity", "ScaledToZero"),
        trouble=False,
    ),
    Cause(
        "Finished",
        "It has ended for good.",
        (_of(Source.CONDITION, reason=".*", about="Finished"),),
        ("create it anew to run it again; spec.scheduling.maxRuntime is its time limit",),
        explains=("ScaledToZero", "NoCapacity", *_START),
        trouble=False,
    ),
    # -- what is written cannot be taken
    Cause(
        "InvalidSpec",
        "Its spec cannot be understood.",
        (_status("InvalidSpec"),),
        ("correct the field that the message names; kubectl explain modelworkload.spec describes each",),
        explains=("NotObserved",),
    ),
    Cause(
        "SourceNotAllowed",
        "Its model may not come from where its URI points.",
        (_status("SourceNotAllowed|UnsupportedScheme"),),
        ("use hf:// or an allowed host, or ask an administrator for operator.config.sources",),
    ),
    Cause(
        "QueueUnusable",
        "Its queue does not exist or cannot be used.",
        (_status("QueueNotFound|QueueInvalid"), _of(Source.QUEUE, reason="QueueInvalid")),
        (
            "kubectl get wq",
            "name an existing queue in spec.queueName, or have the queue's spec.parent corrected",
        ),
        explains=("NoCapacity",),
    ),
    Cause(
        "NamespaceNotAdmitted",
        "Its queue does not take work of this namespace.",
        (_status("NamespaceNotAdmitted"),),
        ("use a queue whose spec.namespaceSelector matches the namespace, or have the selector widened",),
    ),
    Cause(
        "NameTaken",
        "A Service or pod of somebody else has its name.",
        (_status("NameTaken"),),
        (
            "kubectl get svc,pods {workload} -n {namespace}",
            "delete or rename that object, or rename the workload",
        ),
    ),
    Cause(
        "SecretMissing",
        "A Secret it refers to does not exist, or lacks the key.",
        (
            _status("SecretNotFound"),
            Sign(_ANY_POD, "CreateContainerConfigError", r"secret|key"),
        ),
        ("create the Secret that is named in namespace {namespace}; the replica then starts by itself",),
        explains=_START,
    ),
    Cause(
        "ClaimUnusable",
        "A PersistentVolumeClaim it names does not exist, is not bound, or is in use by another pod.",
        (_status("ClaimNotFound|ClaimPending|ClaimInUse"),),
        (
            "kubectl get pvc -n {namespace}; kubectl describe pvc CLAIM -n {namespace} tells why one is not bound",
            "create or fill the claim that the message names; docs/models.md, Models on claims",
        ),
        explains=("NoCapacity", "VolumeMissing", *_START),
    ),
    # -- the model
    Cause(
        "AccessDenied",
        "The model's source refuses access (401 or 403): a token is missing, wrong, or has not accepted its licence.",
        (
            Sign(_STATUS | {Source.EVENT}, "AccessDenied"),
            _of(
                Source.LOG,
                reason="Line",
                text=r"\b(401|403)\b.*(client error|unauthorized|forbidden)|gated repo",
            ),
        ),
        (
            "put a token that may read the model into a Secret and name it in spec.model.secretRef",
            "of gated models the licence has to be accepted once on the hub with the account of the token",
        ),
        explains=("ModelNotFound", "DownloadFailed", *_START),
    ),
    Cause(
        "ModelNotFound",
        "There is no such model, revision or file (or it is private and no token is given).",
        (Sign(_STATUS | {Source.EVENT}, "ModelNotFound"),),
        (
            "check spec.model.uri and spec.model.revision letter by letter",
            "of a private model name a Secret with a token in spec.model.secretRef",
        ),
        explains=("DownloadFailed", *_START),
    ),
    Cause(
        "UnsafeModel",
        "The model could run code of its author (pickle, or remote code), which is never done.",
        (_status("UnsafeFormat|UnsafeConfig"),),
        ("use a revision with safetensors or GGUF, or convert the model once in a place you trust",),
        explains=_START,
    ),
    Cause(
        "CorruptedModel",
        "The model's files are damaged, cut short, or not the ones whose digest the spec demands.",
        (_status("Corrupted"),),
        ("publish the files again, or correct spec.model.digest",),
        explains=_START,
    ),
    Cause(
        "Unsupported",
        "This release cannot run what the spec asks for.",
        (_status("Unsupported"),),
        ("do as the message says; README.md, State of things, tells what works",),
        explains=_START,
    ),
    Cause(
        "FormatNotAllowed",
        "No precision that the spec allows can be served, or it costs more quality than the spec allows.",
        (_status("FormatNotAllowed|QualityLossExceeded"),),
        ("widen spec.quantization.allowed or maxQualityLoss", _LOOK),
        explains=_START,
    ),
    Cause(
        "DownloadFailed",
        "The model cannot be fetched: the source does not answer as it should.",
        (Sign(_STATUS | {Source.EVENT}, "DownloadFailed"),),
        ("check that the cluster reaches the source (operator.config.sources.hubEndpoint, proxies)", _LOGS),
        explains=_START,
    ),
    # -- pods that cannot be made or started
    Cause(
        "AdmissionRejected",
        "The cluster refuses its pods: an admission policy, a ResourceQuota or the node's kubelet.",
        (
            Sign(
                _ANY_POD,
                "PodNotCreated|Failed",
                r"admission|forbidden|denied the request|exceeded quota|violates",
            ),
            Sign(
                _ANY_POD,
                "UnexpectedAdmissionError|OutOf(cpu|memory|pods|nvidia.*)|NodeAffinity|SMTAlignmentError",
            ),
        ),
        (
            "the message names the policy or quota: satisfy it through spec.podTemplate, or have it changed",
            "kubectl get resourcequota,limitrange -n {namespace}",
        ),
        explains=("NoCapacity", "BackingOff", "LoadFailed"),
    ),
    Cause(
        "NodeGone",
        "The node under a replica is gone or does not answer.",
        (
            _of(Source.NODE, reason="NodeGone|NodeNotReady"),
            Sign(_ANY_POD, "NodeLost|NodeShutdown|Terminated", r""),
        ),
        (
            "kubectl get node -o wide; kubectl describe node NODE",
            "its replicas are placed anew on other nodes by themselves",
        ),
        explains=("TelemetryStale", "ProbeFailing", "Displaced", "CrashLoop"),
    ),
    Cause(
        "ImageMissing",
        "The image of a container cannot be pulled.",
        (Sign(_ANY_POD, "ImageMissing|ErrImagePull|ImagePullBackOff|InvalidImageName|ErrImageNeverPull"),),
        (
            "check the image's name and tag (spec.engine.image, operator.config.runtime.image)",
            "of a private registry name a pull Secret in spec.podTemplate.spec.imagePullSecrets",
        ),
        explains=_START,
    ),
    Cause(
        "VolumeMissing",
        "A volume cannot be mounted.",
        (_of(Source.EVENT, reason="FailedMount|FailedAttachVolume"),),
        ("create the claim, ConfigMap or Secret that the message names", "kubectl get pvc -n {namespace}"),
        explains=_START,
    ),
    Cause(
        "OutOfMemory",
        "It ran out of memory: it needs more than was reserved for it.",
        (
            Sign(_ANY_POD, "OutOfMemory|OOMKilled"),
            _of(Source.LOG, reason="Line", text=r"out of memory|OutOfMemoryError|std::bad_alloc"),
        ),
        (
            "without spec.resources.memory the estimate is raised and the next try reserves more: wait for it",
            "with spec.resources.memory raise it or take it out; or lower spec.context.maxModelLen or maxNumSeqs",
        ),
        explains=_START,
    ),
    Cause(
        "DeviceUnhealthy",
        "A device under it is not healthy.",
        (
            _of(Source.DEVICE, reason="DeviceUnhealthy|DeviceDegraded"),
            Sign(_STATUS, "GPUUnhealthy"),
        ),
        (
            "docs/reference/gpu-health.md tells what the reason means and what to do about the device",
            "kubectl llmos top",
        ),
        explains=("Displaced",),
    ),
    Cause(
        "KubeletEvicted",
        "The kubelet evicted a replica: its node ran short of disk or memory.",
        (_of(Source.POD, reason="Evicted"),),
        (
            "kubectl describe node NODE shows the pressure",
            "give the model cache room: runtime.cacheHostPath, ephemeral storage",
        ),
        explains=("LoadFailed", "BackingOff"),
    ),
    Cause(
        "CrashLoop",
        "Its runtime keeps ending.",
        (
            Sign(_ANY_POD, "CrashLoopBackOff"),
            _of(Source.FAILURE, Source.CONDITION, reason="BackOff", text=r"ended \d+ times"),
            _of(Source.CONTAINER, reason="Error|ContainerCannotRun|StartError|RunContainerError"),
        ),
        ("the last lines of its log say why", _LOGS),
        explains=("ProbeFailing", "LoadFailed", "Loading", "BackingOff"),
    ),
    Cause(
        "GangIncomplete",
        "A replica of several pods did not come up as a whole in time, so all of it was given back.",
        (_status("GangIncomplete"),),
        ("the events of its pods say which one did not start", "scheduling.gangStart is the time it has"),
    ),
    Cause(
        "ProbeFailing",
        "A container runs but does not pass its probe.",
        (_of(Source.EVENT, reason="Unhealthy"),),
        ("while a model loads its readiness probe fails: see whether status.load goes on", _LOGS),
        explains=("Loading",),
    ),
    # -- no place
    Cause(
        "TooLarge",
        "It is too large for every node, even if nothing else ran.",
        (_status("LargerThanAnyDevice|LargerThanCluster"),),
        (
            "allow narrower formats (spec.quantization.allowed) or a shorter spec.context.maxModelLen",
            "or add nodes with larger devices",
            _LOOK,
        ),
    ),
    Cause(
        "NoMatchingDevice",
        "No node has devices of the kind it asks for.",
        (_status("NoMatchingDevice"),),
        (
            "kubectl llmos top shows what there is",
            "widen spec.resources.selector or change spec.resources.sharing",
        ),
    ),
    Cause(
        "ExceedsQuota",
        "Its queue has used up its quota, and nobody lends.",
        (_status("ExceedsQuota"),),
        (
            "kubectl llmos queue",
            "wait for work of the queue to end, or have spec.nominal or spec.borrowingLimit raised",
        ),
    ),
    Cause(
        "Displaced",
        "Work of higher standing took its place, and there is no other yet.",
        (_of(Source.CONDITION, reason="Preempted|Reclaimed"),),
        (
            _LOOK,
            "a higher spec.scheduling.priorityClassName, or quota of its own queue, would keep its place",
        ),
        explains=("NoCapacity", "Waiting"),
    ),
    Cause(
        "TelemetryStale",
        "Devices are not measured, so nothing is shared or displaced on them.",
        (
            _of(Source.AGENT, reason="AgentMissing|AgentNotReady"),
            _of(Source.REJECTION, Source.CONDITION, reason="TelemetryUnavailable"),
        ),
        (
            "kubectl -n llmos-system get pods -l app.kubernetes.io/component=agent -o wide",
            "docs/runbooks/alerts.md, LlmosAgentSilent",
        ),
        explains=(),
    ),
    Cause(
        "StrangersOnDevices",
        "Devices that could take it are used by processes of nobody the ledger knows of there, or far beyond it.",
        (_of(Source.REJECTION, reason="StrangerOnDevice|DeviceOverused"),),
        (
            "kubectl get events -n default --field-selector reason=StrangerObserved",
            "end those processes; docs/runbooks/alerts.md, LlmosStrangerOnDevice and LlmosLedgerDrift",
        ),
        explains=("NoCapacity",),
    ),
    Cause(
        "NodesNotUsable",
        "The nodes that could take it take no pods: cordoned, tainted or not ready.",
        (_of(Source.REJECTION, reason="NodeNotReady|UntoleratedTaint"),),
        ("kubectl get nodes; kubectl uncordon NODE", "tolerations go into spec.podTemplate.spec.tolerations"),
        explains=("NoCapacity",),
    ),
    Cause(
        "VolumeElsewhere",
        "The nodes that could take it cannot mount a claim it names.",
        (_of(Source.REJECTION, reason="VolumeElsewhere"),),
        (
            "kubectl get pvc -n {namespace}; kubectl get pv VOLUME -o yaml shows its nodeAffinity and accessModes",
            "make room on the nodes that can, or copy the files to a claim that more nodes can mount (ReadOnlyMany)",
        ),
        explains=("NoCapacity",),
    ),
    Cause(
        "Waiting",
        "Room is being made for it: others are on their way out.",
        (_status("WaitingForPreemption"),),
        ("wait for the pods that the message names to end",),
        explains=("NoCapacity",),
        trouble=False,
    ),
    Cause(
        "WaitingForHolder",
        "Its device is being taken from the node's device plugin for shared work, or given back to it.",
        (_status("WaitingForHolder"),),
        (
            "kubectl get pods -n llmos-system -l llmos.dev/role=holder -o wide",
            "it takes some seconds; if it lasts: kubectl get events -n default --field-selector reason=HolderNotMade",
        ),
        trouble=False,
    ),
    Cause(
        "Partitioning",
        "GPUs that nobody uses are being cut into MIG instances it fits.",
        (_status("WaitingForPartition"),),
        (
            "wait for NVIDIA's mig-manager: kubectl get node NODE --show-labels tells nvidia.com/mig.config.state",
            "kubectl get events -n default --field-selector reason=NotPartitioned",
        ),
        trouble=False,
    ),
    Cause(
        "TakingTurns",
        "There is room for it on a device on which another workload loads; they start one after the other.",
        (_status("WaitingForStartup"),),
        (
            "wait for the pod that the message names to be ready; if it is not, diagnose its workload",
            "a workload whose model has been loaded at this precision before, without spec.resources.memory, waits for no load",
        ),
        explains=("NoCapacity",),
        trouble=False,
    ),
    Cause(
        "NoCapacity",
        "There is no room for it now, and nobody of lower standing who could make some.",
        (_status("NoCapacity"),),
        (_LOOK, "kubectl llmos top"),
    ),
    Cause(
        "Inspecting",
        "Its model is being inspected: its size is not known yet.",
        (_status("WaitingForProfile"),),
        ("wait a few seconds; spec.resources.memory makes its size known without",),
        trouble=False,
    ),
    Cause(
        "BackingOff",
        "It failed and is tried again after a pause.",
        (_status("BackOff|LoadFailed|Failed|PodNotCreated"),),
        (_LOGS, "change the spec to have it tried at once"),
    ),
    Cause(
        "NextInTurn",
        "It is its turn next: a former pod of its name has to be gone, or the next plan places it.",
        (_of(Source.DECISION, reason="Pending"), _of(Source.CONDITION, reason="Pending", about="Scheduled")),
        (
            "wait for its former pods to end: kubectl get pods -l llmos.dev/workload={workload} -n {namespace}",
        ),
        trouble=False,
    ),
    # -- as it should be
    Cause(
        "Loading",
        "It has its place and is starting.",
        (
            _of(
                Source.CONDITION,
                reason="Starting|Downloading|Verifying|Quantizing|Loading|Warming|NotReady",
            ),
        ),
        ("kubectl get mw {workload} -n {namespace} -w", "status.load tells stage and time to go"),
        trouble=False,
    ),
    Cause(
        "ScaledToZero",
        "No replica is wanted now; a request through the gateway starts one.",
        (_status("ScaledToZero"), _of(Source.CONDITION, reason="Asleep")),
        ("kubectl llmos chat --model MODEL starts it", "spec.replicas or scaling.minReplicas keep one"),
        trouble=False,
    ),
    Cause(
        "NotObserved",
        "The operator has not looked at this spec yet.",
        (_of(Source.OPERATOR, reason="NotObserved"),),
        ("wait a few seconds; then kubectl -n llmos-system logs -l app.kubernetes.io/component=operator",),
    ),
    Cause(
        "Idle",
        "All wanted replicas serve, and nobody asks anything of them.",
        (_of(Source.ACTIVITY, reason="Idle"),),
        (
            "spec.scaling.idle.lendAfter, sleepAfter or scaleToZeroAfter leaves its devices to others meanwhile",
            "kubectl llmos usage --by workload --since 7d tells how much of the time it idles",
        ),
        explains=("Healthy",),
        trouble=False,
    ),
    Cause(
        "Healthy",
        "Nothing is wrong: all wanted replicas serve.",
        (_of(Source.CONDITION, reason="Ready", about="Ready"),),
        trouble=False,
    ),
)
UNKNOWN: Final = Cause(
    "Unknown",
    "No known cause fits what can be seen.",
    (),
    (_LOOK, _LOGS, "kubectl describe mw {workload} -n {namespace}"),
)
