r"""Finding the final answer in a solution text.

An extractor takes a whole text and gives the answer as it was written, without the words around it, or None.
`EXTRACTORS` names them; a grader tries some of them in order and takes the first answer found. The default order goes
from what a writer says most plainly to a guess: `boxed`, `hashes`, `answer_is`, `last_number`. `final_equation` is for
short formal solutions and must be asked for. docs/grading.md states what each takes.
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

_MAX_CHARS = 200_000
"""Of a longer text only the end is searched."""
_MINUS = str.maketrans(dict.fromkeys("−–﹣－", "-"))

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(\{|\S)")
_BRACE = re.compile(r"\\.|[{}]", re.S)  # an escaped brace is text
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.~`*]|\\[,;: ()]|\\q?quad|\\text\s*\{|\}|\b(?:and|or)(?:\s+also)?\b|[a-zA-Z](?:_\{?\w\}?)?\s*=|&)*"
)
_JOINING = re.compile(r"[,;]|\b(?:and|or)\b")

_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_LABEL = re.compile(r"\A(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\b|[:=])\s*[:=]?\s*", re.IGNORECASE)
_ANSWER_IS = re.compile(
    r"\b(?:answer|result)(?:\s+(?:to|for|of)\s+[^.:\n]{1,60}?)?(?:\*\*|__)?\s*"
    r"(?:is\s+(?:therefore|thus|then|simply|just|now|given by|equal to)\b|(?:is|would be|should be|must be|equals)\b"
    r"|[:=])"
    r"\s*(?:\*\*|__)?\s*[:=]?(?:\*\*|__)?[ \t]*",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"\A(?:not|never|neither|wrong|incorrect|correct|right|none of)\b(?!\s*(?:a\s+)?(?:possible|real|defined))", re.I
)
_CLAUSE_END = re.compile(
    r"(?:\s*,)?\s+(?:because|since|as\s+(?:we|the|it|required|shown)|and\s+not|not|but|rather\s+than|instead\s+of|which"
    r"|so\s+that|where|when|if|hence|thus|therefore|assuming|i\.e\.?|given\s+that)\b|\s*,\s*(?:so|as|for|with|i\.e\.|and\s+the)\b"
    r"|\s*\(\s*(?:since|because|as|i\.e\.|which|for|from)\b"
    r"|[.!?]?\s+(?:I hope|Hope|Therefore|So\b|Hence|Thus|Note|Check|Let|This|We)\b"
    r"|\s*[✓✔]|\s*(?:\\blacksquare|\\square|∎)",
)
_MATH = re.compile(
    r"\$\$(?P<a>.+?)\$\$|(?<!\\)\$(?P<b>[^$\n]+?)(?<!\\)\$"
    r"|\\\((?P<c>(?:(?!\\\().)+?)\\\)|\\\[(?P<d>(?:(?!\\\[).)+?)\\\]",
    re.S,
)
_NUMBER = re.compile(
    r"(?<![\w.\\^_}])(?:-\s?(?=\\?\$|\d|\.\d))?\\?\$?-?(?:\d{1,3}(?:,\d{3})+(?![\d])|\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+(?:,\d+)+|\d+)?"
    r"(?:\.\d+|(?<=\d))(?:[eE][+-]?\d+)?(?:/\d+(?:\.\d+)?)?"
)
_TOTAL = re.compile(r"\ba total of\s*\Z", re.IGNORECASE)
_NEAR_THE_END = 5
_FINAL_EQUATION = re.compile(r"(?:\A|\n)[ \t]*=[ \t]*(\S[^\n]*?)\s*\Z")
_THOUSANDS = re.compile(r"-?\$?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def extract_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` (or `\fbox{...}`) whose braces balance; `\boxed 5` gives 5.

    Boxes in a row, with nothing but a comma, "and", "or" or a name between them, are one answer: their contents joined
    by commas.
    """
    text = text[-_MAX_CHARS:]
    closings = _closings(text)
    boxes: list[tuple[int, int, str]] = []
    for match in _BOXED.finditer(text):
        if boxes and match.start() < boxes[-1][1]:
            continue  # a box within a box
        if match[1] != "{":
            boxes.append((match.start(), match.end(), match[1]))
            continue
        closing = closings.get(match.end() - 1, match.end())
        content = text[match.end() : closing].strip()
        if content:
            boxes.append((match.start(), closing + 1, content))
    if not boxes:
        return None
    answers = [_unboxed(boxes[-1][2])]
    for (_, end, content), (start, _, _) in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        between = text[end:start]
        if len(between) > 60 or not _BETWEEN_BOXES.fullmatch(between) or not _JOINING.search(between):
            break
        answers.append(_unboxed(content))
    distinct = list(dict.fromkeys(reversed(answers)))
    return ", ".join(distinct)


def _unboxed(content: str) -> str:
    inner = re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", content, re.S)
    return inner[1].strip() if inner else content


def _closings(text: str) -> dict[int, int]:
    """Where the brace is that closes each opening one; those that are not closed are left out."""
    opened: list[int] = []
    closings: dict[int, int] = {}
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closings[opened.pop()] = match.start()
    return closings


def extract_hashes(text: str) -> str | None:
    """What stands after the last `####` on its line, as in GSM8K, without a label "Answer:"; thousands separators of a
    number dropped."""
    found = _HASHES.findall(text[-_MAX_CHARS:])
    answer = _LABEL.sub("", found[-1].strip().strip("*").strip()) if found else ""
    answer = answer.strip().strip("*").strip()
    if _THOUSANDS.fullmatch(answer):
        answer = answer.replace(",", "")
    return answer or None


def extract_answer_is(text: str) -> str | None:
    """What follows the last "the answer is" (or "answer:") that is not "is not", to the end of the sentence or line.

    A trailing clause ("because ...", "and not ...") is left out.
    """
    text = text[-_MAX_CHARS:]
    for match in reversed(list(_ANSWER_IS.finditer(text))):
        rest = text[match.end() :].lstrip(" \t\n*")
        if _NEGATED.match(rest):
            continue
        answer = _clause(rest)
        if answer:
            return answer
    return None


def _clause(rest: str) -> str:
    """The answer at the beginning of a text: up to the end of the sentence, the line or a clause that explains it."""
    shielded, parts = _shield(rest)
    line = shielded.split("\n")[0]
    line = (
        re.split(r"(?<![A-Z\s]\.[A-Z])\.(?=\s|\Z|\*)(?<!\b[ap]\.m\.)(?![ ]?m\b)", line)[0] if line.count(".") else line
    )
    line = _CLAUSE_END.split(" " + line)[0].strip()
    line = line.strip().strip("*").strip().rstrip(".,;:!?").strip().strip("*").strip()
    for index, part in enumerate(parts):
        line = line.replace(f"\x00{index}\x01", part)
    only = _MATH.fullmatch(line)
    return (next(group for group in only.groups() if group).strip() and line) if only else line


def _shield(text: str) -> tuple[str, list[str]]:
    """The text with its formulas replaced by marks, and the formulas."""
    parts: list[str] = []

    def mark(match: re.Match[str]) -> str:
        parts.append(match[0])
        return f"\x00{len(parts) - 1}\x01"

    return _MATH.sub(mark, text[:4000]), parts


def extract_last_number(text: str) -> str | None:
    r"""The last number of the text, with its sign, decimals, thousands separators dropped, or as a fraction a/b; the
    formula `$...$` that it stands in, when it stands in one: what is right of the last `=` there."""
    text = text[-_MAX_CHARS:].translate(_MINUS)
    formulas = [match for match in _MATH.finditer(text) if not _money(match)]
    formula = formulas[-1] if formulas else None
    numbers = [match for match in _NUMBER.finditer(text) if any(character.isdigit() for character in match[0])]
    last = numbers[-1] if numbers else None
    for match in numbers[-_NEAR_THE_END:-1]:  # "a total of 34 hours in 4 weeks."
        if _TOTAL.search(text[max(0, match.start() - 30) : match.start()]) and not re.search(
            r"[.\n=]\s", text[match.end() :]
        ):
            last = match
    if formula is not None and (last is None or last.start() < formula.end()) and re.search(r"\d", formula[0]):
        content = next(group for group in formula.groups() if group)
        return content.split("=")[-1].strip() or None
    if last is None:
        return None
    answer = last[0].replace("\\", "").replace("$", "").replace(" ", "")
    answer = re.sub(r"[\u00a0\u2009\u202f]", "", answer)
    return answer.replace(",", "") if _THOUSANDS.fullmatch(answer.split("/")[0]) else answer


def _money(match: re.Match[str]) -> bool:
    """True if the dollar signs are amounts of money, "$5 and then $", and no formula."""
    content = match["b"]
    if content is None:
        return False
    return (
        bool(re.match(r"\d[\d,.]*\s+[a-z]{2,}|\d[\d,.]*\s*[-+*/=]?\s*\Z", content))
        and match.string[match.end() : match.end() + 1].isdigit()
    )


def extract_final_equation(text: str) -> str | None:
    """What stands after the `=` that begins the last line, as in "= -50"; None when the last line is another."""
    found = _FINAL_EQUATION.search(text[-_MAX_CHARS:])
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
