"""Warns, once a run, when a policy's rollouts show that it cannot read its prompts or that no sample can be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prmkit.formats.bound import BoundStepFormat
from prmkit.legibility import prompt_signs, warn_of
from prmkit.protocols import Grader
from prmkit.rl.rollouts import Rollout

__all__ = ["RolloutSigns"]

_LOOKED_AT = 64  # rollouts whose answers are extracted; mathematics takes milliseconds for each


class RolloutSigns:
    """Looks at the rollouts of every iteration until it has warned.

    Args:
        step_format: the policy's.
        grader: extracts answers.
    """

    def __init__(self, step_format: BoundStepFormat, grader: Grader) -> None:
        self._format, self._grader = step_format, grader
        self._warned = False

    def look(self, rollouts: Sequence[Rollout]) -> None:
        """Look at judged rollouts. Answers are extracted only where none is right."""
        if self._warned or not rollouts:
            return
        cut_off = sum(rollout.trace.finish != "stop" for rollout in rollouts)
        right = any((rollout.parts.get("outcome") or 0.0) > 0.0 for rollout in rollouts)
        answered = int(right) or sum(map(self._has_answer, rollouts[:_LOOKED_AT]))
        signs = prompt_signs(self._format, [rollout.problem for rollout in rollouts])
        self._warned = warn_of("policy", replace(signs, samples=len(rollouts), cut_off=cut_off, answered=answered))

    def _has_answer(self, rollout: Rollout) -> bool:
        text = self._format.spec.policy.separator.join(step.text for step in rollout.trace.steps)
        return self._grader.extract(text) is not None
