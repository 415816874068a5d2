"""Other PRMs for benchmarks/policy.py: trained on hotter samples too, and refreshed for a policy that has moved on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _policy_runs import fit, forked

from prmkit.errors import PrmkitError

__all__ = ["hotter_prm", "refreshed_pair"]

ANNOTATE, PRM = "configs/annotate/accumulator.yaml", "configs/prm/accumulator.yaml"
HOT, ROUND = 1.6, 10


def hotter_prm(pair: Path, out: Path, seed: int) -> tuple[Path, Path]:
    """(policy, PRM): the pair's policy, and a PRM that also saw its solutions at temperature HOT."""
    policy = pair / "sft" / "policy"
    return policy, _prm(pair, policy, HOT, out / f"hotter-{seed}", seed)


def refreshed_pair(pair: Path, out: Path, seed: int, config: str, settings: Sequence[str]) -> tuple[Path, Path]:
    """(policy, PRM): the policy after ROUND updates on the pair's PRM, and a PRM that also saw its solutions."""
    root = out / f"refreshed-{seed}"
    policy = root / "round" / "policy"
    prm = ("--data.prm.path", str(pair / "prm" / "model"), "--trainer.max_epochs", str(ROUND))
    source = ("--model.source.path", str(pair / "sft" / "policy"), "--seed_everything", str(seed))
    arguments = (*settings, *prm, *source)
    forked(lambda: fit(config, arguments, root / "round"), root / "round", {"arguments": arguments})
    return policy, _prm(pair, policy, 1.0, root / "prm", seed)


def _prm(pair: Path, policy: Path, temperature: float, root: Path, seed: int) -> Path:
    """A PRM from the pair's labels and those of a policy's solutions at a temperature."""
    labels, more = root / "annotations.jsonl", ("--policy", str(policy), "--sampling.temperature", str(temperature))
    annotate = ("annotate", "--config", ANNOTATE, *more, "--output", str(labels), "--seed", str(seed + 1))
    train = [{"path": str(pair / "annotate" / "annotations.jsonl"), "offset": 150}, {"path": str(labels)}]
    of_prm = ("fit", "--config", PRM, "--trainer.default_root_dir", str(root), "--seed_everything", str(seed))
    of_prm += ("--model.source.path", str(pair / "sft" / "policy"), "--trainer.logger", "false")
    of_prm += ("--data.init_args.train", json.dumps(train))
    forked(lambda: _run(annotate, of_prm), root, {"annotate": annotate, "fit": of_prm})
    return root / "model"


def _run(*commands: Sequence[str]) -> dict[str, Any]:
    from prmkit.cli import main

    for command in commands:
        status = main(list(command))
        if status:
            raise PrmkitError(f"prm {command[0]} ended with status {status}")
    return {"commands": [" ".join(command) for command in commands]}
