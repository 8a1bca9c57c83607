"""``python -m llmos_operator.local.hub STORE``: serve a model store until told to stop."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aiohttp import web

from llmos_operator.local.addresses import PORT_HUB
from llmos_operator.local.hub.server import HubServer
from llmos_operator.local.hub.store import Store


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m llmos_operator.local.hub", description=__doc__)
    parser.add_argument("store", type=Path, help="folder with <org>/<name>/ below it")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=PORT_HUB)
    parser.add_argument("--bandwidth", type=int, default=0, help="bytes a second for each file; 0: no bound")
    options = parser.parse_args(argv)
    app = HubServer(Store(options.store), bandwidth=options.bandwidth).app()
    web.run_app(app, host=options.host, port=options.port, print=None, access_log=None, shutdown_timeout=1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
