r"""Finding the final answer in a solution text.

An extractor takes a whole text and gives the answer or None. `EXTRACTORS` names them; a grader tries some of them in
order and takes the first answer found. The default order goes from what a writer says most plainly to a guess:
`boxed`, `hashes`, `answer_is`, `last_number`. `final_equation` is for short formal solutions and must be asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from prmkit.errors import ConfigError

__all__ = [
    "DEFAULT_EXTRACTORS",
    "EXTRACTORS",
    "Extractor",
    "extract_answer",
    "extract_answer_is",
    "extract_boxed",
    "extract_final_equation",
    "extract_hashes",
    "extract_last_number",
    "get_extractors",
]

Extractor = Callable[[str], str | None]

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(\{|\S)")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_ANSWER_IS = re.compile(r"\b(?:final\s+)?answer\s*(?:is|:)\s*:?\s*([^\n]+)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|\Z)|\s*(?:I hope|Therefore|So )\b")
_FINAL_EQUATION = re.compile(r"(?:\A|\n)[ \t]*=[ \t]*(\S[^\n]*?)\s*\Z")
_NUMBER = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?|(?<![\w.])-?\$?\.\d+")


def extract_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` (or `\fbox{...}`) whose braces balance; `\boxed 5` gives 5."""
    for match in reversed(list(_BOXED.finditer(text))):
        if match[1] != "{":
            return match[1]
        content = _balanced(text, match.end())
        if content is not None:
            return content.strip() or None
    return None


def _balanced(text: str, start: int) -> str | None:
    """Text from `start`, just behind an opening brace, up to the brace that closes it."""
    depth, index = 1, start
    while index < len(text):
        character = text[index]
        if character == "\\":
            index += 1  # an escaped brace is text
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:index]
        index += 1
    return None


def extract_hashes(text: str) -> str | None:
    """What stands behind the last `####` on its line, as in GSM8K; thousands separators of a number dropped."""
    found = _HASHES.findall(text)
    answer = found[-1].strip() if found else ""
    if re.fullmatch(r"-?\$?\d{1,3}(?:,\d{3})+(?:\.\d+)?", answer):
        answer = answer.replace(",", "")
    return answer or None


def extract_answer_is(text: str) -> str | None:
    """What follows the last "the answer is" (or "answer:"), to the end of the sentence or line."""
    found = _ANSWER_IS.findall(text)
    if not found:
        return None
    answer = _SENTENCE_END.split(found[-1])[0].strip().strip("*").strip()
    return answer.rstrip(".") or None


def extract_last_number(text: str) -> str | None:
    """The last number, with its sign, decimals, thousands separators dropped, or as a fraction a/b."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    return str(found[-1]).replace(",", "").replace("$", "")


def extract_final_equation(text: str) -> str | None:
    """What stands behind the `=` that begins the last line, as in "= -50"; None when the last line is another."""
    found = _FINAL_EQUATION.search(text)
    return found[1] if found else None


EXTRACTORS: dict[str, Extractor] = {
    "boxed": extract_boxed,
    "hashes": extract_hashes,
    "answer_is": extract_answer_is,
    "last_number": extract_last_number,
    "final_equation": extract_final_equation,
}
DEFAULT_EXTRACTORS = ("boxed", "hashes", "answer_is", "last_number")


def get_extractors(names: Sequence[str]) -> tuple[Extractor, ...]:
    """Extractors by name. Raises ConfigError for an unknown name and for none at all."""
    if not names:
        raise ConfigError("grader.extractors", (), f"at least one of {', '.join(EXTRACTORS)}")
    for name in names:
        if name not in EXTRACTORS:
            raise ConfigError("grader.extractors", name, " | ".join(EXTRACTORS))
    return tuple(EXTRACTORS[name] for name in names)


def extract_answer(text: str, extractors: Sequence[str] = DEFAULT_EXTRACTORS) -> str | None:
    """The first answer that the named extractors find, tried in order; None when none finds one."""
    for extractor in get_extractors(extractors):
        answer = extractor(text)
        if answer is not None:
            return answer
    return None
