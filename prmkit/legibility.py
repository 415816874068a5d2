"""Signs that a model cannot read its task, or that its samples cannot be used: one line in the log each, with numbers.

A run in which nothing is right ends as well as any other. These signs tell a pair that was put on the wrong task, or
whose samples never end, from one that is weak.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prmkit.formats.bound import BoundStepFormat
    from prmkit.records import Problem

__all__ = ["MOST_UNKNOWN", "Signs", "prompt_signs", "warn_of"]

MOST_UNKNOWN = 0.01
_LOOKED_AT = 200  # problems; more would not change a share that matters

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Signs:
    """What was seen of a model.

    Attributes:
        tokens: of the prompts looked at; `unknown` of them stand for text that the tokenizer has no token for.
        samples: solutions sampled; `cut_off` of them did not end by themselves, `answered` have a final answer.
    """

    tokens: int = 0
    unknown: int = 0
    samples: int = 0
    cut_off: int = 0
    answered: int = 0


def prompt_signs(step_format: BoundStepFormat, problems: Sequence[Problem], *, prm: bool = False) -> Signs:
    """Count unknown tokens in the prompts of some problems; of a PRM, in the questions.

    Tokenizers that write any text (byte-level ones) have no token for the unknown, or one that is never used.
    """
    tokenizer = step_format.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return Signs()
    tokens = found = 0
    for problem in islice(problems, _LOOKED_AT):
        text = problem.question
        ids = tokenizer.encode(text, add_special_tokens=False) if prm else step_format.prompt_ids(text)
        tokens += len(ids)
        found += sum(token == unknown for token in ids)
    return Signs(tokens, found)


def warn_of(model: str, signs: Signs) -> bool:
    """Log a warning for every sign of a model that cannot be right; returns whether there was one."""
    lines = []
    if signs.unknown > MOST_UNKNOWN * signs.tokens:
        lines.append(
            f"{signs.unknown / signs.tokens:.1%} of the tokens of its prompts ({signs.unknown:,} of {signs.tokens:,}) "
            f"are unknown to its tokenizer: it cannot read this task. Is it the model of another task?"
        )
    if signs.samples and signs.cut_off == signs.samples:
        lines.append(
            f"all {signs.samples:,} samples were cut off before they ended: raise max_tokens; or it never ends a "
            f"solution here, because of its training, its prompt or its end of sequence"
        )
    elif signs.samples and not signs.answered:
        lines.append(
            f"none of {signs.samples:,} samples has an answer that this task can read: does it write answers in "
            f"another form, or was it trained on another task?"
        )
    for line in lines:
        logger.warning("%s: %s", model, line)
    return bool(lines)
