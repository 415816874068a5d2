"""What `prm annotate` and `prm search` share: problems and models from names and folders.

Importing this module imports neither torch nor transformers; loading does.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prmkit.cli.options import EngineConfig, ProblemSource, ScorerConfig
from prmkit.errors import ConfigError, DataError, StepFormatError
from prmkit.formats.presets import get_step_format
from prmkit.formats.spec import StepFormat
from prmkit.protocols import Engine, Grader, Task
from prmkit.records import Problem

if TYPE_CHECKING:
    from prmkit.scoring import HTTPScorer, PRMScorer

__all__ = [
    "entered",
    "expect_hub",
    "fingerprint",
    "load_engine",
    "load_problems",
    "load_scorer",
    "model_identity",
    "resolve_model",
]

_EDGE = 1 << 20  # bytes read at each end of a weight file


def load_problems(source: ProblemSource, usual_split: str) -> tuple[Task, str, list[Problem]]:
    """The task, the split taken, and its problems; at least one (DataError)."""
    from prmkit.tasks import FILE_TASKS, get_task

    if source.task in FILE_TASKS and (source.data is None or not Path(source.data).exists()):
        expect_hub()
    task = get_task(source.task, source.data, **source.task_options)
    split = source.split or (usual_split if usual_split in task.splits else task.splits[0])
    problems = list(task.problems(split, source.limit, source.offset))
    if not problems:
        raise DataError(f"{source.task}: split {split!r} has no problem from number {source.offset} on")
    return task, split, problems


def expect_hub() -> None:
    """Where the hub's name cannot be resolved, have its clients look into their cache at once.

    They try for half a minute otherwise. Call it only where a hub name is to be read.
    """
    if any(os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants = sys.modules.get("huggingface_hub.constants")
        if constants is not None:  # it has read the variable already
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def entered(grader: Grader, stack: ExitStack) -> Grader:
    """The grader, its worker processes (if it has any) ended with the stack."""
    if isinstance(grader, AbstractContextManager):
        stack.enter_context(grader)
    return grader


def resolve_model(path: str, step_format: str | None, where: str, weights: bool = True) -> tuple[Path, StepFormat]:
    """Local folder and step format of a model, before anything is loaded.

    Args:
        path: folder or hub name.
        step_format: preset, file or folder to use in place of the model's own; None reads `step_format.json`.
        where: the option's name, for errors.
        weights: the model computes here; elsewhere its tokenizer and step format are enough.

    Raises:
        ConfigError: it is known to be a policy where a PRM is asked for, or the other way round.
        DataError, StepFormatError: no such model, one that is not whole, or without a step format.
    """
    if not Path(path).is_dir():
        expect_hub()
    from prmkit.models.folders import resolve_folder
    from prmkit.weights import check_kind

    try:
        folder = resolve_folder(path, weights)
        check_kind(f"--{where}", path, folder, "prm" if where == "prm" else "policy")
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


def model_identity(name: str, folder: Path, config: EngineConfig | ScorerConfig) -> tuple[str, dict[str, Any]]:
    """What decides a model's answers, for settings that a resumed run must share: its content, and how it computes.

    Of a model behind HTTP the content is its tokenizer, and the servers are asked what they serve.

    Args:
        name: the model as the user named it, for errors.
        folder: its local folder.
        config: its engine or scorer.

    Raises:
        ConfigError: the servers serve another model, or other weights than the folder holds.
        EngineLostError: no server answers.
    """
    if config.kind != "http":
        kind: dict[str, Any] = {} if config.kind == "hf" else {"kind": config.kind}
        if isinstance(config, EngineConfig) and config.options:
            kind["options"] = config.options
        return fingerprint(folder), {**kind, "dtype": config.dtype}
    from prmkit.engines.factory import serve_identity, tokenizer_fingerprint

    served = serve_identity(config.http)
    if served["weights"] is not None and any(folder.glob("*.safetensors")):
        ours = fingerprint(folder)
        if served["weights"] != ours:
            raise ConfigError(
                "http.endpoints",
                list(config.http.urls),
                f"servers of {name}: its content is {ours}, that of {served['model']!r} there {served['weights']}",
            )
    more = {}
    if isinstance(config, EngineConfig):
        more = {"prompts": config.http.prompts, "split_samples": config.http.split_samples}
    return tokenizer_fingerprint(folder), {"kind": "http", **served, **more}


def load_engine(
    folder: Path, step_format: StepFormat, config: EngineConfig, stack: ExitStack, *, logprobs: bool = False
) -> Engine:
    """The policy of a folder, ready to sample; see `prmkit.engines.factory.open_engine`."""
    from prmkit.engines.factory import open_engine

    return open_engine(config, folder, step_format, stack, logprobs=logprobs)


def load_scorer(
    folder: Path, step_format: StepFormat, config: ScorerConfig, stack: ExitStack, device: str
) -> PRMScorer | HTTPScorer:
    """The PRM of a folder, ready to score; see `prmkit.scoring.factory.open_scorer`."""
    from prmkit.scoring.factory import open_scorer

    return open_scorer(config, folder, step_format, stack, device)
