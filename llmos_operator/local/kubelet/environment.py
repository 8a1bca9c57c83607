"""A container's environment: variables of the spec, of Services, and `$(NAME)` expansion. Pure.

Source: Kubernetes docs "Define Dependent Environment Variables"; third_party/forked/golang/expansion of 1.36 for the
grammar: `$(NAME)` is replaced when NAME is known and left alone when it is not, `$$` is one dollar.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from llmos_operator.api.quantity import parse_bytes, parse_milli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from llmos_operator.local.kubelet.model import Json

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")
_METADATA_ITEM = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")
_MILLI = 1000


class ConfigProblem(Exception):  # noqa: N818 - reads as what the status says
    """A container cannot be configured: the text becomes the message of CreateContainerConfigError."""


class Lookup(Protocol):
    """Data of Secrets and ConfigMaps of the pod's namespace."""

    def __call__(self, kind: str, name: str) -> Mapping[str, bytes] | None:
        """Return the data of a `Secret` or `ConfigMap`, None if there is no such object."""
        ...


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by what ``known`` says."""

    def replaced(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        return known.get(name, match.group(0))

    return _REFERENCE.sub(replaced, text)


def references(text: str) -> list[str]:
    """Return the names that ``text`` refers to."""
    return [match.group(1) for match in _REFERENCE.finditer(text) if match.group(1) is not None]


class PodFacts(Protocol):
    """What the downward API may ask of a pod and its node."""

    @property
    def pod(self) -> Json:
        """The pod object."""
        ...

    @property
    def pod_ip(self) -> str:
        """The pod's address."""
        ...

    @property
    def host_ip(self) -> str:
        """The node's address."""
        ...

    @property
    def allocatable(self) -> Mapping[str, str]:
        """The node's allocatable quantities: the value of limits that are not set."""
        ...


def build_environment(
    container: Json,
    facts: PodFacts,
    lookup: Lookup,
    services: Mapping[str, str],
    rewrite: Callable[[str], str],
) -> dict[str, str]:
    """Return the variables a container's spec asks for, those of Services first, later ones winning.

    Values are expanded, and mount paths in them rewritten by ``rewrite``. Raises :class:`ConfigProblem`.
    """
    result = dict(services)
    for source in container.get("envFrom") or []:
        result |= _from_source(source, lookup)
    for entry in container.get("env") or []:
        value = _value(entry, container, facts, lookup, result)
        if value is not None:
            result[entry["name"]] = rewrite(value)
    return result


def _from_source(source: Json, lookup: Lookup) -> dict[str, str]:
    prefix = source.get("prefix") or ""
    for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
        reference = source.get(field)
        if reference is None:
            continue
        data = lookup(kind, reference["name"])
        if data is None:
            if reference.get("optional"):
                return {}
            raise ConfigProblem(f'{kind.lower()} "{reference["name"]}" not found')
        return {prefix + key: value.decode(errors="replace") for key, value in data.items()}
    return {}


def _value(
    entry: Json, container: Json, facts: PodFacts, lookup: Lookup, known: Mapping[str, str]
) -> str | None:
    source = entry.get("valueFrom")
    if not source:
        return expand(entry.get("value") or "", known)
    if field := source.get("fieldRef"):
        return field_value(field["fieldPath"], facts)
    if resource := source.get("resourceFieldRef"):
        return resource_value(resource, container, facts)
    for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if key in source:
            return _keyed(source[key], kind, lookup)
    raise ConfigProblem(
        f"env {entry['name']}: valueFrom {sorted(source)} is not supported by the local cluster"
    )


def _keyed(reference: Json, kind: str, lookup: Lookup) -> str | None:
    name, key = reference["name"], reference["key"]
    data = lookup(kind, name)
    if data is not None and key in data:
        return data[key].decode(errors="replace")
    if reference.get("optional"):
        return None
    if data is None:
        raise ConfigProblem(f'{kind.lower()} "{name}" not found')
    raise ConfigProblem(f"couldn't find key {key} in {kind} {name}")


def field_value(path: str, facts: PodFacts) -> str:
    """Return the value of a downward API field path; raise :class:`ConfigProblem` for an unknown one."""
    meta, spec = facts.pod["metadata"], facts.pod["spec"]
    item = _METADATA_ITEM.fullmatch(path)
    if item:
        return str((meta.get(item.group(1)) or {}).get(item.group(2), ""))
    simple: dict[str, object] = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta.get("namespace", ""),
        "metadata.uid": meta.get("uid", ""),
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.podIP": facts.pod_ip,
        "status.podIPs": facts.pod_ip,
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
    }
    if path in simple:
        return str(simple[path])
    if path in {"metadata.labels", "metadata.annotations"}:
        pairs = (meta.get(path.removeprefix("metadata.")) or {}).items()
        return "\n".join(f'{key}="{_quoted(value)}"' for key, value in sorted(pairs))
    raise ConfigProblem(f"unsupported fieldPath: {path}")


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource_value(reference: Json, container: Json, facts: PodFacts) -> str:
    """Return a container's request or limit, rounded up to the divisor; unset limits are the node's."""
    kind, _, resource = reference["resource"].partition(".")
    quantities = (container.get("resources") or {}).get(kind) or {}
    text = quantities.get(resource)
    if text is None:
        text = facts.allocatable.get(resource, "0") if kind == "limits" else "0"
    divisor = str(reference.get("divisor") or "1")
    divisor = "1" if divisor == "0" else divisor
    read = parse_milli if resource == "cpu" else parse_bytes
    unit = read(divisor) or (_MILLI if resource == "cpu" else 1)
    return str(-(-read(text) // unit))


def with_addresses(
    environment: Mapping[str, str], namespace: str, subdomain: str, address_of: Callable[[str], str]
) -> dict[str, str]:
    """Replace names of pods behind the pod's own headless Service by their addresses: no DNS serves this machine.

    ``address_of(hostname)`` is "" while that pod has none; then :class:`ConfigProblem` is raised, and the container waits.
    """
    if not subdomain:
        return dict(environment)
    domain = re.escape(f".{subdomain}.{namespace}.svc")
    pattern = re.compile(rf"\b([a-z0-9](?:[-a-z0-9]*[a-z0-9])?){domain}(?:\.cluster\.local)?\b")

    def found(match: re.Match[str]) -> str:
        address = address_of(match.group(1))
        if not address:
            raise ConfigProblem(f"pod {match.group(1)} of service {subdomain} has no address yet")
        return address

    return {name: pattern.sub(found, value) for name, value in environment.items()}


def service_variables(services: Iterable[Json], port_of: Callable[[str, int], int]) -> dict[str, str]:
    """Return the variables that name Services: `<NAME>_SERVICE_HOST`, `<NAME>_SERVICE_PORT` and the older forms.

    ``port_of(address, port)`` is the port a Service really listens on.
    """
    result: dict[str, str] = {}
    for service in services:
        address = service["spec"].get("clusterIP") or ""
        ports = service["spec"].get("ports") or []
        if address in {"", "None"} or not ports:
            continue
        name = _variable(service["metadata"]["name"])
        first = port_of(address, ports[0]["port"])
        result |= {
            f"{name}_SERVICE_HOST": address,
            f"{name}_SERVICE_PORT": str(first),
            f"{name}_PORT": f"{ports[0].get('protocol', 'TCP').lower()}://{address}:{first}",
        }
        for port in ports:
            result |= _port_variables(name, address, port, port_of(address, port["port"]))
    return result


def _port_variables(name: str, address: str, port: Json, real: int) -> dict[str, str]:
    protocol = port.get("protocol", "TCP")
    stem = f"{name}_PORT_{port['port']}_{protocol}"
    result = {
        stem: f"{protocol.lower()}://{address}:{real}",
        f"{stem}_PROTO": protocol.lower(),
        f"{stem}_PORT": str(real),
        f"{stem}_ADDR": address,
    }
    if port.get("name"):
        result[f"{name}_SERVICE_PORT_{_variable(port['name'])}"] = str(real)
    return result


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")
