"""`prm annotate`: sample a policy and label the steps of its solutions by Monte-Carlo rollouts."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.annotation.counts import AnnotationCounts
from prmkit.annotation.methods import METHODS, get_method
from prmkit.cli.json_output import json_output
from prmkit.cli.loading import entered, load_engine, load_problems, model_identity, resolve_model
from prmkit.cli.options import (
    SERVER_FLAGS,
    EngineConfig,
    ProblemSource,
    build,
    expand_servers,
    make_parser,
    parse_settings,
    peek,
    print_help,
    wants_help,
)
from prmkit.cli.outputs import check_output_file
from prmkit.cli.pair_option import PAIR_HELP, with_pair
from prmkit.cli.parsing import expand_configs, user_errors
from prmkit.errors import ConfigError, DataError
from prmkit.jobs.items import Items, problem_items
from prmkit.protocols import Engine, Task, VerifiableTask
from prmkit.records import Problem, SamplingParams, Usage

if TYPE_CHECKING:
    from prmkit.annotation.runner import AnnotationRun
    from prmkit.annotation.traces import Candidates
    from prmkit.jobs.chunks import ChunkedOutput

__all__ = ["SUMMARY", "AnnotateConfig", "parse_shard", "parser", "run", "shard_of"]

SUMMARY = "sample a policy and label its steps by Monte-Carlo rollouts; convert label files"

EXAMPLES = """
methods (--method NAME --help lists the settings of each):
{methods}

examples:
  prm annotate --config configs/annotate/accumulator.yaml --policy runs/accumulator/sft/policy --output steps.jsonl
  prm annotate --method omegaprm --policy my-policy --output steps.jsonl --task gsm8k --data gsm8k/train.jsonl
  prm annotate --config C --policy P --output steps.jsonl --engine http --endpoint http://a:8000 --endpoint http://b:8000
  prm annotate --method math_shepherd --help
  prm annotate --method traces --candidates runs/search/rows.jsonl --policy P --output hard.jsonl   what misled a search
  prm annotate --config C --policy P --output part-2.jsonl --shard 2/8      the second eighth; concatenate the outputs
  prm annotate --config C --policy P --output steps.jsonl --workers 4       four processes on this machine
  prm annotate --config C --policy P --output steps.jsonl --shared true     start as many as you like, on any machine
  prm annotate --convert math-aps.jsonl --to prmkit --output steps.jsonl    see prm annotate --convert --help
  prm annotate --judge steps.jsonl --prm my-prm                             see prm annotate --judge --help

Writes one JSON line a labelled solution, the search trees beside them (<output>.trees.jsonl), settings and counts
(<output>.meta.json) and a report (<output>.report.json). A run that was killed goes on where it stopped when it is
started again, and ends with the same lines. With a task whose steps can be checked exactly the labels are compared with
the truth."""

_SHARD = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class AnnotateConfig:
    """What to annotate, and where to.

    Attributes:
        policy: model folder or hub name of the policy; with engine http its tokenizer and step format are enough.
        output: the JSON-lines file to write.
        method: omegaprm, math_shepherd, mips or traces.
        candidates: the rows.jsonl of a `prm search`, whose solutions the method traces labels; its problems are those
            of the rows, `task` and `data` give the grader.
        policy_format: step format in place of the policy's own: a preset, a file or a folder.
        policy_name: the policy's name in the records; null takes `policy`.
        in_flight: problems worked on at once; at least 1.
        chunk: problems written at once, and the unit of resuming and sharing; at least 1.
        shard: i/n, the i-th of n equal parts of the problems, from 1; null takes all.
        shared: work on one output together with other processes that were started alike; they share the folder
            <output>.parts, and the last one puts the output together.
        workers: processes on this machine, at least 1; with more than 1 they share the work as with `shared`.
        overwrite: begin anew, whatever an earlier run has left in the output.
    """

    policy: str
    output: str
    method: str = "omegaprm"
    candidates: str | None = None
    policy_format: str | None = None
    policy_name: str | None = None
    in_flight: int = 100
    chunk: int = 50
    shard: str | None = None
    shared: bool = False
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.shard is not None:
            parse_shard(self.shard)
        if get_method(self.method).from_rows != (self.candidates is not None):
            accepted = "the rows.jsonl of a `prm search`" if self.candidates is None else "null"
            raise ConfigError("candidates", self.candidates, f"{accepted}, with method {self.method}")
        if self.workers < 1:
            raise ConfigError("workers", self.workers, "an integer of at least 1")
        if self.in_company and self.overwrite:
            raise ConfigError(
                "overwrite", True, "false with shared or workers", f"Delete {self.output} and its .parts first."
            )

    @property
    def in_company(self) -> bool:
        """Do several processes share the work?"""
        return self.shared or self.workers > 1


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n" with 1 <= i <= n. ConfigError otherwise."""
    match = _SHARD.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError("shard", text, "i/n with 1 <= i <= n, e.g. 2/8")
    return int(match[1]), int(match[2])


def shard_of(problems: list[Problem], shard: str | None) -> list[Problem]:
    """A run of neighbours, so that the shards' outputs in their order are the whole output."""
    if shard is None:
        return problems
    i, n = parse_shard(shard)
    part = problems[(i - 1) * len(problems) // n : i * len(problems) // n]
    if not part:
        raise ConfigError("shard", shard, f"at most {len(problems)} parts, the number of problems")
    return part


def parser(method: str = "omegaprm") -> Any:
    """The command's parser, for the settings of one method."""
    return make_parser(
        "prm annotate",
        "prm annotate [--config FILE] [--method NAME] --policy PATH --output FILE [--KEY VALUE ...]",
        (AnnotateConfig, ProblemSource, get_method(method).params),
        {"sampling": SamplingParams, "engine": EngineConfig},
    )


def run(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    flags = {argument.partition("=")[0] for argument in argv}
    if "--convert" in flags:
        from prmkit.cli.convert import run_convert

        return run_convert(argv)
    if "--judge" in flags:
        from prmkit.cli.judge import run_judge_command

        return run_judge_command(argv)
    arguments, _ = expand_configs(expand_servers(argv))
    method = METHODS.name_of(peek(arguments, "method", AnnotateConfig.method), "method")
    parse = parser(method)
    if wants_help(argv):
        methods = "\n".join(f"  {name:15}{entry.summary}" for name, entry in METHODS.items())
        print_help(parse, SUMMARY, SERVER_FLAGS, PAIR_HELP, "\n", EXAMPLES.format(methods=methods))
        return 0
    arguments = with_pair(arguments, {"policy": "--policy"}, "--policy_name")
    with user_errors("prm annotate", parse):
        values = parse_settings(parse, arguments)
        config, source = build(AnnotateConfig, values), build(ProblemSource, values)
        params: Any = build(get_method(method).params, values)
        check_output_file("output", config.output)
    task, split, problems, candidates = _problems(config, source)
    problems = shard_of(problems, config.shard)
    engine: EngineConfig = values["engine"]
    folder, step_format = resolve_model(config.policy, config.policy_format, "policy", weights=engine.weights)
    content, computed = model_identity(config.policy, folder, engine)
    settings = {
        "policy_name": config.policy_name or config.policy,
        "policy": content,
        "policy_format": step_format.to_dict(),
        **{**asdict(source), "split": split, "limit": None if config.shard is None else source.limit},
        "method": method,
        **asdict(params),
        "shard": config.shard,
        "chunk": config.chunk,
        "engine": computed,
    }
    from prmkit.annotation.runner import AnnotationRun

    annotation = AnnotationRun(
        method, params, config.policy_name or config.policy, config.in_flight, config.chunk, candidates
    )
    job = _Job(config, annotation, settings, task, problems, tuple(argv))
    with json_output(values["json"]) as answer:
        state = _annotate(job, lambda stack: _looked_at(load_engine(folder, step_format, engine, stack), problems))
        answer({"output": config.output, **_report(job, state, getattr(params, "threshold", 0.0))})
    return 0


def _problems(
    config: AnnotateConfig, source: ProblemSource
) -> tuple[Task, str | None, list[Problem], Candidates | None]:
    """Task, split, problems, and the solutions to label where they are given."""
    if config.candidates is None:
        return (*load_problems(source, "train"), None)
    from prmkit.annotation.traces import problems_of
    from prmkit.search.rows import read_rows
    from prmkit.tasks import get_task

    problems, candidates = problems_of(read_rows(config.candidates))
    if not problems:
        raise DataError(f"{config.candidates}: no rows")
    problems = problems[source.offset :][: source.limit]
    return get_task(source.task, source.data, **source.task_options), source.split, problems, candidates


@dataclass(frozen=True)
class _Job:
    """What is to be done, once it is known to be possible."""

    config: AnnotateConfig
    run: AnnotationRun
    settings: dict[str, Any]
    task: Task
    problems: list[Problem]
    arguments: tuple[str, ...]

    @cached_property
    def items(self) -> Items:
        """The problems by their content, each with the solutions to label where they are given."""
        given = self.run.candidates or {}
        traces = {name: [trace.to_json() for trace in found] for name, found in given.items()}
        return problem_items(self.problems, self.run.chunk, traces)

    def open(self, overwrite: bool = False) -> ChunkedOutput:
        from prmkit.jobs.chunks import ChunkedOutput

        path = Path(self.config.output)
        trees = path.with_name(f"{path.name}.trees.jsonl") if self.run.method == "omegaprm" else None
        return ChunkedOutput(path, self.settings, overwrite=overwrite, companion=trees, items=self.items)

    def check(self) -> None:
        """Refuse files of something else in the output's place (ConfigError)."""
        from prmkit.jobs.chunks import meta_path
        from prmkit.ownership import check_outputs

        path = Path(self.config.output)
        files = [path, *(path.with_name(f"{path.name}.{end}") for end in ("trees.jsonl", "report.json"))]
        check_outputs("output", path, files, meta_path(path))


def _annotate(job: _Job, load: Any) -> dict[str, Any]:
    from prmkit.annotation.runner import Workers, run_annotation
    from prmkit.cli.output_state import say_state
    from prmkit.progress import ProgressLine

    job.check()
    if job.config.in_company:
        return _annotate_shared(job, load)
    with ExitStack() as stack:
        output = stack.enter_context(job.open(job.config.overwrite))
        say_state(output, len(job.problems))
        if output.complete:
            return output.state
        workers = Workers(load(stack), entered(job.task.grader, stack))
        done = min(output.chunks * job.run.chunk, len(job.problems))
        progress = stack.enter_context(ProgressLine("annotate", len(job.problems), done, job.run.in_flight))
        return run_annotation(
            job.problems, workers, output, job.run, lambda counts, usage: progress.advance(_so_far(counts, usage))
        )


def _annotate_shared(job: _Job, load: Any) -> dict[str, Any]:
    """Take part in a run that several processes share, and put its output together if nobody has done so."""
    from prmkit.annotation.runner import Workers, annotation_work
    from prmkit.cli.output_state import say_state
    from prmkit.cli.workers import LocalWorkers
    from prmkit.jobs.claims import ClaimFolder
    from prmkit.jobs.runner import gather, run_claimed
    from prmkit.progress import ProgressLine

    with ExitStack() as stack:
        folder = f"{job.config.output}.parts"
        claims = stack.enter_context(ClaimFolder(folder, job.settings, job.items.chunks, job.items))
        worked = not claims.all_done
        if worked:
            same = ("annotate", *job.arguments, "--workers", "1", "--shared", "true")
            stack.enter_context(LocalWorkers(same, job.config.workers - 1, claims.folder))
            workers = Workers(load(stack), entered(job.task.grader, stack))
            at_once = job.run.in_flight * job.config.workers
            progress = stack.enter_context(ProgressLine("annotate", len(job.problems), at_once=at_once))
            size = job.run.chunk

            def show(counts: AnnotationCounts, usage: Usage) -> None:
                others = min(claims.done_by_others() * size, len(job.problems) - counts.problems)
                progress.advance(f"this worker: {_so_far(counts, usage)}", counts.problems + others)

            run_claimed(annotation_work(job.problems, workers, job.run, show), claims)
        stack.enter_context(claims.gathering())
        output = stack.enter_context(job.open())
        say_state(output, len(job.problems), worked=worked)
        return gather(claims, output)


def _so_far(counts: AnnotationCounts, usage: Usage) -> str:
    sampled = counts.rollouts + counts.inherited
    searched = counts.searches + counts.repeats
    repeats = f", {counts.repeats / searched:.0%} of searches known before" if searched else ""
    return (
        f"{counts.records} solutions, {counts.labels} labels of {usage.samples / max(counts.labels, 1):.1f} samples, "
        f"{counts.inherited / max(sampled, 1):.0%} of rollouts shared{repeats}, {usage.generated_tokens:,} tokens"
    )


def _report(job: _Job, state: dict[str, Any], threshold: float) -> dict[str, Any]:
    from rich.console import Console

    from prmkit.annotation import load_records
    from prmkit.annotation.report import describe_labels
    from prmkit.cli.annotation_tables import label_tables
    from prmkit.cli.ending import config_stems, following_annotation, show_ending
    from prmkit.io import write_json
    from prmkit.progress import format_seconds

    output = job.config.output
    truth = (job.task, {p.id: p for p in job.problems}) if isinstance(job.task, VerifiableTask) else None
    records = load_records(output) if state["counts"]["records"] else iter(())
    report = {**describe_labels(records, threshold, truth), **{f.name: state[f.name] for f in fields(_Spent)}}
    write_json(f"{output}.report.json", report)
    counts, usage = AnnotationCounts(**state["counts"]), Usage(**state["usage"])
    _warn_of_samples(job, counts)
    console = Console(highlight=False)
    for table in label_tables(report, counts, usage):
        console.print(table)
    show_ending(
        [output, f"{output}.report.json"],
        [
            f"{counts.records} solutions of {counts.problems} problems, {counts.labels} labelled prefixes",
            f"{counts.right / max(counts.solutions, 1):.3f} of {counts.solutions} samples right, "
            f"{counts.cut_off} cut off",
            f"{usage.generated_tokens:,} tokens in {format_seconds(state['seconds'])}",
        ],
        [following_annotation(output, job.config.policy, config_stems(job.arguments))],
    )
    if state["failures"]:
        first = state["failures"][0]
        print(
            f"warning: {len(state['failures'])} problems failed and are left out; {first['problem_id']}: "
            f"{first['error']}",
            file=sys.stderr,
        )
    return {**report, "failures": state["failures"]}


def _looked_at(engine: Engine, problems: list[Problem]) -> Engine:
    """The engine itself, after a warning when its policy cannot read the problems."""
    from prmkit.legibility import prompt_signs, warn_of

    warn_of("policy", prompt_signs(engine.format, problems))
    return engine


def _warn_of_samples(job: _Job, counts: AnnotationCounts) -> None:
    from prmkit.legibility import Signs, warn_of

    given = job.config.candidates is not None  # those solutions were not sampled here
    samples = counts.rollouts if given else counts.solutions
    warn_of("policy", Signs(samples=samples, cut_off=0 if given else counts.cut_off, answered=counts.answered))


@dataclass(frozen=True)
class _Spent:
    """What a report takes over from the state of an output."""

    counts: dict[str, int]
    usage: dict[str, int]
    seconds: float
