"""Kills of either of two nodes at random moments: every run ends with the figures of the undisturbed one.

    python benchmarks/preemption.py [--kills 20] [--kills_a_run 5] [--seed 0] [--hosts loopback|namespaces]
                                    [--iterations 12] [--result preemption]

GRPO on the built-in task over two nodes with a process each (DDP, gloo), elastic agents as torchrun's, a checkpoint
every optimiser step. A kill is SIGKILL to a node (agent and worker), SIGKILL to its worker alone, or SIGTERM to the
agent, drawn at random with the node and the moment: from the start of the processes on to the third step after they go
on. What dies is started again with the same command, `--ckpt_path last`. Runs follow until all kills are done. Written
to results/:

- kills_survived: kills of runs whose every step, on either rank, had the sample ids and metrics of the undisturbed run,
  bit for bit, and whose weights and last metrics are the same; kills is how many there were.
- by_kind: kills by kind and node.
- steps_repeated: share of optimiser steps that were done twice or more.
- seconds_undisturbed, seconds_with_kills: wall clock of a run, the latter the mean.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from _cluster import Cluster, Host, loopback, namespaces, wait
from _environment import write_result
from _step_diary import read_diary

from prmkit.formats.bound import BoundStepFormat
from prmkit.resources import find_config

KINDS = ("node", "worker", "term")
POLICY = {"model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
POLICY |= {"num_key_value_heads": 1, "intermediate_size": 32, "tie_word_embeddings": True, "initializer_range": 0.1}


def write_job(folder: Path, root: Path, iterations: int) -> list[str]:
    """Arguments of `prm` for a run in a folder of its own; the policy is the same for all."""
    config = yaml.safe_load(find_config("configs/grpo/quick.yaml").read_text())
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    trainer |= {"default_root_dir": str(root), "max_epochs": iterations, "num_nodes": 2, "strategy": "ddp"}
    trainer |= {"logger": False, "enable_progress_bar": False}
    kept = ("ModelCheckpoint", "ExportPretrained", "TrainingSummary")
    trainer["callbacks"] = [c for c in trainer["callbacks"] if c["class_path"].endswith(kept)]
    trainer["callbacks"][0]["init_args"]["every_n_train_steps"] = 1
    trainer["callbacks"].append(
        {"class_path": "_step_diary.StepDiary", "init_args": {"dirpath": str(root / "diary")}},
    )
    model["source"]["path"] = str(folder / "policy")
    data["max_tokens"] = 12
    root.mkdir(parents=True)
    (root / "job.yaml").write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(root / "job.yaml"), "--ckpt_path", "last"]


def write_policy(folder: Path) -> None:
    """A small policy of random weights."""
    from prmkit.formats.presets import get_step_format
    from prmkit.models import ModelSource, build_policy, load_tokenizer, save_policy

    source = ModelSource(config=POLICY, tokenizer="accumulator")
    tokenizer = load_tokenizer(source)
    save_policy(
        build_policy(source, tokenizer),
        tokenizer,
        BoundStepFormat(get_step_format("plain"), tokenizer),
        folder / "policy",
    )


def disturbed(cluster: Cluster, root: Path, draw: random.Random, kills: int) -> list[str]:
    """Kill up to so many times, as long as the run lasts. What was killed."""
    done: list[str] = []
    while len(done) < kills:
        before, steps, pause = _lines(root), draw.randint(0, 3), draw.uniform(0.0, 0.5)
        number, how = draw.randrange(2), draw.choice(KINDS)
        deadline = time.monotonic() + 300
        while _lines(root) < before + steps:
            if cluster.look():
                return done
            if time.monotonic() > deadline:
                raise TimeoutError(f"no step in 300 s:\n{cluster.tail()}")
            time.sleep(0.005)
        time.sleep(pause + (draw.uniform(0.0, 3.0) if steps == 0 else 0.0))  # 0 steps: while they start
        if cluster.look():
            return done
        cluster.kill(number, how)
        done.append(f"{how} {number}")
    return done


def _lines(root: Path) -> int:
    file = root / "diary" / "rank-0.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def differences(whole: Path, other: Path) -> list[str]:
    """What is not the same in two runs; empty when all is."""
    import torch
    from safetensors.torch import load_file

    found: list[str] = []
    for rank, (right, lines) in enumerate(zip(read_diary(whole / "diary"), read_diary(other / "diary"), strict=True)):
        expected = {line["step"]: line for line in right}
        if {line["step"] for line in lines} != set(expected):
            found.append(f"rank {rank}: other steps")
        for line in lines:
            known = expected.get(line["step"], line)
            # a process that has started again has not yet logged what comes once an iteration
            missing = {n for n in known["metrics"] if n.startswith("train/")} - set(line["metrics"])
            unlike = {n for n, value in line["metrics"].items() if known["metrics"].get(n, value) != value}
            if (line["epoch"], line["ids"]) != (known["epoch"], known["ids"]) or missing or unlike:
                found.append(f"rank {rank} step {line['step']}: {sorted(missing | unlike) or 'other samples'}")
    one, two = (load_file(root / "policy" / "model.safetensors") for root in (whole, other))
    found += [f"weights {name}" for name in one if not torch.equal(one[name], two[name])]
    ends = [json.loads((root / "training.json").read_text()) for root in (whole, other)]
    found += [
        f"at the end: {name}"
        for name, value in ends[0]["metrics"].items()
        if name.startswith(("train/", "val/")) and ends[1]["metrics"].get(name) != value
    ]
    found += [f"at the end: {name}" for name in ("tokens", "steps", "epochs") if ends[0][name] != ends[1][name]]
    return found


def run(hosts: tuple[Host, Host], arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All runs; the figures."""
    write_policy(folder)
    draw = random.Random(arguments.seed)
    start = time.monotonic()
    whole = folder / "whole"
    wait(Cluster(hosts, write_job(folder, whole, arguments.iterations), whole / "log"), 600)
    undisturbed, seconds = time.monotonic() - start, []
    done: list[str] = []
    survived = steps = 0
    while len(done) < arguments.kills:
        start, root = time.monotonic(), folder / f"run-{len(seconds)}"
        cluster = Cluster(hosts, write_job(folder, root, arguments.iterations), root / "log")
        try:
            kills = disturbed(cluster, root, draw, min(arguments.kills_a_run, arguments.kills - len(done)))
            wait(cluster, 600)
        finally:
            cluster.close()
        wrong = differences(whole, root)
        seconds.append(time.monotonic() - start)
        steps += _lines(root)
        done += kills
        survived += 0 if wrong else len(kills)
        what = f"{', '.join(kills)}; {cluster.starts} starts; {seconds[-1]:.0f} s; {wrong or 'same'}"
        print(f"run {len(seconds)}: {what}", flush=True)
    expected = len(seconds) * _lines(whole)
    return {
        "kills": len(done),
        "kills_survived": survived,
        "by_kind": dict(sorted(Counter(done).items())),
        "runs": len(seconds),
        "steps_a_run": _lines(whole),
        "steps_repeated": round((steps - expected) / expected, 3),
        "seconds_undisturbed": round(undisturbed, 1),
        "seconds_with_kills": round(sum(seconds) / len(seconds), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kills_a_run", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hosts", choices=("loopback", "namespaces"), default="loopback")
    parser.add_argument("--result", default="preemption", help="name of the file in results/, or a path")
    arguments = parser.parse_args()
    # Shared with the nodes by fork, so that they start at once.
    import datamodules.experience  # noqa: F401
    import lightning_modules.grpo  # noqa: F401
    import prmkit.cli.trainer_cli  # noqa: F401

    hosts = nullcontext(loopback()) if arguments.hosts == "loopback" else namespaces()
    with tempfile.TemporaryDirectory() as folder, hosts as pair:
        figures = run(pair, arguments, Path(folder))
    settings = {name: getattr(arguments, name) for name in ("kills_a_run", "iterations", "seed", "hosts")}
    print(write_result(arguments.result, figures, ("torch", "lightning"), settings=settings))
    print(json.dumps(figures, indent=1))
    if figures["kills_survived"] != figures["kills"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
