r"""Equivalence of mathematical answers.

Three layers, cheapest first: the kind of each answer (`prmkit.grading.reading`) and exact arithmetic with fractions;
the rules by kind (`prmkit.grading.equality`); and for expressions and relations that arithmetic does not decide, values
with many digits and math-verify, in worker processes with a time limit each. No answer is evaluated as code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType

from prmkit.errors import ConfigError
from prmkit.grading.equality import Comparison
from prmkit.grading.extract import DEFAULT_EXTRACTORS, extract_answer, get_extractors
from prmkit.grading.kinds import Kind, Scalar, Words
from prmkit.grading.pool import ComparisonPool, Verdict
from prmkit.grading.reading import read
from prmkit.records import Grade

__all__ = ["MathGrader"]

_APART = 1e-9  # relative; values that are closer as floats are compared with many digits
_TINY = 1e-20  # smaller floats may be nothing but rounding

_Atoms = tuple[str, str]


class MathGrader:
    """Extracts and compares mathematical answers (see `prmkit.protocols.Grader`). A comparison with a gold answer has a
    direction; answers are grouped by a relation that is symmetric and transitive.

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
        tolerance: relative difference allowed between real numbers of which one is written with a decimal point; 0
            takes decimals at their exact value. In [0, 1). Never applied when answers are grouped.
    """

    def __init__(
        self,
        timeout: float = 5.0,
        workers: int = 2,
        memory_mb: int = 2048,
        max_chars: int = 2000,
        cache_size: int = 65536,
        extractors: Sequence[str] = DEFAULT_EXTRACTORS,
        tolerance: float = 0.0,
    ) -> None:
        minima = {"workers": (workers, 1), "memory_mb": (memory_mb, 512), "max_chars": (max_chars, 1)}
        minima["cache_size"] = (cache_size, 1)
        for field, (value, least) in minima.items():
            if value < least:
                raise ConfigError(f"grader.{field}", value, f"an integer of at least {least}")
        if not timeout > 0.0:
            raise ConfigError("grader.timeout", timeout, "a positive number of seconds")
        if not 0.0 <= tolerance < 1.0:
            raise ConfigError("grader.tolerance", tolerance, "a relative difference of at least 0 and below 1")
        get_extractors(extractors)
        self._tolerance = tolerance
        self._extractors = tuple(extractors)
        self._max_chars, self._cache_size = max_chars, cache_size
        self._pool = ComparisonPool(workers, timeout, memory_mb)
        self._cache: OrderedDict[tuple[str, ...], Verdict] = OrderedDict()

    def extract(self, text: str) -> str | None:
        return extract_answer(text, self._extractors)

    def grade(self, pairs: Sequence[tuple[str | None, str]]) -> list[Grade]:
        asked = [(gold, answer) for answer, gold in pairs if answer is not None]
        verdicts = iter(self._compare(asked, votes=False))
        return [Grade(False) if answer is None else next(verdicts) for answer, _ in pairs]

    def group(self, answers: Sequence[str | None]) -> list[int]:
        """Classes numbered by first appearance. An answer joins the class whose first member it equals; one that cannot
        be compared within the limits is a class of its own (with others of the same spelling)."""
        classes: dict[object, int] = {}
        members: list[str] = []
        numbers = []
        for answer in answers:
            if answer is None:
                numbers.append(-1)
                continue
            kind = self._read(answer)
            key: object = kind.value if isinstance(kind, Scalar) and kind.value is not None else kind
            if key == Words(""):
                key = answer
            if key not in classes:
                grades = self._compare([(member, answer) for member in members], votes=True)
                found = next((i for i, grade in enumerate(grades) if grade.correct), len(members))
                if found == len(members):
                    members.append(answer)
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

    def _read(self, answer: str) -> Kind:
        return read(answer) if len(answer) <= self._max_chars else Words(answer.strip())

    def _compare(self, pairs: Sequence[tuple[str, str]], votes: bool) -> list[Grade]:
        """Verdicts on (gold, answer) pairs. Comparisons of expressions that all pairs need are run together, round by
        round, until every pair is decided."""
        while True:
            open_atoms: dict[_Atoms, None] = {}
            grades = [self._decide(gold, answer, votes, open_atoms) for gold, answer in pairs]
            if not open_atoms:
                while len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
                return grades
            self._resolve(list(open_atoms))

    def _decide(self, gold: str, answer: str, votes: bool, open_atoms: dict[_Atoms, None]) -> Grade:
        timed_out = max(len(gold), len(answer)) > self._max_chars

        def known(atoms: _Atoms) -> bool:
            nonlocal timed_out
            if atoms not in self._cache:
                open_atoms[atoms] = None
                return False
            verdict = self._cache[atoms]
            self._cache.move_to_end(atoms)
            timed_out = timed_out or verdict is None
            return bool(verdict)

        rules = Comparison(known, self._tolerance, self._real, votes)
        correct = rules.equal(self._read(gold), self._read(answer))
        return Grade(correct, timed_out and not correct)

    def _real(self, text: str) -> float | None:
        """The value of an expression that was compared before, None where it is not real."""
        value = self._cache.get((text,))
        return value[0] if isinstance(value, tuple) and not value[1] else None

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
    """True if one is nothing that can be compared, or their values are further apart than rounding explains."""
    if not first or not second:
        return True
    if not isinstance(first, tuple) or not isinstance(second, tuple):
        return False
    a, b = complex(*first), complex(*second)
    size = max(abs(a), abs(b))
    return size > _TINY and abs(a - b) > _APART * size
