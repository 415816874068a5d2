"""The annotation methods by name; `register_annotation_method` adds to them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

from prmkit.annotation import math_shepherd, mips, omegaprm, traces
from prmkit.annotation.counts import ProblemLabels
from prmkit.errors import PluginError
from prmkit.plugins import Catalogue

__all__ = ["METHODS", "AnnotationMethod", "get_method", "register_annotation_method"]

Made = TypeVar("Made", bound=Callable[..., Any])


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


METHODS: Catalogue[AnnotationMethod] = Catalogue(
    "annotation method",
    {
        "omegaprm": AnnotationMethod(
            omegaprm.OmegaPRMParams, omegaprm.annotate_problem, "binary search for first errors in a tree of rollouts"
        ),
        "math_shepherd": AnnotationMethod(
            math_shepherd.MathShepherdParams,
            math_shepherd.annotate_problem,
            "rollouts from every step of wrong solutions",
        ),
        "mips": AnnotationMethod(mips.MiPSParams, mips.annotate_problem, "rollouts from every step of every solution"),
        "traces": AnnotationMethod(
            traces.TracesParams,
            traces.annotate_problem,
            "binary search in the solutions of `prm search` that its PRM believed",
            from_rows=True,
        ),
    },
)


def get_method(name: str) -> AnnotationMethod:
    """The method of a name. ConfigError for an unknown one."""
    return METHODS.find(name, "method")


def register_annotation_method(name: str, params: type) -> Callable[[Made], Made]:
    """Register a way to label steps: `prm annotate --method NAME`.

    Decorates `async (problem, engine, grader, params, policy, budget) -> ProblemLabels`. The first line of its
    docstring is its line in `--help`.

    Args:
        name: the method's name.
        params: frozen dataclass of its settings, `sampling` (SamplingParams) and `seed` (int) among them.

    Raises:
        PluginError: the name is taken, or `params` is no such dataclass.
    """

    def register(annotate: Made) -> Made:
        known = {field.name for field in fields(params)} if is_dataclass(params) else set()
        if not {"sampling", "seed"} <= known:
            accepted = "a frozen dataclass with the fields sampling and seed"
            raise PluginError(f"annotation method {name!r}: params is {params!r}; accepted: {accepted}")
        summary = (annotate.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        METHODS.add(name, AnnotationMethod(params, annotate, summary), annotate)
        return annotate

    return register
