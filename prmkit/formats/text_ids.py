"""From text to token ids, where text of other people's making never becomes a control token.

A tokenizer turns the text of its special tokens into their ids wherever it stands: in a question or a step, too. A
policy that writes `<|im_end|>` or a PRM's tag could so end a turn, or be scored at places of its own. Here a text is a
row of parts, trusted (a template's) and untrusted (questions, steps) in turn: control tokens come from trusted parts
only, and in untrusted ones their text becomes ordinary tokens. Texts without such tokens, nearly all of them, get the
ids that the tokenizer gives to the whole.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

__all__ = ["Parts", "TextEncoder", "added_tokens", "strip_parts"]

Parts = tuple[str, ...]  # trusted, untrusted, trusted, ...: the texts at odd places are untrusted

_TEXTS_KEPT = 65536
_NEUTRAL = "a"


def added_tokens(tokenizer: Any) -> dict[int, Any]:
    """Tokens that a tokenizer matches as a whole, by id, without those that are white space only.

    Those runs of spaces and line ends are parts of ordinary text in some vocabularies (Gemma's).
    """
    known = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return {int(token_id): token for token_id, token in known.items() if str(token).strip()}


def strip_parts(parts: Parts, left: str | None, right: str | None) -> Parts:
    """Parts without what `str.lstrip(left)` and `str.rstrip(right)` remove from their joined text."""
    kept = list(parts)
    for place in range(len(kept)):
        kept[place] = kept[place].lstrip(left)
        if kept[place]:
            break
    for place in reversed(range(len(kept))):
        kept[place] = kept[place].rstrip(right)
        if kept[place]:
            break
    return tuple(kept)


class TextEncoder:
    """Ids of texts in parts, remembered: samples of a problem share most steps, and all of them the question.

    Args:
        tokenizer: a Hugging Face tokenizer.
        controls: ids that untrusted text must not give.
    """

    def __init__(self, tokenizer: Any, controls: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._controls = frozenset(controls)
        known = added_tokens(tokenizer)
        texts = sorted((str(known[token]) for token in self._controls if token in known), key=len, reverse=True)
        self._control_texts = re.compile(f"(?={'|'.join(map(re.escape, texts))})") if texts else None
        self._anchor = self._find_anchor()
        self._known: dict[tuple[bool, Parts], tuple[int, ...]] = {}
        self._wanted: dict[Parts, tuple[int, ...]] = {}

    def encode(self, parts: Parts, *, first: bool = False) -> list[int]:
        """Ids of the joined parts, without special tokens around them.

        Args:
            parts: texts, trusted and untrusted in turn.
            first: the text begins a sequence: the tokenizer may put its usual space before it.
        """
        key = (first, parts)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _TEXTS_KEPT:
                self._known.clear()
            known = self._known[key] = self._encode(parts, first)
        return list(known)

    def _encode(self, parts: Parts, first: bool) -> tuple[int, ...]:
        text = "".join(parts)
        if not text:
            return ()
        ids = self._ids(text, first)
        if self._honest(parts, ids):
            return ids
        ids = self._in_pieces(text, self._cuts(parts), first)
        return ids if self.controls_in(ids) == self._expected(parts) else self._by_character(parts, first)

    # -- which control tokens there may be ----------------------------------------------------------------------------

    def _honest(self, parts: Parts, ids: Sequence[int]) -> bool:
        """True if the control tokens in the ids are those of the trusted parts."""
        untrusted = parts[1::2]
        if not any(untrusted):
            return True
        seen = self.controls_in(ids)
        if seen != self._expected(parts):
            return False
        return not seen or self._control_texts is None or not any(map(self._control_texts.search, untrusted))

    def controls_in(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The control tokens among ids, in order."""
        return tuple(token for token in ids if token in self._controls)

    def _expected(self, parts: Parts) -> tuple[int, ...]:
        trusted = parts[::2]
        wanted = self._wanted.get(trusted)
        if wanted is None:
            if len(self._wanted) >= _TEXTS_KEPT:
                self._wanted.clear()
            wanted = self._wanted[trusted] = self.controls_in(self._plain(_NEUTRAL.join(trusted)))
        return wanted

    # -- untrusted text that holds the text of control tokens ----------------------------------------------------------

    def _cuts(self, parts: Parts) -> list[int]:
        """Places in the joined text, one behind the first character of every control text in an untrusted part."""
        cuts, start = [], 0
        for number, part in enumerate(parts):
            if number % 2 and self._control_texts is not None:
                cuts += [start + match.start() + 1 for match in self._control_texts.finditer(part)]
            start += len(part)
        return cuts

    def _in_pieces(self, text: str, cuts: Sequence[int], first: bool) -> tuple[int, ...]:
        ids: list[int] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            ids += self._ids(text[start:end], first and start == 0)
        return tuple(ids)

    def _by_character(self, parts: Parts, first: bool) -> tuple[int, ...]:
        """For tokens that match more than their own text, and those of one character, which are then left out."""
        ids: list[int] = []
        for number, part in enumerate(parts):
            if number % 2 == 0:
                ids += self._ids(part, first and not ids) if part else ()
                continue
            for character in part:
                ids += [token for token in self._ids(character, first and not ids) if token not in self._controls]
        return tuple(ids)

    # -- the tokenizer ------------------------------------------------------------------------------------------------

    def _ids(self, text: str, first: bool) -> tuple[int, ...]:
        if first:
            return self._plain(text)
        anchor_text, anchor_ids = self._anchor
        ids = self._plain(anchor_text + text)
        if anchor_ids and ids[: len(anchor_ids)] == anchor_ids:
            return ids[len(anchor_ids) :]
        return self._plain(text)

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _find_anchor(self) -> tuple[str, tuple[int, ...]]:
        """SentencePiece-like tokenizers put a space before the first word of a text. Such a text is tokenised behind
        an anchor, whose ids are cut off again. Byte-level tokenizers need none."""
        plain, behind = self._plain("a"), self._plain("\na")
        if behind[-len(plain) :] == plain:
            return "", ()
        return "\n", self._plain("\n")
