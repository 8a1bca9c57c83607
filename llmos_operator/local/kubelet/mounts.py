"""Mount paths without mount namespaces: real directories, and texts rewritten to name them.

A container of the process kubelet sees the machine's file system. What it is told about its mount paths (command,
arguments, environment values, working directory) is rewritten to the directories that stand for them. Code with a
path of its own compiled in is not reached; it has to take the path as an argument, which good images do anyway.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class MountMap:
    """Rewrites mount paths in texts; the longest matching path wins."""

    def __init__(self, mounts: Mapping[str, Path]) -> None:
        """Take mount path -> directory or file that stands for it. A mount at "/" is refused."""
        self._targets = {path.rstrip("/"): str(target) for path, target in mounts.items()}
        if "" in self._targets:
            msg = "mountPath / cannot be served: containers of the local cluster share the machine's file system"
            raise ValueError(msg)
        ordered = sorted(self._targets, key=len, reverse=True)
        paths = "|".join(re.escape(path) for path in ordered)
        # A path starts where no other path is under way (or after a URL's "://") and ends at a component's end.
        self._pattern = re.compile(rf"(?:(?<![\w./-])|(?<=://))({paths})(?![\w.-])") if ordered else None

    def rewrite(self, text: str) -> str:
        """Return ``text`` with every mount path in it replaced."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._targets[match.group(1)], text)
