r"""Equivalence of mathematical answers.

Three layers, cheapest first: the same normalised text; exact numbers and the structure of sets, tuples and intervals
(`prmkit.grading.normal`, whose module text states the policy); and for single expressions math-verify, in worker
processes with a time limit each. Only LaTeX is parsed there, never Python: no answer is evaluated as code.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType

from prmkit.errors import ConfigError
from prmkit.grading.extract import DEFAULT_EXTRACTORS, extract_answer, get_extractors
from prmkit.grading.normal import Group, group_of, normalise, number
from prmkit.grading.pool import ComparisonPool, Verdict
from prmkit.records import Grade

__all__ = ["MathGrader"]

_TOLERANCE = 1e-5  # math-verify rounds to 6 decimals; what lies closer is left to it
_MAX_DEPTH = 8
_MAX_ITEMS = 32
_WORD = re.compile(r"[A-Za-z]{3,}(?:[ '-][A-Za-z]+)*")
_RELATION = re.compile(r"[<>=]|\\(?:in|l[et]|leq|g[et]|geq)(?![a-zA-Z])")

_Atoms = tuple[str, str]


class MathGrader:
    """Extracts and compares mathematical answers (see `prmkit.protocols.Grader`). Equivalence is symmetric.

    A comparison that overruns its limits counts as not equivalent, with `Grade.timed_out` set. Workers start with the
    first comparison that needs one and end with `close`, the `with` block, or the process.

    Args:
        timeout: processor seconds for one comparison of two expressions in a worker; positive. A machine under load
            so changes no verdict; in wall-clock time a comparison ends after five times as long at the latest.
        workers: worker processes; at least 1.
        memory_mb: address space of a worker, MiB; at least 512.
        max_chars: longer answers are compared as text only, and marked as timed out when that finds no equality.
        cache_size: verdicts kept, oldest use forgotten first.
        extractors: names of `prmkit.grading.extract.EXTRACTORS`, tried in order by `extract`.
    """

    def __init__(
        self,
        timeout: float = 5.0,
        workers: int = 2,
        memory_mb: int = 2048,
        max_chars: int = 2000,
        cache_size: int = 65536,
        extractors: Sequence[str] = DEFAULT_EXTRACTORS,
    ) -> None:
        minima = {"workers": (workers, 1), "memory_mb": (memory_mb, 512), "max_chars": (max_chars, 1)}
        minima["cache_size"] = (cache_size, 1)
        for field, (value, least) in minima.items():
            if value < least:
                raise ConfigError(f"grader.{field}", value, f"an integer of at least {least}")
        if not timeout > 0.0:
            raise ConfigError("grader.timeout", timeout, "a positive number of seconds")
        get_extractors(extractors)
        self._extractors = tuple(extractors)
        self._max_chars, self._cache_size = max_chars, cache_size
        self._pool = ComparisonPool(workers, timeout, memory_mb)
        self._cache: OrderedDict[tuple[str, ...], Verdict] = OrderedDict()

    def extract(self, text: str) -> str | None:
        return extract_answer(text, self._extractors)

    def grade(self, pairs: Sequence[tuple[str | None, str]]) -> list[Grade]:
        asked = [(answer, gold) for answer, gold in pairs if answer is not None]
        verdicts = iter(self._compare([(self._spell(answer), self._spell(gold)) for answer, gold in asked]))
        return [Grade(False) if answer is None else next(verdicts) for answer, _ in pairs]

    def group(self, answers: Sequence[str | None]) -> list[int]:
        """Classes numbered by first appearance. An answer joins the first class whose first member it equals; one
        that cannot be compared within the limits is a class of its own (with others of the same spelling)."""
        classes: dict[object, int] = {}
        members: list[str] = []
        numbers = []
        for answer in answers:
            if answer is None:
                numbers.append(-1)
                continue
            text = self._spell(answer)
            value = number(text)
            key: object = text if value is None else value
            if key not in classes:
                grades = self._compare([(text, member) for member in members])
                found = next((i for i, grade in enumerate(grades) if grade.correct), len(members))
                if found == len(members):
                    members.append(text)
                classes[key] = found
            numbers.append(classes[key])
        return numbers

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

    def __enter__(self) -> MathGrader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _spell(self, answer: str) -> str:
        return normalise(answer) if len(answer) <= self._max_chars else answer.strip()

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Verdicts on pairs of normalised texts. Comparisons of expressions that all pairs need are run together,
        round by round, until every pair is decided."""
        while True:
            open_atoms: dict[_Atoms, None] = {}
            grades = [self._decide(left, right, open_atoms) for left, right in pairs]
            if not open_atoms:
                while len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
                return grades
            self._resolve(list(open_atoms))

    def _decide(self, left: str, right: str, open_atoms: dict[_Atoms, None]) -> Grade:
        timed_out = False

        def known(atoms: _Atoms) -> bool:
            nonlocal timed_out
            if max(map(len, atoms)) > self._max_chars:
                timed_out = True
                return False
            if atoms not in self._cache:
                open_atoms[atoms] = None
                return False
            verdict = self._cache[atoms]
            self._cache.move_to_end(atoms)
            timed_out = timed_out or verdict is None
            return bool(verdict)

        correct = _equal(left, right, known, 0)
        return Grade(correct, timed_out and not correct)

    def _resolve(self, open_atoms: list[_Atoms]) -> None:
        """Put verdicts on pairs of expressions into the cache. Each expression is tried alone first: one that overruns
        the limits then costs one time limit and not one for every partner, and different values need no algebra."""
        singles = sorted({(text,) for atoms in open_atoms for text in atoms} - self._cache.keys())
        self._remember(singles)
        doubtful = []
        for atoms in open_atoms:
            first, second = (self._cache[(text,)] for text in atoms)
            if first is None or second is None:
                self._cache[atoms] = None
            elif _differ(first, second):
                self._cache[atoms] = False
            else:
                doubtful.append(atoms)
        self._remember(doubtful)

    def _remember(self, jobs: Sequence[tuple[str, ...]]) -> None:
        self._cache.update(zip(jobs, self._pool.run(jobs), strict=True))


def _differ(first: Verdict, second: Verdict) -> bool:
    """Is one not an expression at all, or are their values further apart than rounding explains?"""
    if not first or not second:
        return True
    if not isinstance(first, tuple) or not isinstance(second, tuple):
        return False
    a, b = complex(*first), complex(*second)
    return abs(a - b) > _TOLERANCE * max(1.0, abs(a), abs(b))


def _equal(left: str, right: str, known: Callable[[_Atoms], bool], depth: int) -> bool:
    """Are two normalised texts equal, given verdicts on pairs of expressions?"""
    if left == right:
        return bool(left)
    if not left or not right or depth > _MAX_DEPTH:
        return False
    first, second = number(left), number(right)
    if first is not None and second is not None:
        return first == second
    groups = [None if value is not None else group_of(text) for text, value in ((left, first), (right, second))]
    if groups[0] is not None and groups[1] is not None:
        return _equal_groups(groups[0], groups[1], known, depth)
    if any(group is not None for group in groups) and not _RELATION.search(left + right):
        return False
    if _WORD.fullmatch(left) or _WORD.fullmatch(right) or not _same_brackets(left, right):
        return False
    return known((left, right) if left < right else (right, left))


def _equal_groups(left: Group, right: Group, known: Callable[[_Atoms], bool], depth: int) -> bool:
    if left.kind != right.kind or len(left.items) != len(right.items) or len(left.items) > _MAX_ITEMS:
        return False
    if left.kind != "set":
        return all(_equal(a, b, known, depth + 1) for a, b in zip(left.items, right.items, strict=True))
    free = list(right.items)
    for item in left.items:
        partner = next((other for other in free if _equal(item, other, known, depth + 1)), None)
        if partner is None:
            return False
        free.remove(partner)
    return True


def _same_brackets(left: str, right: str) -> bool:
    """May two expressions be equal as far as the brackets around their pairs go? (0,1) in a union is not [0,1]."""
    signatures = [sorted(re.findall(r"([(\[])[^()\[\]]*,[^()\[\]]*([)\]])", text)) for text in (left, right)]
    return len(signatures[0]) != len(signatures[1]) or signatures[0] == signatures[1]
