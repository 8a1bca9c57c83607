"""`python -m demo [--keep]`: tell the story; exit status 0 only if everything held."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from demo import story
from demo.lab import Lab
from demo.screen import DemoFailed, Screen
from llmos_operator.errors import LlmosError

if TYPE_CHECKING:
    from types import FrameType

_INTERRUPTED = 130

KEPT = """
The cluster is still up. To play with it:

   export PATH=$PWD/.venv/bin:$PATH
   eval "$(llmos local env --dir {root})"
   kubectl get mw
   llmos top
   llmos explain mw/background
   llmos chat --model smollm2
   curl {gateway}/v1/models

To end it: llmos local down --dir {root}
"""


def main() -> int:
    """Run the demo; see the module's text."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster running at the end")
    parser.add_argument("--dir", type=Path, help="where the cluster keeps its files")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    screen, lab = Screen(), Lab(options.dir)
    kept = False
    try:
        story.tell(lab, screen, keep=options.keep)
        kept = options.keep
    except KeyboardInterrupt:
        screen.console.print("\ninterrupted", style="bold red")
        return _INTERRUPTED
    except (DemoFailed, LlmosError, OSError, subprocess.CalledProcessError) as error:
        screen.console.print(f"\n{type(error).__name__}: {error}", style="bold red")
        _tell_evidence(lab, screen)
    finally:
        if not kept:
            _take_down(lab, screen)
    held = screen.summary()
    if kept:
        gateway = lab.service_url("llmos-gateway")
        screen.console.print(KEPT.format(gateway=gateway, root=lab.cluster.paths.root))
    return 0 if held else 1


def _take_down(lab: Lab, screen: Screen) -> None:
    with screen.stage("Everything ends"):
        killed = lab.down()
        screen.claim("no process had to be killed, none is left", not killed, ", ".join(killed))


def _tell_evidence(lab: Lab, screen: Screen) -> None:
    if not lab.cluster.running():
        return
    try:
        screen.show("# what there was to see", lab.evidence())
    except (OSError, subprocess.CalledProcessError) as error:
        screen.console.print(f"and no evidence: {error}")


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
