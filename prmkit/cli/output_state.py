"""What is said about an output that is there already, before work on it begins."""

from __future__ import annotations

import sys

from prmkit.jobs.chunks import ChunkedOutput

__all__ = ["say_state"]


def say_state(output: ChunkedOutput, count: int, what: str = "problems", *, worked: bool = False) -> None:
    """Say in one line, on stderr, that an output is complete, or that it is extended.

    Args:
        output: opened.
        count: items that it will have been made from.
        what: the items.
        worked: this process has taken part in making it, so that it may be complete only now.
    """
    if output.complete and not worked:
        print(f"{output.path}: complete already, nothing to do", file=sys.stderr)
    elif output.extended_from is not None:
        print(f"{output.path}: extended from {output.extended_from} to {count} {what}", file=sys.stderr)
