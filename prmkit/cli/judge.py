"""`prm annotate --judge`: a second opinion on label files, for the consensus filter."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from prmkit.annotation.judge import JudgePrompt, verdicts_path
from prmkit.cli.ending import show_ending
from prmkit.cli.json_output import json_output
from prmkit.cli.loading import load_engine, load_scorer, model_identity, resolve_model
from prmkit.cli.options import (
    EngineConfig,
    ScorerConfig,
    build,
    expand_servers,
    make_parser,
    parse_settings,
    print_help,
    wants_help,
)
from prmkit.cli.outputs import check_output_file
from prmkit.cli.parsing import expand_configs, user_errors
from prmkit.errors import ConfigError
from prmkit.types import SamplingParams

__all__ = ["SUMMARY", "JudgeConfig", "run_judge_command"]

SUMMARY = "ask a PRM, or a model prompted as judge, where solutions go wrong first"

EXAMPLES = """
examples:
  prm annotate --judge steps.jsonl --prm runs/demo/prm/model
  prm annotate --judge steps.jsonl --policy Qwen/Qwen2.5-72B-Instruct --policy_format chat.json --engine.dtype bfloat16

Writes <file>.verdicts beside the labels, one JSON line a distinct solution. The judge sees neither labels nor the gold
answer. A run that was killed goes on. Use the verdicts when a PRM is trained (data.curation.verdicts) or when a file is
converted (--curation.verdicts): solutions on whose first error labels and judge disagree are left out (arXiv
2501.07301)."""

_TO_PRMKIT = ("--to", "prmkit", "--output", "OUT")


@dataclass(frozen=True)
class JudgeConfig:
    """Who judges what. Exactly one of prm and policy is set.

    Attributes:
        judge: the label file.
        prm: model folder or hub name of a PRM; the first step that it scores at most `threshold` is wrong.
        policy: model folder or hub name of a model that follows instructions; it is asked in words.
        prm_format, policy_format: step format in place of the model's own: a preset, a file or a folder.
        threshold: of a PRM's scores, in [0, 1).
        output: the file of verdicts; null stands for <judge>.verdicts.
        in_flight: solutions judged at once, and the unit of resuming; at least 1.
        overwrite: begin anew, whatever an earlier run has left in the output.
    """

    judge: str
    prm: str | None = None
    policy: str | None = None
    prm_format: str | None = None
    policy_format: str | None = None
    threshold: float = 0.5
    output: str | None = None
    in_flight: int = 100
    overwrite: bool = False

    def __post_init__(self) -> None:
        if (self.prm is None) == (self.policy is None):
            raise ConfigError("prm", self.prm, "a PRM, or null together with --policy", "Set one of the two.")
        if not 0 <= self.threshold < 1:
            raise ConfigError("threshold", self.threshold, "a number in [0, 1)")
        if self.in_flight < 1:
            raise ConfigError("in_flight", self.in_flight, "an integer of at least 1")


def parser() -> Any:
    """The command's parser."""
    return make_parser(
        "prm annotate --judge",
        "prm annotate --judge FILE (--prm PATH | --policy PATH) [--KEY VALUE ...]",
        (JudgeConfig,),
        {"prompt": JudgePrompt, "sampling": SamplingParams, "engine": EngineConfig, "scorer": ScorerConfig},
    )


def run_judge_command(argv: list[str]) -> int:
    """Run `prm annotate --judge ...`; returns its exit status."""
    parse = parser()
    parse.set_defaults({"sampling.temperature": 0.0, "sampling.max_tokens": 2048})
    if wants_help(argv):
        print_help(parse, SUMMARY, EXAMPLES)
        return 0
    arguments, _ = expand_configs(expand_servers(argv))
    with user_errors("prm annotate --judge", parse):
        values = parse_settings(parse, arguments)
        config = build(JudgeConfig, values)
    path = config.output or str(verdicts_path(config.judge))
    check_output_file("output", path)
    with json_output(values["json"]) as answer:
        state = _judge(config, values, path)
        show_ending(
            [path],
            [
                f"{state['verdicts']} solutions judged, {state['unparsable']} without a usable answer, "
                f"{len(state['failures'])} failed"
            ],
            [("prm", "annotate", "--convert", config.judge, "--curation.verdicts", path, *_TO_PRMKIT)],
        )
        answer({"output": path, **state})
    return 0


def _judge(config: JudgeConfig, values: Any, path: str) -> dict[str, Any]:
    from prmkit.annotation import load_records
    from prmkit.annotation.judge import EngineJudge, Judge, ScorerJudge, run_judge, solution_items
    from prmkit.chunks import ChunkedOutput
    from prmkit.cli.output_state import say_state
    from prmkit.progress import ProgressLine

    records = list(load_records(config.judge))
    name = str(config.prm or config.policy)
    which = "policy" if config.prm is None else "prm"
    where: EngineConfig | ScorerConfig = values["engine"] if config.prm is None else values["scorer"]
    folder, step_format = resolve_model(name, getattr(config, f"{which}_format"), which, weights=where.kind != "http")
    content, computed = model_identity(name, folder, where)
    settings = {
        "judge": content,
        **({"engine": computed} if where.kind != "hf" else {}),
        "format": step_format.to_dict(),
        "threshold": config.threshold,
        "prompt": asdict(values["prompt"]),
        "sampling": asdict(values["sampling"]),
        "in_flight": config.in_flight,
    }
    with ExitStack() as stack:
        items = solution_items(records, config.in_flight)
        output = stack.enter_context(ChunkedOutput(path, settings, overwrite=config.overwrite, items=items))
        say_state(output, len(items.keys), "solutions")
        if output.complete:
            return output.state
        judge: Judge
        if config.prm is not None:
            scorer = load_scorer(folder, step_format, values["scorer"], stack, values["engine"].device)
            judge = ScorerJudge(scorer, name, config.threshold)
        else:
            engine = load_engine(folder, step_format, values["engine"], stack)
            judge = EngineJudge(engine, name, values["prompt"], values["sampling"])
        progress = stack.enter_context(ProgressLine("judge", items.chunks, output.chunks))
        return run_judge(records, judge, output, config.in_flight, lambda n: progress.advance(f"{n:,} verdicts"))
