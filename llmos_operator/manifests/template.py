"""The user's part of a pod: what of `podTemplate` is taken over, and what is refused.

The CRD's rules refuse most of it at admission; this list is what holds when they were not there (an older CRD, a
restored backup), because the pods are created with the operator's rights, not the user's.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from llmos_operator.api import vllm
from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Json = dict[str, Any]

# Fields of a PodSpec a workload may set. Anything else is left out: new fields of newer API servers must not become a
# way around these rules.
_KEPT = (
    "tolerations",
    "nodeSelector",
    "affinity",
    "volumes",
    "imagePullSecrets",
    "hostAliases",
    "dnsPolicy",
    "dnsConfig",
    "topologySpreadConstraints",
)
_NEVER = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")
_FORBIDDEN_ENV = ("LD_", "NVIDIA_", "CUDA_VISIBLE", "PYTHONPATH", "PYTHONHOME")
_SAFE_CAPABILITIES = {"NET_BIND_SERVICE"}
_OWN_NAMES = {"llmos-cache", "llmos-engine", "llmos-engine-tmp", "llmos-model", "llmos-shm", "llmos-tmp"}
_OWN_PREFIX = "llmos-data-"  # volumes of the claims that data URIs name


def kept_pod_spec(spec: Mapping[str, Any]) -> Json:
    """Return the parts of a template's PodSpec that go into the pod, without its containers."""
    return {key: copy.deepcopy(spec[key]) for key in _KEPT if spec.get(key)}


def check(template: Mapping[str, Any], service_account: str) -> None:
    """Raise Permanent(InvalidSpec), naming field and fix, if a template asks for what tenants must not have."""
    spec = template.get("spec") or {}
    at = "spec.podTemplate.spec"
    for key in _NEVER:
        if spec.get(key):
            raise _refused(f"{at}.{key}", "would let the pod out of its sandbox; remove it")
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account and account != service_account:
        raise _refused(f"{at}.serviceAccountName", f"only {service_account!r} is allowed; remove it")
    for index, volume in enumerate(spec.get("volumes") or ()):
        _check_volume(volume, f"{at}.volumes[{index}]")
    for path, container in _containers(spec, at):
        _check_container(container, path)


def _containers(spec: Mapping[str, Any], at: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for section in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(section) or ()):
            yield f"{at}.{section}[{index}]", container


def _check_volume(volume: Mapping[str, Any], path: str) -> None:
    if "hostPath" in volume:  # present is enough: an empty one would be filled in with defaults
        raise _refused(
            f"{path}.hostPath", "reaches into the node; use a claim, an emptyDir or spec.model.cacheRef"
        )
    if volume.get("name") in _OWN_NAMES or str(volume.get("name", "")).startswith(_OWN_PREFIX):
        raise _refused(f"{path}.name", f"{volume['name']} is the runtime's own volume; choose another name")
    for source in (volume.get("projected") or {}).get("sources") or ():
        if "serviceAccountToken" in source:
            raise _refused(f"{path}.projected", "serviceAccountToken is not allowed; remove it")


def _check_container(container: Mapping[str, Any], path: str) -> None:
    security = container.get("securityContext") or {}
    for key in ("privileged", "allowPrivilegeEscalation"):
        if security.get(key):
            raise _refused(f"{path}.securityContext.{key}", "is not allowed; remove it")
    added = (security.get("capabilities") or {}).get("add") or ()
    if set(added) - _SAFE_CAPABILITIES:
        raise _refused(f"{path}.securityContext.capabilities", f"may add only {sorted(_SAFE_CAPABILITIES)}")
    for variable in container.get("env") or ():
        name = str(variable.get("name", ""))
        if name.startswith(_FORBIDDEN_ENV):
            raise _refused(
                f"{path}.env[{name}]", "could change which code or devices the pod uses; remove it"
            )
    resources = container.get("resources") or {}
    if resources.get("claims"):
        raise _refused(f"{path}.resources.claims", "devices belong to spec.resources.accelerators; remove it")
    limits = resources.get("limits") or {}
    if any(key.startswith(("nvidia.com/", "amd.com/")) for key in limits):
        raise _refused(f"{path}.resources.limits", "devices belong to spec.resources.accelerators")
    for port in container.get("ports") or ():
        if port.get("hostPort"):
            raise _refused(f"{path}.ports", "hostPort is not allowed; clients reach the pod by its Service")


def check_engine(engine: Mapping[str, Any]) -> None:
    """Raise Permanent(InvalidSpec) if the engine's environment could change which code or devices are used.

    Or, of engine vllm, if there is no image or an argument that the operator decides.
    """
    if engine.get("name") == vllm.ENGINE and (found := vllm.refusal(engine)):
        raise Permanent(found, reason=Reason.INVALID_SPEC)
    for variable in engine.get("env") or ():
        name = str(variable.get("name", ""))
        if name.startswith((*_FORBIDDEN_ENV, "LLMOS_")):
            raise _refused(
                f"spec.engine.env[{name}]", "is set by the operator or decides what runs; remove it"
            )


def _refused(path: str, why: str) -> Permanent:
    return Permanent(f"{path}: {why}", reason=Reason.INVALID_SPEC)
