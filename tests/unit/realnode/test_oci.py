"""Layers of images: the same content everywhere, and modules that stay compiled."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

from scripts.realnode.oci import write_layer

if TYPE_CHECKING:
    from pathlib import Path

TIME = 1_700_000_000


def module(folder: Path) -> Path:
    """Write a compiled module, as old as its source says, and return the folder."""
    folder.mkdir()
    source = folder / "said.py"
    source.write_text("WORD = 'here'\n")
    os.utime(source, (TIME, TIME + 0.5))
    compiled = py_compile.compile(str(source), doraise=True)
    assert compiled
    os.utime(compiled, (TIME, TIME))
    os.utime(folder / "__pycache__", (TIME, TIME))
    os.utime(folder, (TIME, TIME))
    return folder


def test_a_compiled_module_is_used_where_the_layer_is_unpacked(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "a.layer", [(module(tmp_path / "app"), "opt/app")])
    with tarfile.open(layer.path) as tar:
        tar.extractall(tmp_path / "image", filter="data")
    done = subprocess.run(
        [sys.executable, "-S", "-v", "-c", "import said"],
        env={"PYTHONPATH": str(tmp_path / "image/opt/app"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [one for one in done.stderr.splitlines() if "said" in one and "code object" in one]
    assert "said.cpython" in line, line  # from the compiled file, not from said.py
    assert "# code object from '" + str(tmp_path / "image/opt/app/said.py") not in done.stderr


def test_the_same_files_give_the_same_layer(tmp_path: Path) -> None:
    one = write_layer(tmp_path / "one.layer", [(module(tmp_path / "first"), "opt/app")])
    (tmp_path / "first").rename(tmp_path / "second")
    two = write_layer(tmp_path / "two.layer", [(tmp_path / "second", "opt/app")])
    assert one.digest == two.digest
