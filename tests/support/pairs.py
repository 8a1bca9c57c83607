"""Tokenizers that read two texts as one, as BERT's and RoBERTa's do, over a handful of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models, pre_tokenizers, processors

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("paris", "is", "the", "capital", "of", "france", "rain", "falls", "on", "rome", "what", "?")
BEGIN, END, UNKNOWN = 2, 3, 4


def tokenizer(style: str) -> Tokenizer:
    """Return a tokenizer of words; ``style`` is bert or roberta."""
    vocabulary = {"[PAD]": 0, "[MASK]": 1, "[CLS]": BEGIN, "[SEP]": END, "[UNK]": UNKNOWN}
    vocabulary |= {word: 5 + at for at, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if style == "bert":
        made.post_processor = processors.BertProcessing(("[SEP]", END), ("[CLS]", BEGIN))
    else:
        made.post_processor = processors.RobertaProcessing(
            ("[SEP]", END), ("[CLS]", BEGIN), trim_offsets=False, add_prefix_space=False
        )
    return made


def write_tokenizer(folder: Path, style: str) -> None:
    """Write such a tokenizer into a model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(style).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
