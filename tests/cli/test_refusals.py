"""What libraries refuse of a user's settings is one line with the key or class, status 2, and no traceback."""

import json

import pytest

from prmkit.cli import main

FIT = ["fit", "--config", "configs/sft/quick.yaml", "--trainer.max_steps", "1"]
ADD = "--trainer.callbacks+="
STOPPING = [f"{ADD}lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]
MLFLOW = "lightning.pytorch.loggers.MLFlowLogger"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        # classes named in a config, whose constructors refuse
        (["--trainer.callbacks.0.save_top_k=-5"], ("ModelCheckpoint: ", "save_top_k=-5")),
        ([*STOPPING, "--trainer.callbacks.mode", "foo"], ("EarlyStopping: ", "`mode`", "foo")),
        (["--trainer.logger", MLFLOW], ("MLFlowLogger: ", "mlflow", "pip install")),
        (["--trainer.strategy", "lightning.pytorch.strategies.XLAStrategy"], ("XLAStrategy: ", "torch_xla")),
        ([f"{ADD}json.JSONDecoder"], ("trainer.callbacks", "'json.JSONDecoder'", "a subclass of Callback")),
        # models that transformers refuses
        (["--model.source.config.num_attention_heads", "3"], ("model.source.config: ", "attention heads (3)")),
        (["--model.source.config.hidden_act", "foo"], ("model.source.config.hidden_act: ", "'foo'")),
        (["--model.source.attn_implementation", "foo"], ("model.source.attn_implementation: ", "foo", "sdpa")),
        (
            ["--model.source.attn_implementation", "flash_attention_2"],
            ("model.source.attn_implementation: ", "install"),
        ),
        (["--model.source.lora", "{target_modules: [q_proj, mlp]}"], ("lora.target_modules", "'mlp'", "LlamaMLP")),
        (["--seed_everything=-1"], ("seed_everything", "-1", "4294967295")),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_refusal_of_a_library_is_one_line(typed, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, *typed]) == 2
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line
    assert len(line) < 500
    assert "Traceback" not in said
    assert not (tmp_path / "runs/quick/sft/policy").exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize("job", ["sft", "prm"])
def test_a_model_before_its_fit_is_not_measured(command, job, memorised_policy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    steps = {"problem_id": "a", "question": "1+1,2", "answer": "2", "steps": ["1+1=2"], "values": [1.0], "schema": 1}
    steps |= {"rollouts": [1], "source": "human", "policy": "people", "correct": True}
    (tmp_path / "labels.jsonl").write_text(json.dumps(steps) + "\n")
    data = "[{path: labels.jsonl}]" if job == "prm" else "[{kind: task, name: accumulator, split: test, count: 2}]"
    words = [command, "--config", f"configs/{job}/quick.yaml", "--data.train", data, "--data.val", data]
    words += ["--data.test", data] if command == "test" else []
    words += ["--data.predict", data, "--model.source.path", str(memorised_policy)] if job == "prm" else []
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "error: ckpt_path: got None; accepted: a checkpoint, or `last`. This config describes a model before" in said
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.jsonl"))


def test_predictions_need_a_prm(memorised_policy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = ["--model.source.path", str(memorised_policy)]
    source += ["--model.source.config", "null", "--model.source.tokenizer", "null"]
    assert main(["predict", "--config", "configs/sft/quick.yaml", *source]) == 2
    assert "prm predict: the model of this config gives no predictions" in capsys.readouterr().err
    assert main(["test", "--config", "configs/sft/quick.yaml", *source]) == 2
    assert "data.test: got []; accepted: at least one source, for `prm test`." in capsys.readouterr().err
