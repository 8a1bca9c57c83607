"""Pictures on their way in: the real decoding process, and the route around a scripted engine."""

from __future__ import annotations

import base64
import json
import struct
import sys
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.pictures.decoder import PictureDecoder
from llmos_operator.runtime.pictures.rules import PictureRules
from tests.support.engine import MODEL, RuntimeBench, ScriptedEngine, running_runtime
from tests.support.pictures import LABELS, MODELS, encoded, picture, write_processor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

RULES = PictureRules(16, 16)
SIZE = 32


async def decoded(data: bytes, rules: PictureRules = RULES) -> bytes:
    return await PictureDecoder(timeout=90).decode(data, rules, "input")


async def refused(data: bytes, rules: PictureRules = RULES) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await decoded(data, rules)
    assert (caught.value.status, caught.value.param) == (400, "input")
    return caught.value


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
async def test_formats_are_read(kind: str) -> None:
    plain = await decoded(encoded(picture(40, 30)))
    found = await decoded(encoded(picture(40, 30), kind))
    assert len(found) == 16 * 16 * 3
    assert sum(abs(a - b) for a, b in zip(plain, found, strict=True)) / len(found) < 12


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
async def test_other_colours_become_red_green_and_blue(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = picture(20, 20).convert("L" if mode == "I;16" else mode)
    data = encoded(image.convert(mode) if mode != "I;16" else image.convert("I;16"), kind)
    if kind == "TIFF":
        assert "no picture in a format" in (await refused(data)).message
    else:
        assert len(await decoded(data)) == 16 * 16 * 3


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "it is empty"),
        (b"no picture", "no picture in a format"),
        (bomb(100_000, 100_000), "100000 x 100000 pixels; 50000000 are taken"),
        (bomb(5_000, 5_000), "cannot be decoded"),
        (encoded(picture(40, 30))[:200], "cannot be decoded"),
    ],
)
async def test_files_that_cannot_be_used_are_refused(data: bytes, told: str) -> None:
    error = await refused(data)
    assert error.code == "invalid_image"
    assert told in error.message


async def test_a_picture_that_would_grow_beyond_bounds_is_refused() -> None:
    rules = PictureRules(224, 224, short_side=256)
    assert (
        "too long for its width"
        in (await refused(encoded(picture(1, 4000)), PictureRules(224, 224, 4000))).message
    )
    assert len(await decoded(encoded(picture(3, 300)), rules)) == 224 * 224 * 3


async def test_a_decoder_that_dies_or_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ApiError, match="within 0 s"):
        await PictureDecoder(timeout=0.0).decode(encoded(picture(4, 4)), RULES, "input")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "decoding it failed" in (await refused(encoded(picture(4, 4)))).message


@asynccontextmanager
async def _seeing(folder: Path) -> AsyncIterator[RuntimeBench]:
    model = folder / "seeing"
    write_processor(model, "vit", MODELS["vit"][1], SIZE)
    (model / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": SIZE}))
    info = {"generative": False, "embedding_size": 3, "labels": LABELS, "apis": ("classify",)}
    info |= {"picture_bytes": SIZE * SIZE * 3, "vocab_size": 1, "max_model_len": 1}
    async with running_runtime(folder, engine=ScriptedEngine(model_dir=str(model), info=info)) as bench:
        yield bench


async def test_pictures_come_as_base64_data_urls_and_files(tmp_path: Path) -> None:
    data = encoded(picture(SIZE, SIZE))
    text = base64.b64encode(data).decode()
    async with _seeing(tmp_path) as bench:
        for given in (text, f"data:image/png;base64,{text}", [text, text]):
            status, found, _ = await bench.post("/classify", {"model": MODEL, "input": given})
            assert status == 200, found
            count = len(given) if isinstance(given, list) else 1
            assert [one["label"] for one in found["data"]] == ["tree"] * count
        form = aiohttp.FormData()
        form.add_field("model", MODEL)
        form.add_field("file", data, filename="a.png", content_type="image/png")
        async with bench.http.post(bench.url + "/classify", data=form) as answer:
            assert (answer.status, len((await answer.json())["data"])) == (200, 1)
        pixels = picture(SIZE, SIZE).tobytes()
        assert [one.pictures for one in bench.engine.embeds] == [(pixels,)] * 2 + [(pixels,) * 2, (pixels,)]


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        ("https://example.com/cat.png", 400, "input"),
        ("data:image/png,abc", 400, "input"),
        ("%%%", 400, "input"),
        (["QUJD"], 400, "input[0]"),
        ([1, 2], 400, "input"),
        ([], 400, "input"),
        (["QUJD"] * 17, 413, "input"),
    ],
)
async def test_refusals_name_the_place(tmp_path: Path, given: Any, status: int, param: str) -> None:
    async with _seeing(tmp_path) as bench:
        found, body, _ = await bench.post("/classify", {"model": MODEL, "input": given})
        assert (found, body["error"]["param"]) == (status, param), body
        assert bench.engine.embeds == []


async def test_a_model_of_pictures_has_no_words_and_one_of_words_no_pictures(tmp_path: Path) -> None:
    async with _seeing(tmp_path) as bench:
        for path, fields in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [0]})):
            status, body, _ = await bench.post(path, {"model": MODEL, **fields})
            assert (status, "/classify" in body["error"]["message"]) == (400, True)
        status, body, _ = await bench.post("/v1/score", {"model": MODEL, "text_1": "a", "text_2": "b"})
        assert (status, "/classify" in body["error"]["message"]) == (400, True)
    info = {"generative": False, "embedding_size": 1, "labels": ("a",), "apis": ("classify", "score")}
    async with running_runtime(tmp_path, engine=ScriptedEngine(info=info)) as bench:
        form = aiohttp.FormData()
        form.add_field("model", MODEL)
        form.add_field("file", b"x", filename="a.png")
        async with bench.http.post(bench.url + "/classify", data=form) as answer:
            assert (answer.status, (await answer.json())["error"]["param"]) == (400, "file")
