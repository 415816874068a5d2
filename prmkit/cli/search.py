"""`prm search`: solve problems with searches of a policy under a PRM, and draw accuracy against budget.

This module parses, checks everything that can be checked before a model is loaded, and runs; what comes of it is told
by `search_plain` (best-of-N, every N from one set of samples) or `search_comparison` (methods at equal budgets).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
    peek,
    print_help,
    wants_help,
)
from prmkit.cli.output_state import say_state
from prmkit.cli.outputs import check_output_folder
from prmkit.cli.pair_option import PAIR_HELP, with_pair
from prmkit.cli.parsing import expand_configs, user_errors
from prmkit.cli.prm_option import PRM_FLAGS, check_steps_fit, gathered_prms, prm_list
from prmkit.errors import ConfigError
from prmkit.evaluation.budgets import (
    BudgetPlan,
    BudgetUnit,
    PlannedSearch,
    make_searchers,
    plan_searches,
    share_sampling,
)
from prmkit.evaluation.summary import check_headline
from prmkit.formats.spec import StepFormat
from prmkit.jobs.chunks import ChunkedOutput, meta_path
from prmkit.jobs.claims import ClaimFolder
from prmkit.jobs.items import Items, problem_items
from prmkit.jobs.runner import gather, run_claimed
from prmkit.legibility import prompt_signs, warn_of
from prmkit.ownership import check_outputs
from prmkit.progress import ProgressLine
from prmkit.protocols import StepScorer, Task
from prmkit.records import Problem, SamplingParams
from prmkit.scoring.ensemble import EnsembleScorer, Pessimism
from prmkit.search.best_of_n import BestOfNParams, CoTParams
from prmkit.search.budget import BudgetLimits
from prmkit.search.methods import METHODS, needs_prm
from prmkit.search.rows import SearchRow
from prmkit.search.runner import RunParams, Searcher, run_search, search_work

__all__ = ["PLAIN", "SUMMARY", "SearchConfig", "SearchJob", "method_list", "parser", "run"]

SUMMARY = "solve problems with one or several searches under a PRM; accuracy against budget"

EXAMPLES = """
methods (settings of each as --NAME.SETTING; --method NAME --help lists them):
{methods}

examples:
  prm search --config configs/search/accumulator.yaml --policy runs/accumulator/sft/policy \\
             --prm runs/accumulator/prm/model --output runs/accumulator/search
  prm search --policy P --prm M --output runs/compare --method beam_search,mcts,best_of_n --budgets 1,4,16,64
  prm search --policy P --prm M --output runs/tokens --method dvts,best_of_n --dvts.width 2 \\
             --budgets 500,2000,8000 --budget_unit tokens --tokens_per_sample 40
  prm search --policy P --prm M --output runs/served --endpoint http://a:8000 --prm_endpoint http://b:8000
  prm search --policy P --prm M1 --prm M2 --pessimism min --output runs/careful              two PRMs, the lower score
  prm search --config configs/search/accumulator.yaml --pair accumulator@best --output runs/best
  prm search --policy P --prm M --output /shared/s --shared true          start as many as you like, on any machine
  prm search --policy P --task gsm8k --data gsm8k/test.jsonl --n 8 --output runs/majority        no PRM: votes only

Best-of-N alone and without budgets draws N samples a problem and tells every smaller N from the same samples. Otherwise
every method gets every budget, with the same limit on generated tokens.

Writes to the output folder: rows.jsonl (a line a problem, method and budget, with all traces, scores and the tree),
summary.json, accuracy_vs_budget.png and, where levels are known, accuracy_by_level.png. A run that was killed goes on
where it stopped when it is started again."""

PLAIN = "best_of_n"
_MODELS = ("policy", "prm", "discriminator")


@dataclass(frozen=True)
class SearchConfig:
    """What to run, and where to.

    Attributes:
        policy: model folder or hub name of the policy; with engine http its tokenizer and step format are enough.
        output: the folder to write.
        method: one or several methods, separated by commas.
        budgets: budgets of every method, e.g. 1,4,16,64; null searches once, with the size that each method's settings
            say.
        budget_unit: samples or tokens; what a budget counts, see docs/search.md.
        tokens_per_sample: tokens of a usual sample; sizes beams when budgets are tokens. Null takes the longest.
        prm: likewise of the PRM, with scorer.kind http; null scores nothing and leaves majority and oracle. Several
            (with commas, as a list, or by giving the option again) score together.
        pessimism: score of a step from those of several PRMs: min; mean-std, the mean less one standard deviation;
            mean.
        discriminator: model folder or hub name of a second policy, for rstar; null leaves that part out.
        policy_format, prm_format: step format in place of the model's own: a preset, a file or a folder.
        discriminator_format: likewise.
        greedy: sample one trace a problem at temperature 0 too.
        headline: the PRM's selection that is brought out and compared with majority: <aggregation>_vote or
            <aggregation>_max, with the aggregations min, last, mean, product, max.
        title: title of the picture; null takes task and split.
        in_flight: searches in work at once; at least 1.
        chunk: problems written at once, and the unit of resuming and sharing; at least 1.
        shared: work on one output together with other processes that were started alike; they share the folder
            <output>/rows.jsonl.parts, and the last one puts the rows together.
        overwrite: begin anew, whatever an earlier run has left in the output.
    """

    policy: str
    output: str
    method: str | list[str] = PLAIN
    budgets: int | str | list[int] | None = None
    budget_unit: BudgetUnit = "samples"
    tokens_per_sample: int | None = None
    prm: str | list[str] | None = None
    pessimism: Pessimism = "min"
    discriminator: str | None = None
    policy_format: str | None = None
    prm_format: str | None = None
    discriminator_format: str | None = None
    greedy: bool = True
    headline: str = "product_vote"
    title: str | None = None
    in_flight: int = 64
    chunk: int = 8
    shared: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.shared and self.overwrite:
            raise ConfigError("overwrite", True, "false with shared", f"Delete {self.output} first.")


@dataclass(frozen=True)
class _Common:
    """What all methods of a comparison share.

    Attributes:
        seed: of the run; the seed of a problem is derived from it and the problem's id.
    """

    seed: int = 0


@dataclass(frozen=True)
class SearchJob:
    """What is to be done, once it is known to be possible.

    Attributes:
        config, source, values: as parsed; `source` names the split that was taken.
        task, problems: what to solve.
        methods: parameters of every method, by name; of a plain run just best-of-N's.
        planned: all searches.
        greedy: sampling of a greedy trace in every row; only of a plain run.
        models: local folder and step format of "policy", "prm" and "discriminator", those that there are; further PRMs
            are "prm.2", "prm.3" and so on.
        identities: content and way of computing of each, see `model_identity`.
    """

    config: SearchConfig
    source: ProblemSource
    values: Any
    task: Task
    problems: list[Problem]
    methods: dict[str, Any]
    planned: tuple[PlannedSearch, ...]
    greedy: SamplingParams | None
    models: dict[str, tuple[Path, StepFormat]]
    identities: dict[str, tuple[str, dict[str, Any]]]

    @property
    def plain(self) -> bool:
        return _is_plain(self.config)

    @property
    def rows_path(self) -> Path:
        return Path(self.config.output) / "rows.jsonl"

    def items(self) -> Items:
        """The problems by their content."""
        return problem_items(self.problems, self.config.chunk)

    def settings(self) -> dict[str, Any]:
        """All that decides the content of the rows, but for the problems."""
        config = self.config
        if self.plain:
            searches: dict[str, Any] = {"method": PLAIN, **asdict(self.methods[PLAIN])}
        else:
            searches = {
                "methods": {name: asdict(params) for name, params in self.methods.items()},
                "budgets": _budgets(config.budgets),
                "budget_unit": config.budget_unit,
                "tokens_per_sample": config.tokens_per_sample,
            }
        models: dict[str, Any] = {}
        for name in _MODELS:
            _, step_format = self.models.get(name, (None, None))
            models[name] = self.identities[name][0] if name in self.identities else None
            models[f"{name}_format"] = None if step_format is None else step_format.to_dict()
        further = {name: content for name, (content, _) in self.identities.items() if name.startswith("prm.")}
        if further:
            models |= {**further, "pessimism": config.pessimism}
        return {
            **searches,
            **models,
            **{name: value for name, value in asdict(self.source).items() if name != "limit"},  # a larger one extends
            "limits": asdict(self.values["limits"]),
            "greedy": config.greedy,
            "chunk": config.chunk,
            "engine": self.identities["policy"][1],
            "scorer": self.identities["prm"][1] if "prm" in self.identities else {"dtype": self.values["scorer"].dtype},
        }


def method_list(value: str | Sequence[str]) -> tuple[str, ...]:
    """Names of methods from a list, or from text with commas (or brackets, as a list looks when it is printed).

    A method given as `module:attribute` is called by the name that it was registered under.

    Raises:
        ConfigError: none, the same one twice, or an unknown one.
    """
    texts = value.strip("[]").split(",") if isinstance(value, str) else value
    names = tuple(METHODS.name_of(text.strip(" '\""), "method") for text in texts)
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("method", name, f"different ones of {' | '.join(METHODS)}, separated by commas")
    return names


def parser(names: Sequence[str] | None = None) -> Any:
    """The command's parser, for the settings of these methods; None takes them all, with those of a plain run.

    The settings of best-of-N alone have no group of their own.
    """
    alone = names is not None and tuple(names) == (PLAIN,)
    groups = {} if alone else {name: METHODS[name].params for name in (METHODS if names is None else names)}
    return make_parser(
        "prm search",
        "prm search [--config FILE] [--method NAMES] [--budgets LIST] --policy PATH [--prm PATH] --output FOLDER "
        "[--KEY VALUE ...]",
        (SearchConfig, ProblemSource, BestOfNParams if alone or names is None else _Common),
        {
            "sampling": SamplingParams,
            "limits": BudgetLimits,
            "engine": EngineConfig,
            "scorer": ScorerConfig,
            **groups,
        },
        shared=("sampling", "seed"),
    )


def run(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    arguments, _ = expand_configs(expand_servers(gathered_prms([_underscored(argument) for argument in argv])))
    names = method_list(peek(arguments, "method", PLAIN))
    parse = parser(names)
    if wants_help(argv):
        methods = "\n".join(f"  {name:17}{entry.summary}" for name, entry in METHODS.items())
        print_help(parse, SUMMARY, SERVER_FLAGS, PRM_FLAGS, PAIR_HELP, "\n", EXAMPLES.format(methods=methods))
        return 0
    arguments = with_pair(arguments, {"policy": "--policy", "prm": "--prm"})
    with user_errors("prm search", parse):
        values = parse_settings(parse, arguments)
        job = _prepare(values, names)
    with json_output(values["json"]) as answer:
        seconds = _search(job)
        if job.plain:
            from prmkit.cli.search_plain import report
        else:
            from prmkit.cli.search_comparison import report
        answer({"output": job.config.output, **report(job, seconds)})
    return 0


def _underscored(argument: str) -> str:
    """`--budget-unit` as `--budget_unit`."""
    flag, equals, value = argument.partition("=")
    return flag[:2] + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument


def _prepare(values: Any, names: Sequence[str]) -> SearchJob:
    """Everything that can go wrong before a model is loaded."""
    config, source = build(SearchConfig, values), build(ProblemSource, values)
    check_output_folder("output", config.output)
    check_headline(config.headline)
    for name in names:
        if needs_prm(name) and config.prm is None:
            raise ConfigError("prm", None, f"a model folder or hub name: {name} is guided by a PRM")
    if config.discriminator is not None and "rstar" not in names:
        raise ConfigError("discriminator", config.discriminator, "null, unless rstar is among the methods")
    if tuple(names) == (PLAIN,):
        methods: dict[str, Any] = {PLAIN: build(BestOfNParams, values)}
    else:
        methods = {name: share_sampling(values[name], values["sampling"], values["seed"]) for name in names}
    planned, greedy = _plan(config, methods, values)
    task, split, problems = load_problems(source, "test")
    if values["scorer"].kind == "http" and len(prm_list(config.prm)) > 1:
        raise ConfigError("prm", config.prm, "one PRM, where a server scores", "Several are scored in this process.")
    _check_output(Path(config.output))
    models = _resolve(config, values)
    identities = {
        name: model_identity(path, models[name][0], _computed_by(name, values)) for name, path in _named_models(config)
    }
    source = replace(source, split=split)
    return SearchJob(config, source, values, task, problems, methods, planned, greedy, models, identities)


def _check_output(folder: Path) -> None:
    """Refuse files of something else in the place of those that are going to be written (ConfigError)."""
    files = ("rows.jsonl", "summary.json", "accuracy_vs_budget.png", "accuracy_by_level.png")
    check_outputs("output", folder, [folder / name for name in files], meta_path(folder / "rows.jsonl"))


def _is_plain(config: SearchConfig) -> bool:
    return method_list(config.method) == (PLAIN,) and not _budgets(config.budgets)


def _budgets(value: int | str | Sequence[int] | None) -> list[int]:
    """Budgets from a number, a list or text with commas. ConfigError for anything else in it."""
    if value is None or isinstance(value, int):
        return [] if value is None else [value]
    found = []
    for item in value.split(",") if isinstance(value, str) else value:
        if not str(item).strip().isdigit():
            raise ConfigError("budgets", value, "integers of at least 1, separated by commas, e.g. 1,4,16,64")
        found.append(int(item))
    return found


def _plan(
    config: SearchConfig, methods: dict[str, Any], values: Any
) -> tuple[tuple[PlannedSearch, ...], SamplingParams | None]:
    """All searches; and the sampling of the greedy traces, which are a search of their own in a comparison."""
    greedy = replace(values["sampling"], temperature=0.0)
    limits = values["limits"]
    if _is_plain(config):
        alone = PlannedSearch(PLAIN, PLAIN, None, methods[PLAIN], limits)
        return (alone,), greedy if config.greedy else None
    plan = BudgetPlan(tuple(_budgets(config.budgets)), config.budget_unit, config.tokens_per_sample)
    planned = plan_searches(methods, plan, limits)
    if config.greedy:
        planned = (*planned, PlannedSearch("greedy", "cot", None, CoTParams(greedy), limits))
    return planned, None


def _computed_by(name: str, values: Any) -> EngineConfig | ScorerConfig:
    """The settings by which one of the models computes. The discriminator does so in this process."""
    if name.partition(".")[0] == "prm":
        scorer: ScorerConfig = values["scorer"]
        return scorer
    engine: EngineConfig = values["engine"]
    return replace(engine, kind="hf") if name == "discriminator" else engine


def _named_models(config: SearchConfig) -> list[tuple[str, str]]:
    """Name and path of the policy, the PRMs and the discriminator, those that there are."""
    prms = prm_list(config.prm)
    named = [("policy", config.policy)]
    named += [(f"prm.{number}" if number > 1 else "prm", path) for number, path in enumerate(prms, start=1)]
    return named if config.discriminator is None else [*named, ("discriminator", config.discriminator)]


def _resolve(config: SearchConfig, values: Any) -> dict[str, tuple[Path, StepFormat]]:
    """Find the models and check that they mean the same by a step, before any is loaded."""
    models: dict[str, tuple[Path, StepFormat]] = {}
    for name, path in _named_models(config):
        option = name.partition(".")[0]
        here = _computed_by(name, values).weights
        models[name] = resolve_model(path, getattr(config, f"{option}_format"), option, weights=here)
        check_steps_fit((config.policy, models["policy"][1]), (path, models[name][1]), option)
    return models


def _reads_logprobs(job: SearchJob) -> bool:
    """Does a method weigh steps by their probability?"""
    return any(getattr(params, "prior", None) == "probability" for params in job.methods.values())


def _scorer(job: SearchJob, stack: ExitStack) -> StepScorer | None:
    """The PRM, or several as one."""
    found = [entry for name, entry in job.models.items() if name.partition(".")[0] == "prm"]
    loaded = [load_scorer(*entry, job.values["scorer"], stack, job.values["engine"].device) for entry in found]
    for scorer in loaded:
        warn_of("PRM", prompt_signs(scorer.format, job.problems, prm=True))
    if len(loaded) > 1:
        return EnsembleScorer(loaded, job.config.pessimism)
    return loaded[0] if loaded else None


def _search(job: SearchJob) -> float:
    """Run what the output does not hold yet; returns the seconds of all attempts."""
    config, values = job.config, job.values
    run_params = RunParams(config.in_flight, job.greedy, values["limits"], config.chunk)
    with ExitStack() as stack:
        if config.shared:
            return _search_shared(job, run_params, stack)
        output = stack.enter_context(
            ChunkedOutput(job.rows_path, job.settings(), overwrite=config.overwrite, items=job.items())
        )
        say_state(output, len(job.problems))
        if output.complete:
            return float(output.state["seconds"])
        searchers = _searchers(job, stack)
        progress = ProgressLine("search", len(job.problems) * len(searchers), output.lines, config.in_flight)
        show = _shown_on(stack.enter_context(progress))
        return run_search(job.problems, searchers, output, run_params, show)


def _search_shared(job: SearchJob, run_params: RunParams, stack: ExitStack) -> float:
    """Take part in a run that several processes share, and put its rows together if nobody has done so."""
    chunks = -(-len(job.problems) // run_params.chunk)
    claims = stack.enter_context(ClaimFolder(f"{job.rows_path}.parts", job.settings(), chunks, job.items()))
    worked = not claims.all_done
    if worked:
        searchers = _searchers(job, stack)
        progress = ProgressLine(
            "search (this worker)", len(job.problems) * len(searchers), at_once=job.config.in_flight
        )
        show = _shown_on(stack.enter_context(progress))
        run_claimed(search_work(job.problems, searchers, run_params, show), claims)
    stack.enter_context(claims.gathering())
    output = stack.enter_context(ChunkedOutput(job.rows_path, job.settings(), items=job.items()))
    say_state(output, len(job.problems), worked=worked)
    return float(gather(claims, output)["seconds"])


def _searchers(job: SearchJob, stack: ExitStack) -> tuple[Searcher, ...]:
    """The planned searches over models that are ready; what has to be closed is closed with the stack."""
    values, models = job.values, job.models
    grader = entered(job.task.grader, stack)
    engine = load_engine(*models["policy"], values["engine"], stack, logprobs=_reads_logprobs(job))
    warn_of("policy", prompt_signs(engine.format, job.problems))
    scorer, second = _scorer(job, stack), None
    if "discriminator" in models:
        second = load_engine(*models["discriminator"], replace(values["engine"], kind="hf"), stack)
    return make_searchers(job.planned, engine, scorer, grader, second)


def _shown_on(progress: ProgressLine) -> Callable[[SearchRow], None]:
    """Counts rows, and shows what came of all so far."""
    generated = scored = failed = 0

    def show(row: SearchRow) -> None:
        nonlocal generated, scored, failed
        generated += row.usage.generated_tokens
        scored += row.usage.scored_tokens
        failed += row.error is not None
        failures = f", {failed} failed" if failed else ""
        progress.advance(f"{generated:,} tokens generated, {scored:,} scored{failures}")

    return show
