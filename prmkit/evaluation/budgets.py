"""What a budget means to each method, so that methods can be compared at equal ones.

In *samples*: a budget of N gives best-of-N its N, and every other method the size that draws as many next steps a round
(beam search, DVTS, REBASE) or runs as many simulations (MCTS, rStar). Every method has the same limit on generated
tokens: N times the longest trace, the most that N samples can cost.

In *tokens*: a budget of B is that limit itself. Methods that can stop at any time (best-of-N, MCTS, rStar) go on until
it is spent. Those that fix their width beforehand take what it pays for, B over the tokens of a usual sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from prmkit.errors import ConfigError
from prmkit.protocols import Engine, Grader, StepScorer
from prmkit.records import SamplingParams
from prmkit.search.budget import BudgetLimits
from prmkit.search.compute_optimal import ComputeOptimalParams, MethodChoice
from prmkit.search.methods import METHODS, make_method, resize
from prmkit.search.runner import Searcher

__all__ = ["BudgetPlan", "BudgetUnit", "PlannedSearch", "make_searchers", "plan_searches", "share_sampling"]

BudgetUnit = Literal["samples", "tokens"]


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """The budgets of a comparison.

    Attributes:
        budgets: given to every method, on every problem; each at least 1. None given: one search a method, of the size
            that its parameters say.
        unit: "samples" or "tokens" (generated ones), see the module.
        tokens_per_sample: tokens of a usual sample, at least 1, only read with unit "tokens"; None takes the longest
            possible one.
    """

    budgets: tuple[int, ...] = ()
    unit: BudgetUnit = "samples"
    tokens_per_sample: int | None = None

    def __post_init__(self) -> None:
        if any(budget < 1 for budget in self.budgets) or len(set(self.budgets)) < len(self.budgets):
            raise ConfigError("budgets", list(self.budgets), "different integers of at least 1, e.g. 1,4,16,64")
        if self.unit not in ("samples", "tokens"):
            raise ConfigError("budget_unit", self.unit, "samples | tokens")
        if self.tokens_per_sample is not None and self.tokens_per_sample < 1:
            raise ConfigError("tokens_per_sample", self.tokens_per_sample, "an integer of at least 1, or null")


@dataclass(frozen=True, slots=True)
class PlannedSearch:
    """One search of a comparison.

    Attributes:
        name: how it is called in rows.
        method: a name in METHODS.
        budget: in the plan's unit; None for a search without one.
        params: of the method's class, sized for the budget.
        limits: what may be spent on a problem.
    """

    name: str
    method: str
    budget: int | None
    params: Any
    limits: BudgetLimits


def share_sampling(params: Any, sampling: SamplingParams, seed: int) -> Any:
    """A method's parameters with the sampling and the seed of the whole comparison; methods that it chooses among get
    them too, where they have none of their own."""
    if isinstance(params, ComputeOptimalParams):
        common = {"sampling": sampling, "seed": seed}
        choices = tuple(MethodChoice(choice.method, {**common, **choice.params}) for choice in params.methods)
        params = replace(params, methods=choices)
    return replace(params, sampling=sampling, seed=seed)


def plan_searches(
    methods: Mapping[str, Any], plan: BudgetPlan, limits: BudgetLimits | None = None
) -> tuple[PlannedSearch, ...]:
    """All searches of a comparison: methods in their order, budgets ascending.

    Args:
        methods: parameters of each, by name. One that has no size (cot) is searched once, without a budget.
        plan: see BudgetPlan.
        limits: further ones, for every search.

    Raises:
        ConfigError: limits that the plan sets itself, a method that no budget can size (`resize`), or parameters that
            a budget makes impossible.
    """
    limits = limits or BudgetLimits()
    if plan.budgets and limits.generated_tokens is not None:
        raise ConfigError(
            "limits.generated_tokens", limits.generated_tokens, "null together with budgets, which set it"
        )
    planned = []
    for name, params in methods.items():
        if not plan.budgets or METHODS[name].size == "one":
            planned.append(PlannedSearch(name, name, None, params, limits))
            continue
        for budget in sorted(plan.budgets):
            longest = params.sampling.max_tokens
            if plan.unit == "samples":
                sized, tokens = resize(name, params, budget), budget * longest
            else:
                usual = plan.tokens_per_sample or longest
                sized, tokens = resize(name, params, max(1, budget // usual), until_spent=budget), budget
            planned.append(PlannedSearch(name, name, budget, sized, replace(limits, generated_tokens=tokens)))
    return tuple(planned)


def make_searchers(
    planned: Sequence[PlannedSearch],
    engine: Engine,
    scorer: StepScorer | None,
    grader: Grader,
    discriminator: Engine | None = None,
) -> tuple[Searcher, ...]:
    """The searches ready to run, all on the same models. ConfigError as in `make_method`."""
    return tuple(
        Searcher(
            make_method(search.method, search.params, grader=grader, discriminator=discriminator),
            engine,
            scorer,
            grader,
            search.name,
            search.budget,
            search.limits,
        )
        for search in planned
    )
