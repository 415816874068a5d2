"""`prm annotate`: sample a policy and label the steps of its solutions by Monte-Carlo rollouts."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from prmkit.annotation.math_shepherd import AnnotationCounts, MathShepherdParams
from prmkit.cli.loading import entered, fingerprint, load_engine, load_problems, resolve_model
from prmkit.cli.options import EngineConfig, ProblemSource, build, make_parser
from prmkit.cli.parsing import expand_configs, user_errors
from prmkit.types import SamplingParams, Usage, VerifiableTask

__all__ = ["SUMMARY", "AnnotateConfig", "run"]

SUMMARY = "sample a policy and label its steps by Monte-Carlo rollouts"

EXAMPLES = """
examples:
  prm annotate --config configs/annotate/accumulator.yaml --policy runs/accumulator/sft/policy --output steps.jsonl
  prm annotate --policy my-policy --output steps.jsonl --task gsm8k --data gsm8k/train.jsonl --limit 1000
  prm annotate --config configs/annotate/accumulator.yaml --rollouts 16 --sampling.temperature 1.3 --print_config

Writes one JSON line a labelled solution, and settings and counts to <output>.meta.json. A run that was killed goes on
where it stopped when it is started again, and ends with the same lines. With a task whose steps can be checked exactly
the labels are compared with the truth."""


@dataclass(frozen=True)
class AnnotateConfig:
    """What to annotate, and where to.

    Attributes:
        policy: model folder or hub name of the policy.
        output: the JSON-lines file to write.
        policy_format: step format in place of the policy's own: a preset, a file or a folder.
        policy_name: the policy's name in the records; null takes `policy`.
        in_flight: problems worked on at once, and the unit of resuming; at least 1.
        overwrite: begin anew, whatever the output holds.
    """

    policy: str
    output: str
    policy_format: str | None = None
    policy_name: str | None = None
    in_flight: int = 100
    overwrite: bool = False


def parser() -> Any:
    """The command's parser."""
    return make_parser(
        "prm annotate",
        "prm annotate [--config FILE] --policy PATH --output FILE [--KEY VALUE ...]",
        (AnnotateConfig, ProblemSource, MathShepherdParams),
        {"sampling": SamplingParams, "engine": EngineConfig},
    )


def run(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    parse = parser()
    if any(argument in ("-h", "--help") for argument in argv):
        print(f"{SUMMARY[0].upper()}{SUMMARY[1:]}.\n\n{parse.format_help()}{EXAMPLES}")
        return 0
    arguments, _ = expand_configs(argv)
    with user_errors("prm annotate", parse):
        values = parse.instantiate(parse.parse_args(arguments))
        config, source = build(AnnotateConfig, values), build(ProblemSource, values)
        params = build(MathShepherdParams, values)
    state = _annotate(config, source, params, values["engine"])
    _report(state, config.output)
    return 0


def _annotate(
    config: AnnotateConfig, source: ProblemSource, params: MathShepherdParams, engine_config: EngineConfig
) -> dict[str, Any]:
    from prmkit.annotation.runner import AnnotationRun, run_annotation
    from prmkit.chunks import ChunkedOutput
    from prmkit.cli.progress import ProgressLine

    task, split, problems = load_problems(source, "train")
    truth = task if isinstance(task, VerifiableTask) else None
    folder, step_format = resolve_model(config.policy, config.policy_format, "policy")
    name = config.policy_name or config.policy
    annotation = AnnotationRun(params, policy=name, in_flight=config.in_flight, truth=truth)
    settings = {
        "policy_name": name,
        "policy": fingerprint(folder),
        "policy_format": step_format.to_dict(),
        **{**asdict(source), "split": split},
        **asdict(params),
        "in_flight": config.in_flight,
        "engine": {"dtype": engine_config.dtype},
    }
    with ExitStack() as stack:
        output = stack.enter_context(ChunkedOutput(config.output, settings, overwrite=config.overwrite))
        if output.complete:
            return output.state
        grader = entered(task.grader, stack)
        engine = load_engine(folder, step_format, engine_config)
        done = min(output.chunks * config.in_flight, len(problems))
        progress = stack.enter_context(ProgressLine("annotate", len(problems), done))

        def show(counts: AnnotationCounts, usage: Usage) -> None:
            progress.advance(
                f"{counts.records} solutions labelled, {usage.generated_tokens:,} tokens, "
                f"{usage.samples / max(counts.values, 1):.1f} samples a label"
            )

        return run_annotation(problems, engine, grader, output, annotation, show)


def _report(state: dict[str, Any], output: str) -> None:
    counts = AnnotationCounts(**state["counts"])
    print(
        f"{output}: {counts.records} solutions of {counts.problems} problems, {counts.values} step labels; "
        f"{counts.right / max(counts.solutions, 1):.3f} of {counts.solutions} samples right, {counts.cut_off} cut off; "
        f"{state['usage']['generated_tokens']:,} tokens in {state['seconds']:.1f} s"
    )
    for key, value in (state.get("truth") or {}).items():
        if value is not None:
            print(f"  against exact truth: {key.replace('_', ' ')} {value:.3f}")
    if state["failures"]:
        first = state["failures"][0]
        print(
            f"warning: {len(state['failures'])} problems failed and are left out; {first['problem_id']}: "
            f"{first['error']}",
            file=sys.stderr,
        )
