"""GRPO by TRL on the updates of benchmarks/policy.py, for its --trl: run by the interpreter of TRL's own environment.

    PYTHON benchmarks/trl_grpo.py --model FOLDER --prompts FILE --output FILE --updates 8 --seed 0

Needs trl and its dependencies, not prmkit. An update is one generation of 32 prompts x 8 solutions and one optimiser
step in 4 micro-batches, as in configs/grpo/accumulator.yaml without its pull: no reference model, outcome reward, loss
"grpo". Written for each update: CPU and wall-clock seconds of generation (sampling, rewards, advantages), and of
training.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

LAST_VALUE = re.compile(r"=(\w)\s*$")


def outcome(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 where a solution's last value is the answer, 0 elsewhere."""
    found = [LAST_VALUE.search(text) for text in completions]
    return [float(match is not None and match[1] == gold) for match, gold in zip(found, answer, strict=True)]


def now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


class TimedTrainer(GRPOTrainer):
    """Notes when the solutions of an update are there."""

    generated = (0.0, 0.0)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        found = super()._generate_and_score_completions(inputs)
        self.generated = now()
        return found


class Clock(TrainerCallback):
    """A line an update."""

    def __init__(self) -> None:
        self.trainer: TimedTrainer | None = None
        self.begun = (0.0, 0.0)
        self.lines: list[dict[str, float]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.trainer is not None
        end, line = now(), {}
        for kind, name in enumerate(("cpu", "wall")):
            line[f"{name}_generation"] = self.trainer.generated[kind] - self.begun[kind]
            line[f"{name}_training"] = end[kind] - self.trainer.generated[kind]
        self.lines.append(line)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:  # noqa: ARG002
        if self.lines and "reward" in logs:
            self.lines[-1]["outcome"] = float(logs["reward"])
            self.lines[-1]["length"] = float(logs["completions/mean_length"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, type=Path, help='JSON lines with "prompt" and "answer"')
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.prompts.read_text().splitlines()]
    config = GRPOConfig(
        output_dir=str(arguments.output.parent / "trl"),
        per_device_train_batch_size=64,
        gradient_accumulation_steps=4,
        num_generations=8,
        max_completion_length=64,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=5e-4,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=arguments.updates,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=arguments.seed,
    )
    clock = Clock()
    clock.trainer = TimedTrainer(
        arguments.model, outcome, args=config, train_dataset=Dataset.from_list(rows), callbacks=[clock]
    )
    clock.trainer.train()
    arguments.output.write_text("".join(json.dumps(line) + "\n" for line in clock.lines))


if __name__ == "__main__":
    main()
