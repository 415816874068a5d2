"""Pairs and weighted solutions from step-label records, and the modules that learn from them."""

import json

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules.batching import BatchConfig
from datamodules.experience_offline import OfflineDataModule, Pair, Weighted, preference_pairs, weighted_solutions
from datamodules.sources import SourceConfig
from lightning_modules.dpo import DPO
from lightning_modules.offline_awr import AWR
from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.sft import SFT
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError, DataError
from prmkit.losses import PreferenceConfig
from prmkit.models import ModelSource

CONFIG = {"model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 1, "intermediate_size": 32, "tie_word_embeddings": True, "initializer_range": 0.1}
SOURCE = ModelSource(config=CONFIG, tokenizer="accumulator")
OPTIMIZER = OptimizerConfig(lr=3e-3, schedule="constant", warmup_steps=0)


def record(problem: str, steps: str, values: tuple, correct: bool | None, separator: str = "\n") -> StepLabels:
    texts = tuple(steps.split())
    return StepLabels(problem, "f+5g*3,7", "4", texts, values, (1,) * len(texts), "t", "", None, separator, correct)


RIGHT = record("p", "f+5=C g*3=4", (1.0, 1.0), True)
LATE = record("p", "f+5=C g*3=5", (0.5, 0.0), False)
EARLY = record("p", "f+5=B g*3=1", (0.0, None), False)
BLIND = record("p", "f+5=C g*3=6", (None, None), False)
ALONE = record("q", "f+5=C", (1.0,), True)
UNKNOWN = record("p", "f+5=C g*3=7", (1.0, 0.0), None)
RECORDS = [RIGHT, LATE, EARLY, BLIND, ALONE, UNKNOWN]


def test_pairs_of_solutions_and_of_first_wrong_steps():
    question = RIGHT.question
    assert preference_pairs(RECORDS, "solution") == [
        Pair(question, (), RIGHT.steps, wrong.steps, True) for wrong in (LATE, EARLY, BLIND)
    ]
    assert preference_pairs(RECORDS, "step") == [
        Pair(question, ("f+5=C",), ("g*3=4",), ("g*3=5",), False),
        Pair(question, (), ("f+5=C",), ("f+5=B",), False),
    ]
    assert len(preference_pairs(RECORDS, "solution", per_problem=2)) == 2
    assert preference_pairs([ALONE, UNKNOWN], "solution") == []


def test_advantages_are_relative_to_the_problem():
    assert weighted_solutions(RECORDS, "all") == [
        Weighted(RIGHT.question, RIGHT.steps, 0.75),
        *(Weighted(RIGHT.question, wrong.steps, -0.25) for wrong in (LATE, EARLY, BLIND)),
        Weighted(ALONE.question, ALONE.steps, 0.0),
    ]
    assert [row.steps for row in weighted_solutions(RECORDS, "right")] == [RIGHT.steps, ALONE.steps]


@pytest.fixture
def file(tmp_path):
    def make(records=RECORDS) -> str:
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in records))
        return str(path)

    return make


def fit(module, path: str, rows: str, batch: int = 4, **changes) -> dict[str, float]:
    sources = [SourceConfig(path=path)]
    data = OfflineDataModule(sources, sources, rows=rows, batch=BatchConfig(rows=batch, drop_last=False), max_length=64)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(**{**quiet, "enable_checkpointing": False, "max_epochs": 1, **changes})
    trainer.fit(module, data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("rows", ["pairs", "step_pairs"])
def test_dpo_learns_the_preference(rows, file):
    module = DPO(SOURCE, optimizer=OPTIMIZER, loss=PreferenceConfig(beta=0.5))
    figures = fit(module, file(), rows, max_epochs=20)
    assert figures["val/accuracy"] == 1.0
    assert figures["val/loss"] < 0.4 < 0.6931  # log 2, where policy and reference are the same
    assert figures["train/chosen_reward"] > figures["train/rejected_reward"]


def test_dpo_begins_at_log_two_however_a_step_is_split(file):
    one = fit(DPO(SOURCE, optimizer=OPTIMIZER), file(), "pairs", batch=3)
    split = fit(DPO(SOURCE, optimizer=OPTIMIZER), file(), "pairs", batch=1, accumulate_grad_batches=3)
    assert one["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert split["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5)
    assert split["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=1e-4)
    assert split["val/loss"] == pytest.approx(one["val/loss"], rel=1e-4)


def test_step_pairs_count_the_step_alone(file):
    sources = [SourceConfig(path=file())]
    data = OfflineDataModule(sources, rows="step_pairs", batch=BatchConfig(rows=2), max_length=64)
    module = DPO(SOURCE)
    data.trainer = type("T", (), {"lightning_module": module, "global_rank": 0, "world_size": 1,
                                  "accumulate_grad_batches": 1})()  # fmt: skip
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch.pairs == 2
    texts = [module.tokenizer.decode(ids[mask]) for ids, mask in zip(batch.input_ids, batch.action_mask, strict=True)]
    assert sorted(zip(texts[:2], texts[2:], strict=True)) == [("f+5=C\n", "f+5=B\n"), ("g*3=4\n", "g*3=5\n")]


def test_right_solutions_alone_are_fine_tuning(file):
    """The gradient of SFT on the same solutions, computed by the SFT module."""
    figures = fit(AWR(SOURCE, optimizer=OPTIMIZER), file([RIGHT, ALONE]), "right", batch=2)
    sft = SFT(SOURCE)
    sft.configure_model()
    fmt, total, count = sft.bound_format, 0.0, 0
    for row in (RIGHT, ALONE):
        prompt, ids = fmt.prompt_ids(row.question), fmt.solution_ids("\n".join(row.steps))
        logits = sft.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        total -= float(logits.log_softmax(-1)[torch.arange(len(ids)), list(ids)].sum().detach())
        count += len(ids)
    assert figures["train/loss"] == pytest.approx(total / count, rel=1e-5)
    assert figures["train/weight"] == 1.0


def test_awr_weighs_solutions(file):
    figures = fit(AWR(SOURCE, optimizer=OPTIMIZER, temperature=0.25), file(), "solutions", batch=5, max_epochs=1)
    assert figures["train/weight"] != 1.0
    assert figures["train/bounded"] > 0.0  # exp(.75 / .25) is above 20


def test_what_cannot_be_learnt_from_is_refused(file):
    with pytest.raises(DataError, match=r"2 records give no pairs"):
        fit(DPO(SOURCE), file([ALONE, UNKNOWN]), "pairs")
    with pytest.raises(DataError, match=r"ends steps with '=', the step format with"):
        fit(DPO(SOURCE), file([record("p", "a b", (1.0, 0.0), False, "=")]), "pairs")
    with pytest.raises(ConfigError, match=r"data.rows: got 'triples'"):
        OfflineDataModule([], rows="triples")
    with pytest.raises(ConfigError, match=r"model.temperature: got 0"):
        AWR(SOURCE, temperature=0.0)
