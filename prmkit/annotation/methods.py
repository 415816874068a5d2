"""The annotation methods by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from prmkit.annotation import math_shepherd, mips, omegaprm
from prmkit.annotation.counts import ProblemLabels
from prmkit.errors import ConfigError
from prmkit.search.budget import Budget
from prmkit.types import Engine, Grader, Problem

__all__ = ["METHODS", "AnnotationMethod", "Annotator", "get_method"]


class Annotator(Protocol):
    """Labels solutions of one problem. `params` are of the method's own class."""

    async def __call__(
        self, problem: Problem, engine: Engine, grader: Grader, params: Any, policy: str, budget: Budget
    ) -> ProblemLabels: ...


@dataclass(frozen=True, slots=True)
class AnnotationMethod:
    """A method: the class of its parameters, the coroutine for one problem, and a line about it."""

    params: type
    annotate: Annotator
    summary: str


METHODS = {
    "omegaprm": AnnotationMethod(
        omegaprm.OmegaPRMParams, omegaprm.annotate_problem, "binary search for first errors in a tree of rollouts"
    ),
    "math_shepherd": AnnotationMethod(
        math_shepherd.MathShepherdParams, math_shepherd.annotate_problem, "rollouts from every step of wrong solutions"
    ),
    "mips": AnnotationMethod(mips.MiPSParams, mips.annotate_problem, "rollouts from every step of every solution"),
}


def get_method(name: str) -> AnnotationMethod:
    """The method of a name. ConfigError for an unknown one."""
    if name not in METHODS:
        raise ConfigError("method", name, " | ".join(METHODS))
    return METHODS[name]
