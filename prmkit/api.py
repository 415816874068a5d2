"""What `import prmkit` offers: models loaded by name, questions solved, steps scored and labelled, in a few words.

A policy is an `Engine` and a PRM a `StepScorer`; wherever one is wanted, a model folder or hub name will do. Everything
here is a short composition of the rooms; what they can do beyond it is imported from them. It imports torch when a
model is loaded, not before.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from prmkit.aggregate import choose, log_aggregate, voting_classes
from prmkit.annotation.methods import get_method
from prmkit.annotation.records import StepLabels
from prmkit.engines.config import EngineConfig
from prmkit.errors import ConfigError, StepFormatError
from prmkit.evaluation.accuracy import method_names, selection_of
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import get_step_format
from prmkit.formats.spec import StepFormat
from prmkit.plain_values import build_record
from prmkit.protocols import Engine, Grader, StepScorer, Task
from prmkit.records import Problem, StepScores, Trace, Usage
from prmkit.scoring.config import ScorerConfig
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.methods import METHODS, make_method, make_params, resize
from prmkit.search.result import SearchMethod, SearchResult, TreeNode
from prmkit.search.rows import SearchRow
from prmkit.search.runner import RunParams, Searcher, search_all
from prmkit.search.sampling import solution_text
from prmkit.tasks import get_task

__all__ = [
    "Solution",
    "annotate",
    "load_pair",
    "load_policy",
    "load_prm",
    "score_steps",
    "search_task",
    "solve",
]

T = TypeVar("T")

Policy = str | Path | Engine
PRM = str | Path | StepScorer

log = logging.getLogger(__name__)
_open = ExitStack()  # connections and processes of loaded models; closed when the process ends
atexit.register(_open.close)


@dataclass(frozen=True, slots=True)
class Solution:
    """The answer to a question, and what it rests on.

    Attributes:
        answer: as the first trace that gives it writes it; None when no trace finished with an answer.
        confidence: in [0, 1]: the answer's share of the vote among the traces that ended with an answer, times the
            share of all traces that did. A trace votes with the product of its step scores, or the aggregation that
            `select` names; with majority all votes are equal. It ranks answers of the same models and method; it is
            not a calibrated probability.
        traces: all candidates, with their answers, and with step scores where there is a PRM.
        usage: what it cost.
        tree: all steps that a step-wise search tried; empty for methods whose traces show it all.
    """

    answer: str | None
    confidence: float
    traces: tuple[Trace, ...]
    usage: Usage
    tree: tuple[TreeNode, ...] = ()


# -- models -----------------------------------------------------------------------------------------------------------


def load_policy(path: str | Path, *, step_format: str | StepFormat | None = None, **settings: Any) -> Engine:
    """The policy of a folder or hub repository, ready to sample.

    Args:
        path: model folder or hub name.
        step_format: in place of the model's own: a preset, a file or a folder.
        settings: fields of EngineConfig, e.g. dtype="bfloat16", device="cuda"; kind="http" with
            http={"endpoints": ["http://gpu-1:8000"]}, or the kind of a registered engine with its options.

    Raises:
        ConfigError, DataError, StepFormatError: the model cannot be used, or a setting.
    """
    from prmkit.engines.factory import open_engine
    from prmkit.models.folders import resolve_folder
    from prmkit.weights import check_kind

    config: EngineConfig = build_record(EngineConfig, settings, "engine")
    folder = resolve_folder(str(path), config.weights)
    check_kind("policy", path, folder, "policy")
    return open_engine(config, folder, _format_of(folder, step_format), _open, logprobs=False)


def load_prm(
    path: str | Path, *, step_format: str | StepFormat | None = None, device: str = "auto", **settings: Any
) -> StepScorer:
    """The PRM of a folder or hub repository, ready to score.

    Args:
        path: model folder or hub name.
        step_format: in place of the model's own: a preset, a file or a folder.
        device: where it computes; auto is a GPU where there is one.
        settings: fields of ScorerConfig, e.g. dtype="bfloat16"; kind="http" with http={"endpoints": [...]}.

    Raises:
        ConfigError, DataError, StepFormatError: the model cannot be used, or a setting.
    """
    from prmkit.models.folders import resolve_folder
    from prmkit.scoring.factory import open_scorer

    config: ScorerConfig = build_record(ScorerConfig, settings, "scorer")
    folder = resolve_folder(str(path), config.weights)
    return open_scorer(config, folder, _format_of(folder, step_format), _open, device)


def load_pair(ref: str, registry: str | Path | None = None) -> tuple[Engine, StepScorer]:
    """Policy and PRM of a version in the registry, e.g. "math@best"; pulled into a cache and verified.

    Args:
        ref: NAME@VERSION, NAME@ALIAS, or NAME for the latest.
        registry: folder or URL; None is $PRMKIT_REGISTRY, otherwise runs/registry.
    """
    from registry import Registry

    pulled = Registry(registry).checkout(ref)
    return load_policy(pulled.policy), load_prm(pulled.prm)


def _format_of(folder: Path, given: str | StepFormat | None) -> StepFormat:
    return StepFormat.load(folder) if given is None else get_step_format(given)


def _stamp(path: str | Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every file of a local folder, by which a model that was written again is known."""
    files = sorted(file for file in Path(path).glob("*") if file.is_file())
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


class _Loaded:
    """The models that were given as paths lately: the last two policies and the last two PRMs stay in memory."""

    def __init__(self, load: Callable[[str | Path], T]) -> None:
        self._load = load
        self._kept: dict[str, tuple[Any, T]] = {}

    def get(self, path: str | Path) -> Any:
        """The model of a path: the one in memory, unless its files have changed."""
        stamp = _stamp(path)
        known = self._kept.pop(str(path), None)
        if known is None or known[0] != stamp:
            known = None  # free the memory of an earlier content before the new one is read
            known = (stamp, self._load(path))
        self._kept[str(path)] = known
        for oldest in list(self._kept)[:-2]:
            del self._kept[oldest]
        return known[1]


_policies = _Loaded(load_policy)
_prms = _Loaded(load_prm)


def _models(policy: Policy, prm: PRM | None) -> tuple[Engine, StepScorer | None]:
    """Both models, loaded where paths are given, once they are known to mean the same by a step."""
    engine: Engine = _policies.get(policy) if isinstance(policy, (str, Path)) else policy
    scorer: StepScorer | None = _prms.get(prm) if isinstance(prm, (str, Path)) else prm
    theirs = getattr(scorer, "format", None)  # scorers without a model have none
    if isinstance(theirs, BoundStepFormat):
        ends, wanted = theirs.spec.policy.separator, engine.format.spec.policy.separator
        if ends != wanted:
            raise StepFormatError(
                f"policy and PRM do not fit: the policy's steps end with {wanted!r}, those that the PRM was trained on "
                f"with {ends!r}. Take a PRM trained on this policy's steps, or load it with step_format=..."
            )
    return engine, scorer


# -- one question -----------------------------------------------------------------------------------------------------


def solve(
    question: str,
    policy: Policy,
    prm: PRM | None = None,
    *,
    method: str = "best_of_n",
    n: int | None = None,
    select: str | None = None,
    task: str | Task | None = None,
    seed: int = 0,
    limits: BudgetLimits | None = None,
    **settings: Any,
) -> Solution:
    """Answer a question by a search. Called where an event loop runs, as in a notebook, it works in a thread.

    Args:
        question: without any prompt template.
        policy: an engine, or the folder or hub name of a policy.
        prm: a scorer, or likewise; None for the methods that need none.
        method: a name in `prmkit.search.methods.METHODS`, or `module:attribute`.
        n: the method's size, as a budget of n samples; None is the size that its settings say.
        select: how the answer is chosen: "majority", or "product_vote", "min_max" and so on (see docs/search.md). None
            is product_vote with a PRM, otherwise majority.
        task: its grader reads and compares answers; None is for mathematical answers.
        seed: of the samples.
        limits: what may be spent; None sets no limit.
        settings: of the method, e.g. sampling={"temperature": 0.7, "max_tokens": 1024}, width=4.

    Raises:
        ConfigError: an unknown method, setting or selection; a PRM or grader is needed and missing.
    """
    engine, scorer = _models(policy, prm)
    accepted = method_names(scored=scorer is not None)[1:]  # no oracle
    if select is not None and select not in accepted:
        raise ConfigError("select", select, " | ".join(accepted))
    grader = _grader(task)
    search = _method(method, scorer, grader, n, {"seed": seed, **settings})
    budget = Budget(limits or BudgetLimits())
    problem = Problem("question", question, "")
    found = _outside_loop(lambda: asyncio.run(_searched(search, problem, engine, scorer, budget)))
    format_ = engine.format
    texts = [solution_text([step.text for step in trace.steps], format_) for trace in found.traces]
    traces = tuple(replace(t, answer=grader.extract(text)) for t, text in zip(found.traces, texts, strict=True))
    answer, confidence = _answer(traces, grader, select)
    return Solution(answer, confidence, traces, replace(budget.spent, seconds=0.0), found.nodes)


async def _searched(
    search: SearchMethod, problem: Problem, engine: Engine, scorer: StepScorer | None, budget: Budget
) -> SearchResult:
    return await search(problem, engine, scorer, budget=budget)


def _method(
    name: str, scorer: StepScorer | None, grader: Grader, n: int | None, settings: Mapping[str, Any]
) -> SearchMethod:
    name = METHODS.name_of(name, "method")
    if scorer is None and "prm" in METHODS[name].parts:
        raise ConfigError("prm", None, f"a PRM: {name} is guided by one")
    if n is not None and METHODS[name].size == "one":
        raise ConfigError("n", n, f"None: {name} has one size")
    params = make_params(name, settings)
    return make_method(name, params if n is None else resize(name, params, n), grader=grader)


def _answer(traces: Sequence[Trace], grader: Grader, select: str | None) -> tuple[str | None, float]:
    """The answer that a selection chooses, and its share of the vote; see Solution."""
    classes = voting_classes(grader.group([trace.answer for trace in traces]), [trace.finish for trace in traces])
    voters = [(trace, group) for trace, group in zip(traces, classes, strict=True) if group >= 0]
    if not voters:
        return None, 0.0
    scored = all(trace.scores is not None for trace, _ in voters)
    if not scored and select not in (None, "majority"):
        raise ConfigError("select", select, "majority: this method scores no whole solutions")
    selection, how = selection_of(select or ("product_vote" if scored else "majority"))
    logs = [0.0 if how is None or t.scores is None else log_aggregate(t.scores.values, how) for t, _ in voters]
    groups = [group for _, group in voters]
    winner = choose(groups, selection or "majority", logs)
    assert winner is not None  # there are voters
    best = max(logs)
    weights = [1.0 if best == -math.inf else math.exp(value - best) for value in logs]
    mine = math.fsum(weight for weight, group in zip(weights, groups, strict=True) if group == groups[winner])
    return voters[winner][0].answer, mine / math.fsum(weights) * len(voters) / len(traces)


def score_steps(prm: PRM, question: str, steps: Sequence[str]) -> tuple[float, ...]:
    """The PRM's score of each step, a probability in [0, 1] that it is right, given the question and earlier steps."""
    scorer: StepScorer = _prms.get(prm) if isinstance(prm, (str, Path)) else prm
    return _outside_loop(lambda: asyncio.run(_scores(scorer, question, steps))).values


async def _scores(scorer: StepScorer, question: str, steps: Sequence[str]) -> StepScores:
    return await scorer.score(question, steps)


# -- many problems ----------------------------------------------------------------------------------------------------


def search_task(
    task: str | Task,
    policy: Policy,
    prm: PRM | None = None,
    *,
    method: str = "best_of_n",
    n: int | None = None,
    problems: Sequence[Problem] | None = None,
    split: str = "test",
    limit: int | None = None,
    limits: BudgetLimits | None = None,
    in_flight: int = 64,
    seed: int = 0,
    **settings: Any,
) -> list[SearchRow]:
    """Solve a task's problems by a search: a graded row a problem, in memory (`prm search` writes and resumes them).

    `prmkit.evaluation.summary.figures` makes accuracies of the rows.

    Args:
        task: a task, or its name.
        policy, prm, method, n, seed, settings: as in `solve`.
        problems: to solve; None takes the first `limit` of the split.
        split, limit: of the task's problems; limit None takes all.
        limits: what may be spent on a problem.
        in_flight: problems in work at once; at least 1.
    """
    engine, scorer = _models(policy, prm)
    made = get_task(task) if isinstance(task, str) else task
    found = list(made.problems(split, limit) if problems is None else problems)
    search = _method(method, scorer, made.grader, n, {"seed": seed, **settings})
    searcher = Searcher(search, engine, scorer, made.grader, METHODS.name_of(method, "method"))
    run = RunParams(in_flight=in_flight, limits=limits or BudgetLimits())
    return _outside_loop(lambda: search_all(found, searcher, run))


def annotate(
    task: str | Task,
    policy: Policy,
    *,
    method: str = "omegaprm",
    problems: Sequence[Problem] | None = None,
    split: str = "train",
    limit: int | None = None,
    in_flight: int = 100,
    **settings: Any,
) -> list[StepLabels]:
    """Sample a policy and label the steps of its solutions, in memory (`prm annotate` writes and resumes them).

    `prmkit.annotation.formats.write_records` writes the records as training data. Problems that fail are left out with
    a warning.

    Args:
        task: a task, or its name.
        policy: an engine, or the folder or hub name of a policy.
        method: omegaprm, math_shepherd, mips, or one registered from outside.
        problems: whose solutions are labelled; None takes the first `limit` of the split.
        split, limit: of the task's problems; limit None takes all.
        in_flight: problems in work at once; at least 1.
        settings: of the method, e.g. rollouts=8, sampling={"max_tokens": 256}, seed=1.
    """
    from prmkit.annotation.counts import ProblemLabels
    from prmkit.annotation.runner import AnnotationRun, Workers, annotation_work
    from prmkit.jobs.runner import collect

    engine, _ = _models(policy, None)
    made = get_task(task) if isinstance(task, str) else task
    params = build_record(get_method(method).params, settings, "annotate")
    run = AnnotationRun(method, params, str(policy) if isinstance(policy, (str, Path)) else "", in_flight)
    found = list(made.problems(split, limit) if problems is None else problems)
    results = _outside_loop(lambda: collect(annotation_work(found, Workers(engine, made.grader), run)))
    labels = [result for result, _ in results if isinstance(result, ProblemLabels)]
    if len(labels) < len(results):
        log.warning("annotate: %d of %d problems failed and are left out", len(results) - len(labels), len(results))
    return [record for result in labels for record in result.records]


# -- helpers ----------------------------------------------------------------------------------------------------------


def _grader(task: str | Task | None) -> Grader:
    if task is None:
        return _math_grader()
    return (get_task(task) if isinstance(task, str) else task).grader


@cache
def _math_grader() -> Grader:
    from prmkit.grading import MathGrader

    grader = MathGrader()
    if isinstance(grader, AbstractContextManager):
        _open.enter_context(grader)
    return grader


def _outside_loop(work: Callable[[], T]) -> T:
    """The result of work that runs an event loop of its own: in another thread where one is running in this."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
