"""Sound and speech models for tests: a tiny random Whisper with a tokenizer, and files that say nothing sensible."""

from __future__ import annotations

import importlib
import io
import json
import math
import struct
import wave
from array import array
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llmos_operator.runtime.speech.rules import RATE
from llmos_operator.runtime.vocabulary import _BYTES

if TYPE_CHECKING:
    from pathlib import Path

LANGUAGES = ("en", "de", "fr")
END = 256
START = 257
FIRST_LANGUAGE = 258
TRANSLATE, TRANSCRIBE, BEFORE, NO_SPEECH, NO_TIMES = 261, 262, 263, 264, 265
TIMES_FROM = 266
POSITIONS = 40  # a window of 0.8 s
VOCABULARY = TIMES_FROM + POSITIONS + 1
CONTEXT = 48
WINDOW_SAMPLES = 2 * POSITIONS * 160

GENERATION = {
    "eos_token_id": END,
    "bos_token_id": END,
    "pad_token_id": END,
    "decoder_start_token_id": START,
    "lang_to_id": {f"<|{code}|>": FIRST_LANGUAGE + index for index, code in enumerate(LANGUAGES)},
    "task_to_id": {"translate": TRANSLATE, "transcribe": TRANSCRIBE},
    "is_multilingual": True,
    "no_timestamps_token_id": NO_TIMES,
    "prev_sot_token_id": BEFORE,
    "suppress_tokens": [1, 2, START, FIRST_LANGUAGE, TRANSLATE, TRANSCRIBE, BEFORE, NO_SPEECH],
    "begin_suppress_tokens": [32, END],
    "max_initial_timestamp_index": 5,
    "max_length": CONTEXT,
}
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 48,
    "max_source_positions": POSITIONS,
    "max_target_positions": CONTEXT,
    "decoder_start_token_id": START,
    "eos_token_id": END,
    "bos_token_id": END,
    "pad_token_id": END,
}


def write_speech_tokenizer(folder: Path) -> Path:
    """Write a byte-level tokenizer with Whisper's special tokens; times are added tokens that are not special, as there."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(vocab=dict(_BYTES), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    special += ["<|translate|>", "<|transcribe|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in special])
    tokenizer.add_tokens(
        [AddedToken(f"<|{index * 0.02:.2f}|>", special=False) for index in range(POSITIONS + 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def write_whisper(folder: Path, seed: int = 0, **changes: Any) -> Any:
    """Write a random Whisper with its tokenizer; return transformers' own model of it."""
    import torch  # noqa: PLC0415 - most tests need none

    package = importlib.import_module("transformers.models.whisper.modeling_whisper")
    settings = importlib.import_module("transformers.models.whisper.configuration_whisper")
    generation = importlib.import_module("transformers.generation.configuration_utils")
    torch.manual_seed(seed)
    config = settings.WhisperConfig(**(CONFIG | changes))
    config._attn_implementation = "sdpa"
    model = package.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than a trained model's first weights: answers shall depend on what is heard.
            parameter.normal_(std=0.3) if parameter.dim() > 1 else None
    write_speech_tokenizer(folder)
    model.generation_config = generation.GenerationConfig(**GENERATION)
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    values = json.loads((folder / "config.json").read_text())
    values["architectures"] = ["WhisperForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(values))
    extractor = {
        "feature_size": CONFIG["num_mel_bins"],
        "hop_length": 160,
        "n_fft": 400,
        "sampling_rate": RATE,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return model


def samples(seconds: float, seed: int = 1) -> bytes:
    """Return 16 bit samples of a few wandering tones."""
    count = round(seconds * RATE)
    tones = [(180 + 97 * seed + 53 * k, 0.11 * k + seed) for k in range(1, 5)]
    values = (
        sum(
            math.sin(6.2832 * t / RATE * hertz * (1 + 0.2 * math.sin(t / 4000 + phase)))
            for hertz, phase in tones
        )
        for t in range(count)
    )
    return array("h", [round(5000 * value) for value in values]).tobytes()


def wav(data: bytes, *, rate: int = RATE, channels: int = 1) -> bytes:
    """Return a wav file of 16 bit samples."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(data)
    return out.getvalue()


def flac_that_claims(seconds: int) -> bytes:
    """Return the head of a flac file that says it holds so much sound, and no sound."""
    total = seconds * 44_100
    packed = (44_100 << 44) | (1 << 41) | (15 << 36) | total
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    return b"fLaC" + bytes([0x80]) + len(info).to_bytes(3, "big") + info + bytes(64)
