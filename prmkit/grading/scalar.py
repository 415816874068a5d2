r"""Parser of single mathematical expressions: LaTeX, plain text and sympy's spelling, after `normalise`.

The result is a tree of tuples. Whatever the grammar does not know is no expression (`parse` gives None), so that a
word, a unit or a stray token is never read as a product of letters or ignored. Nothing is evaluated here.

    ("num", Fraction)  ("sym", name)  ("add", a, b)  ("neg", a)  ("mul", a, b)  ("div", a, b)  ("pow", a, b)
    ("fn", name, *arguments)
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from prmkit.grading.tokens import FUNCTIONS, GREEK, ParseError, tokens

__all__ = ["Tree", "parse", "symbols"]

Tree = tuple[Any, ...]

_MAX_DEPTH = 60
_MAX_DIGITS = 4000

_CLOSES = {"(": ")", "[": "]", "{": "}"}


@lru_cache(maxsize=16384)
def parse(text: str) -> Tree | None:
    """The tree of a normalised text, None when it is not one expression."""
    try:
        parser = _Parser(tokens(text))
        tree = parser.sum(0)
        return tree if parser.at_end else None
    except (ParseError, RecursionError):
        return None


def symbols(tree: Tree) -> frozenset[str]:
    """Names of the variables in a tree."""
    if tree[0] == "sym":
        return frozenset((tree[1],))
    return frozenset().union(*(symbols(part) for part in tree[1:] if isinstance(part, tuple)))


class _Parser:
    """Recursive descent over tokens. Each method gives the tree of what it read."""

    def __init__(self, words: list[tuple[str, str]]) -> None:
        self._tokens, self._index = words, 0
        self._bars = 0

    @property
    def at_end(self) -> bool:
        return self._index == len(self._tokens)

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        index = self._index + ahead
        return self._tokens[index] if index < len(self._tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self._index += 1
        return token

    def _take(self, *values: str) -> str | None:
        kind, value = self._peek()
        if kind in ("op", "cmd") and value in values:
            self._index += 1
            return value
        return None

    def _expect(self, value: str) -> None:
        if self._take(value) is None:
            raise ParseError

    # -- from loose to tight ----------------------------------------------------------------------------------------

    def sum(self, depth: int) -> Tree:
        """Terms with signs between them."""
        if depth > _MAX_DEPTH:
            raise ParseError
        tree = self._signed(depth)
        while (sign := self._take("+", "-")) is not None:
            term = self._signed(depth)
            tree = ("add", tree, ("neg", term) if sign == "-" else term)
        return tree

    def _signed(self, depth: int) -> Tree:
        sign = self._take("+", "-")
        if sign is None:
            return self._product(depth)
        tree = self._signed(depth + 1) if depth < _MAX_DEPTH else self._product(depth)
        return ("neg", tree) if sign == "-" else tree

    def _product(self, depth: int) -> Tree:
        tree = self._power(depth)
        while True:
            if self._take("*", "\\cdot") is not None:
                tree = ("mul", tree, self._factor(depth))
            elif self._take("/") is not None:
                tree = self._quotient(tree, depth)
            elif self._starts_factor():
                tree = self._beside(tree, depth)
            else:
                return tree

    def _factor(self, depth: int) -> Tree:
        sign = self._take("+", "-")
        tree = self._power(depth)
        return ("neg", tree) if sign == "-" else tree

    def _quotient(self, tree: Tree, depth: int) -> Tree:
        return ("div", tree, self._factor(depth))

    def _beside(self, tree: Tree, depth: int) -> Tree:
        """A product without a sign; a whole number before a fraction of whole numbers is a mixed number."""
        whole = self._peek(-1)
        start = self._index
        right = self._power(depth)
        if whole[0] == "num" and tree[0] == "num" and tree[1].denominator == 1:
            if self._tokens[start][1] == "\\frac" and _proper(right):
                return ("add", tree, right)
            if self._tokens[start][0] == "num":
                self._expect("/")
                return ("add", tree, ("div", right, self._power(depth)))
        return ("mul", tree, right)

    def _starts_factor(self) -> bool:
        kind, value = self._peek()
        if kind in ("num", "rep", "sym"):
            return True
        if kind == "cmd":
            return value not in ("\\cdot", "\\rfloor", "\\rceil", "\\circ")
        return value in ("(", "[", "{") or (value == "|" and not self._bars)

    def _power(self, depth: int) -> Tree:
        tree = self._postfix(depth)
        if self._peek() == ("op", "^"):
            if self._peek(1)[1] == "\\circ":
                self._index += 2
                return ("mul", tree, ("div", ("sym", "\\pi"), ("num", Fraction(180))))
            self._index += 1
            tree = ("pow", tree, self._exponent(depth))
            while self._take("!") is not None:
                tree = ("fn", "factorial", tree)
        return tree

    def _exponent(self, depth: int) -> Tree:
        sign = self._take("+", "-")
        tree = self._power(depth + 1) if depth < _MAX_DEPTH else self._postfix(depth)
        return ("neg", tree) if sign == "-" else tree

    def _postfix(self, depth: int) -> Tree:
        tree = self._primary(depth + 1)
        while self._take("!") is not None:
            tree = ("fn", "factorial", tree)
        return tree

    # -- primaries --------------------------------------------------------------------------------------------------

    def _primary(self, depth: int) -> Tree:
        if depth > _MAX_DEPTH:
            raise ParseError
        kind, value = self._next()
        if kind == "num":
            return ("num", _decimal(value.replace(",", "")))
        if kind == "rep":
            return ("num", _repeating(value))
        if kind == "sym":
            return self._symbol(value, depth)
        if kind == "cmd":
            return self._command(value[1:], depth)
        if value in _CLOSES:
            return self._inside(_CLOSES[value], depth)
        if value == "|":
            self._bars += 1
            tree = self.sum(depth)
            self._bars -= 1
            self._expect("|")
            return ("fn", "abs", tree)
        raise ParseError

    def _inside(self, close: str, depth: int) -> Tree:
        bars, self._bars = self._bars, 0
        tree = self.sum(depth)
        self._expect(close)
        self._bars = bars
        return tree

    def _symbol(self, name: str, depth: int) -> Tree:
        while self._take("'") is not None:
            name += "'"
        if self._take("_") is not None:
            name += f"_{self._index_text()}"
        if name in ("f", "g") and self._peek() == ("op", "("):
            self._index += 1
            return ("fn", f"call {name}", *self._arguments(depth))
        return ("sym", name)

    def _index_text(self) -> str:
        kind, value = self._next()
        if kind in ("num", "sym", "cmd"):
            return value
        if value != "{":
            raise ParseError
        parts = []
        while (token := self._next())[1] != "}":
            if token[0] == "end":
                raise ParseError
            parts.append(token[1])
        return "".join(parts)

    def _command(self, name: str, depth: int) -> Tree:
        if name == "pi" or name in GREEK:
            return self._symbol(f"\\{name}", depth) if name != "pi" else ("sym", "\\pi")
        if name == "frac":
            return ("div", self._braced(depth), self._braced(depth))
        if name == "binom":
            return ("fn", "binom", self._braced(depth), self._braced(depth))
        if name == "sqrt":
            return self._root(depth)
        if name in ("lfloor", "lceil"):
            tree = self._inside("\\rfloor" if name == "lfloor" else "\\rceil", depth)
            return ("fn", name[1:], tree)
        if name == "text":
            return self._upright(depth)
        if name in FUNCTIONS:
            return self._function(name, depth)
        raise ParseError

    def _upright(self, depth: int) -> Tree:
        """`\\text{i}`, a letter in another font; more letters are a word."""
        self._expect("{")
        kind, value = self._next()
        self._expect("}")
        if kind != "sym":
            raise ParseError
        return self._symbol(value, depth)

    def _root(self, depth: int) -> Tree:
        order: Tree | None = None
        if self._take("[") is not None:
            order = self._inside("]", depth)
        radicand = self._braced(depth)
        return ("fn", "sqrt", radicand) if order is None else ("pow", radicand, ("div", ("num", Fraction(1)), order))

    def _braced(self, depth: int) -> Tree:
        """An argument of a LaTeX command: in braces or brackets, or one token."""
        kind, value = self._peek()
        if kind == "num" and value.isdecimal() and len(value) > 1 and self._peek(-1)[1] == "\\frac":
            raise ParseError
        return self._primary(depth)

    def _function(self, name: str, depth: int) -> Tree:
        base: Tree | None = None
        power: Tree | None = None
        if self._take("_") is not None:
            base = self._primary(depth)
        if self._peek() == ("op", "^"):
            self._index += 1
            power = self._exponent(depth)
        if self._peek() == ("op", "("):
            self._index += 1
            arguments = self._arguments(depth)
        else:
            arguments = [self._bare_argument(depth)]
        if name == "log" and len(arguments) == 2 and base is None:
            base = arguments.pop()
        tree = _applied(name, arguments, base)
        if power is None:
            return tree
        if power == ("neg", ("num", Fraction(1))) and name in ("sin", "cos", "tan"):
            return ("fn", f"a{name}", *arguments)
        return ("pow", tree, power)

    def _arguments(self, depth: int) -> list[Tree]:
        bars, self._bars = self._bars, 0
        arguments = [self.sum(depth)]
        while self._take(",") is not None:
            arguments.append(self.sum(depth))
        self._expect(")")
        self._bars = bars
        return arguments

    def _bare_argument(self, depth: int) -> Tree:
        """The argument without brackets in `\\sin 2x`: a product that ends at a sign, a function or a bracket."""
        sign = self._take("-")
        tree = self._power(depth)
        while self._starts_factor() and not self._function_or_bracket():
            tree = self._beside(tree, depth)
        if self._peek() == ("op", "/") and self._peek(1)[0] == "num":
            self._index += 1
            tree = ("div", tree, self._power(depth))
        return ("neg", tree) if sign else tree

    def _function_or_bracket(self) -> bool:
        kind, value = self._peek()
        return value in ("(", "[", "{", "|") or (kind == "cmd" and value[1:] in FUNCTIONS and value != "\\sqrt")


def _proper(tree: Tree) -> bool:
    """True for a fraction of two whole numbers."""
    return tree[0] == "div" and all(part[0] == "num" and part[1].denominator == 1 for part in tree[1:])


_ARITY = {"gcd": (2, 9), "lcm": (2, 9), "max": (2, 9), "min": (2, 9)}


def _applied(name: str, arguments: list[Tree], base: Tree | None) -> Tree:
    least, most = _ARITY.get(name, (1, 1))
    if not least <= len(arguments) <= most or (base is not None and name != "log"):
        raise ParseError
    if name == "log" and base is not None:
        return ("div", ("fn", "ln", arguments[0]), ("fn", "ln", base))
    return ("fn", "ln" if name == "log" else name, *arguments)


def _decimal(text: str) -> Fraction:
    """The value of digits with a decimal point or exponent. ParseError for an exponent too large to compute with."""
    exponent = re.search(r"[eE]([+-]?\d+)", text)
    if len(text) > _MAX_DIGITS or (
        exponent is not None and (len(exponent[1]) > 5 or abs(int(exponent[1])) > _MAX_DIGITS)
    ):
        raise ParseError
    return Fraction(text)


def _repeating(text: str) -> Fraction:
    match = re.fullmatch(r"(\d*)\.(\d*)\\overline\{(\d+)\}", text)
    assert match is not None
    whole, fixed, period = match[1] or "0", match[2], match[3]
    scale = 10 ** len(fixed)
    return Fraction(int(whole + fixed), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))
