"""kubectl and Helm against a cluster: the pinned programs, the cluster's kubeconfig, none of the user's settings."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tools:
    """Runs programs of ``binaries`` (name -> path) with ``home`` as their home directory."""

    binaries: Mapping[str, Path]
    kubeconfig: Path
    home: Path

    def environment(self) -> dict[str, str]:
        """Return the environment of the programs."""
        self.home.mkdir(parents=True, exist_ok=True)
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "KUBECONFIG": str(self.kubeconfig),
        }

    def run(self, name: str, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run one program to its end and return it with its output, whatever its exit status."""
        return subprocess.run(  # noqa: S603 - the pinned programs
            [str(self.binaries[name]), *arguments],
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl (a command line may be given as one string) and return its output.

        Raises :class:`subprocess.CalledProcessError` with what it said on failure, unless ``check`` is off.
        """
        words = arguments[0].split() if len(arguments) == 1 else list(arguments)
        done = self.run("kubectl", *words, stdin=stdin)
        if check and done.returncode:
            error = subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
            error.add_note(done.stderr)
            raise error
        return done.stdout

    def apply(self, *documents: dict[str, Any], namespace: str = "") -> str:
        """Apply manifests given as objects."""
        listing = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        where = [f"--namespace={namespace}"] if namespace else []
        return self.kubectl("apply", *where, "-f", "-", stdin=json.dumps(listing))

    def get(self, kind: str, name: str = "", *, namespace: str = "") -> dict[str, Any]:
        """Return an object, or a list of all of its kind. Raises :class:`subprocess.CalledProcessError` if absent."""
        where = [f"--namespace={namespace}"] if namespace else []
        found: dict[str, Any] = json.loads(
            self.kubectl("get", kind, *filter(None, [name]), *where, "-o", "json")
        )
        return found
