"""Traces of one problem, sampled from the policy behind a prefix of steps: the first move of every search."""

from __future__ import annotations

from collections.abc import Sequence

from prmkit.formats.bound import BoundStepFormat
from prmkit.protocols import Engine
from prmkit.records import Completion, GenerationRequest, Problem, SamplingParams, Step, Trace
from prmkit.search.budget import Budget

__all__ = ["prefix_ids", "sample_traces", "solution_text"]


def prefix_ids(question: str, prefix: Sequence[Step], fmt: BoundStepFormat) -> tuple[int, ...]:
    """Token ids of a prompt and the steps written so far, as the policy saw them when it wrote them."""
    return (*fmt.prompt_ids(question), *(token for step in prefix for token in step.token_ids))


def solution_text(steps: Sequence[str], fmt: BoundStepFormat) -> str:
    """A solution's text from its steps, as answers are extracted from it."""
    return fmt.spec.policy.separator.join(steps)


async def sample_traces(
    problem: Problem,
    engine: Engine,
    n: int,
    sampling: SamplingParams,
    seed: int,
    budget: Budget,
    prefix: tuple[Step, ...] = (),
) -> list[Trace]:
    """n traces that begin with the prefix, in sample order; answers are left to the caller.

    Equal completions share their steps (and the log-probabilities of the first of them), so that they cost one split.
    """
    ids = prefix_ids(problem.question, prefix, engine.format)
    completions = await budget.generate(engine, GenerationRequest(ids, n, seed, sampling))
    split: dict[tuple[int, ...], tuple[Step, ...]] = {}
    return [_trace(problem, engine.format, completion, prefix, split) for completion in completions]


def _trace(
    problem: Problem,
    fmt: BoundStepFormat,
    completion: Completion,
    prefix: tuple[Step, ...],
    split: dict[tuple[int, ...], tuple[Step, ...]],
) -> Trace:
    steps = split.get(completion.token_ids)
    if steps is None:
        steps = split[completion.token_ids] = fmt.split_ids(completion.token_ids, completion.logprobs)
    return Trace(problem.id, prefix + steps, completion.finish_reason, weight_version=completion.weight_version)
