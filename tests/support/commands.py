"""Runs `llmos` in a process of its own against a cluster, as a person would."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.cli.app import main

if TYPE_CHECKING:
    from llmos_operator.local.controlplane import ControlPlane

ROOT = Path(__file__).parents[2]


class Llmos:
    """Runs `llmos` in one namespace of a cluster."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace

    def __call__(self, *arguments: str, expect: int = 0, kubeconfig: str = "") -> str:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "llmos_operator",
                *arguments,
                "--kubeconfig",
                kubeconfig or str(self.plane.kubeconfig),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "LLMOS_LOCAL_DIR": "/nonexistent"},
            timeout=180,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout if expect == 0 else done.stderr

    def scoped(self, *arguments: str, expect: int = 0) -> str:
        return self(*arguments, "-n", self.namespace, expect=expect)

    def inside(self, *arguments: str, expect: int = 0) -> str:
        """Run in this process, where starting one is no part of what is tested: ten times as fast."""
        out, err = io.StringIO(), io.StringIO()
        where = ("-n", self.namespace, "--kubeconfig", str(self.plane.kubeconfig))
        with redirect_stdout(out), redirect_stderr(err):
            status = main([*arguments, *where])
        assert status == expect, out.getvalue() + err.getvalue()
        return out.getvalue() if expect == 0 else err.getvalue()

    def create(self, name: str, status: dict[str, Any] | None = None, **spec: Any) -> None:
        item = {
            "apiVersion": "llmos.dev/v1alpha1",
            "kind": "ModelWorkload",
            "metadata": {"name": name},
            "spec": {"model": {"uri": "hf://a/b"}, **spec},
        }
        self.plane.kubectl("create", "-n", self.namespace, "-f", "-", stdin=json.dumps(item))
        if status is not None:
            patch = json.dumps({"status": status})
            self.plane.kubectl(
                "patch", "mw", name, "-n", self.namespace, "--subresource=status", "--type=merge", "-p", patch
            )


def condition(kind: str, value: str, reason: str, message: str = "") -> dict[str, Any]:
    """Return a condition as the API wants it."""
    when = "2026-11-01T00:00:00Z"
    return {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": when}
