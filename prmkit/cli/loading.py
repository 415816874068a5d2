"""What `prm annotate` and `prm search` share: problems and models from names and folders.

Importing this module imports neither torch nor transformers; loading does.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from prmkit.cli.options import EngineConfig, ProblemSource, ScorerConfig
from prmkit.errors import ConfigError, DataError, StepFormatError
from prmkit.steps import StepFormat, get_step_format
from prmkit.types import Grader, Problem, Task

if TYPE_CHECKING:
    from prmkit.engines import HFEngine
    from prmkit.scoring import PRMScorer

__all__ = ["entered", "fingerprint", "load_engine", "load_problems", "load_scorer", "resolve_model"]

_EDGE = 1 << 20  # bytes read at each end of a weight file


def load_problems(source: ProblemSource, usual_split: str) -> tuple[Task, str, list[Problem]]:
    """The task, the split taken, and its problems; at least one (DataError)."""
    from prmkit.tasks import get_task

    task = get_task(source.task, source.data, **source.task_options)
    split = source.split or (usual_split if usual_split in task.splits else task.splits[0])
    problems = list(task.problems(split, source.limit, source.offset))
    if not problems:
        raise DataError(f"{source.task}: split {split!r} has no problem from number {source.offset} on")
    return task, split, problems


def entered(grader: Grader, stack: ExitStack) -> Grader:
    """The grader, its worker processes (if it has any) ended with the stack."""
    if isinstance(grader, AbstractContextManager):
        stack.enter_context(grader)
    return grader


def resolve_model(path: str, step_format: str | None, where: str) -> tuple[Path, StepFormat]:
    """Local folder and step format of a model, before anything is loaded.

    Args:
        path: folder or hub name.
        step_format: preset, file or folder to use in place of the model's own; None reads `step_format.json`.
        where: the option's name, for errors.
    """
    from prmkit.models.folders import resolve_folder

    try:
        folder = resolve_folder(path)
        return folder, StepFormat.load(folder) if step_format is None else get_step_format(step_format)
    except (DataError, StepFormatError) as error:
        raise type(error)(f"--{where} {path}: {error}") from None


def fingerprint(folder: Path) -> str:
    """Identity of a model folder's content: a hash over its settings and over size and both ends of its weight files.

    Weights that were trained differ at both ends, so reading gigabytes is not needed to tell models apart.
    """
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(size - _EDGE, 0))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()


def load_engine(folder: Path, step_format: StepFormat, config: EngineConfig) -> HFEngine:
    """The policy of a folder, ready to sample."""
    from prmkit.engines import HFEngine
    from prmkit.models import load_policy

    policy = load_policy(folder, step_format, config.dtype, _device(config.device))
    return HFEngine(
        policy.model,
        policy.format,
        max_rows=config.max_rows,
        cache_tokens=config.cache_tokens,
        weight_version=policy.weight_version,
    )


def load_scorer(folder: Path, step_format: StepFormat, config: ScorerConfig, device: str) -> PRMScorer:
    """The PRM of a folder, ready to score."""
    from prmkit.models import PRMModel
    from prmkit.scoring import PRMScorer

    model = PRMModel.from_pretrained(folder, step_format, config.dtype, _device(device)).eval()
    return PRMScorer(model, max_batch_tokens=config.max_batch_tokens, cache_tokens=config.cache_tokens)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("engine.device", name, f"a device of this machine ({str(error).splitlines()[0]})") from None
    return name
