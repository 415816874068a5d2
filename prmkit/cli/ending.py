"""How a command ends: what it made, how good that is, and the command to type next. One look for all commands.

Nothing here imports torch. `following_...` functions return a command as the words of a shell; a word in capitals is
for the user to fill in.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prmkit.io import read_json
from prmkit.resources import config_root, shipped_configs
from prmkit.stages import STAGE

if TYPE_CHECKING:
    from prmkit.cli.options import ProblemSource

__all__ = [
    "config_stems",
    "following_annotation",
    "following_export",
    "following_policy",
    "following_prm",
    "following_search",
    "model_kind",
    "search_command",
    "show_ending",
]

_WIDTH = 8


def show_ending(
    made: Iterable[str | Path] = (), results: Iterable[str] = (), following: Iterable[Sequence[object]] = ()
) -> None:
    """Print an ending on stdout. A stage of a loop or demo, which types the next command itself, names none.

    Args:
        made: files and folders, the most important one first.
        results: how good it is and what it cost, a line each; empty texts are left out.
        following: commands to type next, as words.
    """
    commands = [] if os.environ.get(STAGE) else [shlex.join(map(str, words)) for words in following]
    for name, lines in (("made", map(str, made)), ("result", filter(None, results)), ("next", commands)):
        for number, line in enumerate(lines):
            print(f"{'' if number else name:<{_WIDTH}}{line}")


def config_stems(arguments: Sequence[str]) -> list[str]:
    """Names of the config files among arguments, without folder and ending."""
    stems = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("-c", "--config"):
            stems.append(Path(value if equals else next(words, "")).stem)
    return stems


def model_kind(folder: str | Path) -> str | None:
    """ "policy" or "prm", as the folder's prmkit.json says; None where there is none."""
    card = Path(folder) / "prmkit.json"
    return str(read_json(card).get("kind")) if card.is_file() else None


def following_policy(policy: str | Path, stems: Sequence[str], task: str | None) -> list[str]:
    """Label the steps of a policy's solutions."""
    run = _run_of(policy)
    chosen = _companion("annotate", stems) or ["--method", "omegaprm", "--task", task or "TASK"]
    output = run / "annotate" / "annotations.jsonl"
    return ["prm", "annotate", *chosen, "--policy", str(policy), "--output", str(output)]


def following_annotation(annotations: str | Path, policy: str, stems: Sequence[str]) -> list[str]:
    """Train a PRM on labels."""
    path = Path(annotations)
    config = _companion("prm", stems)
    run = path.parent.parent
    usual = path.parts[-2:] == ("annotate", "annotations.jsonl") and _same(policy, run / "sft" / "policy")
    if config is None or not usual:
        config = config or ["--config", "configs/prm/accumulator.yaml"]
        root = ["--trainer.default_root_dir", str(path.parent / "prm")]
        data = ["--data.train", f"[{{path: {path}}}]"]
        return ["prm", "fit", *config, *data, "--model.source.path", policy, *root]
    if _same(_root_of(config[1]), run / "prm"):
        return ["prm", "fit", *config]
    return ["prm", "fit", *config, "--trainer.default_root_dir", str(run / "prm")]


def following_prm(prm: str | Path, policy: str | None, stems: Sequence[str], task: str | None) -> list[str]:
    """Search under a PRM."""
    run = _run_of(prm)
    usual = run / "sft" / "policy"
    policy = policy or (str(usual) if usual.is_dir() else "POLICY")
    return search_command(policy, prm, run / "search", stems, task)


def following_export(folder: str | Path) -> list[str]:
    """Search with a policy, or under a PRM."""
    if model_kind(folder) == "prm":
        return search_command("POLICY", folder, Path(folder).parent / "search")
    return search_command(folder, None, Path(folder).parent / "search")


def following_search(
    policy: str, prms: Sequence[str], output: str | Path, source: ProblemSource, comparison: bool = False
) -> list[str]:
    """Publish a pair that was searched with; serve it when it is a version.

    Before that: the plain search whose metrics a version holds, and without a PRM the labels that one is trained on.
    """
    from registry.pull import PULLED_FILE

    if not prms:
        return [*following_policy(policy, [], source.task), *_problems_of(source)]
    if (Path(policy).parent / PULLED_FILE).is_file() and Path(prms[0]).parent == Path(policy).parent:
        return ["prm", "serve", "--policy", policy, "--prm", prms[0]]  # a version already
    if comparison or len(prms) > 1:
        return [*search_command(policy, prms[0], Path(output) / "best_of_n", task=source.task), *_problems_of(source)]
    return ["prm", "pairs", "publish", "NAME", "--policy", policy, "--prm", prms[0], "--metrics", str(output)]


def _problems_of(source: ProblemSource) -> list[str]:
    """The arguments that say where a task's problems are; its split and range are each command's own."""
    data = [] if source.data is None else ["--data", source.data]
    options = ["--task_options", json.dumps(source.task_options)] if source.task_options else []
    return [*data, *options]


def search_command(
    policy: str | Path, prm: str | Path | None, output: str | Path, stems: Sequence[str] = (), task: str | None = None
) -> list[str]:
    """Search with a policy, under a PRM where there is one."""
    chosen = _companion("search", stems) or ["--task", task or "TASK"]
    guided = [] if prm is None else ["--prm", str(prm)]
    return ["prm", "search", *chosen, "--policy", str(policy), *guided, "--output", str(output)]


def _companion(job: str, stems: Sequence[str]) -> list[str] | None:
    """The shipped config of another job under one of the names."""
    names = [f"configs/{job}/{stem}.yaml" for stem in stems]
    return next((["--config", name] for name in names if name in shipped_configs(job)), None)


def _run_of(model: str | Path) -> Path:
    """The folder of runs that a model's folder lies in: RUN of RUN/sft/policy."""
    return Path(os.path.normpath(model)).parent.parent


def _root_of(config: str) -> str:
    """`trainer.default_root_dir` of a shipped config."""
    import yaml

    file = config_root().joinpath(*Path(config).parts[1:])
    return str(yaml.safe_load(file.read_text(encoding="utf-8"))["trainer"]["default_root_dir"])


def _same(one: str | Path, other: str | Path) -> bool:
    return Path(one).resolve() == Path(other).resolve()
