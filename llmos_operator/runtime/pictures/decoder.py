"""The front's side of decoding pictures: a process for each file, a few at a time."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from llmos_operator.runtime.answers import ApiError, bad_request
from llmos_operator.runtime.confined import confined

if TYPE_CHECKING:
    from llmos_operator.runtime.pictures.rules import PictureRules

PROCESSES = 2
SECONDS = 60.0  # a file may take to decode
_MODULE = "llmos_operator.runtime.pictures.decoding"
CODE = "invalid_image"


class PictureDecoder:
    """Decodes pictures to the size a model wants."""

    def __init__(self, *, timeout: float = SECONDS) -> None:
        self._timeout = timeout
        self._turns = asyncio.Semaphore(PROCESSES)

    async def decode(self, data: bytes, rules: PictureRules, param: str) -> bytes:
        """Return the pixels of a file: red, green and blue at the rules' size. Raises ApiError (400) naming ``param``."""
        if not data:
            raise bad_request(CODE, f"Invalid '{param}': it is empty.", param)
        async with self._turns:
            return await self._decode(data, rules, param)

    async def _decode(self, data: bytes, rules: PictureRules, param: str) -> bytes:
        arguments = [str(one) for one in (rules.height, rules.width, rules.short_side, rules.resampling)]
        try:
            async with confined(_MODULE, arguments, data) as output, asyncio.timeout(self._timeout):
                told = json.loads(await output.readline())
                if "error" in told:
                    raise bad_request(CODE, f"Invalid '{param}': {str(told['error'])[:500]}.", param)
                return await output.readexactly(rules.pixel_bytes)
        except ApiError:
            raise
        except TimeoutError:
            text = f"Invalid '{param}': it could not be decoded within {self._timeout:.0f} s."
            raise bad_request(CODE, text, param) from None
        except (asyncio.IncompleteReadError, ValueError, TypeError):
            raise bad_request(CODE, f"Invalid '{param}': decoding it failed.", param) from None
