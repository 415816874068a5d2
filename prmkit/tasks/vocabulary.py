"""Tokenizers of the built-in tasks, made in code: no file, no download, the same ids every time.

`tokenizers` and `transformers` are imported on first use, so that listing tasks stays cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["SPECIAL_TOKENS", "character_tokenizer", "word_tokenizer"]

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


def character_tokenizer(characters: str) -> Any:
    """A fast tokenizer with one token a character, after the four special tokens (ids 0 to 3).

    Decoding gives the text back exactly. A character outside the vocabulary becomes `<unk>`.
    """
    return word_tokenizer(list(characters))


def word_tokenizer(words: Sequence[str]) -> Any:
    """A fast tokenizer over a fixed list of words, after the four special tokens (ids 0 to 3).

    Text is cut from left to right into the longest words that match; decoding joins them without spaces, so it gives
    the text back exactly. A character that starts no word becomes `<unk>`.
    """
    import re

    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate((*SPECIAL_TOKENS, *words))}
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    pattern = "|".join(re.escape(word) for word in longest_first) + r"|[\s\S]"
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
