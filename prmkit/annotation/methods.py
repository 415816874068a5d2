"""The annotation methods by name."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from prmkit.annotation import math_shepherd, mips, omegaprm, traces
from prmkit.annotation.counts import ProblemLabels
from prmkit.errors import ConfigError

__all__ = ["METHODS", "AnnotationMethod", "get_method"]


@dataclass(frozen=True, slots=True)
class AnnotationMethod:
    """A method: the class of its parameters, the coroutine `(problem, engine, grader, params, policy, budget)` that
    labels solutions of one problem, and a line about it.

    Where `from_rows` holds, solutions are not sampled: `annotate` takes them as `candidates`, by problem id.
    """

    params: type
    annotate: Callable[..., Coroutine[Any, Any, ProblemLabels]]
    summary: str
    from_rows: bool = False


METHODS = {
    "omegaprm": AnnotationMethod(
        omegaprm.OmegaPRMParams, omegaprm.annotate_problem, "binary search for first errors in a tree of rollouts"
    ),
    "math_shepherd": AnnotationMethod(
        math_shepherd.MathShepherdParams, math_shepherd.annotate_problem, "rollouts from every step of wrong solutions"
    ),
    "mips": AnnotationMethod(mips.MiPSParams, mips.annotate_problem, "rollouts from every step of every solution"),
    "traces": AnnotationMethod(
        traces.TracesParams,
        traces.annotate_problem,
        "binary search in the solutions of `prm search` that its PRM believed",
        from_rows=True,
    ),
}


def get_method(name: str) -> AnnotationMethod:
    """The method of a name. ConfigError for an unknown one."""
    if name not in METHODS:
        raise ConfigError("method", name, " | ".join(METHODS))
    return METHODS[name]
