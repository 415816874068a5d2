"""`prm estimate`: weights as the real models have them, memory as a process shows it, every training config."""

import json
import subprocess
import sys

import pytest

from prmkit.cli import main
from prmkit.cli.estimating import meta_model
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import get_step_format
from prmkit.models import ModelSource, build_policy, build_prm, load_tokenizer
from prmkit.models.lora import LoraSpec
from prmkit.resources import shipped_configs

CONFIG = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
CONFIG |= {"num_attention_heads": 2, "num_key_value_heads": 2}
TRAINING = [name for job in ("sft", "prm", "grpo", "ppo", "dpo") for name in shipped_configs(job)]


def counts(model):
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters()) - trained


@pytest.mark.parametrize("lora", [None, LoraSpec(r=4), LoraSpec(r=2, target_modules=["q_proj"])])
@pytest.mark.parametrize("step_format", [None, "plain", "plain-head"])
def test_weights_are_counted_exactly(lora, step_format):
    source = ModelSource(config=CONFIG, tokenizer="accumulator", lora=lora)
    tokenizer = load_tokenizer(source)
    if step_format is None:
        real = build_policy(source, tokenizer)
    else:
        bound = BoundStepFormat(get_step_format(step_format), tokenizer)
        real = build_prm(source, bound).model
    found = meta_model(source, step_format, prm=step_format is not None)
    assert all(p.is_meta for p in found.parameters())
    assert counts(found) == counts(real)


@pytest.fixture(scope="module")
def estimate(memorised_policy):
    def run(capsys, *arguments):
        status = main(["estimate", "--json", *arguments])
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("config", TRAINING)
def test_every_training_config(estimate, memorised_policy, capsys, config):
    source = ("--model.source.path", str(memorised_policy), "--model.source.config", "null")
    status, found = estimate(capsys, "--config", config, *source, "--model.source.tokenizer", "null",
                             "--model.step_format", "plain", "--trainer.accelerator", "cuda")  # fmt: skip
    assert status == 0
    assert found["sum"] == sum(found["memory"].values()) > found["memory"]["weights"] > 0
    assert found["step"]["seconds"] > 0


def test_zero_divides(estimate, capsys):
    config = ("--config", "configs/sft/accumulator.yaml")
    one = estimate(capsys, *config, "--trainer.accelerator", "cuda")[1]["memory"]
    three = estimate(capsys, *config, "--config", "configs/strategy/zero3.yaml")[1]["memory"]
    assert three["weights"] == pytest.approx(one["weights"] / 2 / 8)
    assert three["optimizer"] == pytest.approx(one["optimizer"] * 12 / 8 / 8)


MEASURE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, Qwen2Config
values = json.loads(sys.argv[1])
config = Qwen2Config(vocab_size=64, tie_word_embeddings=True, **values)
def peak():  # ru_maxrss would begin with what the parent had when it forked
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
small = AutoModelForCausalLM.from_config(Qwen2Config(vocab_size=64, hidden_size=8, intermediate_size=8,
    num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1))
def train(model, tokens, steps):
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(steps):
        model(torch.zeros(1, tokens, dtype=torch.long)).logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
train(small, 8, 1)
before = peak()
train(AutoModelForCausalLM.from_config(config), 256, 2)
print(peak() - before)
"""


@pytest.mark.slow  # measures a process, which needs a machine with nothing else at work
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_process():
    """Weights of 27 M: what the process grows by is what the formulas say, to 15 %."""
    from prmkit.scaling import DecoderShape, Division, activation_bytes, logit_bytes, state_bytes

    values = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4}
    values |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(values)], capture_output=True, text=True, check=True
    )
    config = {"model_type": "qwen2", "vocab_size": 64, "tie_word_embeddings": True} | values
    model = meta_model(ModelSource(config=config, tokenizer="accumulator"), None, prm=False)
    shape = DecoderShape(4, 768, 2048, 768, 64)
    states = state_bytes(counts(model)[0], 0, 4, Division())
    expected = states.weights + states.gradients + states.optimizer
    expected += activation_bytes(shape, 256, 4, False) + logit_bytes(shape, 256)
    assert int(done.stdout) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "configs/sft/quick.yaml", "--utilisation", "2"], "--utilisation: got 2.0"),
        (["--config", "configs/sft/quick.yaml", "--gpu", "tpu"], "'tpu'"),
        (["--config", "configs/sft/quick.yaml", "--foo"], "foo: got None"),
        (["--config", "configs/search/quick.yaml"], "model.class_path"),
        (["--gpu", "a100"], "--config: got None"),
        (["--config", "configs/sft/quick.yaml", "--trainer.default_root_dir", "${no.where}"], "no.where"),
    ],
)
def test_mistakes(capsys, arguments, words):
    assert main(["estimate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
