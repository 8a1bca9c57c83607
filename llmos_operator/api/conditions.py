"""Condition types and reasons: the closed vocabulary of `status.conditions` and Events.

The words are those of Deployments, KServe and Kueue where they have one.
"""

from __future__ import annotations

from enum import StrEnum


class Condition(StrEnum):
    """Types of `status.conditions` of a ModelWorkload."""

    ACCEPTED = "Accepted"
    QUOTA_RESERVED = "QuotaReserved"
    SCHEDULED = "Scheduled"
    MODEL_CACHED = "ModelCached"
    MODEL_LOADED = "ModelLoaded"
    AVAILABLE = "Available"
    READY = "Ready"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    PREEMPTED = "Preempted"
    SUSPENDED = "Suspended"
    ASLEEP = "Asleep"
    SCALING_ACTIVE = "ScalingActive"
    FINISHED = "Finished"


class Reason(StrEnum):
    """Reasons of conditions, decisions and Events."""

    # Accepted
    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    UNSUPPORTED_SCHEME = "UnsupportedScheme"
    SOURCE_NOT_ALLOWED = "SourceNotAllowed"
    QUEUE_NOT_FOUND = "QueueNotFound"
    QUEUE_INVALID = "QueueInvalid"  # a cycle of parents, or a parent that does not exist
    NAMESPACE_NOT_ADMITTED = "NamespaceNotAdmitted"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
    MODEL_NOT_FOUND = "ModelNotFound"
    FORMAT_NOT_ALLOWED = "FormatNotAllowed"
    NAME_TAKEN = "NameTaken"  # a Service or pod of somebody else has the name
    # QuotaReserved, Scheduled
    RESERVED = "Reserved"
    NO_CAPACITY = "NoCapacity"
    EXCEEDS_QUOTA = "ExceedsQuota"
    WAITING_FOR_PREEMPTION = "WaitingForPreemption"
    WAITING_FOR_HOLDER = "WaitingForHolder"  # a device has to be taken from its device plugin, or given back
    WAITING_FOR_STARTUP = "WaitingForStartup"  # another replica loads on the device it will share
    CLAIM_NOT_FOUND = "ClaimNotFound"  # a PersistentVolumeClaim it names does not exist
    CLAIM_PENDING = "ClaimPending"  # a PersistentVolumeClaim it names is not bound to a volume
    CLAIM_IN_USE = "ClaimInUse"  # a PersistentVolumeClaim it names is in use by another pod, or about to be
    WAITING_FOR_PROFILE = "WaitingForProfile"
    LARGER_THAN_ANY_DEVICE = "LargerThanAnyDevice"
    NO_MATCHING_DEVICE = "NoMatchingDevice"
    WAITING_FOR_PARTITION = "WaitingForPartition"  # GPUs are being cut into MIG instances it fits
    LARGER_THAN_CLUSTER = "LargerThanCluster"  # not all pods of a replica would fit, even if nothing else ran
    BOUND = "Bound"
    NOT_SYNCED = "NotSynced"
    PENDING = "Pending"
    # ModelCached, ModelLoaded
    STARTING = "Starting"
    IMAGE_MISSING = "ImageMissing"  # the image of the runtime cannot be pulled
    DOWNLOADING = "Downloading"
    VERIFYING = "Verifying"
    QUANTIZING = "Quantizing"
    LOADING = "Loading"
    WARMING = "Warming"
    LOADED = "Loaded"
    CACHED = "Cached"
    OUT_OF_MEMORY = "OutOfMemory"
    UNSUPPORTED = "Unsupported"
    CORRUPTED = "Corrupted"
    UNSAFE_FORMAT = "UnsafeFormat"  # pickle in any disguise
    UNSAFE_CONFIG = "UnsafeConfig"  # auto_map and other keys that would run code
    DOWNLOAD_FAILED = "DownloadFailed"
    DISK_FULL = "DiskFull"
    TOO_LARGE = "TooLarge"  # beyond a ModelCache's sizeLimit, or beyond belief
    ACCESS_DENIED = "AccessDenied"
    LOAD_FAILED = "LoadFailed"
    QUALITY_LOSS_EXCEEDED = (
        "QualityLossExceeded"  # the format costs more than spec.quantization.maxQualityLoss
    )
    # Available, Ready, Progressing, Finished
    AVAILABLE = "Available"
    MINIMUM_UNAVAILABLE = "MinimumReplicasUnavailable"
    READY = "Ready"
    NOT_READY = "NotReady"
    PROGRESSING = "Progressing"
    COMPLETE = "Complete"
    BACK_OFF = "BackOff"
    GANG_INCOMPLETE = "GangIncomplete"  # a part of what runs together is missing, or did not come up in time
    SUCCEEDED = "Succeeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"  # it has run for as long as spec.scheduling.maxRuntime says
    FAILED = "Failed"
    DATA_NOT_FOUND = "DataNotFound"  # the input of a run is not there
    INVALID_DATA = "InvalidData"  # the input of a run cannot be used
    OUTPUT_NOT_WRITABLE = "OutputNotWritable"
    STOPPED = "Stopped"  # a run was told to stop and saved what it had done
    POD_NOT_CREATED = "PodNotCreated"
    # Degraded
    QUANTIZATION_DOWNGRADED = "QuantizationDowngraded"
    GPU_UNHEALTHY = "GPUUnhealthy"
    THROTTLED = "Throttled"
    TELEMETRY_UNAVAILABLE = "TelemetryUnavailable"
    AS_EXPECTED = "AsExpected"
    # Preempted, Suspended, Asleep, ScalingActive
    PREEMPTED = "Preempted"
    RECLAIMED = "Reclaimed"
    CALLED_BACK = "CalledBack"  # the workload whose memory it had borrowed works again
    NODE_LOST = "NodeLost"
    NOT_PREEMPTED = "NotPreempted"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    WAITING_FOR_KUEUE = "WaitingForKueue"  # its Workload is not admitted, or not any more
    ASLEEP = "Asleep"
    AWAKE = "Awake"
    SCALED_TO_ZERO = "ScaledToZero"
    SCALING = "Scaling"
    SIGNALS_STALE = "SignalsStale"  # figures of demand are out of date: the number of replicas is kept
    TOO_MANY_REPLICAS = "TooManyReplicas"  # more would be needed than maxReplicas allows
    FIXED = "FixedReplicas"
    # Events only
    BOUND_POD = "BoundPod"
    PLACE_KEPT = "PlaceKept"
    EVICTED = "Evicted"
    MOVED = "Moved"  # it starts again elsewhere, so that another workload can start
    SHRUNK = "Shrunk"  # it does with a smaller KV cache, to make room
    LENT = "Lent"  # it idles, and lends memory to work that is sent away when it works again
    RESTORED = "Restored"  # it has got back what it gave up
    FEWER_REPLICAS = "FewerReplicas"  # it does with one replica less, to make room
    NOT_SHRUNK = "NotShrunk"  # it was asked to come down and did not
    NOT_SLEPT = "NotSlept"  # it was asked to sleep and did not
    IDLE = "Idle"  # it sleeps because nobody has asked anything of it for a while
    POD_DELETED = "PodDeleted"
    ESTIMATE_RAISED = "EstimateRaised"
    NODES_REQUESTED = "NodesRequested"  # placeholder pods show a cluster autoscaler what it needs
    DEVICES_REFUSED = "DevicesRefused"  # the kubelet had no device for a pod that asks for whole ones
    HOLDER_LOST = "HolderLost"  # a device with shared work is not held for it any more
    DEVICE_CLAIMED = "DeviceClaimed"  # a ResourceClaim has a device that our work is on
    HOLDER_NOT_MADE = "HolderNotMade"  # the API server, or the kubelet, refused a holder pod
    DEVICE_UNHEALTHY = "DeviceUnhealthy"
    QUARANTINED = "Quarantined"  # a device or node takes no new work because it is sick
    RESETTING = "Resetting"  # it is empty and being reset
    RESET_FAILED = "ResetFailed"
    WAITING_FOR_REPAIR = "WaitingForRepair"  # it is empty and a person has to look
    ON_PROBATION = "OnProbation"  # it is healthy again, not yet for long enough
    RELEASED = "Released"  # it takes work again
    CORDON_LEFT = "CordonLeft"  # a node is cordoned by the operator, which may not lift it any more
    PARTITIONING = "Partitioning"  # the GPUs of a node are to be cut into MIG instances that work waits for
    NOT_PARTITIONED = "NotPartitioned"  # mig-manager did not begin to cut them
    REMEDY_HELD = "RemedyHeld"  # the circuit breaker lets nothing more be done
    RIGHT_SIZED = "RightSized"  # resources.memory is far more than it needs: the next start reserves less
    OVERUSE_OBSERVED = "OveruseObserved"  # a replica uses more of its device than it was given
    STRANGER_OBSERVED = (
        "StrangerObserved"  # a device is used by processes of nobody the ledger knows of there
    )
