"""One word for the gate's answer, wherever it is shown; and what is known of a version that was made by hand."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from prmkit.cli import main
from prmkit.cli.loop import parse
from prmkit.cli.loop_run import IterationResult
from prmkit.cli.loop_text import status_text, summary_text
from prmkit.loop.status import LoopStatus, StageStatus
from prmkit.steps import get_step_format
from registry import Registry

TOKENIZER = {"added_tokens": [{"id": 2, "content": "<eos>"}], "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}}
STAGES = (StageStatus(1, "gate", "complete", 1.0),)
OTHER_WORDS = r"not passed|does not pass|gate +-|failed"


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Runs `prm pairs ...`; gives all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRMKIT_REGISTRY", str(tmp_path / "registry"))
    for name, form, architecture in (
        ("policy", "plain", "Qwen2ForCausalLM"),
        ("prm", "plain-head", "Qwen2ForTokenClassification"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        tensors = {"w": np.ones(8)} | ({"score.weight": np.zeros((2, 4))} if name == "prm" else {})
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "vocab_size": 8}))
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        get_step_format(form).save(folder)

    def run(*argv, status=0):
        assert main(["pairs", *argv]) == status
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


def test_a_refusal_is_called_one_thing_everywhere(shown, tmp_path):
    texts = {"publish": shown("publish", "math", "--policy", "policy", "--prm", "prm")}
    texts["list"] = shown("list")
    texts["show"] = shown("show", "math")
    texts["promote"] = shown("promote", "math", "--if-passed")
    texts["promote, error"] = shown("promote", "math", status=2)
    shown("export", "math", "hub")
    texts["card"] = (tmp_path / "hub" / "math-policy" / "README.md").read_text()
    result = IterationResult(1, "math@1", None, {}, False, False, (), 0, 0, False)
    manifest = json.loads(shown("show", "math", "--json"))
    texts["loop status"] = status_text(
        LoopStatus(
            {"pair": "math", "iterations": 1, "seed": 0, "alias": "best"}, None, STAGES, {1: manifest}, {1: False}
        ),
        "run",
    )
    texts["loop"] = summary_text([result], parse(["--config", "configs/loop/quick.yaml"]))
    for where, text in texts.items():
        assert "refused" in text, where
        assert not re.search(OTHER_WORDS, text), where


def test_a_version_made_by_hand_says_what_is_known(shown):
    shown("publish", "math", "--policy", "policy", "--prm", "prm", "--seed", "7")
    text = shown("reproduce", "math@1")
    for words in ("math@1, published", "commands: none are recorded", "policy: Qwen2ForCausalLM", "seed: 7"):
        assert words in text
    assert all(line.startswith("#") for line in text.splitlines())
    assert Registry().recipe("math@1") == text.splitlines()
