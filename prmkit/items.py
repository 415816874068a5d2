"""Identity of what an output is made from: a hash of every problem or solution that was read, in order.

Names and paths do not tell whether a file was edited since. An output that is resumed must be made from the same items;
one that is made from more of them, the old ones first, is extended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prmkit.errors import ConfigError, DataError
from prmkit.types import Problem

__all__ = ["Items", "content_key", "problem_items"]

_REMEDY = "Give another output path, or begin anew with --overwrite true."


def content_key(value: Any) -> str:
    """A hash of a JSON value."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Items:
    """What the chunks of an output are made from.

    Attributes:
        keys: a content hash of each item, in order.
        chunk: items a chunk; the last one may hold fewer.
        what: the items in one word, for messages.
    """

    keys: tuple[str, ...]
    chunk: int
    what: str = "problems"

    @property
    def chunks(self) -> int:
        """How many chunks they make."""
        return -(-len(self.keys) // self.chunk)

    def to_json(self) -> dict[str, Any]:
        """What an output keeps of them."""
        return {"count": len(self.keys), "content": self._content(len(self.keys))}

    def _content(self, count: int) -> str:
        return content_key(self.keys[:count])

    def kept_chunks(self, held: Mapping[str, Any] | None, path: Path, remedy: str = _REMEDY) -> int:
        """Chunks of an output that stay as they are.

        Args:
            held: `to_json` of the items that it was made from; None of an output that does not say.
            path: the output, for errors.
            remedy: what to do about other items.

        Raises:
            ConfigError: it was made from more items.
            DataError: it was made from items of other content.
        """
        count = -1 if held is None else int(held["count"])
        if count > len(self.keys):
            raise ConfigError(
                f"number of {self.what}", len(self.keys), f"at least {count}, from which {path} was made",
                f"A larger --limit extends it, a smaller one does not. {remedy}",
            )  # fmt: skip
        if held is None or held["content"] != self._content(count):
            raise DataError(
                f"{path}: was made from other {self.what}: the content of the data that it was made from has changed "
                f"since, under the same name. {remedy}"
            )
        return self.chunks if count == len(self.keys) else count // self.chunk


def problem_items(problems: Iterable[Problem], chunk: int, more: Mapping[str, Any] | None = None) -> Items:
    """Items of problems.

    Args:
        problems: in order.
        chunk: problems a chunk.
        more: what belongs to each problem besides, as JSON values by problem id.
    """
    keys = (content_key([asdict(problem), (more or {}).get(problem.id)]) for problem in problems)
    return Items(tuple(keys), chunk)
