"""The kubelet's HTTPS endpoint: what the API server needs for `kubectl logs`.

Clients must show a certificate of the cluster's authority. `exec`, `attach` and `port-forward` are refused in words;
pod addresses are loopback addresses and can be reached directly.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from aiohttp import web

from llmos_operator.local.addresses import PORT_KUBELET
from llmos_operator.local.kubelet.logs import log_file, read_log
from llmos_operator.local.kubelet.model import Running

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.local.kubelet.kubelet import Kubelet
    from llmos_operator.local.layout import ClusterPaths

_REFUSED = (
    "{what} is not offered by the local cluster: pods are plain processes of this machine; "
    "reach their ports at the pod's address, and run commands in a shell of your own"
)


class KubeletServer:
    """Serves logs on the addresses of all nodes."""

    def __init__(self, kubelet: Kubelet, paths: ClusterPaths) -> None:
        self._kubelet = kubelet
        self._paths = paths
        self._runner: web.AppRunner | None = None

    async def start(self, addresses: Iterable[str]) -> None:
        """Listen on every address."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", _healthy),
                web.get("/containerLogs/{namespace}/{pod}/{container}", self._logs),
                *(
                    web.route("*", f"/{what}/{{rest:.*}}", _refuse)
                    for what in ("exec", "attach", "run", "portForward")
                ),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        context = self._tls()
        for address in addresses:
            await web.TCPSite(self._runner, address, PORT_KUBELET, ssl_context=context).start()

    async def stop(self) -> None:
        """Stop listening and end open requests."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _tls(self) -> ssl.SSLContext:
        pki = self._paths.pki
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "kubelet.crt", pki / "kubelet.key")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        namespace, name, container = (request.match_info[key] for key in ("namespace", "pod", "container"))
        worker = self._kubelet.worker(namespace, name)
        view = worker.views.find(container) if worker is not None else None
        if worker is None or view is None:
            return web.Response(
                status=404, text=f"container {container} of pod {namespace}/{name} is not on this node"
            )
        query = request.query
        if query.get("timestamps") == "true" or query.keys() & {"sinceSeconds", "sinceTime"}:
            text = "logs of the local cluster carry no timestamps: leave out --timestamps and --since, use --tail"
            return web.Response(status=400, text=text)
        run = view.restarts - 1 if query.get("previous") == "true" else view.restarts
        path = log_file(worker.context.log_folder, container, run)
        if query.get("previous") != "true" and not path.exists():
            path = log_file(worker.context.log_folder, container, run - 1)
        if not path.exists():
            which = "previous terminated " if query.get("previous") == "true" else ""
            return web.Response(status=400, text=f'{which}container "{container}" in pod "{name}" not found')
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)

        def going() -> bool:
            return view.restarts == run and isinstance(view.state, Running)

        tail, limit = _number(query.get("tailLines")), _number(query.get("limitBytes"))
        follow = going if query.get("follow") == "true" else None
        async for block in read_log(path, tail=tail, limit=limit, follow=follow):
            await response.write(block)
        await response.write_eof()
        return response


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


async def _healthy(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _refuse(request: web.Request) -> web.Response:
    what = request.path.split("/")[1]
    return web.Response(status=501, text=_REFUSED.format(what=what))
