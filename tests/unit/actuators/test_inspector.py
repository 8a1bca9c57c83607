from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from llmos_operator.actuators.inspector import Inspector
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.local.hub.server import HubServer
from llmos_operator.local.hub.store import Store
from llmos_operator.settings import SourceSettings
from tests.support.tinymodels import safetensors, write_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def inspecting(hub: str, **settings: Any) -> AsyncIterator[Inspector]:
    inspector = Inspector(SourceSettings(hub_endpoint=hub, **settings))
    try:
        yield inspector
    finally:
        await inspector.close()


async def refused(inspector: Inspector, uri: str) -> Permanent:
    with pytest.raises(Permanent) as caught:
        await inspector.inspect(uri, "main")
    return caught.value


async def test_sizes_are_read_from_headers_alone(tmp_path: Path) -> None:
    uri = write_model(tmp_path, "acme/tiny")
    async with serving(HubServer(Store(tmp_path)).app()) as hub, inspecting(hub) as inspector:
        found = await inspector.inspect(uri, "main")
    assert found.shape.layers == 2
    assert found.shape.embedding_parameters == 256 * 64
    assert found.shape.linear_parameters == 2 * (128 * 64 + 64 * 64)
    assert found.source_format == "bf16"
    assert found.source_bytes == (tmp_path / "acme/tiny/model.safetensors").stat().st_size
    assert len(found.resolved_revision) >= 7


async def test_a_model_in_several_files_is_added_up(tmp_path: Path) -> None:
    uri = write_model(tmp_path, "acme/tiny")
    folder = tmp_path / "acme/tiny"
    (folder / "model.safetensors").unlink()
    (folder / "a.safetensors").write_bytes(safetensors({"model.layers.0.mlp.up_proj.weight": (128, 64)}))
    (folder / "b.safetensors").write_bytes(safetensors({"model.layers.1.mlp.up_proj.weight": (128, 64)}))
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}'
    )
    async with serving(HubServer(Store(tmp_path)).app()) as hub, inspecting(hub) as inspector:
        assert (await inspector.inspect(uri, "main")).shape.linear_parameters == 2 * 128 * 64


async def test_a_model_or_revision_that_does_not_exist_is_named(tmp_path: Path) -> None:
    uri = write_model(tmp_path, "acme/tiny")
    async with serving(HubServer(Store(tmp_path)).app()) as hub, inspecting(hub) as inspector:
        assert (await refused(inspector, "hf://acme/none")).reason == "ModelNotFound"
        with pytest.raises(Permanent, match="v9"):
            await inspector.inspect(uri, "v9")


async def test_a_hub_that_is_away_is_no_verdict_on_the_model() -> None:
    async with inspecting("http://127.0.0.1:9") as inspector:
        with pytest.raises(Retryable):
            await inspector.inspect("hf://acme/tiny", "main")


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_hub_in_trouble_is_no_verdict_on_the_model(status: int) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with serving(app) as hub, inspecting(hub) as inspector:
        with pytest.raises(Retryable):
            await inspector.inspect("hf://acme/tiny", "main")


async def test_a_private_model_tells_how_to_run_it_nevertheless() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=401)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with serving(app) as hub, inspecting(hub) as inspector:
        error = await refused(inspector, "hf://acme/secret")
    assert error.reason == "AccessDenied"
    assert "resources.memory" in str(error)


@pytest.mark.parametrize("uri", ["ftp://h/m", "nfs://h/m"])
async def test_schemes_nobody_reads_are_refused(uri: str) -> None:
    async with inspecting("http://127.0.0.1:9") as inspector:
        assert (await refused(inspector, uri)).reason == "UnsupportedScheme"


@pytest.mark.parametrize("uri", ["s3://b/m", "gs://b/m", "oci://r/m", "pvc://c/m"])
async def test_places_that_cannot_be_looked_into_tell_how_to_run_a_model_nevertheless(uri: str) -> None:
    async with inspecting("http://127.0.0.1:9") as inspector:
        error = await refused(inspector, uri)
    assert error.reason == "AccessDenied"
    assert "spec.resources.memory" in str(error)


async def test_files_are_read_only_where_an_administrator_allows_it(tmp_path: Path) -> None:
    write_model(tmp_path, "acme/tiny")
    uri = f"file://{tmp_path}/acme/tiny"
    async with inspecting("http://127.0.0.1:9") as inspector:
        assert (await refused(inspector, uri)).reason == "SourceNotAllowed"
    async with inspecting("http://127.0.0.1:9", allow_file=True) as inspector:
        assert (await inspector.inspect(uri, "main")).shape.layers == 2


# What a tenant could try in order to make the operator read places only it can reach.
INSIDE = [
    "https://169.254.169.254/latest/meta-data",
    "https://kubernetes.default.svc/api",
    "https://localhost/x",
    "https://allowed.example.evil.example/x",
    "https://allowed.example@evil.example/x",
    "https://allowed.example:6443/x",
]


@pytest.mark.parametrize("uri", INSIDE)
async def test_places_that_are_not_on_the_list_are_never_asked(uri: str) -> None:
    async with inspecting("http://127.0.0.1:9", allowed_hosts=("allowed.example",)) as inspector:
        assert (await refused(inspector, uri)).reason == "SourceNotAllowed"


async def test_a_hub_cannot_redirect_the_operator_to_another_place() -> None:
    asked: list[str] = []

    async def secret(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"sha": "x", "siblings": []})

    inside = web.Application()
    inside.router.add_get("/{path:.*}", secret)

    async with serving(inside) as target:

        async def redirect(request: web.Request) -> web.Response:
            raise web.HTTPFound(f"{target}/admin{request.path}")

        hub_app = web.Application()
        hub_app.router.add_get("/{path:.*}", redirect)
        async with serving(hub_app) as hub, inspecting(hub) as inspector:
            assert (await refused(inspector, "hf://acme/tiny")).reason == "SourceNotAllowed"
    assert asked == []


async def test_redirects_that_go_in_a_circle_are_left() -> None:
    async def circle(request: web.Request) -> web.Response:
        raise web.HTTPFound(request.path)

    app = web.Application()
    app.router.add_get("/{path:.*}", circle)
    async with serving(app) as hub, inspecting(hub) as inspector:
        assert (await refused(inspector, "hf://acme/tiny")).reason == "DownloadFailed"


async def test_an_endless_answer_is_cut_off() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(200):
            await response.write(b" " * (1 << 20))
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", endless)
    async with serving(app) as hub, inspecting(hub) as inspector:
        assert (await refused(inspector, "hf://acme/tiny")).reason == "Corrupted"
