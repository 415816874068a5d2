"""Lines that nobody can act on are dropped, real alarms stay."""

import logging

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from prmkit.models import PRMModel, save_policy
from prmkit.quiet import checkpoint_follows, quiet_libraries, warn_of_earlier_run
from prmkit.steps import get_step_format
from prmkit.tasks import get_task

DROPPED = {
    "lightning.pytorch.utilities.rank_zero": "TPU available: False, using: 0 TPU cores",
    "lightning.pytorch.trainer.connectors.checkpoint_connector": "`weights_only` was not set, defaulting to `False`.",
    "transformers.modeling_utils": "LlamaForTokenClassification LOAD REPORT from: folder",
}
REAL = (
    "GPU available: True (cuda), used: False",
    "`Trainer.fit` stopped: No training batches.",
    "Some weights are tied and differ",
)


@pytest.mark.parametrize("name", DROPPED)
def test_noise_is_dropped_and_alarms_stay(name):
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger = logging.getLogger(name)
    quiet_libraries()
    quiet_libraries()
    logger.addHandler(handler)
    try:
        for text in (DROPPED[name], *REAL):
            logger.warning(text)
    finally:
        logger.removeHandler(handler)
    assert seen == list(REAL)


def test_new_weights_are_an_alarm_unless_a_checkpoint_replaces_them(tmp_path, caplog):
    task = get_task("accumulator")
    tokenizer = task.tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    policy = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **shape))
    save_policy(policy, tokenizer, task.step_format, tmp_path / "policy")
    for follows in (True, False):
        with checkpoint_follows(follows), caplog.at_level(logging.INFO):
            PRMModel.from_pretrained(tmp_path / "policy", get_step_format("plain-head"))
        assert ("new and random" in caplog.text) is not follows


def test_checkpoints_of_an_earlier_run_are_an_alarm_and_other_files_are_not(tmp_path, caplog):
    (tmp_path / ".fit.lock").touch()
    warn_of_earlier_run([str(tmp_path), None, tmp_path / "absent"])
    assert not caplog.text
    (tmp_path / "epoch=0-step=4.ckpt").touch()
    warn_of_earlier_run([str(tmp_path), tmp_path])
    assert len(caplog.records) == 1
    assert "`--ckpt_path last` continues it" in caplog.text
