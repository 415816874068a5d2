"""The moves of rStar as data: what the policy is asked behind a partial solution, and in which words.

Moves A1 and A2 go on with the policy's own continuation and work with every policy. A3 to A5 put a prompt of ours in
place of the question and need a policy that follows instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prmkit.errors import ConfigError

__all__ = ["PLAIN_ACTIONS", "RSTAR_ACTIONS", "Action", "ActionKind", "render"]

ActionKind = Literal["step", "rest", "subquestion", "answer_again", "rephrase"]
_KINDS = ("step", "rest", "subquestion", "answer_again", "rephrase")
_PLACEHOLDERS = {
    "step": (),
    "rest": (),
    "subquestion": ("{question}",),
    "answer_again": ("{question}", "{subquestion}"),
    "rephrase": ("{question}",),
}


@dataclass(frozen=True, slots=True)
class Action:
    """One kind of move.

    Attributes:
        name: shown in trees, e.g. "A1".
        kind: "step" writes the next step; "rest" writes all that is left; "subquestion" poses the next sub-question and
            answers it, in one line; "answer_again" answers the last sub-question anew, in place of the answer it has;
            "rephrase" puts the question in other words, before the first step only.
        samples: how often it is tried behind a node; at least 1.
        prompt: text put in place of the question, for the last three kinds. `{question}`, `{steps}` (those so far, a
            line each) and `{subquestion}` are filled in.
    """

    name: str
    kind: ActionKind
    samples: int = 1
    prompt: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError("action.kind", self.kind, " | ".join(_KINDS))
        if self.samples < 1:
            raise ConfigError("action.samples", self.samples, "an integer of at least 1")
        missing = [name for name in _PLACEHOLDERS[self.kind] if name not in self.prompt]
        if missing:
            raise ConfigError("action.prompt", self.prompt, f"text that contains {' and '.join(missing)}")


def render(prompt: str, question: str, steps: tuple[str, ...], subquestion: str = "") -> str:
    """A prompt with its placeholders filled in; what is filled in is not searched for placeholders again."""
    filled = ""
    values = {"{question}": question, "{steps}": "\n".join(steps) or "(nothing yet)", "{subquestion}": subquestion}
    while prompt:
        found = [(prompt.find(name), name) for name in values if name in prompt]
        if not found:
            break
        place, name = min(found)
        filled += prompt[:place] + values[name]
        prompt = prompt[place + len(name) :]
    return filled + prompt


PLAIN_ACTIONS = (Action("A1", "step", samples=3), Action("A2", "rest"))

RSTAR_ACTIONS = (
    *PLAIN_ACTIONS,
    Action(
        "A3",
        "subquestion",
        samples=3,
        prompt=(
            "Problem: {question}\n\nWorked out so far:\n{steps}\n\n"
            "Which smaller question should be settled next? Write it, ending with a question mark, and give its answer "
            "behind it. Use a single line and do nothing beyond this one sub-question."
        ),
    ),
    Action(
        "A4",
        "answer_again",
        prompt=(
            "Problem: {question}\n\nWorked out so far:\n{steps}\n\nSub-question: {subquestion}\n\n"
            "Work out the answer to the sub-question with care. Write the reasoning and the answer in a single line."
        ),
    ),
    Action(
        "A5",
        "rephrase",
        prompt=(
            "Problem: {question}\n\nState this problem anew in a single line: list every condition it gives, then what "
            "is to be found. Add nothing that is not in it and do not solve it."
        ),
    ),
)
