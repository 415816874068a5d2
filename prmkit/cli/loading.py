"""What `prm annotate` and `prm search` share: their parsers, and problems and models from names and folders.

Importing this module imports neither torch nor transformers; loading does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from prmkit.errors import ConfigError, DataError, StepFormatError
from prmkit.steps import StepFormat, get_step_format
from prmkit.types import Grader, Problem, Task

if TYPE_CHECKING:
    from prmkit.engines import HFEngine
    from prmkit.scoring import PRMScorer

__all__ = [
    "EngineConfig",
    "ProblemSource",
    "ScorerConfig",
    "build",
    "entered",
    "fingerprint",
    "load_engine",
    "load_problems",
    "load_scorer",
    "make_parser",
    "resolve_model",
]

T = TypeVar("T")
_EDGE = 1 << 20  # bytes read at each end of a weight file


@dataclass(frozen=True)
class ProblemSource:
    """Which problems.

    Attributes:
        task: accumulator, multistep_arithmetic, gsm8k, math, math500, bbh, jsonl or hub.
        data: file or folder of the tasks that read one; null takes the set of that name from the hub.
        split: one of the task's splits; null takes the command's usual one.
        offset: number of the first problem, from 0.
        limit: problems at most; null takes all, which endless splits refuse.
        task_options: further options of the task, e.g. {slip_hard: 0.3}.
    """

    task: str = "accumulator"
    data: str | None = None
    split: str | None = None
    offset: int = 0
    limit: int | None = None
    task_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise ConfigError("offset", self.offset, "an integer of at least 0")
        if self.limit is not None and self.limit < 1:
            raise ConfigError("limit", self.limit, "an integer of at least 1, or null for all")


@dataclass(frozen=True)
class EngineConfig:
    """Where and how the policy computes.

    Attributes:
        max_rows: samples decoded together at most; at least 1.
        cache_tokens: tokens of prefixes whose keys and values are kept; 0 keeps none.
        dtype: type of the weights.
        device: e.g. cpu, cuda, cuda:1; auto is a GPU where there is one. The PRM goes to the same place.
    """

    max_rows: int = 128
    cache_tokens: int = 65536
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"


@dataclass(frozen=True)
class ScorerConfig:
    """How the PRM computes.

    Attributes:
        max_batch_tokens: tokens computed together at most; at least 1.
        cache_tokens: tokens of prefixes whose keys and values are kept; 0 keeps none.
        dtype: type of the weights.
    """

    max_batch_tokens: int = 8192
    cache_tokens: int = 65536
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def make_parser(command: str, usage: str, flat: Iterable[type], groups: Mapping[str, type]) -> Any:
    """A jsonargparse parser for dataclasses.

    Args:
        command: e.g. "prm search".
        usage: the usage line, without "usage:".
        flat: dataclasses whose fields are options of their own; fields that are named in `groups` are left to those.
        groups: dataclasses whose fields are options under a name, e.g. `--sampling.temperature`.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=command, usage=usage, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with these settings; later ones win, key by key")
    for kind in flat:
        parser.add_class_arguments(kind, skip={f.name for f in fields(kind)} & set(groups))
    for name, kind in groups.items():
        parser.add_class_arguments(kind, name)
    return parser


def build(kind: type[T], values: Any) -> T:
    """A dataclass from the instantiated options of a parser."""
    return kind(**{f.name: values[f.name] for f in fields(kind)})  # type: ignore[arg-type]


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
