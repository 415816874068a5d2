"""Stop strings, found with little Python: tokens that cannot complete one are ruled out by a table beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from prmkit.formats.bound import BoundStepFormat

__all__ = ["StopTable", "find_stop"]


def find_stop(text: str, stops: Sequence[str]) -> str | None:
    """The stop string that is completed first in a text, None when there is none; among ties the first named."""
    found = [(text.find(stop) + len(stop), number) for number, stop in enumerate(stops) if stop in text]
    return stops[min(found)[1]] if found else None


class StopTable:
    """For every token: may it end a sample? Ends of sequence do; a token may complete a stop string, judged by its text
    alone; a partial character always may.

    Args:
        bound_format: holds the tokenizer.
        vocab_size: rows of the model's embedding; ids that the tokenizer does not know have no text.
    """

    def __init__(self, bound_format: BoundStepFormat, vocab_size: int) -> None:
        self._format = bound_format
        self._vocab_size = vocab_size
        self._texts: list[str] | None = None
        self._flags: dict[tuple[str, ...], list[bool]] = {}

    def flags(self, stops: tuple[str, ...]) -> list[bool]:
        """[V] flags for a set of stop strings. Ends of sequence are flagged whatever the stop strings."""
        known = self._flags.get(stops)
        if known is None:
            endings = {stop[-1] for stop in stops if stop} | {"\ufffd"}
            known = [any(ending in text for ending in endings) for text in self._token_texts()]
            if not stops:
                known = [False] * self._vocab_size
            for token in self._format.end_ids:
                if token < self._vocab_size:
                    known[token] = True
            self._flags[stops] = known
        return known

    def _token_texts(self) -> list[str]:
        if self._texts is None:
            tokenizer = self._format.tokenizer
            known = min(len(tokenizer), self._vocab_size)
            texts = [tokenizer.decode([token], skip_special_tokens=False) for token in range(known)]
            self._texts = texts + [""] * (self._vocab_size - known)
        return self._texts
