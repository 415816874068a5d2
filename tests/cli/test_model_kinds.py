"""A policy where a PRM is asked for, the other way round, and pairs on a task that they cannot read."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file

from callbacks.publish_pair import PublishPair
from callbacks.search_evaluation import SearchEvaluation
from datamodules.experience_rollouts import PRMSource
from lightning_modules.prm import PRM
from lightning_modules.sft import SFT
from prmkit.annotation import StepLabels
from prmkit.cli import main
from prmkit.errors import ConfigError
from prmkit.models import ModelSource
from prmkit.steps import get_step_format
from prmkit.tasks import get_task

TASK = ["--task", "accumulator", "--task_options", "{min_ops: 2, max_ops: 2, hard_share: 0.0}", "--limit", "2"]
CPU = ["--engine.device", "cpu"]
SAMPLED = [*TASK, *CPU, "--sampling.max_tokens", "24"]


@pytest.mark.parametrize(
    ("argv", "option", "found"),
    [
        (["search", "--policy", "POLICY", "--prm", "POLICY", *SAMPLED, "--output", "out"], "--prm", "policy"),
        (["search", "--policy", "POLICY", "--prm", "PRM,POLICY", *SAMPLED, "--output", "out"], "--prm", "policy"),
        (["search", "--policy", "PRM", *SAMPLED, "--output", "out"], "--policy", "PRM"),
        (["search", "--policy", "POLICY", "--prm", "PRM", "--discriminator", "PRM", "--method", "rstar", "--budgets",
          "2", *SAMPLED, "--output", "out"], "--discriminator", "PRM"),
        (["annotate", "--method", "mips", "--policy", "PRM", *SAMPLED, "--output", "out"], "--policy", "PRM"),
        (["annotate", "--judge", "labels.jsonl", "--prm", "POLICY", *CPU], "--prm", "policy"),
        (["annotate", "--judge", "labels.jsonl", "--policy", "PRM", *CPU], "--policy", "PRM"),
        (["serve", "--policy", "PRM", *CPU], "--policy", "PRM"),
        (["serve", "--prm", "POLICY", *CPU], "--prm", "policy"),
        (["pairs", "publish", "toy", "--policy", "POLICY", "--prm", "POLICY", "--registry", "r"], "the PRM", "policy"),
        (["pairs", "publish", "toy", "--policy", "PRM", "--prm", "PRM", "--registry", "r"], "the policy", "PRM"),
        (["fit", "--config", "configs/grpo/process.yaml", "--model.source.path", "POLICY", "--data.prm.path", "POLICY",
          "--trainer.default_root_dir", "out"], "data.prm.path", "policy"),
        (["fit", "--config", "configs/grpo/quick.yaml", "--model.source.path", "PRM", "--trainer.default_root_dir",
          "out"], "model.source.path", "PRM"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else value,
)  # fmt: skip
def test_the_other_kind_is_refused_before_work(
    memorised_policy, memorised_prm, tmp_path, monkeypatch, capsys, argv, option, found
):
    monkeypatch.chdir(tmp_path)
    labels = StepLabels("p", "f+1", "1", ("f",), (1.0,), (1,), "mips", "p")
    Path("labels.jsonl").write_text(json.dumps(labels.to_json()) + "\n")
    words = [w.replace("POLICY", str(memorised_policy)).replace("PRM", str(memorised_prm)) for w in argv]
    assert main(words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert option in errors[0]
    assert f"says that it is a {found}" in errors[0]
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("rows.jsonl"))


def test_callbacks_and_data_ask_too(memorised_policy, memorised_prm, tmp_path):
    policy, prm = str(memorised_policy), str(memorised_prm)
    trainer = Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_checkpointing=False)
    sft, fitted = SFT(ModelSource(path=policy)), PRM(ModelSource(path=policy))
    with pytest.raises(ConfigError, match=r"search_evaluation\.prm: .* a policy"):
        SearchEvaluation({"best_of_n": {}}, [2], every_n_steps=1, prm=policy).setup(trainer, sft, "fit")
    with pytest.raises(ConfigError, match=r"search_evaluation\.policy: .* a PRM"):
        SearchEvaluation({"best_of_n": {}}, [2], every_n_steps=1, policy=prm).setup(trainer, fitted, "fit")
    with pytest.raises(ConfigError, match=r"publish_pair\.prm: .* a policy"):
        PublishPair("toy", prm=policy).setup(trainer, sft, "fit")
    with pytest.raises(ConfigError, match=r"publish_pair\.policy: .* a PRM"):
        PublishPair("toy", policy=prm).setup(trainer, fitted, "fit")
    with pytest.raises(ConfigError, match=r"data\.prm\.path: .* a policy"):
        PRMSource(path=policy).checked_formats(sft.bound_format)


@pytest.fixture
def endless(memorised_policy, tmp_path):
    """The policy, with everything it writes the same token that is no end."""
    folder = tmp_path / "endless"
    shutil.copytree(memorised_policy, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros_like(tensors["model.norm.weight"])  # all tokens are as likely
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def search(policy, prm, tmp_path, problems, *more):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    data = ["--task", "jsonl", "--data", str(tmp_path / "test.jsonl"), "--task_options", "{grader: exact}"]
    models = ["--policy", str(policy), "--prm", str(prm)]
    return main(["search", *models, *data, *CPU, "--n", "4", "--output", str(tmp_path / "out"), *more])


def test_text_that_neither_model_knows_is_told(memorised_policy, memorised_prm, tmp_path, capsys):
    problems = [{"question": f"What is {i} + {i}?", "answer": f"{2 * i}"} for i in range(3)]
    assert search(memorised_policy, memorised_prm, tmp_path, problems, "--sampling.max_tokens", "24") == 0
    errors = capsys.readouterr().err
    for model in ("policy", "PRM"):
        (line,) = [line for line in errors.splitlines() if f"{model}: " in line and "unknown to its tokenizer" in line]
        assert "% of the tokens of its prompts" in line
        assert "another task?" in line


def test_samples_that_cannot_be_used_are_told_and_others_are_not(
    memorised_policy, memorised_prm, endless, tmp_path, capsys
):
    task = get_task("accumulator", min_ops=2, max_ops=2, hard_share=0.0)
    problems = [{"question": p.question, "answer": p.answer} for p in task.problems("test", 2)]
    assert main(["search", "--policy", str(memorised_policy), "--prm", str(memorised_prm), *SAMPLED, "--n", "4",
                 "--output", str(tmp_path / "good")]) == 0  # fmt: skip
    assert not any(sign in capsys.readouterr().err for sign in ("unknown to", "samples were cut", "samples has"))
    search(endless, memorised_prm, tmp_path, problems, "--sampling.max_tokens", "3", "--sampling.temperature", "0")
    assert "policy: all 8 samples were cut off before they ended: raise max_tokens" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    search(memorised_policy, memorised_prm, tmp_path / "other", problems, "--task_options", "{extractors: [boxed]}",
           "--sampling.max_tokens", "24")  # fmt: skip
    assert "none of 8 samples has an answer that this task can read" in capsys.readouterr().err


def test_annotation_tells_it_too(endless, tmp_path, capsys):
    common = ["--output", str(tmp_path / "x.jsonl"), "--method", "mips", "--solutions_per_problem", "2"]
    main(["annotate", "--policy", str(endless), *TASK, *CPU, *common, "--sampling.max_tokens", "1"])
    assert "policy: all 4 samples were cut off" in capsys.readouterr().err


def test_rollouts_of_training_tell_it_once(memorised_policy, caplog):
    from datamodules.rollout_signs import RolloutSigns
    from prmkit.models import load_policy
    from prmkit.rollouts import Rollout
    from prmkit.types import Problem, Trace

    step_format = load_policy(memorised_policy).format
    assert step_format.spec == get_step_format("plain")
    task = get_task("accumulator", min_ops=2, max_ops=2, hard_share=0.0)

    def rollout(question, text, finish, outcome):
        steps = step_format.split_ids((*step_format.encode_piece(text), step_format.eos_id))
        trace = Trace("p", steps, finish)
        return Rollout(Problem("p", question, "1"), 0, (), (), (), trace, None, {"outcome": outcome})

    (good,) = task.problems("test", 1)
    fine = [rollout(good.question, good.solution, "stop", 0.0), rollout(good.question, "f", "length", None)]
    bad = {
        "all 2 samples were cut off": [rollout(good.question, "f", "length", 0.0)] * 2,
        "none of 2 samples has an answer": [rollout(good.question, "f", "stop", 0.0)] * 2,
        "unknown to its tokenizer": [rollout("What is it?", good.solution, "stop", 1.0)] * 2,
    }
    for text, rollouts in bad.items():
        caplog.clear()
        signs = RolloutSigns(step_format, task.grader)
        with caplog.at_level(logging.WARNING):
            signs.look([])
            signs.look(fine)
            assert caplog.text == ""
            signs.look(rollouts)
            signs.look(rollouts)
        assert caplog.text.count(text) == 1
        assert len(caplog.records) == 1
