"""Text to tokens and back, with the model's own `tokenizer.json` and the `tokenizers` library alone.

Encoding runs in a small thread pool: the library releases the interpreter lock, so a long prompt does not stop the
streams of others. Decoding a token or two costs less than a thread switch and is done in place.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from llmos_operator.errors import Permanent
from llmos_operator.runtime import pairing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.pairing import Pair

ENCODERS = 2
SMALL_CHARACTERS = 512  # shorter texts are encoded in place: a thread switch would cost more
LONG_CHARACTERS = 8  # for each token of the context: a longer text is suspect
PART_CHARACTERS = 32 << 10
CUT_TOKENS = 64
_PIECE_SPACE = "▁"


class Vocabulary:
    """The tokenizer of one model. All methods may be called from any thread."""

    def __init__(self, model_dir: str, *, wordless: bool = False) -> None:
        """Read `tokenizer.json` in ``model_dir``; a ``wordless`` model has none, and no tokens.

        Raises Permanent if it is not there or cannot be read.
        """
        path = Path(model_dir) / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer(WordLevel()) if wordless else Tokenizer.from_file(str(path))
        except Exception as error:
            raise Permanent(
                f"the model has no usable tokenizer.json: {error}", reason="Unsupported"
            ) from error
        # Both may be set in the file for training; serving decides lengths itself.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.settings = read_json(Path(model_dir) / "tokenizer_config.json")
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {number: str(token.content) for number, token in added.items()}
        self.special = frozenset(number for number, token in added.items() if token.special)
        self._style = _style(self._tokenizer.decoder)
        self._bytes: dict[int, bytes] = {}
        self._pool = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")

    @property
    def size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Return the tokens of ``text``; ``special`` adds those the model begins and ends texts with."""
        if len(text) <= SMALL_CHARACTERS:
            return self.encode_now(text, special=special)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: self.encode_now(text, special=special))

    async def encode_all(self, texts: Sequence[str], *, special: bool) -> list[tuple[int, ...]]:
        """Return the tokens of several texts."""
        if sum(map(len, texts)) <= SMALL_CHARACTERS:
            return [self.encode_now(text, special=special) for text in texts]
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._pool, lambda: self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
        )
        return [tuple(one.ids) for one in found]

    def added(self, *, pair: bool) -> int:
        """Return how many tokens of its own the tokenizer adds to a text, or to two that are read as one."""
        return pairing.added(self._tokenizer, pair=pair)

    async def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], most: int | None, most_second: int | None
    ) -> list[Pair]:
        """Return the tokens of pairs, as :func:`pairing.encode_pairs`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, pairing.encode_pairs, self._tokenizer, pairs, most, most_second
        )

    async def encode_cut(
        self, texts: Sequence[str], most: int | None, own: int | None
    ) -> list[tuple[int, ...]]:
        """Return the tokens of texts, as :func:`pairing.encode_cut`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, pairing.encode_cut, self._tokenizer, texts, most, own)

    async def exceeds(self, text: str, limit: int) -> bool:
        """Whether ``text`` surely has more than ``limit`` tokens; found out without encoding much more than that."""
        if len(text) <= limit * LONG_CHARACTERS:
            return False
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._exceeds, text, limit)

    def _exceeds(self, text: str, limit: int) -> bool:
        count = parts = 0
        for start in range(0, len(text), PART_CHARACTERS):
            encoded = self._tokenizer.encode(text[start : start + PART_CHARACTERS], add_special_tokens=False)
            count, parts = count + len(encoded.ids), parts + 1
            # A cut may have split a token into several: a margin for each.
            if count - parts * CUT_TOKENS > limit:
                return True
        return False

    def encode_now(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Return the tokens of ``text``, on the caller's thread."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of ``tokens``."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for inside a text, also when they are only a part of a character."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._find_bytes(token)
        return known

    def plain_bytes(self, token: int) -> bytes:
        """Return the bytes of a token, none for the special ones that only the model reads."""
        return b"" if token in self.special else self.token_bytes(token)

    def token_text(self, token: int) -> str:
        """Return how a token is shown in logprobs."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def _find_bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._style == "ByteLevel":
            return bytes(_BYTES[char] for char in piece if char in _BYTES)
        if self._style == "WordPiece":
            return str(piece[2:] if piece.startswith("##") else " " + piece).encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # noqa: PLR2004 - <0xNN>
            return bytes.fromhex(piece[3:5])
        return str(piece).replace(_PIECE_SPACE, " ").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of the model's directory; {} if the file is missing or no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _style(decoder: Any) -> str:
    """Return how pieces become bytes: `ByteLevel`, `WordPiece` or, with spaces written as U+2581, `Pieces`."""
    state = decoder.__getstate__().decode() if decoder is not None else ""
    return next((style for style in ("ByteLevel", "WordPiece") if f'"{style}"' in state), "Pieces")


def _byte_alphabet() -> dict[str, int]:
    """Return the characters that byte-level tokenizers write for bytes (the table of GPT-2's tokenizer).

    Printable bytes stand for themselves, the others for the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()
