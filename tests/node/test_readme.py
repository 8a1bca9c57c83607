"""README's lines for a real cluster, run exactly as they stand there; the values file it speaks of is the node's."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.node.conftest import Installed

pytestmark = pytest.mark.node

ROOT = Path(__file__).parents[2]
MOST_LINES = 5
PORT = 18080


def lines_of(readme: str) -> list[str]:
    """Return the commands of the section "On a real cluster"."""
    section = readme.partition("\n## On a real cluster\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert "add `-f values.yaml` to the first line" in section
    return [line for line in block.splitlines() if line.strip()]


def test_the_readmes_lines_bring_an_answer(release: Installed, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("README asks with curl, which is not here")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"README's port {PORT} is in use here")
    lines = lines_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(lines) <= MOST_LINES
    assert f"localhost:{PORT}/" in lines[-1]
    release.clear()
    release.tools.run("helm", "uninstall", "llmos-operator", "--namespace=llmos-system", "--wait")
    assert lines[0].startswith("helm install")
    lines[0] += f" -f {release.node.paths.values}"
    environment = release.tools.environment()
    programs = Path(release.tools.binaries["helm"]).parent
    environment["PATH"] = os.pathsep.join([str(programs), environment["PATH"]])
    said = tmp_path / "said"
    command = ["bash", "-euc", "\n".join(lines)]
    with said.open("w") as out:
        shell = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        status = shell.wait(280)
    finally:
        os.killpg(shell.pid, signal.SIGTERM)  # the port-forward, which goes on
        shell.wait(20)
    assert status == 0, said.read_text()
    assert "Paris" in said.read_text()
    release.standing = ("restricted",)  # as `install` would have left it
    release.clear()
