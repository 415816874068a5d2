"""ZeRO 1, 2 and 3 on two CPU processes against one process: losses, and memory of a process by stage.

    python benchmarks/zero.py [--steps 50]

Two measurements, each fit in a process group of its own, over gloo.

*Losses*: a PRM of .08 M weights on generated step labels, 8 rows an optimiser step in 2 micro-batches a process,
gradients clipped; the same rows and steps on one process, under DDP and under each stage. One more fit of ZeRO 3 is
stopped half way and goes on from its shards.

*Memory*: a model of some 14 M weights in float32, one row of some 40 tokens a micro-batch. Counted are the bytes that a
process holds: weights (between steps), gradients (the most of: between the micro-batches of a window, and before the
update), and states of the optimiser, which for ZeRO includes its own float32 copy of the weights. Peak RSS is the
process's high-water mark over the whole fit: programs, building the model, activations, buckets are in it, too.

Written to results/zero.json:

- max_loss_difference: over the steps, to one process, by strategy.
- max_weight_difference: likewise, of the final weights.
- resume_max_loss_difference: ZeRO 3, stopped half way, to itself undisturbed.
- memory_by_zero_stage: MiB of a process; stage 0 is DDP.
- expected_bytes_per_weight: what arithmetic gives for float32: 4 weights + 4 gradients + 8 moments, and 4 for ZeRO's
  own copy, each divided by the processes where it is divided.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STAGES = ("ddp", "zero1", "zero2", "zero3")
MIB = 2**20
LOSS_MODEL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
MEMORY_MODEL = {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "intermediate_size": 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(json.loads(arguments.child))
        return
    from _environment import write_result

    with tempfile.TemporaryDirectory() as folder:
        figures = {**losses(Path(folder), arguments.steps), **memory(Path(folder))}
    print(json.dumps(figures, indent=2))
    protocol = {"steps": arguments.steps, "processes": 2, "loss_model": LOSS_MODEL, "memory_model": MEMORY_MODEL}
    print(write_result("zero", figures, ("torch", "lightning", "deepspeed", "transformers"), protocol=protocol))


def losses(folder: Path, steps: int) -> dict[str, Any]:
    data = write_labels(folder / "labels.jsonl", 640)
    job = {"kind": "losses", "data": str(data), "steps": steps, "save": "", "resume": ""}
    one = launch({**job, "strategy": "auto"}, folder, 1)[0]
    halfway = folder / "half.ckpt"
    found = {
        name: launch({**job, "strategy": name, "save": str(halfway) if name == "zero3" else ""}, folder, 2)[0]
        for name in STAGES
    }
    rest = launch({**job, "strategy": "zero3", "resume": str(halfway)}, folder, 2)[0]["losses"]
    whole = found["zero3"]["losses"]
    assert len(one["losses"]) == len(whole) == steps, (len(one["losses"]), len(whole))
    return {
        "loss_first_and_last": [one["losses"][0], one["losses"][-1]],
        "max_loss_difference": {n: difference(one["losses"], f["losses"]) for n, f in found.items()},
        "max_weight_difference": {n: difference(one["weights"], f["weights"]) for n, f in found.items()},
        "resume_max_loss_difference": difference(whole[steps // 2 :], rest),
    }


def memory(folder: Path) -> dict[str, Any]:
    data = write_labels(folder / "labels.jsonl", 64)
    found: dict[str, Any] = {}
    for stage, name in enumerate(STAGES):
        job = {"kind": "memory", "data": str(data), "strategy": name, "steps": 3, "save": "", "resume": ""}
        ranks = launch(job, folder, 2)
        parts = {part: max(rank["memory"][part] for rank in ranks) for part in ranks[0]["memory"]}
        found[str(stage)] = {part: round(size / MIB, 1) for part, size in parts.items()}
        found[str(stage)]["bytes_per_weight"] = round(
            sum(parts[part] for part in ("weights", "gradients", "optimizer")) / ranks[0]["count"], 2
        )
    expected = {"0": 4 + 4 + 8, "1": 4 + 4 + 12 / 2, "2": 4 + 4 / 2 + 12 / 2, "3": (4 + 4 + 12) / 2}
    return {"weights": ranks[0]["count"], "memory_by_zero_stage": found, "expected_bytes_per_weight": expected}


def difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def write_labels(path: Path, rows: int) -> Path:
    """Solutions of the accumulator with a wrong step in every other one."""
    from prmkit.annotation.records import StepLabels

    with path.open("w") as file:
        for number in range(rows):
            steps = 2 + number % 5
            values = tuple(float(step < steps - number % 2) for step in range(steps))
            digits = [f"{(number * 7 + step) % 16:X}" for step in range(steps)]
            texts = tuple(f"f+{3 + (number + step) % 6}={digit}" for step, digit in enumerate(digits))
            record = StepLabels(
                f"p{number}", f"f+{3 + number % 6},{number % 8}", "C", texts, values, (1,) * steps, "generated", "",
                separator="\n",
            )  # fmt: skip
            file.write(json.dumps(record.to_json()) + "\n")
    return path


def launch(job: dict[str, Any], folder: Path, processes: int) -> list[dict[str, Any]]:
    """What each process of a fit reports."""
    job = {**job, "out": str(folder / "out")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # Freed blocks go back to the system at once, so that the resident size is what is really in use.
    settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "65536"}
    settings |= {"MALLOC_TRIM_THRESHOLD_": "0", "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.run(
        [*command, __file__, "--child", json.dumps(job)], env={**os.environ, **settings}, capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-4000:])
    print(f"{job['kind']:>7} {job['strategy']:>6} done", flush=True)
    return [json.loads(Path(f"{job['out']}.{rank}").read_text()) for rank in range(processes)]


def run_child(job: dict[str, Any]) -> None:
    """One process of a fit."""
    import torch
    from lightning.pytorch import Callback, Trainer

    from datamodules.batching import BatchConfig
    from datamodules.sources import SourceConfig
    from datamodules.step_labels import StepLabelDataModule
    from lightning_modules.optimizers import OptimizerConfig
    from lightning_modules.prm import PRM
    from prmkit.models import ModelSource, whole_state_dict

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    of_losses = job["kind"] == "losses"
    report: dict[str, Any] = {"losses": []}

    class Watch(Callback):
        def on_train_start(self, trainer: Trainer, *_: object) -> None:
            self.seen = trainer.global_step

        def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, *_: object) -> None:
            self.note_gradients(trainer, pl_module)

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: object) -> None:
            step = trainer.global_step
            if step == self.seen:  # in the middle of a window
                self.note_gradients(trainer, pl_module)
                return
            self.seen = step
            report["losses"].append(float(trainer.callback_metrics["train/loss"]))
            if job["save"] and step == job["steps"] // 2:
                trainer.save_checkpoint(job["save"])

        def note_gradients(self, trainer: Trainer, pl_module: Any) -> None:
            if not of_losses:
                report["gradients"] = max(report.get("gradients", 0), gradient_bytes(trainer, pl_module))

        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            if not of_losses:
                held = {**held_bytes(trainer, pl_module), "gradients": report["gradients"], "peak_rss": peak()}
                report["memory"] = held
                report["count"] = sum(getattr(p, "ds_numel", p.numel()) for p in pl_module.parameters())
            state = whole_state_dict(pl_module) if of_losses else {}
            report["weights"] = [float(x) for tensor in state.values() for x in tensor.flatten()]

    torch.manual_seed(0)
    shape = LOSS_MODEL if of_losses else MEMORY_MODEL
    config = {"model_type": "qwen2", "tie_word_embeddings": True, "initializer_range": 0.05, **shape}
    config["num_key_value_heads"] = shape["num_attention_heads"]
    source = ModelSource(config=config, tokenizer="accumulator")
    module = PRM(source, "plain", OptimizerConfig(lr=1e-3, warmup_steps=5))
    rows = 4 // world if of_losses else 1
    data = StepLabelDataModule([SourceConfig(path=job["data"])], batch=BatchConfig(rows=rows), max_length=96)
    strategy: Any = "auto" if world == 1 else "ddp"
    if job["strategy"].startswith("zero"):
        from lightning_modules.strategies import ZeroStrategy

        strategy = ZeroStrategy(stage=int(job["strategy"][4:]), bucket_elements=500_000)
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy=strategy, max_steps=job["steps"],
        accumulate_grad_batches=2, gradient_clip_val=0.5, log_every_n_steps=1,
        callbacks=[Watch()], logger=False, use_distributed_sampler=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=job["resume"] or None, weights_only=True)
    Path(f"{job['out']}.{rank}").write_text(json.dumps(report))


def gradient_bytes(trainer: Any, module: Any) -> int:
    """Bytes of gradients in this process at this moment: those of parameters, and those that ZeRO has divided."""
    wrapper = trainer.strategy.optimizers[0]
    divided = [t for group in getattr(wrapper, "averaged_gradients", {}).values() for t in group or ()]
    buffer = getattr(wrapper, "grad_partitions_flat_buffer", None)
    return distinct_bytes([p.grad for p in module.parameters()] + divided + [buffer])


def held_bytes(trainer: Any, module: Any) -> dict[str, int]:
    """Bytes of weights and of the optimiser's states (with ZeRO's own copy of the weights) in this process."""
    import torch

    weights = [getattr(p, "ds_tensor", p) for p in module.parameters()]
    wrapper = trainer.strategy.optimizers[0]
    inner = getattr(wrapper, "optimizer", wrapper)
    copies = list(getattr(wrapper, "fp32_partitioned_groups_flat", []))
    copies += list(getattr(wrapper, "single_partition_of_fp32_groups", []))
    moments = [value for state in inner.state.values() for value in state.values() if torch.is_tensor(value)]
    return {"weights": distinct_bytes(weights), "optimizer": distinct_bytes(copies + moments)}


def distinct_bytes(tensors: Any) -> int:
    """Bytes of tensors; a block of memory that several of them share counts once."""
    blocks = {}
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            storage = tensor.untyped_storage()
            blocks[storage.data_ptr()] = storage.nbytes()
    return sum(blocks.values())


def peak() -> int:
    """High-water mark of this process's resident memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM; this benchmark needs Linux")


if __name__ == "__main__":
    main()
