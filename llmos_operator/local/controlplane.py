"""A real control plane on loopback: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

What a laptop needs differs from a data centre in a few flags, each for a reason:

- etcd does not fsync: the data dies with the cluster anyway, and a slow disk would rule the latency;
- no endpoint controllers: endpoints on loopback are refused by API validation; the node process's own Service proxy
  selects ready pods by itself;
- client rates of the controllers are raised, as all of them share one fast connection.
"""

from __future__ import annotations

import contextlib
import signal
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.local import addresses
from llmos_operator.local.certificates import Authority, key_pem, new_key, public_pem, write_private
from llmos_operator.local.kubeconfig import write_client_kubeconfig
from llmos_operator.local.processes import ProcessRecord, end, spawn
from llmos_operator.local.tools import Tools

if TYPE_CHECKING:
    import subprocess
    import threading
    from collections.abc import Sequence

    from llmos_operator.local.addresses import AddressBlock
    from llmos_operator.local.binaries import Binaries
    from llmos_operator.local.layout import ClusterPaths

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"

_ISSUER = "https://kubernetes.default.svc"
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 2.0
_START_SECONDS = 120.0
_CONTROLLERS_OFF = (
    "certificatesigningrequest-approving-controller",
    "certificatesigningrequest-cleaner-controller",
    "certificatesigningrequest-signing-controller",
    "cloud-node-lifecycle-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "node-ipam-controller",
    "node-route-controller",
    "persistentvolume-attach-detach-controller",
    "persistentvolume-expander-controller",
    "service-lb-controller",
    "storage-version-migrator-controller",
    "volumeattributesclass-protection-controller",
)


@dataclass(frozen=True, slots=True)
class ControlPlaneOptions:
    """Which parts run, and extra flags for kube-apiserver and kube-scheduler.

    Without the controller manager no ServiceAccounts are made, so the ServiceAccount admission plugin is off then and
    pods can be created at once; there is no garbage collection either.
    """

    controller_manager: bool = True
    scheduler: bool = True
    api_server_flags: tuple[str, ...] = ()
    scheduler_flags: tuple[str, ...] = ()
    verbosity: int = 1


class ControlPlane:
    """Starts, stops and disturbs the control plane processes.

    Processes die with the thread that started them (see :mod:`processes`).
    """

    def __init__(
        self, binaries: Binaries, paths: ClusterPaths, block: AddressBlock, options: ControlPlaneOptions
    ) -> None:
        self.paths = paths
        self.block = block
        self.url = block.api_url
        self.kubeconfig = paths.kubeconfig
        self._binaries = binaries
        self._options = options
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._context: ssl.SSLContext | None = None

    # -- life

    def start(self, timeout: float = _START_SECONDS) -> None:
        """Start all parts and wait until the API server is ready."""
        self.begin()
        self.wait_ready(timeout)

    def begin(self) -> None:
        """Make certificates and start all parts."""
        self.paths.prepare()
        write_pki(self.paths, self.block)
        for name in self._names():
            self.launch(name)

    def stop(self) -> None:
        """End all parts, controllers first, etcd last."""
        for name in reversed(self._names()):
            self.halt(name)

    def launch(self, name: str) -> None:
        """Start one part (again)."""
        command = component_command(name, self._binaries, self.paths, self.block, self._options)
        self._processes[name] = spawn(command, self.paths.logs / f"{name}.log")

    def halt(self, name: str, grace: float = _GRACE_SECONDS) -> None:
        """End one part; no error if it does not run."""
        process = self._processes.pop(name, None)
        if process is not None:
            end(process, grace=grace)

    def restart(self, name: str, down_for: float = 0.0) -> None:
        """Kill one part without warning, leave it down for ``down_for`` seconds, start it again; does not wait for ready."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        time.sleep(down_for)
        self.launch(name)

    @contextlib.contextmanager
    def frozen(self, name: str) -> Any:
        """Freeze one part (SIGSTOP) for the duration of a ``with`` block."""
        process = self._processes[name]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """Return the process of one part; KeyError if it was not started."""
        return self._processes[name]

    def processes(self) -> dict[str, subprocess.Popen[bytes]]:
        """Return all parts that were started, by name."""
        return dict(self._processes)

    def records(self) -> list[ProcessRecord]:
        """Return what runs, for the state file."""
        found = []
        for name, process in self._processes.items():
            with contextlib.suppress(ProcessLookupError):
                found.append(ProcessRecord.of(name, process.pid))
        return found

    def failed(self) -> str | None:
        """Return the name of a part that ended by itself, None while all run."""
        return next((name for name, process in self._processes.items() if process.poll() is not None), None)

    def _names(self) -> list[str]:
        names = [ETCD, API_SERVER]
        if self._options.controller_manager:
            names.append(CONTROLLER_MANAGER)
        if self._options.scheduler:
            names.append(SCHEDULER)
        return names

    # -- talking to it

    def request(self, path: str, timeout: float = 5.0) -> bytes:
        """GET ``path`` as the administrator; raise :class:`Retryable` when there is no good answer."""
        if self._context is None:
            self._context = client_context(self.paths, "admin")
        try:
            with urllib.request.urlopen(  # noqa: S310 - our own https URL
                self.url + path, timeout=timeout, context=self._context
            ) as reply:
                return bytes(reply.read())
        except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError) as error:
            raise Retryable(f"GET {path}: {error}", after=_POLL_SECONDS) from error

    def wait_ready(self, timeout: float = _START_SECONDS, stop: threading.Event | None = None) -> None:
        """Wait until the API server says ready and the namespace `default` can be used, or ``stop`` is set.

        Raises :class:`Permanent` naming the log when etcd or the API server ends, or the time is over.
        """
        paths = ["/readyz", "/api/v1/namespaces/default"]
        if self._options.controller_manager:
            paths.append("/api/v1/namespaces/default/serviceaccounts/default")
        deadline = time.monotonic() + timeout
        while paths and not (stop is not None and stop.is_set()):
            self._revive()
            try:
                self.request(paths[0])
                paths.pop(0)
            except Retryable as error:
                if time.monotonic() > deadline:
                    message = self._report(f"not ready after {timeout:.0f} s ({error})", API_SERVER)
                    raise Permanent(message, reason="ControlPlaneFailed") from error
                time.sleep(_POLL_SECONDS)

    def _revive(self) -> None:
        """Start controllers again that did not wait long enough for a slow API server; anything else is fatal."""
        ended = self.failed()
        if ended in {CONTROLLER_MANAGER, SCHEDULER}:
            self.launch(ended)
        elif ended is not None:
            raise Permanent(self._report(f"{ended} ended during start", ended), reason="ControlPlaneFailed")

    def _report(self, what: str, name: str) -> str:
        log = self.paths.logs / f"{name}.log"
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:] if log.exists() else []
        return "\n".join([f"{what}; the end of {log}:", *tail])

    @property
    def tools(self) -> Tools:
        """The program kubectl, as this control plane's administrator."""
        return Tools(self._binaries.paths, self.kubeconfig, self.paths.root / "home")

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl, see :meth:`Tools.kubectl`."""
        return self.tools.kubectl(*arguments, stdin=stdin, check=check)

    def apply(self, *documents: dict[str, Any], namespace: str = "") -> str:
        """Apply manifests given as objects."""
        return self.tools.apply(*documents, namespace=namespace)


def client_context(paths: ClusterPaths, name: str) -> ssl.SSLContext:
    """Return a TLS context that trusts the cluster and authenticates as ``name``."""
    context = ssl.create_default_context(cafile=str(paths.pki / "ca.crt"))
    context.load_cert_chain(paths.pki / f"{name}.crt", paths.pki / f"{name}.key")
    return context


def write_pki(paths: ClusterPaths, block: AddressBlock) -> None:
    """Make the authority, all certificates, the token signing key and all kubeconfigs."""
    authority = Authority("llmos-local")
    (paths.pki / "ca.crt").write_bytes(authority.certificate)
    api_names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    pairs = {
        API_SERVER: authority.server(API_SERVER, api_names, [block.control_plane, block.api_service]),
        ETCD: authority.server(ETCD, ["localhost"], [block.control_plane]),
        "controllers": authority.server("controllers", ["localhost"], [block.control_plane]),
        "kubelet-client": authority.client("kube-apiserver-kubelet-client", ["system:masters"]),
        "admin": authority.client("kubernetes-admin", ["system:masters"]),
        CONTROLLER_MANAGER: authority.client("system:kube-controller-manager", ["system:masters"]),
        SCHEDULER: authority.client("system:kube-scheduler", ["system:masters"]),
        "node": authority.client("llmos-local-node", ["system:masters"]),
        "kubelet": authority.server("llmos-local-kubelet", [], [block.node(n) for n in range(254)]),
    }
    for name, pair in pairs.items():
        pair.write(paths.pki, name)
    for name in (CONTROLLER_MANAGER, SCHEDULER, "node"):
        write_client_kubeconfig(
            paths.component_kubeconfig(name), block.api_url, authority.certificate, pairs[name]
        )
    write_client_kubeconfig(paths.kubeconfig, block.api_url, authority.certificate, pairs["admin"])
    signing = new_key()
    write_private(paths.pki / "service-accounts.key", key_pem(signing))
    (paths.pki / "service-accounts.pub").write_bytes(public_pem(signing))


def component_command(
    name: str, binaries: Binaries, paths: ClusterPaths, block: AddressBlock, options: ControlPlaneOptions
) -> list[str]:
    """Return the command line of one part."""
    flags = {
        ETCD: _etcd_flags,
        API_SERVER: _api_server_flags,
        CONTROLLER_MANAGER: _controller_manager_flags,
        SCHEDULER: _scheduler_flags,
    }[name](paths, block, options)
    return [binaries[name], *flags]


def _etcd_flags(paths: ClusterPaths, block: AddressBlock, _options: ControlPlaneOptions) -> Sequence[str]:
    client = f"https://{block.control_plane}:{addresses.PORT_ETCD}"
    peer = f"http://{block.control_plane}:{addresses.PORT_ETCD_PEER}"
    return [
        "--name=local",
        f"--data-dir={paths.etcd}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=local={peer}",
        f"--cert-file={paths.pki / 'etcd.crt'}",
        f"--key-file={paths.pki / 'etcd.key'}",
        f"--trusted-ca-file={paths.pki / 'ca.crt'}",
        "--client-cert-auth",
        "--unsafe-no-fsync",
        "--quota-backend-bytes=4294967296",
        "--log-level=warn",
    ]


def _api_server_flags(
    paths: ClusterPaths, block: AddressBlock, options: ControlPlaneOptions
) -> Sequence[str]:
    pki = paths.pki
    flags = [
        f"--bind-address={block.control_plane}",
        f"--secure-port={addresses.PORT_API}",
        f"--advertise-address={block.control_plane}",
        f"--etcd-servers=https://{block.control_plane}:{addresses.PORT_ETCD}",
        f"--etcd-cafile={pki / 'ca.crt'}",
        f"--etcd-certfile={pki / 'etcd.crt'}",
        f"--etcd-keyfile={pki / 'etcd.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'kube-apiserver.crt'}",
        f"--tls-private-key-file={pki / 'kube-apiserver.key'}",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer={_ISSUER}",
        f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
        f"--service-account-key-file={pki / 'service-accounts.pub'}",
        f"--service-cluster-ip-range={block.service_cidr}",
        "--authorization-mode=RBAC",
        "--endpoint-reconciler-type=none",
        "--allow-privileged=true",
        "--profiling=false",
        f"--v={options.verbosity}",
    ]
    if not options.controller_manager:
        flags.append("--disable-admission-plugins=ServiceAccount")
    return [*flags, *options.api_server_flags]


def _controller_manager_flags(
    paths: ClusterPaths, block: AddressBlock, options: ControlPlaneOptions
) -> Sequence[str]:
    kubeconfig = paths.component_kubeconfig(CONTROLLER_MANAGER)
    return [
        f"--kubeconfig={kubeconfig}",
        *_serving(paths, block, addresses.PORT_CONTROLLER_MANAGER),
        f"--root-ca-file={paths.pki / 'ca.crt'}",
        f"--service-account-private-key-file={paths.pki / 'service-accounts.key'}",
        "--leader-elect=false",
        "--allocate-node-cidrs=false",
        "--kube-api-qps=300",
        "--kube-api-burst=500",
        "--controllers=*," + ",".join(f"-{name}" for name in _CONTROLLERS_OFF),
        "--horizontal-pod-autoscaler-sync-period=5s",
        "--profiling=false",
        f"--v={options.verbosity}",
    ]


def _scheduler_flags(paths: ClusterPaths, block: AddressBlock, options: ControlPlaneOptions) -> Sequence[str]:
    kubeconfig = paths.component_kubeconfig(SCHEDULER)
    return [
        f"--kubeconfig={kubeconfig}",
        *_serving(paths, block, addresses.PORT_SCHEDULER),
        "--leader-elect=false",
        "--profiling=false",
        f"--v={options.verbosity}",
        *options.scheduler_flags,
    ]


def _serving(paths: ClusterPaths, block: AddressBlock, port: int) -> list[str]:
    return [
        f"--bind-address={block.control_plane}",
        f"--secure-port={port}",
        "--authentication-skip-lookup",
        f"--client-ca-file={paths.pki / 'ca.crt'}",
        f"--tls-cert-file={paths.pki / 'controllers.crt'}",
        f"--tls-private-key-file={paths.pki / 'controllers.key'}",
    ]
