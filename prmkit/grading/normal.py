r"""Spelling of an answer: one text for the many ways of writing it, without any change of meaning.

Unicode becomes LaTeX, fonts and spacing commands go, fractions and roots get their braces. Nothing that carries value
is dropped: units, percent signs, subscripts and names stay for `prmkit.grading.reading`. In the result a comma that is
followed by a space separates members; a comma without a space may be a thousands separator.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["normalise", "number"]

_MAX_NUMBER_CHARS = 300

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_GREEK = dict(
    zip(
        "αβγδεζηθκλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ",
        (
            *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu", "nu"),
            *("xi", "pi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega"),
            *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"),
        ),
        strict=True,
    )
)
_VULGAR = {"½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15", "⅖": "25", "⅗": "35", "⅘": "45"}
_VULGAR |= {"⅙": "16", "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58", "⅞": "78"}
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒﹣－", "-"),
        **dict.fromkeys("·⋅∙×✕⨯", r"\cdot "),
        **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        **dict.fromkeys("‘’′", "'"),
        **dict.fromkeys("“”", '"'),
        **{character: f"\\{name} " for character, name in _GREEK.items()},
        **{character: rf"\frac{{{pair[0]}}}{{{pair[1]}}}" for character, pair in _VULGAR.items()},
        "÷": "/", "∕": "/", "⁄": "/", "√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "∞": r"\infty ",
        "∪": r"\cup ", "∩": r"\cap ", "≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ", "⩾": r"\geq ", "≠": r"\neq ",
        "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∈": r"\in ", "°": r"^\circ ", "∅": r"\emptyset ",
        "ϕ": r"\phi ", "ϵ": r"\epsilon ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "⟨": r"\langle ", "⟩": r"\rangle ",
        "，": ", ", "＝": "=", "％": "%", "（": "(", "）": ")", "€": r"\euro ", "£": r"\pound ", "∗": "*",
    }
)  # fmt: skip

_BOLD = re.compile(r"\A\*\*(.*)\*\*\Z", re.S)
_WRAPPERS = (
    re.compile(r"\A\$\$(.*)\$\$\Z", re.S),
    re.compile(r"\A\$(.*)\$\Z", re.S),
    re.compile(r"\A\\\((.*)\\\)\Z", re.S),
    re.compile(r"\A\\\[(.*)\\\]\Z", re.S),
    _BOLD,
    re.compile(r"\A`(.*)`\Z", re.S),
    re.compile(r"\A\(([A-Z])\)\Z"),
    re.compile(r"\A\\(?:boxed|fbox)\s*\{(.*)\}\Z", re.S),
    re.compile(r"\A\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{([^{}]*)\}\Z", re.S),
)
_SAME = {r"\le": r"\leq", r"\leqslant": r"\leq", r"\ge": r"\geq", r"\geqslant": r"\geq", r"\ne": r"\neq"}
_SAME |= {r"\lbrace": r"\{", r"\rbrace": r"\}", r"\varnothing": r"\emptyset", r"\lt": "<", r"\gt": ">"}
_SAME |= {r"\times": r"\cdot", r"\ast": r"\cdot", r"\div": "/", r"\lvert": "|", r"\rvert": "|", r"\vert": "|"}
_SAME |= {r"\mid": "|", r"\lbrack": "[", r"\rbrack": "]", r"\arcsin": r"\asin", r"\arccos": r"\acos"}
_SAME |= {r"\arctan": r"\atan", r"\to": r"\rightarrow", r"\varphi": r"\phi", r"\varepsilon": r"\epsilon"}
_SAME |= {r"\mathbf": r"\text", r"\mathit": r"\text", r"\textrm": r"\text", r"\textbf": r"\text", r"\textit": r"\text"}
_SAME |= {r"\mbox": r"\text", r"\mathrm": r"\text", r"\textnormal": r"\text", r"\operatorname": r"\text"}
_SAME |= {
    r"\mathsf": r"\text",
    r"\hbox": r"\text",
    r"\infin": r"\infty",
    r"\land": r"\text{and}",
    r"\lor": r"\text{or}",
}
_SAME |= {r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\tbinom": r"\binom"}
_SAME |= dict.fromkeys((r"\displaystyle", r"\textstyle", r"\limits", r"\rm", r"\bf", r"\left", r"\right"), "")
_SAME |= dict.fromkeys((r"\bigl", r"\bigr", r"\big", r"\Big", r"\Bigl", r"\Bigr", r"\bigg", r"\Bigg", r"\middle"), "")
_SAME |= dict.fromkeys((r"\quad", r"\qquad", r"\thinspace", r"\space", r"\enspace"), " ")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORDS_OF_FUNCTIONS = re.compile(r"\\text\{\s*(sin|cos|tan|log|ln|arcsin|arccos|arctan|gcd|lcm|max|min)\s*\}")

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\{,\}|,\\!\s*", ","),
        (r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))", " "),
        (r"(?<!\\)\\(?=\d)", ""),
        (r"\\[!]", ""),
        (r"(?<!\\)\\[,;: ]|~", " "),
        (r"(?<!\\)\\(?=\s|\Z)", " "),
        (r"\s+", " "),
        (r"\\\$", r"\\dollar "),
        (r"\$", r"\\dollar "),
        (r"\\%", "%"),
        (r"\*\*", "^"),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degrees?(?![a-zA-Z])", r"^\\circ "),
        (r"\s*,?\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}\s*", ", "),
        (r"(?<=[^a-zA-Z\\])\s*,?\s*\b(?:and|or)\b\s*(?=[^a-zA-Z\s]|[a-zA-Z](?![a-zA-Z])|sqrt|pi)", ", "),
        (r",(?:\s*,)+", ","),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}"),
        (r"\\frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\d+|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"\\text\{\s*([^{}]*?)\s*\}", r"\\text{\1}"),
        (r"\s*(?:\.\s*)?\Z", ""),
    )
)
_SPACE = re.compile(r"\s+")
_LOOSE_SPACE = re.compile(r"(?<![\w,}.]) | (?![\w.]|\\(?:text|dollar|euro|pound))|(?<=[}]) (?=\d)")
_COMMAND_SPACE = re.compile(r"(\\[a-zA-Z]+) (?=[a-zA-Z])")

_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"\d+\.?\d*|\.\d+")
_SLASH = re.compile(r"(?:(\d+) )?(\d+)/(\d+)")
_FRAC = re.compile(r"(\d*) ?\\frac\{(-?\d+)\}\{(-?\d+)\}")


def normalise(text: str) -> str:
    """One spelling of an answer. Texts with the same spelling are equal; equal answers may have several spellings."""
    text = _unwrapped(text)
    if text.isdecimal() and text.isascii():
        return text
    if not text.isascii():
        text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
        text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda found: f"_{{{found[0].translate(_SUBSCRIPTS)}}}", text)
        text = text.translate(_CHARACTERS)
    text = _SPACE.sub(" ", text)
    text = _WORDS_OF_FUNCTIONS.sub(r"\\\1 ", _COMMAND.sub(lambda found: _SAME.get(found[0], found[0]), text))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _COMMAND_SPACE.sub("\\1\0", _SPACE.sub(" ", text.strip()))
    text = _LOOSE_SPACE.sub("", text)
    return re.sub(r", ?(?=[\])}]|\Z)", "", re.sub(r" ?, (?! )", ", ", text)).replace("\0", " ").strip()


def _unwrapped(text: str) -> str:
    text = text.strip()
    unwrapped = True
    while unwrapped:
        unwrapped = False
        for wrapper in _WRAPPERS:
            match = wrapper.match(text) or wrapper.match(text.removesuffix(".").rstrip())
            if match is not None and match[1].strip() and "$" not in match[1] and _is_one(match[1], wrapper):
                text, unwrapped = match[1].strip(), True
    return text


def _is_one(text: str, wrapper: re.Pattern[str]) -> bool:
    r"""True if what was taken off was one pair: not `1\)...\(2`, no brace closed before it is opened."""
    if re.search(r"\\[()\[\]]", text) or (wrapper is _BOLD and text.count("**") in (2, 4, 6)):
        return False
    depth = 0
    for character in re.sub(r"\\[{}]", "", text):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def number(text: str) -> Fraction | None:
    """The exact value of a normalised text that is a plain number; None for anything else."""
    if not text or len(text) > _MAX_NUMBER_CHARS:
        return None
    negative = text[0] == "-"
    body = text[1:] if text[0] in "+-" else text
    value = _unsigned(body)
    return -value if negative and value is not None else value


def _unsigned(body: str) -> Fraction | None:
    if _DECIMAL.fullmatch(body):
        return Fraction(body.rstrip(".") if len(body) > 1 else body)
    if _THOUSANDS.fullmatch(body):
        return Fraction(body.replace(",", "").replace(" ", ""))
    match = _SLASH.fullmatch(body) or _FRAC.fullmatch(body)
    if match is None or int(match[3]) == 0:
        return None
    fraction = Fraction(int(match[2]), int(match[3]))
    if match[1] and fraction < 0:
        return None
    return int(match[1] or 0) + fraction
