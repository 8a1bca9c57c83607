"""The process that decodes one picture: whatever a stranger's file does to a decoder, it does it here.

Reads the file from standard input; writes one line of JSON, `{}` or `{"error"}`, then the pixels at the model's size: rows
of red, green and blue, 8 bits each. It has no secrets, opens no files, and limits its own memory and time.

    python -m llmos_operator.runtime.pictures.decoding HEIGHT WIDTH SHORT_SIDE RESAMPLING
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import warnings
from typing import TYPE_CHECKING

from llmos_operator.runtime.confined import confine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000
MEMORY_BYTES = 2 << 30  # of address space; 50 million pixels take 200 MB, twice while their colours change
CPU_SECONDS = 30
_TAKEN = "send png, jpeg, webp, gif or bmp"


class Undecodable(Exception):  # noqa: N818 - reads as what it is
    """The file cannot be used."""


def main(argv: Sequence[str]) -> int:
    """Decode standard input; a file that cannot be used is an answer, not a failure."""
    height, width, short_side, resampling = map(int, argv)
    confine(memory_bytes=MEMORY_BYTES, cpu_seconds=CPU_SECONDS)
    out = sys.stdout.buffer
    try:
        picture = decode(sys.stdin.buffer.read())
        pixels = sized(picture, height, width, short_side, resampling).tobytes()
    except Undecodable as error:
        out.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return 0
    out.write(b"{}\n" + pixels)
    out.flush()
    return 0


def decode(data: bytes) -> Image:
    """Return a file's picture, of an animation the first one, turned as it says and in colours. Raises Undecodable."""
    from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415 - loaded under the limits

    Image.MAX_IMAGE_PIXELS = None  # counted here, before anything is decoded
    warnings.simplefilter("ignore")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check(picture)
            return ImageOps.exif_transpose(picture).convert("RGB")
    except UnidentifiedImageError:
        raise Undecodable(f"it is no picture in a format that is read here; {_TAKEN}") from None
    except MemoryError:
        raise Undecodable("it needs more memory than a picture may") from None
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        SyntaxError,
        EOFError,
        struct.error,
    ) as error:
        raise Undecodable(f"it cannot be decoded ({type(error).__name__}); {_TAKEN}") from None


def _check(picture: Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise Undecodable(f"it has {width} x {height} pixels; {MAX_PIXELS} are taken")


def sized(picture: Image, height: int, width: int, short_side: int, resampling: int) -> Image:
    """Return a picture at the model's size, as transformers' processors make it."""
    if not short_side:
        return picture.resize((width, height), resample=resampling)
    short, long = sorted(picture.size)
    other = int(short_side * long / short)
    if short_side * other > MAX_PIXELS:
        raise Undecodable(f"its sides are {short} and {long} pixels, too long for its width")
    size = (short_side, other) if picture.width <= picture.height else (other, short_side)
    grown = picture.resize(size, resample=resampling)
    left, top = (grown.width - width) // 2, (grown.height - height) // 2
    return grown.crop((left, top, left + width, top + height))


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # nothing is left to do, and a broken library may hang at its end
