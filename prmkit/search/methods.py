"""All methods by name: the one place where a search is chosen by a string, and sized for a budget by its own rule."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from prmkit.errors import ConfigError, PluginError
from prmkit.plain_values import build_record
from prmkit.plugins import Catalogue
from prmkit.protocols import Engine, Grader
from prmkit.search.beam import BeamParams, beam_search
from prmkit.search.best_of_n import BestOfNParams, CoTParams, best_of_n, chain_of_thought
from prmkit.search.compute_optimal import ComputeOptimalParams, MethodChoice, compute_optimal
from prmkit.search.dvts import DVTSParams, dvts
from prmkit.search.mcts import MCTSParams, mcts
from prmkit.search.rebase import RebaseParams, rebase
from prmkit.search.result import SearchMethod, SearchResult
from prmkit.search.rstar import RStarParams, rstar

__all__ = [
    "METHODS",
    "Method",
    "SizeRule",
    "make_method",
    "make_params",
    "needs_prm",
    "register_search_method",
    "resize",
]

Part = Literal["prm", "grader", "discriminator"]
SizeRule = Callable[[Any, int, int | None], Any]
"""`(params, n, until_spent) -> params` for a budget of n samples, n at least 1. `until_spent` is the number of tokens
that a method which can stop at any time may spend; None sizes it by n, too."""

Made = TypeVar("Made", bound=Callable[..., Any])

_SIMULATIONS = 4  # a sample's worth of tokens pays for fewer, unless the tree has nothing new to give


@dataclass(frozen=True, slots=True)
class Method:
    """A method of search.

    Attributes:
        params: class of its parameters.
        search: `async (problem, engine, scorer, params, budget, ...) -> SearchResult`.
        parts: what it cannot do without ("prm", "grader") or can use ("discriminator").
        summary: what it does, in a few words.
        size: makes parameters for a budget; "one" for a method of one size, searched once beside budgets; None for a
            method that cannot be part of a comparison at budgets.
    """

    params: type
    search: Callable[..., Coroutine[Any, Any, SearchResult]]
    parts: tuple[Part, ...]
    summary: str
    size: SizeRule | Literal["one"] | None = None


def _by_samples(params: BestOfNParams, n: int, until_spent: int | None) -> BestOfNParams:
    return replace(params, n=until_spent or n)


def _by_width(params: Any, n: int, until_spent: int | None) -> Any:
    """At most n wide, and n rounded down to a multiple of the width; the width is fixed before anything is spent."""
    del until_spent
    width = min(params.width, n)
    return replace(params, width=width, n=n // width * width)


def _by_n(params: RebaseParams, n: int, until_spent: int | None) -> RebaseParams:
    del until_spent
    return replace(params, n=n)


def _by_simulations(params: Any, n: int, until_spent: int | None) -> Any:
    return replace(params, simulations=_SIMULATIONS * n if until_spent else n)


def _by_choices(params: ComputeOptimalParams, n: int, until_spent: int | None) -> ComputeOptimalParams:
    """A quarter of n for probes, at least 1 and at most what the parameters say; the rest for the chosen method."""
    probes = min(params.probes, max(1, n // 4))

    def sized(choice: MethodChoice) -> MethodChoice:
        found = resize(choice.method, make_params(choice.method, choice.params), max(1, n - probes), until_spent)
        return MethodChoice(choice.method, {field.name: getattr(found, field.name) for field in fields(found)})

    return replace(params, probes=probes, methods=tuple(map(sized, params.methods)))


METHODS: Catalogue[Method] = Catalogue(
    "search method",
    {
        "cot": Method(CoTParams, chain_of_thought, (), "one solution, greedy or sampled", "one"),
        "best_of_n": Method(BestOfNParams, best_of_n, (), "n independent solutions", _by_samples),
        "beam_search": Method(
            BeamParams, beam_search, ("prm",), "the best steps of every round, gone on from", _by_width
        ),
        "dvts": Method(DVTSParams, dvts, ("prm",), "independent trees, each going on from its best step", _by_width),
        "rebase": Method(RebaseParams, rebase, ("prm",), "samples shared among open steps by their scores", _by_n),
        "mcts": Method(MCTSParams, mcts, ("prm",), "tree search with PUCT", _by_simulations),
        "rstar": Method(
            RStarParams, rstar, ("grader", "discriminator"), "tree search by self-consistency", _by_simulations
        ),
        "compute_optimal": Method(
            ComputeOptimalParams,
            compute_optimal,
            ("prm",),
            "a method by the problem's estimated difficulty",
            _by_choices,
        ),
    },
)


def register_search_method(
    name: str,
    params: type,
    *,
    size: SizeRule | Literal["one"] | None = None,
    needs: tuple[Literal["prm", "grader"], ...] = (),
) -> Callable[[Made], Made]:
    """Register a search: `prm search --method NAME`, `prmkit.solve(..., method=NAME)`.

    Decorates `async (problem, engine, scorer, params, budget) -> SearchResult`, with a keyword `grader` where it needs
    one. The first line of its docstring is its line in `--help`.

    Args:
        name: the method's name; its settings are `--NAME.SETTING`.
        params: frozen dataclass of its settings, `sampling` (SamplingParams) and `seed` (int) among them.
        size: see Method; without it the method is refused in comparisons at budgets.
        needs: "prm" where it cannot search without one, "grader" where it compares answers.

    Raises:
        PluginError: the name is taken, or `params` is no such dataclass.
    """

    def register(search: Made) -> Made:
        known = {field.name for field in fields(params)} if is_dataclass(params) else set()
        if not {"sampling", "seed"} <= known:
            raise PluginError(
                f"search method {name!r}: params is {params!r}; accepted: a frozen dataclass with the fields sampling "
                f"and seed, which all methods of a comparison share"
            )
        parts: tuple[Part, ...] = needs
        METHODS.add(name, Method(params, search, parts, _first_line(search), size), search)
        return search

    return register


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def resize(name: str, params: Any, n: int, until_spent: int | None = None) -> Any:
    """A method's parameters for a budget of n samples, by its size rule.

    Beam search and DVTS round n down to a multiple of their width, and are at most n wide. Compute-optimal search
    spends a quarter of n on probes, at least 1 and at most what its parameters say, and the rest on the chosen method.
    A method of one size keeps it.

    Args:
        name: of the method.
        params: of its class.
        n: at least 1.
        until_spent: tokens that methods which can stop at any time may spend; None sizes these by n too.

    Raises:
        ConfigError: the method has no size rule.
    """
    rule = _method(name).size
    if rule is None:
        raise ConfigError(
            "budgets",
            n,
            f"null with {name}, which has no rule for its size",
            "Leave it out of the comparison, or register it with size=(params, n, until_spent) -> params.",
        )
    if rule == "one":
        return params
    return rule(params, n, until_spent)


def make_params(name: str, values: Mapping[str, Any]) -> Any:
    """Parameters of a method from plain values, nested as in YAML.

    Raises:
        ConfigError: an unknown method or field, or a value out of range.
    """
    return build_record(_method(name).params, values, "search")


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
        parts["grader"] = grader
    if "discriminator" in method.parts:
        parts["discriminator"] = discriminator
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
    return METHODS.find(name, "search.method")
