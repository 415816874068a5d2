"""`prm regime`: which reward to train a policy with, from a few hundred of its samples.

This module parses, checks everything that can be checked before a model is loaded, samples, scores and prints. Figures
are made in `prmkit.evaluation.regime`, the verdict in `prmkit.evaluation.regime_verdict`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prmkit.cli.ending import show_ending
from prmkit.cli.json_output import json_output
from prmkit.cli.loading import entered, load_engine, load_problems, load_scorer, model_identity, resolve_model
from prmkit.cli.options import (
    SERVER_FLAGS,
    EngineConfig,
    ProblemSource,
    ScorerConfig,
    build,
    expand_servers,
    make_parser,
    parse_settings,
    print_help,
    wants_help,
)
from prmkit.cli.pair_option import PAIR_HELP, with_pair
from prmkit.cli.parsing import expand_configs, user_errors
from prmkit.cli.prm_option import PRM_FLAGS, check_steps_fit, gathered_prms, prm_list
from prmkit.cli.regime_command import LookedAt, training_command
from prmkit.errors import ConfigError
from prmkit.evaluation.regime import StepScoresOf, regime_figures, scored_solutions
from prmkit.evaluation.regime_verdict import RegimeThresholds, Verdict, verdict
from prmkit.legibility import prompt_signs, warn_of
from prmkit.progress import ProgressLine
from prmkit.search.best_of_n import BestOfNParams, best_of_n
from prmkit.search.rows import SearchRow
from prmkit.search.runner import RunParams, Searcher, search_all
from prmkit.steps import StepFormat
from prmkit.types import Problem, SamplingParams, StepScorer, Task

__all__ = ["SUMMARY", "RegimeConfig", "parser", "run"]

SUMMARY = "before training: which reward a policy can learn from, and the command that trains it so"

EXAMPLES = """
examples:
  prm regime --policy runs/demo/sft/policy --prm runs/demo/prm/model
  prm regime --policy P --prm M --task accumulator --task_options '{min_ops: 24, max_ops: 24}'
  prm regime --policy P --prm M1 --prm M2 --task gsm8k --split train --sampling.max_tokens 1024     do PRMs agree?
  prm regime --policy P --task jsonl --data my_problems --chance 0.25                multiple choice of four answers

Samples a group of solutions for each of some problems, as reinforcement learning does, and says from pass@1, groups
without an outcome signal, luck, and the PRM's AUROC on these solutions whether to reward outcomes, outcomes and a PRM
(with which process weight), to train a PRM or an easier curriculum first, or to go back to SFT. Nothing is written;
the same seed gives the same figures. docs/regime.md explains the thresholds, which are settings."""

_USUAL_LIMIT = 64


@dataclass(frozen=True)
class RegimeConfig:
    """What to look at.

    Attributes:
        policy: model folder or hub name of the policy; with engine http its tokenizer and step format are enough.
        prm: likewise of a PRM, with scorer.kind http; null for none. Several (with commas, as a list, or by giving the
            option again) are compared with each other.
        group: samples per problem, as in training; at least 2.
        chance: share of right answers by guessing, in [0, 1); null takes what the task knows.
        policy_format, prm_format: step format in place of the model's own: a preset, a file or a folder.
        seed: of the samples.
        in_flight: problems and solutions in work at once; at least 1.
    """

    policy: str
    prm: str | list[str] | None = None
    group: int = 8
    chance: float | None = None
    policy_format: str | None = None
    prm_format: str | None = None
    seed: int = 0
    in_flight: int = 64

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ConfigError("group", self.group, "an integer of at least 2: a group of one has no signal")
        if self.chance is not None and not 0.0 <= self.chance < 1.0:
            raise ConfigError("chance", self.chance, "a number in [0, 1), or null")
        if self.in_flight < 1:
            raise ConfigError("in_flight", self.in_flight, "an integer of at least 1")


@dataclass(frozen=True)
class RegimeJob:
    """What is to be looked at, once it is known to be possible.

    Attributes:
        config, source, values: as parsed; `source` names the split that was taken.
        task, problems: what is to be solved.
        policy, prms: local folder and step format.
    """

    config: RegimeConfig
    source: ProblemSource
    values: Any
    task: Task
    problems: list[Problem]
    policy: tuple[Path, StepFormat]
    prms: dict[str, tuple[Path, StepFormat]]


def parser() -> Any:
    """The command's parser."""
    made = make_parser(
        "prm regime",
        "prm regime [--config FILE] --policy PATH [--prm PATH] [--task NAME] [--KEY VALUE ...]",
        (RegimeConfig, ProblemSource),
        {"sampling": SamplingParams, "thresholds": RegimeThresholds, "engine": EngineConfig, "scorer": ScorerConfig},
    )
    made.set_defaults({"limit": _USUAL_LIMIT})
    return made


def run(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    parse = parser()
    if wants_help(argv):
        print_help(parse, SUMMARY, SERVER_FLAGS, PRM_FLAGS, PAIR_HELP, "\n", EXAMPLES)
        return 0
    arguments, _ = expand_configs(expand_servers(gathered_prms(argv)))
    arguments = with_pair(arguments, {"policy": "--policy", "prm": "--prm"})
    with user_errors("prm regime", parse):
        job = _prepare(parse_settings(parse, arguments))
    with json_output(job.values["json"]) as answer:
        rows = _sample(job)
        scores = {name: _score(job, name, scored_solutions(rows)) for name in job.prms}
        figures = regime_figures(rows, job.problems, job.task, scores, job.config.chance)
        found = verdict(figures, job.values["thresholds"])
        looked_at = LookedAt(
            job.config.policy, tuple(job.prms), job.source, job.task, job.values["sampling"].max_tokens
        )
        following = training_command(found, looked_at)
        _show(figures, found, following)
        answer({"problem_source": asdict(job.source), "group": job.config.group, "seed": job.config.seed,
                "thresholds": asdict(job.values["thresholds"]), "figures": figures, "verdict": asdict(found),
                "next": following})  # fmt: skip
    return 0


def _prepare(values: Any) -> RegimeJob:
    """Everything that can go wrong before a model is loaded."""
    config, source = build(RegimeConfig, values), build(ProblemSource, values)
    if values["sampling"].temperature == 0.0:
        raise ConfigError("sampling.temperature", 0.0, "a number above 0: groups of equal solutions have no signal")
    task, split, problems = load_problems(source, "validation")
    names = prm_list(config.prm)
    if values["scorer"].kind == "http" and len(names) > 1:
        raise ConfigError("prm", config.prm, "one PRM, where a server scores", "Several are scored in this process.")
    policy = resolve_model(config.policy, config.policy_format, "policy", weights=values["engine"].kind != "http")
    prms = {}
    for name in names:
        prms[name] = resolve_model(name, config.prm_format, "prm", weights=values["scorer"].kind != "http")
        check_steps_fit((config.policy, policy[1]), (name, prms[name][1]), "prm")
    asked = [(config.policy, policy[0], values["engine"]), *((n, prms[n][0], values["scorer"]) for n in names)]
    for name, folder, where in asked:
        if where.kind == "http":  # servers of another model, or none, are refused
            model_identity(name, folder, where)
    return RegimeJob(config, replace(source, split=split), values, task, problems, policy, prms)


def _sample(job: RegimeJob) -> list[SearchRow]:
    """Groups of graded solutions, one row per problem."""
    config, values = job.config, job.values
    params = BestOfNParams(config.group, values["sampling"], config.seed)

    with ExitStack() as stack:
        grader = entered(job.task.grader, stack)
        engine = load_engine(*job.policy, values["engine"], stack)
        warn_of("policy", prompt_signs(engine.format, job.problems))
        progress = stack.enter_context(ProgressLine("samples", len(job.problems), at_once=config.in_flight))
        searcher = Searcher(partial(best_of_n, params=params), engine, None, grader)
        rows = search_all(job.problems, searcher, RunParams(config.in_flight), lambda _: progress.advance(""))
    failed = [row for row in rows if row.error is not None]
    if failed:
        what = f"{len(failed)} problems failed and are left out; {failed[0].problem_id}: {failed[0].error}"
        print(f"warning: {what}", file=sys.stderr)
    return rows


def _score(job: RegimeJob, name: str, solutions: Sequence[tuple[str, tuple[str, ...]]]) -> StepScoresOf:
    """Step scores of a PRM, which is loaded for this and left again."""
    with ExitStack() as stack:
        scorer = load_scorer(*job.prms[name], job.values["scorer"], stack, job.values["engine"].device)
        warn_of("PRM", prompt_signs(scorer.format, job.problems, prm=True))
        progress = stack.enter_context(ProgressLine("scores", len(solutions), at_once=job.config.in_flight))
        return asyncio.run(_score_all(scorer, solutions, job.config.in_flight, lambda: progress.advance("")))


async def _score_all(
    scorer: StepScorer, solutions: Sequence[tuple[str, tuple[str, ...]]], at_once: int, on_scored: Callable[[], None]
) -> StepScoresOf:
    room = asyncio.Semaphore(at_once)

    async def score(question: str, steps: tuple[str, ...]) -> tuple[float, ...]:
        async with room:
            found = (await scorer.score(question, steps)).values
        on_scored()
        return found

    values = await asyncio.gather(*(score(*solution) for solution in solutions))
    return dict(zip(solutions, values, strict=True))


def _show(figures: Mapping[str, Any], found: Verdict, following: Sequence[str]) -> None:
    lines = _lines(figures)
    width = 2 + max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}{value}")
    reward = {
        "nothing": "no reward yet",
        "outcome": "outcome",
        "outcome_and_prm": f"outcome and PRM, model.process_weight {found.process_weight}",
        "prm_or_curriculum": "a PRM from easier problems, or easier problems first",
    }[found.reward]
    print()
    show_ending([], [f"{found.regime}: {reward}", *found.why], [following])


def _lines(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    def share(name: str) -> str:
        value = figures[name]
        return "unknown" if value is None else f"{value:.3f}"

    right, tokens = figures["pass_at_1"], figures["tokens"]
    error = "" if right["se"] is None else f" ± {right['se']:.3f} (standard error over problems)"
    lines = [
        ("samples", f"{figures['samples']:,} of {figures['problems']:,} problems, {figures['failed']} failed"),
        ("pass@1", f"{right['mean']:.3f}{error}, chance {share('chance')}"),
        ("earned", f"{share('earned')} of the solutions; right answers by luck {share('lucky')}"),
        ("steps right before the first error", share("right_before_error")),
        ("groups without an outcome signal", f"all wrong {share('all_wrong')}, all right {share('all_right')}"),
        ("cut off, without answer", f"{share('truncated')}, {share('no_answer')}"),
        ("tokens per solution", f"{tokens['mean']:.1f}"),
    ]
    for name, prm in figures["prms"].items():
        known = {"steps": prm["auroc"], "answers": prm["outcome_auroc"], "first-error F1": prm.get("first_error_f1")}
        of = ", ".join(f"{key} {'unknown' if value is None else format(value, '.3f')}" for key, value in known.items())
        lines.append((f"AUROC of {name}", of))
    if figures["disagreement"] is not None:
        lines.append(("steps on which PRMs disagree", share("disagreement")))
    return lines
