"""The process reward models that score rollouts: which, and whether they mean the same by a step as the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prmkit.errors import ConfigError, StepFormatError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import get_step_format
from prmkit.formats.spec import StepFormat
from prmkit.models import resolve_folder
from prmkit.scoring.ensemble import PESSIMISMS, Pessimism
from prmkit.weights import check_kind

__all__ = ["PRMSource"]


@dataclass(frozen=True)
class PRMSource:
    """The process reward model that scores rollouts, or several that score together.

    Attributes:
        path: model folder or hub name; a list of them is an ensemble.
        step_format: preset, file or folder in place of the models' own; None reads their `step_format.json`.
        dtype: type of the weights.
        max_batch_tokens: tokens computed at once at most.
        pessimism: score of a step from those of an ensemble: "min"; "mean-std", the mean less one standard deviation;
            "mean".
    """

    path: str | list[str]
    step_format: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_batch_tokens: int = 8192
    pessimism: Pessimism = "min"

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("data.prm.path", self.path, "at least one PRM")
        if self.pessimism not in PESSIMISMS:
            raise ConfigError("data.prm.pessimism", self.pessimism, " | ".join(PESSIMISMS))

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all PRMs."""
        return (self.path,) if isinstance(self.path, str) else tuple(self.path)

    def checked_formats(self, policy: BoundStepFormat) -> tuple[StepFormat, ...]:
        """The step format of every PRM, once it is known to mean the same by a step as the policy's.

        Raises:
            ConfigError: a model is a policy.
            DataError: no such model.
            StepFormatError: a PRM was trained on steps that end otherwise than the policy's.
        """
        return tuple(self._checked_format(path, policy) for path in self.paths)

    def _checked_format(self, path: str, policy: BoundStepFormat) -> StepFormat:
        folder = resolve_folder(path)
        check_kind("data.prm.path", path, folder, "prm")
        spec = StepFormat.load(folder) if self.step_format is None else get_step_format(self.step_format)
        theirs, ours = spec.policy.separator, policy.spec.policy.separator
        if theirs != ours:
            raise StepFormatError(
                f"data.prm.path {path}: its step format {spec.name!r} ends steps with {theirs!r}, the policy's "
                f"({policy.spec.name!r}) with {ours!r}. Take a PRM trained on the policy's steps, or set "
                f"data.prm.step_format when its file is wrong."
            )
        return spec
