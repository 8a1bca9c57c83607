"""The node's life: up, down, and running things in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.errors import Permanent
from llmos_operator.local.binaries import resolve, versions
from llmos_operator.local.layout import cache_root
from llmos_operator.local.processes import ProcessRecord, wait_gone
from llmos_operator.local.tools import Tools
from scripts.realnode import components, host, images, layout
from scripts.realnode.credentials import write_credentials
from scripts.realnode.roots import NODE_LINKS, NODE_PACKAGES, root_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_REPOSITORY = Path(__file__).resolve().parents[2]
_READY_SECONDS = 120.0
_POLL_SECONDS = 0.1
_LAST_LINES = 5
_ENDED = ".ended-"  # of a node whose files are being removed


@dataclass(frozen=True, slots=True)
class Node:
    """The node whose files are at ``paths``. ``say`` is told what takes time."""

    paths: layout.NodePaths
    say: Callable[[str], None]

    # -- life

    def up(self) -> None:
        """Start the node unless it runs, and wait until it is Ready. Raises `host.CannotHere` or :class:`Permanent`."""
        with self._alone():
            if self.record() is None:
                host.require_able()
                self._clear()
                self._start()
        self.wait_ready()
        self.load(images.busybox_image())
        self.tools().apply(*components.cluster_objects())

    def down(self) -> None:
        """End the node with all its processes and remove everything it had, its files last and after the return.

        No error if there is none.
        """
        with self._alone():
            record = self.record()
            if record is not None:
                record.signal(signal.SIGKILL)  # the kernel ends every process of its pid namespace with it
                if wait_gone([record], 30):
                    raise Permanent(f"process {record.pid} does not end", reason="NodeStuck")
            self._clear()

    def record(self) -> ProcessRecord | None:
        """Return the node's first process if it runs."""
        try:
            record = ProcessRecord(**json.loads(self.paths.record.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        return record if record.alive() else None

    def prepare(self) -> None:
        """Have all a node is made of in the cache: what takes minutes the first time. Raises as :meth:`up` does."""
        host.require_able()
        self._programs()
        images.busybox_image()
        images.make_images()

    def _programs(self) -> tuple[Path, Path, Path]:
        """Return the folders with the control plane's programs and the node's, and the unpacked packages."""
        programs = resolve(versions.CONTROL_PLANE, self._progress).paths["etcd"].parent
        node_programs = resolve(versions.NODE, self._progress, versions.node_folder()).paths["kubelet"].parent
        return programs, node_programs, root_of("node", NODE_PACKAGES, NODE_LINKS)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` at a time."""
        self.paths.root.parent.mkdir(parents=True, exist_ok=True)
        with self.paths.root.with_suffix(".lock").open("w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _clear(self) -> None:
        host.unplug()
        if self.paths.groups.exists():
            host.remove_groups(map(Path, self.paths.groups.read_text(encoding="utf-8").split()))
        root = self.paths.root
        if root.exists():
            root.rename(root.with_name(f"{root.name}{_ENDED}{time.time_ns()}"))
        ended = [str(one) for one in root.parent.glob(f"{root.name}{_ENDED}*")]
        if ended:  # 24,000 files: a minute on a disk that discards what is freed; nobody needs to wait for it
            subprocess.Popen(["rm", "-rf", "--", *ended], stdin=subprocess.DEVNULL, start_new_session=True)

    # -- start

    def _start(self) -> None:
        programs, node_programs, packages = self._programs()
        self.paths.prepare()
        write_credentials(self.paths)
        (self.paths.config / "resolv.conf").write_text(
            f"nameserver {layout.NODE_ADDRESS}\n", encoding="ascii"
        )
        wheels = images.environment_folder(images.MOUNTED).parent  # made later, with the images
        wheels.mkdir(parents=True, exist_ok=True)
        components.write_files(self.paths.config, _runtime_spec(packages))
        shutil.copy(Path(__file__).with_name("supervise.py"), self.paths.config)
        cache = cache_root()
        binds = [
            [str(self.paths.config), components.ETC],
            [str(self.paths.logs), components.LOGS],
            *(
                [str(self._made(name)), f"/var/lib/{name}"]
                for name in ("containerd", "kubelet", "etcd", "driver")
            ),
            [str(programs), components.PROGRAMS, "ro"],
            [str(node_programs), components.NODE_PROGRAMS, "ro"],
            [str(wheels), components.WHEELS, "ro"],
            [str(cache), components.CACHE],
        ]
        etc = {
            "hosts": f"127.0.0.1 localhost\n{layout.NODE_ADDRESS} {layout.NAME}\n",
            "hostname": f"{layout.NAME}\n",
            "resolv.conf": f"nameserver {layout.NODE_ADDRESS}\n",
        }
        plan = self.paths.root / "plan.json"
        document = {"overlay": str(self.paths.overlay), "packages": str(packages), "binds": binds, "etc": etc}
        plan.write_text(json.dumps(document), encoding="utf-8")
        self._launch(plan)

    def _made(self, name: str) -> Path:
        folder = self.paths.data / name
        folder.mkdir(exist_ok=True)
        return folder

    def _launch(self, plan: Path) -> None:
        """Start the node's first process in control groups and namespaces of its own, and plug it in."""
        self.paths.groups.write_text("\n".join(map(str, host.groups())), encoding="utf-8")
        join = "".join(f"echo $$ > '{group}/cgroup.procs'; " for group in host.make_groups())
        names = "--cgroup --mount --net --pid --uts --ipc --fork --kill-child --propagation=private"
        enter = f'exec unshare {names} "$0" -m scripts.realnode.enter "$@"'
        words = [str(plan), layout.NODE_ADDRESS, str(layout.PREFIX), layout.HOST_ADDRESS]
        with (self.paths.logs / "node.log").open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"set -e; {join}{enter}", sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=_REPOSITORY,
                start_new_session=True,
            )
        first = self._first_process(process)
        self.paths.record.write_text(
            json.dumps(asdict(ProcessRecord.of(layout.NAME, first))), encoding="utf-8"
        )
        host.plug_in(first)

    def _first_process(self, process: subprocess.Popen[bytes]) -> int:
        """Return the pid of the child `unshare` made, which is the first of its pid namespace."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + _READY_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, IndexError):
                return int(children.read_text(encoding="ascii").split()[0])
            time.sleep(_POLL_SECONDS)
        raise Permanent(f"the node's process did not start: {self._tail('node')}", reason="NodeFailed")

    def wait_ready(self, timeout: float = _READY_SECONDS) -> None:
        """Wait until the API says that the node is Ready. Raises :class:`Permanent` with the last words of what failed."""
        deadline = time.monotonic() + timeout
        while True:
            if self.record() is None:
                raise Permanent(f"the node has ended: {self._tail('node')}", reason="NodeFailed")
            done = self.tools().run(
                "kubectl", "get", "node", layout.NAME, "-o", "json", "--request-timeout=5s"
            )
            if done.returncode == 0 and _ready(json.loads(done.stdout)):
                return
            if time.monotonic() > deadline:
                words = done.stderr.strip() or self._tail("kubelet")
                raise Permanent(f"node not Ready after {timeout:.0f} s: {words}", reason="NodeNotReady")
            time.sleep(_POLL_SECONDS)

    def _tail(self, name: str) -> str:
        path = self.paths.logs / f"{name}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        return "\n".join([f"the end of {path}:", *lines[-_LAST_LINES:]])

    def _progress(self, name: str, what: str) -> None:
        self.say(f"{name}: {what}")

    # -- use

    def tools(self) -> Tools:
        """Return kubectl and Helm, as the administrator."""
        paths = resolve(("kubectl", "helm"), self._progress).paths
        return Tools(paths, self.paths.kubeconfig, self.paths.root / "home")

    def inside(self, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a program in the node's namespaces and root; raise :class:`Permanent` with what it said if it fails."""
        record = self.record()
        if record is None:
            raise Permanent("the node does not run: make node-up", reason="NodeDown")
        enter = ["nsenter", "--target", str(record.pid), "--all", "--root", "--wd=/", "--"]
        environment = {"PATH": "/usr/sbin:/usr/bin", "HOME": "/root"}
        done = subprocess.run(
            [shutil.which("nsenter") or "nsenter", *enter[1:], *words],
            input=stdin,
            capture_output=True,
            check=False,
            env=environment,
        )
        if done.returncode:
            message = f"{' '.join(words)} in the node: {done.stderr.decode(errors='replace').strip()}"
            raise Permanent(message, reason="CommandFailed")
        return done

    def load(self, image: images.Image) -> bool:
        """Import an image unless the node has it; return whether it was new."""
        known = self.inside("ctr", "--namespace=k8s.io", "images", "list", "--quiet").stdout.decode().split()
        if image.name in known:
            return False
        place = f"{components.CACHE}/{image.archive.relative_to(cache_root())}"
        self.inside("ctr", "--namespace=k8s.io", "images", "import", place)
        return True

    def signal(self, component: str, number: int) -> None:
        """Send a signal to a component (one that ends is started again within two seconds)."""
        pid = self.inside("busybox", "cat", f"/run/llmos/{component}").stdout.decode()
        self.inside("busybox", "kill", f"-{int(number)}", pid)


def _ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _runtime_spec(packages: Path) -> dict[str, Any]:
    """Return containerd's own default for containers, with the runtime's wheels and the place of a driver mounted."""
    done = subprocess.run(
        ["chroot", str(packages), "/usr/bin/ctr", "oci", "spec"], capture_output=True, text=True, check=True
    )
    spec: dict[str, Any] = json.loads(done.stdout)
    # As kubelet starts other containers: no limits but the machine's.
    spec["process"].pop("rlimits", None)
    wheels = f"{components.WHEELS}/{images.environment_folder(images.MOUNTED).name}/lib"
    for place, source in ((layout.WHEELS, wheels), (layout.DRIVER, "/var/lib/driver")):
        options = ["rbind", "ro", "nosuid"]
        spec["mounts"].append({"destination": place, "type": "bind", "source": source, "options": options})
    return spec
