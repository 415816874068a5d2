"""All methods by name: the one place where a search is chosen by a string."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from prmkit.errors import ConfigError
from prmkit.protocols import Engine, Grader
from prmkit.search.beam import BeamParams, beam_search
from prmkit.search.best_of_n import BestOfNParams, CoTParams, best_of_n, chain_of_thought
from prmkit.search.compute_optimal import ComputeOptimalParams, compute_optimal
from prmkit.search.dvts import dvts
from prmkit.search.mcts import MCTSParams, mcts
from prmkit.search.rebase import RebaseParams, rebase
from prmkit.search.result import SearchMethod, SearchResult
from prmkit.search.rstar import RStarParams, rstar

__all__ = ["METHODS", "Method", "make_method", "make_params", "needs_prm"]

Part = Literal["prm", "grader", "discriminator"]


@dataclass(frozen=True, slots=True)
class Method:
    """A method of search.

    Attributes:
        params: class of its parameters.
        search: `async (problem, engine, scorer, params, budget, ...) -> SearchResult`.
        parts: what it cannot do without ("prm", "grader") or can use ("discriminator").
        summary: what it does, in a few words.
    """

    params: type
    search: Callable[..., Coroutine[Any, Any, SearchResult]]
    parts: tuple[Part, ...]
    summary: str


METHODS: Mapping[str, Method] = {
    "cot": Method(CoTParams, chain_of_thought, (), "one solution, greedy or sampled"),
    "best_of_n": Method(BestOfNParams, best_of_n, (), "n independent solutions"),
    "beam_search": Method(BeamParams, beam_search, ("prm",), "the best steps of every round, gone on from"),
    "dvts": Method(BeamParams, dvts, ("prm",), "independent trees, each going on from its best step"),
    "rebase": Method(RebaseParams, rebase, ("prm",), "samples shared among open steps by their scores"),
    "mcts": Method(MCTSParams, mcts, ("prm",), "tree search with PUCT"),
    "rstar": Method(RStarParams, rstar, ("grader", "discriminator"), "tree search by self-consistency"),
    "compute_optimal": Method(
        ComputeOptimalParams, compute_optimal, ("prm",), "a method by the problem's estimated difficulty"
    ),
}


def make_params(name: str, values: Mapping[str, Any]) -> Any:
    """Parameters of a method from plain values, nested as in YAML.

    Raises:
        ConfigError: an unknown method or field, or a value out of range.
    """
    return _build(_method(name).params, values, "search")


def make_method(
    name: str, params: Any, *, grader: Grader | None = None, discriminator: Engine | None = None
) -> SearchMethod:
    """A method with its parameters bound, ready for `run_search`.

    Args:
        name: a name in METHODS.
        params: an instance of the method's class of parameters.
        grader: for methods that compare answers while they search.
        discriminator: a second policy for rstar; None leaves that part out.

    Raises:
        ConfigError: an unknown method, parameters of another method, or no grader where one is needed.
    """
    method = _method(name)
    if not isinstance(params, method.params):
        raise ConfigError("search.params", type(params).__name__, f"{method.params.__name__}, those of {name}")
    parts: dict[str, Any] = {}
    if "grader" in method.parts:
        if grader is None:
            raise ConfigError("search.grader", None, f"a grader: {name} compares answers")
        parts |= {"grader": grader, "discriminator": discriminator}
    if isinstance(params, ComputeOptimalParams):
        parts["choices"] = [
            make_method(
                choice.method, make_params(choice.method, choice.params), grader=grader, discriminator=discriminator
            )
            for choice in params.methods
        ]
    bound: SearchMethod = partial(method.search, params=params, **parts)
    return bound


def needs_prm(name: str) -> bool:
    """Can a method not do without a PRM? ConfigError for an unknown one."""
    return "prm" in _method(name).parts


def _method(name: str) -> Method:
    if name not in METHODS:
        raise ConfigError("search.method", name, " | ".join(METHODS))
    return METHODS[name]


def _build(kind: Any, value: Any, path: str) -> Any:
    """A value of a type from plain data: mappings become dataclasses, lists become tuples."""
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_build(get_args(kind)[0], item, f"{path}.{number}") for number, item in enumerate(value))
    if not is_dataclass(kind) or not isinstance(value, Mapping):
        return value
    known = [field.name for field in fields(kind)]
    for name in value:
        if name not in known:
            raise ConfigError(f"{path}.{name}", value[name], f"the fields {', '.join(known)}")
    hints = get_type_hints(kind)
    return cast(Callable[..., Any], kind)(
        **{name: _build(hints[name], item, f"{path}.{name}") for name, item in value.items()}
    )
