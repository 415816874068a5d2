"""The gradient of an optimiser step does not depend on how its rows are split into micro-batches and processes.

Run as a script (by torchrun) it writes the gradients of both modules over two processes; see the last test.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.prm import PRM
from lightning_modules.sft import SFT
from prmkit.batches import PRMBatch, SFTBatch
from prmkit.models import ModelSource

ROWS = 16
SOURCE = ModelSource(
    config={
        "model_type": "qwen2",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    },
    tokenizer="accumulator",
)


@dataclass
class Row:
    ids: Tensor
    loss_mask: Tensor
    positions: Tensor
    targets: Tensor


def rows() -> list[Row]:
    """Ragged: 5 to 27 tokens, 1 to 4 labelled steps, any number of predicted tokens."""
    draw = torch.Generator().manual_seed(1)
    made = []
    for number in range(ROWS):
        length = int(torch.randint(5, 28, (1,), generator=draw))
        steps = 1 + number % 4
        made.append(
            Row(
                ids=torch.randint(4, 50, (length,), generator=draw),
                loss_mask=torch.arange(length) >= 1 + number % (length - 1),
                positions=torch.randperm(length, generator=draw)[:steps].sort().values,
                targets=torch.rand(steps, generator=draw),
            )
        )
    return made


def collate(part: list[Row], name: str) -> SFTBatch | PRMBatch:
    def padded(tensors: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)

    common = {"ids": tuple(map(str, range(len(part)))), "input_ids": padded([r.ids for r in part])}
    common["attention_mask"] = padded([torch.ones_like(r.ids, dtype=torch.bool) for r in part])
    if name == "sft":
        return SFTBatch(loss_mask=padded([r.loss_mask for r in part]), **common)
    return PRMBatch(
        positions=padded([r.positions for r in part]),
        position_mask=padded([torch.ones_like(r.positions, dtype=torch.bool) for r in part]),
        targets=padded([r.targets for r in part]),
        first_error=torch.full((len(part),), -2),
        **common,
    )


class Window(Dataset):
    """One optimiser step of a rank: its micro-batches, each with the count of all of them."""

    def __init__(self, name: str, batch: int, rank: int = 0, world: int = 1) -> None:
        mine = rows()[rank::world]
        parts = [collate(mine[start : start + batch], name) for start in range(0, len(mine), batch)]
        total = sum(part.count for part in parts)
        self.parts = [part.with_window(total) for part in parts]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> SFTBatch | PRMBatch:
        return self.parts[index]


class Gradients(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.found = {n: p.grad.clone() for n, p in pl_module.named_parameters()}


def module(name: str) -> SFT | PRM:
    optimizer = OptimizerConfig(schedule="constant", warmup_steps=0)
    if name == "sft":
        return SFT(SOURCE, optimizer=optimizer, chunk_logits=300)
    return PRM(SOURCE, optimizer=optimizer, loss="soft")


def train(name: str, batch: int, accumulation: int, rank: int = 0, world: int = 1) -> tuple[dict[str, Tensor], float]:
    """Gradients of the one optimiser step, and its logged loss."""
    callback, model = Gradients(), module(name)
    trainer = Trainer(
        max_steps=1,
        accumulate_grad_batches=accumulation,
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        use_distributed_sampler=False,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(Window(name, batch, rank, world), batch_size=None))
    return callback.found, float(trainer.callback_metrics["train/loss"])


def oracle(name: str) -> tuple[dict[str, Tensor], float]:
    """Plain transformers on one row at a time with full logits; sum over all rows divided by the count."""
    model = module(name)
    model.configure_model()
    lm = model.model if name == "sft" else model.model.model
    total, count = torch.zeros(()), 0
    for row in rows():
        logits = lm(row.ids[None]).logits[0]
        if name == "sft":
            total = total + F.cross_entropy(logits[:-1][row.loss_mask[1:]], row.ids[row.loss_mask], reduction="sum")
            count += int(row.loss_mask.sum())
        else:
            logp = logits[row.positions][:, list(model.bound_format.label_ids)].log_softmax(-1)
            total = total - (row.targets * logp[:, 1] + (1 - row.targets) * logp[:, 0]).sum()
            count += len(row.targets)
    (total / count).backward()
    return {n: p.grad for n, p in model.named_parameters()}, float(total / count)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    scale = max(float(w.abs().max()) for w in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize("name", ["sft", "prm"])
def test_batch_and_accumulation(name: str) -> None:
    wanted, loss = oracle(name)
    for batch, accumulation in [(16, 1), (4, 4), (1, 16)]:
        found, logged = train(name, batch, accumulation)
        assert_same(found, wanted)
        assert logged == pytest.approx(loss, rel=1e-5)


def test_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    run = subprocess.run([*command, str(tmp_path)], timeout=200, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    for name in ("sft", "prm"):
        wanted, loss = oracle(name)
        for rank in (0, 1):
            found, logged = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert_same(found, wanted)
            assert logged == pytest.approx(loss, rel=1e-5)


if __name__ == "__main__":
    import os

    place = int(os.environ["RANK"])
    for kind in ("sft", "prm"):
        torch.save(train(kind, 2, 4, place, 2), Path(sys.argv[1]) / f"{kind}-{place}.pt")
