"""What a chat template puts around messages: rendered once with placeholders, used for every text.

Contents are put between the frame's texts afterwards, so that a template sees nothing that a user or a policy wrote.
Templates differ: some have no place for a system message, some strip contents, some take settings of their own. What
one refuses is a StepFormatError of one line.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from prmkit.errors import StepFormatError

__all__ = ["ChatFrame", "ChatTemplate"]

logger = logging.getLogger(__name__)

_PLACE = "\u2983text {}\u2984"
_LEFT, _RIGHT = "\n ", " \n"


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """A conversation without its contents.

    Attributes:
        texts: what stands before the first content, between contents, and after the last.
        strips: for every content, the arguments of `str.lstrip` and `str.rstrip` that do to it what the template does:
            None removes white space, "\\n" line ends, "" nothing.
    """

    texts: tuple[str, ...]
    strips: tuple[tuple[str | None, str | None], ...]


class ChatTemplate:
    """A tokenizer's chat template, for one step format.

    Args:
        tokenizer: a Hugging Face tokenizer.
        name: of the step format, for messages.
        settings: further variables of the template.

    Raises:
        StepFormatError: the tokenizer has no template.
    """

    def __init__(self, tokenizer: Any, name: str, settings: Mapping[str, Any] | None = None) -> None:
        if not tokenizer.chat_template:
            raise StepFormatError(f"step format {name!r} needs a chat template; the tokenizer has none")
        self._tokenizer = tokenizer
        self._name = name
        self._settings = dict(settings or {})

    def frame(self, system: str | None, roles: Sequence[str], *, add_generation_prompt: bool = False) -> ChatFrame:
        """The frame of a conversation.

        Args:
            system: text of the system message; None leaves the template's default. A template that refuses it, or
                leaves it out, gets it at the beginning of the first message, which is said once in the log.
            roles: "user" or "assistant", one a message; the first is the user's.
            add_generation_prompt: end with what opens the assistant's turn.

        Raises:
            StepFormatError: the template refuses the conversation, or changes contents in ways not understood.
        """
        folded = system is not None and not self._has_place(system, roles, add_generation_prompt)
        if folded:
            _say_folded(self._name)

        def rendered(before: str = "", after: str = "") -> tuple[str, ...]:
            places = [_PLACE.format(number) for number in range(len(roles))]
            messages = [] if system is None or folded else [_message("system", system)]
            for number, (role, place) in enumerate(zip(roles, places, strict=True)):
                opening = f"{system}\n\n" if folded and number == 0 else ""
                messages.append(_message(role, f"{opening}{before}{place}{after}"))
            return self._split(self._render(messages, add_generation_prompt), places)

        texts, left, right = rendered(), rendered(before=_LEFT), rendered(after=_RIGHT)
        strips = tuple(
            (
                self._stripped(left[place].removeprefix(texts[place]), _LEFT),
                self._stripped(right[place + 1].removesuffix(texts[place + 1]), _RIGHT),
            )
            for place in range(len(roles))
        )
        return ChatFrame(texts, strips)

    def _has_place(self, system: str, roles: Sequence[str], add_generation_prompt: bool) -> bool:
        messages = [_message(role, _PLACE.format(number)) for number, role in enumerate(roles)]
        try:
            text = self._render([_message("system", system), *messages], add_generation_prompt)
        except StepFormatError:
            self._render(messages, add_generation_prompt)  # raises where it is not the system message that is refused
            return False
        return system.strip() in text

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self._settings
                )
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            settings = f" with step_format.policy.chat_template_kwargs {self._settings}" if self._settings else ""
            raise StepFormatError(
                f"step format {self._name!r}: the tokenizer's chat template refuses the messages [{roles}]{settings}: "
                f"{' '.join(str(error).split()) or type(error).__name__}. Set step_format.policy.chat or "
                f"step_format.prm.chat to what the template can express, or give the tokenizer another template."
            ) from error

    def _split(self, text: str, places: Sequence[str]) -> tuple[str, ...]:
        texts: list[str] = []
        for place in places:
            before, found, text = text.partition(place)
            if not found or place in text:
                raise self._changes()
            texts.append(before)
        return (*texts, text)

    def _stripped(self, kept: str, pad: str) -> str | None:
        if kept not in ("", " ", pad):
            raise self._changes()
        return {"": None, " ": "\n", pad: ""}[kept]

    def _changes(self) -> StepFormatError:
        return StepFormatError(
            f"step format {self._name!r}: the chat template does not carry messages through unchanged. "
            f"Give the tokenizer a template that shows every message once, in order."
        )


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@lru_cache  # once a process and format
def _say_folded(name: str) -> None:
    logger.warning(
        "step format %r: the tokenizer's chat template has no place for a system message; "
        "its text opens the user's message instead",
        name,
    )
