"""ModelWorkload: the user's own part of the pod, and what it may not contain.

``podTemplate`` is not an embedded PodSpec: its schema lists the fields that are taken over, and those that could reach
outside the pod or upset the ledger of devices, so that CEL can refuse them with a reason. Inside containers and volumes
everything else is kept as it is; the API server validates the whole when the pod is created. `manifests.template` holds
the same line for objects that came in another way.
"""

from typing import Annotated

from pydantic import Field, StringConstraints

from llmos_operator.api.schema import (
    INT32_MAX,
    IntOrString,
    KubeModel,
    ListAtomic,
    ListMap,
    MaxProperties,
    OpenModel,
    Rule,
)

_OWN_LABELS = Rule(
    "!self.exists(key, key.startsWith('llmos.dev/') || key.startsWith('kubernetes.io/') || key.contains('.kubernetes.io/'))",
    "keys under llmos.dev/ and kubernetes.io/ are set by the operator: use a domain of your own",
)
_Key = Annotated[str, StringConstraints(max_length=317)]
_Word = Annotated[str, StringConstraints(max_length=253)]


RESERVED_ENV = "^(NVIDIA_|CUDA_VISIBLE|LD_|PYTHONPATH$|PYTHONHOME$)"
RESERVED_ENV_MESSAGE = (
    "NVIDIA_*, CUDA_VISIBLE*, LD_*, PYTHONPATH and PYTHONHOME decide which devices and code a pod uses: they are set by "
    "the operator"
)


class TemplateMeta(KubeModel):
    """Labels and annotations of the pod."""

    labels: Annotated[
        dict[_Key, Annotated[str, StringConstraints(max_length=63)]], MaxProperties(32), _OWN_LABELS
    ] = Field(default_factory=dict, description="Labels added to the pod.")
    annotations: Annotated[
        dict[_Key, Annotated[str, StringConstraints(max_length=4096)]], MaxProperties(32), _OWN_LABELS
    ] = Field(default_factory=dict, description="Annotations added to the pod.")


class AnyObject(OpenModel):
    """An object whose content the API server validates elsewhere."""


_Objects = Annotated[tuple[AnyObject, ...], ListAtomic(), Field(max_length=64)]


class ProjectedSource(OpenModel):
    """One source of a projected volume."""

    rules = (
        Rule(
            "!has(self.serviceAccountToken)",
            "serviceAccountToken is not allowed: the pods' account is not for applications",
            ".serviceAccountToken",
        ),
    )
    service_account_token: AnyObject | None = Field(default=None, description="Not allowed.")


class ProjectedVolume(OpenModel):
    """A projected volume, as in `v1.ProjectedVolumeSource`."""

    sources: Annotated[tuple[ProjectedSource, ...], ListAtomic(), Field(max_length=16)] = Field(
        default=(), description="What the volume is made of."
    )


class TemplateVolume(OpenModel):
    """One volume of the pod, as in `v1.Volume`."""

    rules = (
        Rule(
            "!has(self.hostPath)",
            "hostPath volumes are not allowed: use a claim, an emptyDir or spec.model.cacheRef",
            ".hostPath",
        ),
        Rule(
            "!self.name.startsWith('llmos-')",
            "names that begin with llmos- are the runtime's: choose another one",
            ".name",
        ),
    )
    name: _Word = Field(description="Name of the volume.")
    host_path: AnyObject | None = Field(default=None, description="Not allowed.")
    projected: ProjectedVolume | None = Field(
        default=None, description="A projected volume, without ServiceAccount tokens."
    )


class TemplatePort(OpenModel):
    """One port of a container, as in `v1.ContainerPort`."""

    rules = (
        Rule(
            "!has(self.hostPort) || self.hostPort == 0",
            "hostPort is not allowed: clients reach the pod by its Service",
            ".hostPort",
        ),
    )
    host_port: int | None = Field(default=None, ge=0, le=65535, description="Not allowed.")


class TemplateCapabilities(OpenModel):
    """Linux capabilities of a container."""

    add: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=64)], ...], ListAtomic(), Field(max_length=64)
    ] = Field(default=(), description="Only NET_BIND_SERVICE is allowed.")


class TemplateSecurity(OpenModel):
    """Security context of a container, as in `v1.SecurityContext`."""

    rules = (
        Rule(
            "!has(self.privileged) || !self.privileged",
            "privileged containers are not allowed",
            ".privileged",
        ),
        Rule(
            "!has(self.allowPrivilegeEscalation) || !self.allowPrivilegeEscalation",
            "allowPrivilegeEscalation is not allowed",
            ".allowPrivilegeEscalation",
        ),
        Rule(
            "!has(self.capabilities) || !has(self.capabilities.add) || self.capabilities.add.all(c, c == 'NET_BIND_SERVICE')",
            "capabilities other than NET_BIND_SERVICE are not allowed",
            ".capabilities",
        ),
        Rule(
            "!has(self.procMount) || self.procMount == 'Default'", "procMount must be Default", ".procMount"
        ),
    )
    privileged: bool | None = Field(default=None, description="Not allowed.")
    allow_privilege_escalation: bool | None = Field(default=None, description="Not allowed.")
    proc_mount: Annotated[str, StringConstraints(max_length=32)] | None = Field(
        default=None, description="Default only."
    )
    capabilities: TemplateCapabilities | None = Field(default=None, description="Linux capabilities.")


class TemplateEnv(OpenModel):
    """One environment variable of a container, as in `v1.EnvVar`."""

    rules = (Rule(f"!self.name.matches('{RESERVED_ENV}')", RESERVED_ENV_MESSAGE, ".name"),)
    name: _Word = Field(description="Name of the variable.")


class TemplateResources(OpenModel):
    """Requests and limits of a container, as in `v1.ResourceRequirements`."""

    rules = (
        Rule(
            "!has(self.limits) || !self.limits.exists(key, key.startsWith('nvidia.com/') || key.startsWith('amd.com/'))",
            "devices belong to the runtime: ask for them in spec.resources.accelerators",
            ".limits",
        ),
        Rule(
            "!has(self.claims) || size(self.claims) == 0",
            "resource claims are not allowed here: use spec.resources",
            ".claims",
        ),
    )
    limits: Annotated[dict[_Key, Annotated[str | int, IntOrString()]], MaxProperties(16)] = Field(
        default_factory=dict, description="Limits of the container, without devices."
    )
    claims: Annotated[tuple[AnyObject, ...], ListAtomic(), Field(max_length=16)] = Field(
        default=(), description="Not allowed."
    )


class TemplateContainer(OpenModel):
    """One container beside the runtime, as in `v1.Container`."""

    rules = (
        Rule(
            "self.name != 'runtime'",
            "the name runtime is taken by the model's own container: choose another one",
            ".name",
        ),
    )
    name: Annotated[str, StringConstraints(min_length=1, max_length=63)] = Field(
        description="Name of the container."
    )
    ports: Annotated[tuple[TemplatePort, ...], ListAtomic(), Field(max_length=16)] = Field(
        default=(), description="Ports of the container."
    )
    env: Annotated[tuple[TemplateEnv, ...], ListAtomic(), Field(max_length=64)] = Field(
        default=(), description="Environment."
    )
    resources: TemplateResources | None = Field(default=None, description="Requests and limits.")
    security_context: TemplateSecurity | None = Field(default=None, description="Security context.")


Containers = Annotated[tuple[TemplateContainer, ...], ListMap(("name",)), Field(max_length=8)]


class TemplateSpec(KubeModel):
    """The user's part of the PodSpec. What is not listed here is not taken over."""

    rules = (
        Rule("!has(self.hostNetwork) || !self.hostNetwork", "hostNetwork is not allowed", ".hostNetwork"),
        Rule("!has(self.hostPID) || !self.hostPID", "hostPID is not allowed", ".hostPID"),
        Rule("!has(self.hostIPC) || !self.hostIPC", "hostIPC is not allowed", ".hostIPC"),
        Rule(
            "!has(self.shareProcessNamespace) || !self.shareProcessNamespace",
            "shareProcessNamespace is not allowed: it would open the runtime to the other containers",
            ".shareProcessNamespace",
        ),
        Rule(
            "!has(self.serviceAccountName)",
            "the administrator chooses the account of runtime pods: remove serviceAccountName",
            ".serviceAccountName",
        ),
        Rule(
            "!has(self.nodeName)",
            "the operator chooses the node: use spec.resources.selector or podTemplate.spec.nodeSelector",
            ".nodeName",
        ),
        Rule(
            "!has(self.schedulerName)",
            "the operator places these pods itself: remove schedulerName",
            ".schedulerName",
        ),
        Rule(
            "!has(self.ephemeralContainers)",
            "ephemeralContainers cannot be part of a template",
            ".ephemeralContainers",
        ),
        Rule(
            "!has(self.priorityClassName) && !has(self.priority)",
            "set the priority in spec.scheduling.priorityClassName: queue and pod must agree",
            ".priorityClassName",
        ),
        Rule(
            "!has(self.restartPolicy)",
            "the operator chooses the restart policy by spec.type: remove restartPolicy",
            ".restartPolicy",
        ),
    )
    host_network: bool | None = Field(default=None, description="Not allowed.")
    host_pid: bool | None = Field(default=None, alias="hostPID", description="Not allowed.")
    host_ipc: bool | None = Field(default=None, alias="hostIPC", description="Not allowed.")
    share_process_namespace: bool | None = Field(default=None, description="Not allowed.")
    service_account_name: _Word | None = Field(
        default=None, description="Not allowed: the operator's setting runtime.serviceAccount decides."
    )
    node_name: _Word | None = Field(default=None, description="Not allowed: the operator chooses the node.")
    scheduler_name: _Word | None = Field(
        default=None, description="Not allowed: the operator places the pod."
    )
    priority_class_name: _Word | None = Field(
        default=None, description="Not allowed: set spec.scheduling.priorityClassName."
    )
    priority: int | None = Field(default=None, ge=-INT32_MAX, le=INT32_MAX, description="Not allowed.")
    restart_policy: _Word | None = Field(default=None, description="Not allowed: follows from spec.type.")
    ephemeral_containers: Annotated[tuple[AnyObject, ...], ListAtomic(), Field(max_length=8)] | None = Field(
        default=None, description="Not allowed."
    )
    containers: Containers = Field(
        default=(), description="Containers beside the runtime, such as the application itself."
    )
    init_containers: Containers = Field(default=(), description="Containers that run before the application.")
    volumes: Annotated[tuple[TemplateVolume, ...], ListMap(("name",)), Field(max_length=32)] = Field(
        default=(), description="Volumes for the containers; hostPath is not allowed."
    )
    tolerations: _Objects = Field(default=(), description="Tolerations of the pods, as in `v1.Toleration`.")
    node_selector: Annotated[
        dict[_Key, Annotated[str, StringConstraints(max_length=63)]], MaxProperties(32)
    ] = Field(default_factory=dict, description="Labels of the nodes that may be used.")
    affinity: AnyObject | None = Field(default=None, description="Affinity of the pods, as in `v1.Affinity`.")
    topology_spread_constraints: _Objects = Field(
        default=(), description="Spreading of the pods, as in `v1.TopologySpreadConstraint`."
    )
    image_pull_secrets: _Objects = Field(
        default=(), description="Secrets with registry credentials, by name."
    )
    host_aliases: _Objects = Field(
        default=(), description="Further entries of /etc/hosts, as in `v1.HostAlias`."
    )
    dns_policy: _Word | None = Field(default=None, description="How names are looked up, as in `v1.PodSpec`.")
    dns_config: AnyObject | None = Field(
        default=None, description="Settings of the look-up of names, as in `v1.PodDNSConfig`."
    )


class PodTemplate(KubeModel):
    """What the workload's pods carry beside the runtime."""

    metadata: TemplateMeta | None = Field(
        default=None, description="Labels and annotations added to the pod."
    )
    spec: TemplateSpec | None = Field(
        default=None,
        description="Parts of a PodSpec. The runtime joins the containers as a native sidecar.",
    )
