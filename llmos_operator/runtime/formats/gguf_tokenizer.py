"""tokenizer.json and its companions from the vocabulary inside a GGUF file (byte-level BPE).

A GGUF names how text is split before merging (``tokenizer.ggml.pre``) but does not carry the pattern; the table below
holds the published splits of the tokenizers we serve, as llama.cpp's `llama-vocab.cpp` and the models' own
tokenizer.json files state them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CONTROL, _USER_DEFINED = 3, 4
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_DIGITS = "digits"  # each digit alone, then GPT-2's own split
_GPT2 = "gpt2"
_SPLITS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
}
_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


def write_tokenizer(metadata: Mapping[str, Any], out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into ``out``.

    Raises Permanent(reason=Unsupported) for a vocabulary that is not byte-level BPE or splits in an unknown way.
    """
    tokenizer = _build(metadata)
    tokenizer.save(str(out / "tokenizer.json"))
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    special = {f"{role}_token": tokens[metadata[key]] for role, key in special_ids(metadata).items()}
    config: dict[str, Any] = {
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
    }
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    _write_json(out / "tokenizer_config.json", config)
    _write_json(out / "special_tokens_map.json", special)


def special_ids(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata key of each special token the file names, by role (bos, eos, unk, pad)."""
    keys = {role: f"tokenizer.ggml.{name}" for role, name in _ROLES.items()}
    return {role: key for role, key in keys.items() if key in metadata}


def _build(metadata: Mapping[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors  # noqa: PLC0415 - loaded only here

    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise Permanent(
            f"GGUF vocabulary of type {kind!r} is not converted (byte-level BPE is); serve the model's safetensors",
            reason="Unsupported",
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, byte_fallback=False))
    tokenizer.pre_tokenizer = _splitter(str(metadata.get("tokenizer.ggml.pre", "default")))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, k in zip(tokens, kinds, strict=False)
            if k == _CONTROL
        ]
    )
    plain = [t for t, k in zip(tokens, kinds, strict=False) if k == _USER_DEFINED]
    if plain:
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer


def _splitter(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers  # noqa: PLC0415 - loaded only here

    split = _SPLITS.get(name)
    if split is None:
        raise Permanent(
            f"GGUF vocabulary splits text as {name!r}, which is not known here (known: {', '.join(sorted(_SPLITS))}); "
            "serve the model's safetensors",
            reason="Unsupported",
        )
    if split == _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    pattern = pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence(
        [pattern, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
