"""What a loop's versions are known by in a registry, and how they are made again."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prmkit.loop.config import STAGES, LoopConfig

__all__ = ["publication_key", "recipe_commands"]


def publication_key(config: LoopConfig, configs: Mapping[str, Path], iteration: int) -> str:
    """Name of an iteration's publication, e.g. "loop 0f3a..., iteration 2".

    The same for whatever decides what the iteration makes: settings, seeds, contents of the configs; but not the place
    of the run, the registry, or how many iterations are to follow. So a loop finds its own versions from anywhere.
    """
    later = iteration > 1
    stages: dict[str, Any] = {}
    for name in STAGES:
        stage = getattr(config, name)
        if stage is not None:
            content = hashlib.sha256(configs[name].read_bytes()).hexdigest()
            stages[name] = [content, stage.set, stage.later if later else None]
    decisive: dict[str, Any] = {"seed": config.seed, "start": config.start, "order": config.order, "stages": stages}
    decisive["harder"] = [[h.above, h.annotate, h.prm, h.policy] for h in config.harder] if later else None
    for name in ("prm_start", "replay", "labels_from", "reference", "on_refusal", "harder_by"):
        decisive[name] = getattr(config, name) if later else None
    if config.start is not None:  # the PRM of a version to start from is gone on from, or not
        decisive["prm_start"] = config.prm_start
    decisive |= {"gate": config.gate, "devices": config.devices}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()
    return f"loop {digest[:16]}, iteration {iteration}"


def recipe_commands(commands: Sequence[Sequence[str]], moved: Mapping[Path, str]) -> list[tuple[str, ...]]:
    """Commands as they are to be run in another folder.

    Args:
        commands: programs with arguments.
        moved: paths, and what stands for them there, e.g. {Path("/data/run"): "run"}; longer ones win.
    """
    order = sorted(moved, key=lambda path: -len(str(path)))

    def rewrite(text: str) -> str:
        for path in order:
            if text == str(path):
                return moved[path]
            text = text.replace(f'"{path}"', f'"{moved[path]}"').replace(f"{path}/", f"{moved[path]}/")
        return text

    rewritten = []
    for command in commands:
        program = list(command)
        if program[:3] == [sys.executable, "-m", "prmkit.cli"]:
            program = ["prm", *program[3:]]
        elif program[0] == sys.executable:
            program[0] = "python"
        rewritten.append(tuple(map(rewrite, program)))
    return rewritten
