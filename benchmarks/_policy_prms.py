"""Other PRMs for benchmarks/policy.py: trained on errors too that the demo's PRM was never shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _policy_runs import fit, forked
from _prm import run_prm

__all__ = ["hotter_prm", "refreshed_prm"]

SEARCH, ANNOTATE, PRM = (
    "configs/search/accumulator.yaml",
    "configs/annotate/traces.yaml",
    "configs/prm/accumulator.yaml",
)
HOT, LOOSE = 1.6, 15
PROBLEMS = ("--split", "train", "--offset", "15000", "--limit", "300", "--n", "8")  # nobody was trained on them


def hotter_prm(pair: Path, out: Path, seed: int) -> Path:
    """A PRM that also saw what the pair's policy writes at temperature HOT."""
    hot = ("--sampling.temperature", str(HOT))
    return _prm(pair, pair / "sft" / "policy", hot, out / f"hotter-{seed}", seed)


def refreshed_prm(pair: Path, out: Path, seed: int, config: str, settings: Sequence[str]) -> Path:
    """A PRM that also saw what a policy writes that was let loose on the pair's PRM for LOOSE updates."""
    root = out / f"refreshed-{seed}"
    prm = ("--data.prm.path", str(pair / "prm" / "model"), "--trainer.max_epochs", str(LOOSE))
    source = ("--model.source.path", str(pair / "sft" / "policy"), "--seed_everything", str(seed))
    arguments = (*settings, *prm, *source)
    forked(lambda: fit(config, arguments, root / "loose"), root / "loose", {"arguments": arguments})
    return _prm(pair, root / "loose" / "policy", (), root / "prm", seed)


def _prm(pair: Path, writer: Path, sampling: Sequence[str], root: Path, seed: int) -> Path:
    """The pair's PRM after two epochs more, on its labels and on those of what `writer` writes.

    The pair's policy finishes the prefixes: it solves problems, as the writer may no longer do.
    """
    policy, prm, rows, labels = (
        pair / "sft" / "policy",
        pair / "prm" / "model",
        root / "rows.jsonl",
        root / "hard.jsonl",
    )

    def search(writes: Path, seed: int, *more: str) -> tuple[str, ...]:
        models = ("--policy", str(writes), "--prm", str(prm), "--output", str(root / f"search-{seed}"))
        return ("search", "--config", SEARCH, *PROBLEMS, *models, "--seed", str(seed), *more)

    searches = (search(writer, 2 * seed, *sampling), search(policy, 2 * seed + 1))
    annotate = ("annotate", "--config", ANNOTATE, "--candidates", str(rows), "--policy", str(policy))
    annotate += ("--output", str(labels), "--seed", str(seed))
    train = [{"path": str(pair / "annotate" / "annotations.jsonl"), "offset": 150}, {"path": str(labels)}]
    of_prm = ("fit", "--config", PRM, "--trainer.default_root_dir", str(root), "--seed_everything", str(seed))
    of_prm += ("--model.source.path", str(prm), "--trainer.logger", "false", "--trainer.max_epochs", "2")
    of_prm += ("--data.init_args.train", json.dumps(train))

    def work() -> dict[str, Any]:
        for command in searches:
            run_prm(*command)
        folders = [Path(command[command.index("--output") + 1]) for command in searches]
        rows.write_text("".join((folder / "rows.jsonl").read_text() for folder in folders))
        run_prm(*annotate)
        run_prm(*of_prm)
        return {"labels": len(labels.read_text().splitlines())}

    forked(work, root, {"commands": [*searches, annotate, of_prm]})
    return root / "model"
