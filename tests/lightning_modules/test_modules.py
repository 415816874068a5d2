"""SFT and PRM in a real Trainer: learning, logging, checkpoints, resumption, adapters, precision, command line."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.prm import PRM
from lightning_modules.sft import SFT
from prmkit.batches import PairBatch, SFTBatch
from prmkit.errors import ConfigError, DataError, StepFormatError
from prmkit.models import LoraSpec, ModelSource, PRMModel, load_policy

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}
SOURCE = ModelSource(config=CONFIG, tokenizer="accumulator")
FAST = OptimizerConfig(lr=1e-2, warmup_steps=0)


Batch = SFTBatch | PairBatch


def sft_batches(n: int = 6) -> list[Batch]:
    """Rows that repeat one token: after it has been seen twice the next is certain."""
    return [make(seed, kind="sft") for seed in range(n)]


def prm_batches(n: int = 6) -> list[Batch]:
    """Steps that end in an even token are right, in an odd one wrong; nothing behind the first wrong one counts."""
    return [make(seed, kind="prm") for seed in range(n)]


def make(seed: int, kind: str, rows: int = 8, length: int = 12) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 20, (rows, length), generator=draw)
    if kind == "sft":
        ids = ids[:, :1].expand(rows, length).contiguous()
    positions = torch.tensor([[3, 7, 11]]).expand(rows, 3)
    right = ids.gather(1, positions) % 2 == 0
    known = right.int().cumprod(1).bool()
    first_error = torch.where(known.all(1), -1, known.int().argmin(1))
    position_mask = torch.cat([torch.ones(rows, 1, dtype=torch.bool), known[:, :-1]], 1)
    loss_mask = torch.zeros(rows, length, dtype=torch.bool)
    loss_mask[:, 2:] = True
    pairs = []
    start = 0
    for count in position_mask.sum(1).tolist():
        pairs += [(start, start + count - 1)] if count > 1 else []
        start += count
    count = int(loss_mask.sum()) if kind == "sft" else int(position_mask.sum())
    common = {"ids": tuple(f"{seed}-{row}" for row in range(rows)), "window_count": count}
    common |= {"input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}
    if kind == "sft":
        return SFTBatch(loss_mask=loss_mask, **common)
    steps = {"positions": positions, "position_mask": position_mask, "targets": right.float()}
    return PairBatch(first_error=first_error, pairs=torch.tensor(pairs), **steps, **common)


def loader(batches: list[Batch]) -> DataLoader:
    return DataLoader(batches, batch_size=None)


def trainer(**changes) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{**quiet, "enable_checkpointing": False, "max_epochs": 1, **changes})


def test_sft_learns_logs_and_exports(tmp_path: Path) -> None:
    model, run = SFT(SOURCE, optimizer=FAST), trainer(max_epochs=16)
    run.fit(model, loader(sft_batches()), loader(sft_batches(8)[6:]))
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["val/loss"] < 0.5 < math.log(16)
    assert logged["train/tokens"] == 8 * 12
    assert logged["train/targets"] == 8 * 10
    assert 0 < logged["train/lr"] < 1e-2
    assert logged["train/grad_norm"] > 0
    model.export_pretrained(tmp_path / "policy", weight_version=2)
    policy = load_policy(tmp_path / "policy")
    ids = sft_batches(1)[0].input_ids
    assert torch.equal(policy.model(ids).logits, model.model.eval()(ids).logits)


def test_sft_validation_loss_is_per_token_over_all_batches() -> None:
    batches = sft_batches(2)
    batches[1].loss_mask[:, 4:] = False
    model, run = SFT(SOURCE), trainer()
    (logged,) = run.validate(model, loader(batches), verbose=False)
    total, count = 0.0, 0
    for b in batches:
        logp = model.model(b.input_ids).logits.log_softmax(-1)
        for row, t in b.loss_mask.nonzero().tolist():
            total -= float(logp[row, t - 1, b.input_ids[row, t]].detach())
            count += 1
    assert logged["val/loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("loss", ["hard", "soft", "mse", "pairwise"])
def test_prm_learns_with_every_loss(loss: str) -> None:
    batches = prm_batches(8)
    if loss == "pairwise":
        for b in batches:
            b.window_count = len(b.pairs)
    model, run = PRM(SOURCE, optimizer=FAST, loss=loss), trainer(max_epochs=12)
    run.fit(model, loader(batches[:6]))
    (logged,) = run.test(model, loader(batches[6:]), verbose=False)
    assert logged["test/auroc"] > 0.95
    if loss != "pairwise":  # pairs say nothing of the level of scores
        assert logged["test/step_accuracy"] > 0.9
        assert logged["test/first_error_f1"] > 0.8


@pytest.mark.parametrize("head", ["label_tokens", "token_head", "scalar"])
def test_prm_metrics_and_predictions_agree(head: str) -> None:
    batches = prm_batches(3)
    form = {"base": "plain", "prm": {"head": head}}
    model, run = PRM(SOURCE, step_format=form, loss="soft", threshold=0.5), trainer()
    (logged,) = run.validate(model, loader(batches), verbose=False)
    rows = [row for part in run.predict(model, loader(batches)) for row in part]
    assert [row["id"] for row in rows] == [name for b in batches for name in b.ids]
    labels = torch.cat([b.targets[b.position_mask] for b in batches])
    scores = torch.tensor([s for row in rows for s in row["scores"]])
    assert logged["val/auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert logged["val/step_accuracy"] == pytest.approx(float(((scores > 0.5) == labels.bool()).float().mean()))
    loss = -(labels * scores.log() + (1 - labels) * (1 - scores).log()).mean()
    assert logged["val/loss"] == pytest.approx(float(loss), rel=1e-4)
    hits: dict[bool, list[bool]] = {True: [], False: []}
    truth = [int(e) for b in batches for e in b.first_error]
    for row, first in zip(rows, truth, strict=True):
        wrong = [i for i, s in enumerate(row["scores"]) if s < 0.5]
        hits[first >= 0].append((wrong[0] if wrong else -1) == first)
    a, b = (sum(h) / len(h) for h in hits.values())
    assert logged["val/first_error_f1"] == pytest.approx(0.0 if a + b == 0 else 2 * a * b / (a + b), abs=1e-6)
    assert rows[0]["positions"] == batches[0].positions[0][batches[0].position_mask[0]].tolist()


def test_filler_rows_count_nowhere() -> None:
    filler = make(9, "prm")
    filler.position_mask[:] = False
    filler.attention_mask[:] = False
    filler.first_error[:] = -2
    filler.ids = ("",) * 8
    filler.pairs = torch.zeros(0, 2, dtype=torch.long)
    model, run = PRM(SOURCE), trainer()
    (plain,) = run.validate(model, loader(prm_batches(2)), verbose=False)
    (filled,) = run.validate(model, loader([filler, *prm_batches(2)]), verbose=False)
    assert filled == pytest.approx(plain)
    assert run.predict(model, loader([filler])) == [[]]


@pytest.mark.parametrize("kind", ["sft", "prm"])
def test_resumed_run_equals_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    """Checkpoints hold no pickled objects: they load with weights_only."""

    def module():
        if kind == "sft":
            return SFT(SOURCE, optimizer=FAST)
        return PRM(ModelSource(config=CONFIG, tokenizer="accumulator", lora=LoraSpec(r=2)), optimizer=FAST)

    batches = sft_batches() if kind == "sft" else prm_batches()
    whole = module()
    trainer(max_epochs=4).fit(whole, loader(batches))
    saved = ModelCheckpoint(dirpath=tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    trainer(max_epochs=4, enable_checkpointing=True, callbacks=[saved]).fit(module(), loader(batches))
    torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    again = module()
    trainer(max_epochs=4).fit(again, loader(batches), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    for name, weight in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    again.export_pretrained(tmp_path / "model")
    if kind == "prm":
        ids, plain = batches[0], PRMModel.from_pretrained(tmp_path / "model")
        arguments = (ids.input_ids, ids.attention_mask, ids.positions, ids.position_mask)
        torch.testing.assert_close(plain(*arguments), again.model.eval()(*arguments), rtol=1e-4, atol=1e-4)


def test_lora_moves_adapters_only() -> None:
    model = SFT(ModelSource(config=CONFIG, tokenizer="accumulator", lora=LoraSpec(r=2)), optimizer=FAST)
    model.configure_model()
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer().fit(model, loader(sft_batches()))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in name for name in moved)


@pytest.mark.parametrize("kind", ["sft", "prm"])
def test_mixed_precision_keeps_the_loss_in_float32(kind: str) -> None:
    model = SFT(SOURCE, optimizer=FAST) if kind == "sft" else PRM(SOURCE, optimizer=FAST)
    batches = sft_batches() if kind == "sft" else prm_batches()
    run = trainer(precision="bf16-mixed")
    run.fit(model, loader(batches))
    assert run.callback_metrics["train/loss"].dtype == torch.float32
    assert math.isfinite(run.callback_metrics["train/loss"])
    assert next(model.model.parameters()).dtype == torch.float32


def test_configure_model_is_idempotent_and_the_format_is_known_before() -> None:
    model = PRM(SOURCE)
    assert not hasattr(model, "model")
    assert model.bound_format.spec.name == "plain"
    assert model.tokenizer is model.bound_format.tokenizer
    model.configure_model()
    made = model.model
    model.configure_model()
    assert model.model is made


def test_prm_from_an_exported_policy_takes_its_format(tmp_path: Path) -> None:
    policy = SFT(SOURCE, step_format={"base": "plain", "name": "mine"})
    policy.configure_model()
    policy.export_pretrained(tmp_path / "policy")
    prm = PRM(ModelSource(path=str(tmp_path / "policy")))
    prm.configure_model()
    assert prm.bound_format.spec.name == "mine"
    wanted = policy.model.model.embed_tokens.weight
    assert torch.equal(prm.model.backbone.embed_tokens.weight, wanted)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"model.loss: got 'focal'"):
        PRM(SOURCE, loss="focal")
    with pytest.raises(ConfigError, match=r"model.right_above"):
        PRM(SOURCE, right_above=1.0)
    with pytest.raises(StepFormatError, match=r"prm.positive"):
        PRM(SOURCE, step_format={"base": "plain", "prm": {"positive": "yes"}})
    batch = prm_batches(1)[0]
    batch.targets = batch.targets * 0.5
    with pytest.raises(DataError, match=r'loss "hard" got the target 0\.5'):
        trainer().fit(PRM(SOURCE), loader([batch]))


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        assert self.trainer.lightning_module.bound_format.eos_id == 2
        return loader(prm_batches(2))


def test_command_line_and_yaml(tmp_path: Path) -> None:
    config = {
        "class_path": "lightning_modules.prm.PRM",
        "init_args": {
            "source": {"config": CONFIG, "tokenizer": "accumulator", "lora": {"r": 4}},
            "step_format": {"base": "plain", "prm": {"head": "token_head"}},
            "optimizer": {"lr": 0.5, "betas": [0.8, 0.9]},
            "loss": "mse",
        },
    }
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": config}))
    arguments = ["fit", "--config", str(tmp_path / "model.yaml"), "--trainer.max_steps=2", "--trainer.logger=false"]
    arguments += ["--trainer.enable_checkpointing=false", "--trainer.accelerator=cpu"]
    arguments += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    arguments += ["--model.init_args.optimizer.lr=0.25", "--model.init_args.source.lora.r=2"]
    made = LightningCLI(datamodule_class=Data, subclass_mode_model=True, save_config_callback=None, args=arguments)
    assert made.model.optimizer_config == OptimizerConfig(lr=0.25, betas=(0.8, 0.9))
    assert made.model.source.lora == LoraSpec(r=2)
    assert made.model.bound_format.spec.prm.head == "token_head"
    assert made.trainer.global_step == 2
