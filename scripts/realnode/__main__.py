"""`python -m scripts.realnode up | down | env | prepare`: the node, or the cluster there already is."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time

from llmos_operator.errors import Permanent
from scripts.realnode.cluster import bring_up
from scripts.realnode.host import CannotHere
from scripts.realnode.layout import NodePaths, default_state
from scripts.realnode.node import Node


def main() -> int:
    """Do what was asked; return the exit status."""
    parser = argparse.ArgumentParser(prog="realnode", description=__doc__)
    parser.add_argument("action", choices=("up", "down", "env", "prepare"))
    action = parser.parse_args().action
    node = Node(NodePaths(default_state()), say)
    try:
        if action == "env":
            programs = shlex.quote(str(node.tools().binaries["helm"].parent))
            print(f"export KUBECONFIG={shlex.quote(str(node.paths.kubeconfig))} PATH={programs}:$PATH")
        elif action == "down":
            node.down()
        elif action == "prepare":
            node.prepare()
        elif os.environ.get("KUBECONFIG"):
            say(f"KUBECONFIG is set to {os.environ['KUBECONFIG']}: that cluster is used, nothing was started")
        else:
            began = time.monotonic()
            bring_up(node)
            say(f"equipped after {time.monotonic() - began:.1f} s; KUBECONFIG={node.paths.kubeconfig}")
            say(f"values for the chart: {node.paths.values}")
    except CannotHere as error:
        say(str(error))
        return 0 if action == "prepare" else 1  # nothing is missing where nothing can be made of it
    except Permanent as error:
        say(str(error))
        return 1
    return 0


def say(text: str) -> None:
    """Print progress."""
    print(f"node: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
