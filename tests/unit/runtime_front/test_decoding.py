"""Files of sound through the real decoding process: formats, rates, lies and bombs."""

from __future__ import annotations

import asyncio
import io
import struct
import sys
from array import array

import numpy as np
import pytest
import soundfile

from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.speech import decoder as module
from llmos_operator.runtime.speech.decoder import Decoder, Sound
from llmos_operator.runtime.speech.rules import RATE
from tests.support.speech import WINDOW_SAMPLES, flac_that_claims, samples, wav

pytestmark = pytest.mark.anyio

SECONDS = 20


async def decoded(data: bytes, decoder: Decoder | None = None) -> Sound:
    async with (decoder or Decoder(SECONDS, timeout=90)).decoded(data, WINDOW_SAMPLES) as sound:
        return sound


async def refused(data: bytes, decoder: Decoder | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await decoded(data, decoder)
    assert caught.value.param == "file"
    assert caught.value.status == 400
    return caught.value


def written(kind: str, subtype: str, rate: int, channels: int, seconds: float = 1.0) -> bytes:
    tone = np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate) * 0.5
    out = io.BytesIO()
    soundfile.write(out, np.repeat(tone[:, None], channels, 1), rate, format=kind, subtype=subtype)
    return out.getvalue()


async def test_samples_of_16_bits_come_through_unchanged_and_cut_in_windows() -> None:
    data = samples(2.0)
    sound = await decoded(wav(data))
    assert sound.data == data
    assert sound.seconds == 2.0
    assert b"".join(sound.window(index) for index in range(len(sound.windows))) == data


@pytest.mark.parametrize(
    ("kind", "subtype", "rate", "channels"),
    [
        ("WAV", "FLOAT", 44_100, 2),
        ("FLAC", "PCM_24", 48_000, 1),
        ("OGG", "VORBIS", 22_050, 2),
        ("OGG", "OPUS", 48_000, 1),
        ("MP3", "MPEG_LAYER_III", 44_100, 2),
        ("AIFF", "PCM_16", 8_000, 1),
    ],
)
async def test_formats_and_rates_give_the_same_sound(
    kind: str, subtype: str, rate: int, channels: int
) -> None:
    sound = await decoded(written(kind, subtype, rate, channels))
    found = np.array(array("h", sound.data), np.float64)
    assert abs(len(found) - RATE) < 0.1 * RATE
    middle = found[4000:12_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(spectrum.argmax() * RATE / len(middle) - 440) < 4
    assert 0.4 * 32_768 < np.abs(middle).max() < 0.6 * 32_768


async def test_numbers_that_are_none_become_silence() -> None:
    values = np.full(RATE, np.nan, np.float32)
    values[::2] = np.inf
    out = io.BytesIO()
    soundfile.write(out, values, RATE, format="WAV", subtype="FLOAT")
    assert (await decoded(out.getvalue())).seconds == 1.0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a sound",
        bytes(5000),
        wav(b""),
        wav(samples(0.1))[:30],
        b"\x1a\x45\xdf\xa3" + bytes(2000),
        b"PK\x03\x04" + bytes(2000),
    ],
    ids=["empty", "text", "zeros", "no sound", "cut header", "webm", "zip"],
)
async def test_what_is_no_sound_is_the_clients_fault(data: bytes) -> None:
    assert (await refused(data)).code == "invalid_audio"


async def test_a_small_file_that_claims_hours_is_refused() -> None:
    error = await refused(flac_that_claims(7200))
    assert error.code == "audio_too_long"
    assert "7200 s" in error.message


async def test_sound_beyond_the_limit_is_refused_whatever_the_header_says() -> None:
    bomb = written("FLAC", "PCM_16", 8_000, 1, seconds=SECONDS + 5)
    at = bomb.index(b"fLaC") + 8 + 10
    (packed,) = struct.unpack_from(">Q", bomb, at)
    lying = bytearray(bomb)
    struct.pack_into(">Q", lying, at, packed & ~((1 << 36) - 1))  # length: unknown
    assert (await refused(bytes(lying))).code == "audio_too_long"


async def test_rates_and_channels_have_bounds() -> None:
    assert "9 channels" in (await refused(wav(bytes(1800), channels=9))).message
    assert "1000 Hz" in (await refused(wav(bytes(1800), rate=1000))).message


async def test_a_decoder_that_hangs_or_dies_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "within 0 s" in (await refused(wav(samples(0.1)), Decoder(SECONDS, timeout=0.0))).message
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "decoding it failed" in (await refused(wav(samples(0.1)))).message


async def test_the_process_knows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s")
    seen = {}
    real = asyncio.create_subprocess_exec

    async def spy(*command: str, **options: object) -> object:
        seen.update(options)
        return await real(*command, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spy)
    await decoded(wav(samples(0.1)))
    assert "HF_TOKEN" not in seen["env"]


async def test_sound_that_is_held_is_bounded() -> None:
    decoder = Decoder(SECONDS, timeout=90)
    decoder.held_seconds = module.HELD_FILES * SECONDS - 1.0
    with pytest.raises(ApiError) as caught:
        await decoded(wav(samples(2.0)), decoder)
    assert (caught.value.status, caught.value.refused) == (429, "overloaded")
    decoder.held_seconds = 0.0
    await decoded(wav(samples(2.0)), decoder)
    assert decoder.held_seconds == 0.0
