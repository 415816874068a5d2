"""`prm search`: solve problems with samples of a policy under a PRM, and draw accuracy against budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prmkit.cli.loading import entered, fingerprint, load_engine, load_problems, load_scorer, resolve_model
from prmkit.cli.options import EngineConfig, ProblemSource, ScorerConfig, build, make_parser
from prmkit.cli.parsing import expand_configs, user_errors
from prmkit.errors import StepFormatError
from prmkit.search.best_of_n import BestOfNParams, best_of_n
from prmkit.search.budget import BudgetLimits
from prmkit.search.rows import SearchRow
from prmkit.steps import StepFormat
from prmkit.types import Problem, SamplingParams, Task, VerifiableTask

__all__ = ["SUMMARY", "SearchConfig", "run"]

SUMMARY = "solve problems with best-of-N under a PRM; accuracy against budget"

EXAMPLES = """
examples:
  prm search --config configs/search/accumulator.yaml --policy runs/accumulator/sft/policy \\
             --prm runs/accumulator/prm/model --output runs/accumulator/search
  prm search --policy P --prm M --task bbh --data multistep_arithmetic_two.json --n 16 --output runs/bbh
  prm search --policy P --task gsm8k --data gsm8k/test.jsonl --n 8 --output runs/majority        no PRM: votes only

Writes to the output folder: rows.jsonl (a line a problem, with all samples and scores), summary.json and
accuracy_vs_budget.png. A run that was killed goes on where it stopped when it is started again."""

METHOD = "best_of_n"
PICTURE = "accuracy_vs_budget.png"


@dataclass(frozen=True)
class SearchConfig:
    """What to run, and where to.

    Attributes:
        policy: model folder or hub name of the policy.
        output: the folder to write.
        prm: model folder or hub name of the PRM; null scores nothing and leaves majority and oracle.
        policy_format, prm_format: step format in place of the model's own: a preset, a file or a folder.
        greedy: sample one trace a problem at temperature 0 too.
        headline: the PRM's method that is brought out and compared with majority: <aggregation>_vote or
            <aggregation>_max, with the aggregations min, last, mean, product, max.
        title: title of the picture; null takes task and split.
        in_flight: problems worked on at once, and the unit of resuming; at least 1.
        overwrite: begin anew, whatever the output holds.
    """

    policy: str
    output: str
    prm: str | None = None
    policy_format: str | None = None
    prm_format: str | None = None
    greedy: bool = True
    headline: str = "product_vote"
    title: str | None = None
    in_flight: int = 64
    overwrite: bool = False


@dataclass(frozen=True)
class _Models:
    """Folders and step formats of the models; the PRM's are None when there is none."""

    policy: tuple[Path, StepFormat]
    prm: tuple[Path, StepFormat] | None


def parser() -> Any:
    """The command's parser."""
    return make_parser(
        "prm search",
        "prm search [--config FILE] --policy PATH [--prm PATH] --output FOLDER [--KEY VALUE ...]",
        (SearchConfig, ProblemSource, BestOfNParams),
        {"sampling": SamplingParams, "limits": BudgetLimits, "engine": EngineConfig, "scorer": ScorerConfig},
    )


def run(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    parse = parser()
    if any(argument in ("-h", "--help") for argument in argv):
        print(f"{SUMMARY[0].upper()}{SUMMARY[1:]}.\n\n{parse.format_help()}{EXAMPLES}")
        return 0
    arguments, _ = expand_configs(argv)
    with user_errors("prm search", parse):
        values = parse.instantiate(parse.parse_args(arguments))
        config, source = build(SearchConfig, values), build(ProblemSource, values)
        params = build(BestOfNParams, values)
    from prmkit.evaluation.summary import check_headline

    check_headline(config.headline)
    task, split, problems = load_problems(source, "test")
    source = replace(source, split=split)
    models = _resolve(config)
    settings = {
        "method": METHOD,
        "policy": fingerprint(models.policy[0]),
        "policy_format": models.policy[1].to_dict(),
        "prm": None if models.prm is None else fingerprint(models.prm[0]),
        "prm_format": None if models.prm is None else models.prm[1].to_dict(),
        **asdict(source),
        **asdict(params),
        "limits": asdict(values["limits"]),
        "greedy": config.greedy,
        "in_flight": config.in_flight,
        "engine": {"dtype": values["engine"].dtype},
        "scorer": {"dtype": values["scorer"].dtype},
    }
    seconds = _search(config, params, values, settings, models, task, problems)
    _summarise(config, source, params, task, problems, seconds)
    return 0


def _resolve(config: SearchConfig) -> _Models:
    """Find both models and check that they mean the same by a step, before either is loaded."""
    policy = resolve_model(config.policy, config.policy_format, "policy")
    if config.prm is None:
        return _Models(policy, None)
    prm = resolve_model(config.prm, config.prm_format, "prm")
    ours, theirs = policy[1].policy.separator, prm[1].policy.separator
    if ours != theirs:
        raise StepFormatError(
            f"policy and PRM do not fit: steps of {config.policy} end with {ours!r}, those {config.prm} was trained on "
            f"with {theirs!r}. Take a PRM trained on this policy's steps, or name the format with --prm_format or "
            f"--policy_format."
        )
    return _Models(policy, prm)


def _search(
    config: SearchConfig,
    params: BestOfNParams,
    values: Any,
    settings: dict[str, Any],
    models: _Models,
    task: Task,
    problems: Sequence[Problem],
) -> float:
    from prmkit.chunks import ChunkedOutput
    from prmkit.cli.progress import ProgressLine
    from prmkit.search.runner import RunParams, Searcher, run_search

    greedy = replace(params.sampling, temperature=0.0) if config.greedy else None
    run_params = RunParams(config.in_flight, greedy, values["limits"])
    rows_path = Path(config.output) / "rows.jsonl"
    with ExitStack() as stack:
        output = stack.enter_context(ChunkedOutput(rows_path, settings, overwrite=config.overwrite))
        if output.complete:
            return float(output.state["seconds"])
        grader = entered(task.grader, stack)
        engine = load_engine(*models.policy, values["engine"])
        scorer = None
        if models.prm is not None:
            scorer = load_scorer(*models.prm, values["scorer"], values["engine"].device)
        progress = stack.enter_context(ProgressLine("search", len(problems), output.lines))
        generated = scored = 0

        def show(row: SearchRow) -> None:
            nonlocal generated, scored
            generated += row.usage.generated_tokens
            scored += row.usage.scored_tokens
            progress.advance(f"{generated:,} tokens generated, {scored:,} scored")

        searcher = Searcher(partial(best_of_n, params=params), engine, scorer, grader)
        return run_search(problems, searcher, output, run_params, show)


def _summarise(
    config: SearchConfig,
    source: ProblemSource,
    params: BestOfNParams,
    task: Task,
    problems: Sequence[Problem],
    seconds: float,
) -> None:
    from prmkit.evaluation.plots import plot_accuracy
    from prmkit.evaluation.summary import figures, tokens_spent, truth_figures
    from prmkit.io import write_json
    from prmkit.search.rows import read_rows

    folder = Path(config.output)
    rows = list(read_rows(folder / "rows.jsonl"))
    result = figures(rows, config.headline)
    if config.prm is not None and isinstance(task, VerifiableTask):
        result["prm"] = truth_figures(rows, problems, task)
    summary = {
        "schema": 1,
        "method": METHOD,
        "policy": config.policy,
        "prm": config.prm,
        "problems": asdict(source),
        "n": params.n,
        "sampling": asdict(params.sampling),
        "seed": params.seed,
        "headline": config.headline,
        "figures": result,
        "tokens": tokens_spent(rows),
        "seconds": seconds,
    }
    title = config.title or f"{source.task}, {source.split}: {len(rows)} problems"
    plot_accuracy(result, config.headline, folder / PICTURE, title)
    write_json(folder / "summary.json", summary)
    _report(rows, summary, folder)


def _report(rows: Sequence[SearchRow], summary: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from prmkit.evaluation.plots import companion
    from prmkit.evaluation.tables import accuracy_rows, rich_table

    result, headline = summary["figures"], summary["headline"]
    methods = ("oracle", headline, companion(headline), "majority")
    Console().print(rich_table(*accuracy_rows(result, methods)))
    if "gain_at_16" in result:
        gain = result["gain_at_16"]
        error = "" if gain["se"] is None else f" ± {100 * gain['se']:.1f}"
        print(f"{headline} less majority at N = 16, paired by problem: {100 * gain['mean']:+.1f}{error} points")
    if "prm" in result:
        shown = ("auroc", "step_accuracy", "first_error_f1", "ece")
        print(
            "PRM against exact truth: "
            + ", ".join(f"{name} {result['prm'][name]:.3f}" for name in shown if result["prm"][name] is not None)
        )
    tokens = summary["tokens"]
    print(
        f"{tokens['generated']:,} tokens generated, {tokens['scored']:,} scored, {summary['seconds']:.1f} s; {folder}"
    )
    failed = [row for row in rows if row.error is not None]
    if failed:
        print(
            f"warning: {len(failed)} problems failed and count as wrong; {failed[0].problem_id}: {failed[0].error}",
            file=sys.stderr,
        )
