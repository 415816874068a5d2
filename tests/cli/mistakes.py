"""Mistakes that users make, the words of the one line that answers each, and the page of docs made from them.

A table that tests walk over. `python tests/cli/mistakes.py` writes docs/what_happens_when.md from what the commands
answer. Commands run in a folder that `make_workspace` fills.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEAVY = ("torch", "lightning", "pytorch_lightning", "transformers", "deepspeed", "vllm")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "what_happens_when.md"
SEARCH = "prm search --policy policy --prm prm --limit 4 --output found"
ANNOTATE = "prm annotate --policy policy --limit 4 --output steps.jsonl"
CONVERT = "prm annotate --convert labels.jsonl --to prmkit --output new.jsonl"
FIT = "prm fit --config configs/sft/quick.yaml"
GRPO = "prm fit --config configs/grpo/quick.yaml"
REGIME = "prm regime --policy policy"
PUBLISH = "prm pairs publish math --policy policy --prm prm"


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        command: as typed in the workspace; PORT stands for a port in use.
        words: all of them are in the answer.
        light: it is answered before torch, Lightning or transformers are imported.
    """

    command: str
    words: tuple[str, ...]
    light: bool = True


# Where commands write: (command with {} for the place, the option named, "file" or "folder").
OUTPUTS = (
    ("prm search --policy policy --prm prm --limit 4 --output {}", "output", "folder"),
    ("prm annotate --policy policy --limit 4 --output {}", "output", "file"),
    ("prm annotate --convert labels.jsonl --to prmkit --output {}", "output", "file"),
    ("prm annotate --judge labels.jsonl --prm prm --output {}", "output", "file"),
    ("prm export run {}", "OUT", "folder"),
    ("prm demo --config quick --output {}", "output", "folder"),
    ("prm loop --config configs/loop/quick.yaml --run {}", "run", "folder"),
    ("prm pairs pull math {}", "FOLDER", "folder"),
    ("prm pairs export math {}", "FOLDER", "folder"),
    ("prm pairs lineage math --picture {}", "--picture", "file"),
    ("prm pairs promote math@1 best --report {}", "--report", "file"),
    (f"{PUBLISH} --report {{}}", "--report", "file"),
    ("prm configs copy prm/quick {}", "FILE", "file"),
)


def _outputs() -> list[Mistake]:
    found = []
    for command, option, kind in OUTPUTS:
        if kind == "folder":
            found.append(Mistake(command.format("file.txt"), (option, "'file.txt'", "this is a file")))
        elif "configs copy" not in command:  # takes a folder, too
            found.append(Mistake(command.format("folder"), (option, "'folder'", "this is a folder")))
        found.append(Mistake(command.format("file.txt/x"), (option, "'file.txt/x'", "file.txt is a file")))
        found.append(Mistake(command.format("/proc/x"), (option, "'/proc/x'", "can be written; /proc")))
    return found


MISTAKES: tuple[Mistake, ...] = (
    # commands and options
    Mistake("prm serach", ("serach", "Did you mean `prm search`?")),
    Mistake("prm pairs lst", ("lst", "list", "prm pairs --help")),
    Mistake("prm pairs pull math", ("folder", "prm pairs pull --help")),
    Mistake("prm export run", ("OUT", "prm export --help")),
    Mistake("prm grade missing.jsonl", ("missing.jsonl", "no such file")),
    Mistake("prm grade labels.jsonl --tolerance 2", ("grader.tolerance", "2", "below 1")),
    Mistake("prm grade labels.jsonl --extractors magic", ("grader.extractors", "'magic'", "boxed")),
    Mistake("prm grade labels.jsonl --task gsm9k", ("--task", "'gsm9k'", "gsm8k")),
    Mistake("prm grade labels.jsonl --grader nowhere.Grader", ("--grader", "'nowhere.Grader'", "import path")),
    Mistake("prm grade labels.jsonl --attack --limit 0", ("--limit", "0", "at least 1")),
    Mistake("prm demo --seed one", ("--seed", "'one'", "prm demo --help")),
    Mistake("prm configs show prm/acumulator", ("prm/acumulator", "configs/prm/accumulator.yaml")),
    Mistake("prm configs list prms", ("prms", "annotate", "prm configs list --help")),
    Mistake("prm completion fish", ("fish", "bash")),
    Mistake("prm search --config nowhere.yaml", ("--config nowhere.yaml", "no such file", "prm configs list")),
    Mistake("prm search --config bad.yaml", ("bad.yaml:2", "not valid YAML")),
    Mistake("prm search --policy policy", ("output", "not given", "Give --output VALUE", "prm search --help")),
    Mistake(f"{SEARCH} extra", ("extra", "not an argument here")),
    Mistake(f"{SEARCH} --sampling.temprature 1", ("sampling.temprature", "`temperature`")),
    Mistake(f"{SEARCH} --budget_unit words", ("budget_unit", "'words'", "samples | tokens")),
    Mistake(f"{SEARCH} --engine.dtype float8", ("engine.dtype", "'float8'", "float32 | bfloat16 | float16")),
    Mistake(f"{SEARCH} --engine.max_rows many", ("engine.max_rows", "'many'", "int")),
    Mistake(f"{SEARCH} --sampling '{{temperature'", ("sampling", "{temperature")),
    Mistake(f"{SEARCH} --task_options '{{a: 1'", ("task_options", "'{a: 1'", "a mapping")),
    Mistake(f"{SEARCH} --task_options 3", ("task_options", "3", "a mapping")),
    Mistake(f"{CONVERT} --from xml", ("from", "'xml'", "auto | prmkit")),
    Mistake("prm annotate --convert labels.jsonl --to xml --output new.jsonl", ("to", "'xml'", "prmkit | ")),
    # settings of a fit
    Mistake(f"{FIT} --trainer.max_epoch 9", ("trainer.max_epoch:", "Did you mean `max_epochs`")),
    Mistake(f"{FIT} --model.optimizer.lrr 1", ("model.init_args.optimizer.lrr", "Did you mean `lr`")),
    Mistake(f"{FIT} --model.optimizer.lr fast", ("model.init_args.optimizer.lr", "'fast'", "float")),
    Mistake(f"{FIT} --model.optimizer.schedule step", ("optimizer.schedule", "'step'", "cosine | linear | constant")),
    Mistake(f"{FIT} --trainer.precision 17", ("trainer.precision", "17", "bf16-mixed")),
    Mistake(f"{FIT} --data.val null", ("data.init_args.val", "null", "a list")),
    Mistake(f"{FIT} --data.train.0.cuont 3", ("data.init_args.train.0.cuont", "`count`")),
    Mistake(f"{FIT} --data.train.7.count 3", ("data.init_args.train.7", "no such item", "a list of 1")),
    Mistake(f"{FIT} --trainer.callbacks.dirpath x", ("trainer.callbacks is a list", "--trainer.callbacks.0.dirpath")),
    Mistake(f"{FIT} --model.class_path lightning_modules.sft.STF", ("model.class_path", "has no attribute 'STF'")),
    Mistake(f"{FIT} --model.class_path my_module.Model", ("model.class_path", "No module named 'my_module'")),
    Mistake(f"{FIT} --trainer.devices", ("trainer.devices", "a value must follow")),
    Mistake(f"{FIT} --print_config=comments", ("--print_config=comments", "takes no value")),
    Mistake(f"{FIT} -x 1", ("-x", "two dashes")),
    Mistake(f"{FIT} stray", ("stray", "not an argument here")),
    Mistake(f"{FIT} --config twice.yaml", ("twice.yaml:2", "'seed_everything' is given twice, in lines 1 and 2")),
    Mistake(f"{FIT} --config folder", ("folder", "no such file")),
    Mistake(f"{FIT} --ckpt_path gone.ckpt", ("ckpt_path", "'gone.ckpt'", "an existing checkpoint, or `last`")),
    Mistake("prm fit --trainer.max_epochs 2", ("`data`, `model`: not given", "prm fit --config FILE")),
    Mistake("prm fit --config configs/prm/accumulator.yaml", ("runs/accumulator/sft/policy", "no such model folder")),
    Mistake(
        "prm fit --config configs/prm/accumulator.yaml --model.source.path policy",
        ("data.init_args.train.0.path", "runs/accumulator/annotate/annotations.jsonl", "no such file"),
    ),
    Mistake(f"{FIT} --model.optimizer.lr=-1", ("optimizer.lr", "-1", "a positive number"), light=False),
    Mistake(f"{FIT} --trainer.strategy ddp3", ("ddp3",), light=False),
    Mistake(f"{FIT} --trainer.callbacks.0.save_top_k=-5", ("ModelCheckpoint", "save_top_k=-5"), light=False),
    Mistake(
        f"{FIT} --model.source.config.hidden_act swish2", ("model.source.config.hidden_act", "'swish2'"), light=False
    ),
    Mistake(f"{FIT} --seed_everything=-1", ("seed_everything", "-1", "0..4294967295"), light=False),
    Mistake("prm validate --config configs/sft/quick.yaml", ("ckpt_path", "before its fit", "`last`"), light=False),
    Mistake(f"{FIT} --trainer.accelerator tpu", ("trainer:", "torch_xla"), light=False),
    Mistake(f"{GRPO} --model.process_weight much", ("process_weight", "'much'", "float | the settings of")),
    Mistake(f"{GRPO} --model.process_weight.follow sinus", ("process_weight.follow", "'sinus'", "linear | drop |")),
    Mistake(f"{GRPO} --model.process_weight.updates 9", ("process_weight.follow", "not given", "silent | unsolved")),
    Mistake(
        f"{GRPO} --model.source.path policy --model.process_weight.follow linear",
        ("process_weight.updates", "None", "an integer of at least 1"),
        light=False,
    ),
    # sizes and budgets
    Mistake(f"{SEARCH} --n 0", ("n: got 0", "at least 1")),
    Mistake(f"{SEARCH} --budgets 0", ("budgets", "0", "at least 1")),
    Mistake(f"{SEARCH} --budgets=-4", ("budgets", "-4", "at least 1")),
    Mistake(f"{SEARCH} --budgets 1,two", ("budgets", "two", "at least 1")),
    Mistake(f"{SEARCH} --limits.generated_tokens=-1", ("generated_tokens", "-1", "at least 0")),
    Mistake(f"{SEARCH} --limit 0", ("limit", "0", "at least 1")),
    Mistake(f"{SEARCH} --offset=-1", ("offset", "-1", "at least 0")),
    Mistake(f"{SEARCH} --chunk 0", ("chunk", "0", "at least 1")),
    Mistake(f"{SEARCH} --in_flight 0", ("in_flight", "0", "at least 1")),
    Mistake(f"{SEARCH} --sampling.temperature=-1", ("sampling.temperature", "-1", "[0, 10]")),
    Mistake(f"{REGIME} --group 1", ("group", "1", "at least 2")),
    Mistake(f"{REGIME} --chance 1", ("chance", "1.0", "[0, 1)")),
    Mistake(f"{REGIME} --sampling.temperature 0", ("sampling.temperature", "0.0", "above 0")),
    Mistake(f"{REGIME} --thresholds.dense 2", ("thresholds.dense", "2.0", "[0, 1]")),
    Mistake(f"{ANNOTATE} --rollouts 0", ("rollouts", "0", "at least 1")),
    Mistake(f"{ANNOTATE} --chunk 0", ("chunk", "0", "at least 1")),
    Mistake(f"{ANNOTATE} --in_flight 0", ("in_flight", "0", "at least 1")),
    Mistake(f"{ANNOTATE} --workers 0", ("workers", "0", "at least 1")),
    Mistake(f"{ANNOTATE} --shard 9/3", ("shard", "'9/3'", "i/n")),
    Mistake(f"{CONVERT} --limit 0", ("limit", "0", "at least 1")),
    Mistake("prm annotate --judge labels.jsonl --prm prm --in_flight 0", ("in_flight", "0", "at least 1")),
    Mistake("prm annotate --judge labels.jsonl --prm prm --threshold 2", ("threshold", "2", "[0, 1)")),
    Mistake("prm loop --config configs/loop/quick.yaml --iterations 0", ("iterations", "0", "at least 1")),
    # tasks and data
    Mistake(f"{SEARCH} --task mth", ("task", "'mth'", "math500")),
    Mistake(f"{SEARCH} --split tset", ("split", "'tset'", "train | validation | test")),
    Mistake(f"{SEARCH} --task gsm8k --data nowhere.jsonl", ("nowhere.jsonl", "no such file")),
    Mistake(f"{ANNOTATE} --task gsm8k --split dev --data labels.jsonl", ("split", "'dev'")),
    Mistake("prm annotate --convert nowhere.jsonl --to prmkit --output new.jsonl", ("nowhere.jsonl", "no such file")),
    Mistake("prm annotate --convert file.txt --to prmkit --output new.jsonl", ("file.txt:1",)),
    Mistake("prm annotate --judge nowhere.jsonl --prm prm", ("nowhere.jsonl", "no such file")),
    Mistake(
        f"{ANNOTATE} --method traces --candidates nowhere.jsonl",
        ("nowhere.jsonl", "no such file"),
    ),
    # models and methods
    Mistake("prm search --policy nowhere --limit 4 --output found", ("--policy nowhere", "no such model folder")),
    Mistake("prm search --policy policy --prm nowhere --limit 4 --output found", ("--prm nowhere", "no such model")),
    Mistake("prm search --policy folder --limit 4 --output found", ("--policy folder", "config.json")),
    Mistake("prm search --policy org/model --limit 4 --output found", ("--policy org/model", "network")),
    Mistake("prm regime", ("`policy`", "not given", "--policy VALUE")),
    Mistake("prm regime --policy prm", ("--policy", "prm")),
    Mistake("prm regime --policy policy --prm nowhere", ("--prm nowhere", "no such model")),
    Mistake("prm annotate --policy org/model --limit 4 --output new.jsonl", ("--policy org/model", "network")),
    Mistake("prm annotate --policy nowhere --limit 4 --output new.jsonl", ("--policy nowhere", "no such model folder")),
    Mistake("prm annotate --judge labels.jsonl --prm nowhere", ("--prm nowhere", "no such model folder")),
    Mistake("prm annotate --judge labels.jsonl", ("prm", "--policy", "Set one of the two")),
    Mistake("prm serve --policy nowhere", ("--policy nowhere", "no such model folder")),
    Mistake("prm serve", ("policy", "None", "--prm")),
    Mistake(f"{SEARCH} --policy_format nothing", ("'nothing'", "plain", "a JSON file or a model folder")),
    Mistake(f"{SEARCH} --headline best", ("headline", "'best'", "product_vote")),
    Mistake(f"{SEARCH} --method beam", ("method", "'beam'", "beam_search")),
    Mistake("prm search --policy policy --method mcts --output found", ("prm", "None", "mcts is guided by a PRM")),
    Mistake(f"{ANNOTATE} --method omega", ("method", "'omega'", "omegaprm")),
    # the hub without a network, which HF_ENDPOINT stands for
    Mistake(f"{SEARCH} --task gsm8k", ("openai/gsm8k", "data")),
    Mistake("prm annotate --convert org/data --to prmkit --output new.jsonl", ("org/data", "cannot be loaded")),
    # servers
    Mistake(f"{SEARCH} --endpoint gpu-1", ("endpoints", "'gpu-1'", "http://HOST:PORT")),
    Mistake(f"{SEARCH} --endpoint http://127.0.0.1:9", ("no endpoint answers", "127.0.0.1:9", "prm serve")),
    Mistake(f"{ANNOTATE} --endpoint http://127.0.0.1:9", ("no endpoint answers", "127.0.0.1:9", "prm serve")),
    Mistake(f"{ANNOTATE} --engine http", ("endpoints", "at least one server's address", "--endpoint")),
    Mistake(f"{ANNOTATE} --engine tpu", ("engine", "'tpu'", "hf | http | vllm")),
    Mistake("prm serve --policy policy --port PORT", ("port", "PORT", "a free port", "in use")),
    Mistake("prm serve --policy policy --port 99999", ("port", "99999", "0 to 65535")),
    Mistake("prm serve --policy policy --host 999.1.1.1", ("host", "'999.1.1.1'", "address of this machine")),
    Mistake("prm serve --policy policy --api_key_env NOT_SET", ("api_key_env", "'NOT_SET'", "environment")),
    # checkpoints
    Mistake("prm export nowhere out", ("nowhere", "no such checkpoint")),
    Mistake("prm export file.txt out", ("file.txt", "config.yaml", "--config FILE")),
    Mistake("prm export folder out", ("folder", "complete")),
    Mistake("prm export file.txt out --config nowhere.yaml", ("--config", "nowhere.yaml", "config.yaml of the run")),
    # the registry
    Mistake("prm pairs list --registry nowhere", ("nowhere", "no registry", "prm pairs publish")),
    Mistake("prm pairs list --registry file.txt", ("file.txt", "no registry")),
    Mistake(f"{PUBLISH} --registry file.txt", ("file.txt",)),
    Mistake("prm pairs list nothing", ("nothing", "no such pair", "math")),
    Mistake("prm pairs pull math@9 here", ("math@9", "no such version", "[1]")),
    Mistake("prm pairs push foo://nowhere/x math", ("'foo://nowhere/x'", "s3://bucket/prefix")),
    Mistake("prm pairs lineage math --picture tree.foo", ("--picture", "'tree.foo'", ".png")),
    Mistake("prm pairs publish math --policy nowhere --prm prm", ("nowhere", "not a model folder")),
    Mistake("prm pairs publish 'my pair' --policy policy --prm prm", ("pair", "'my pair'", "a-z, 0-9")),
    Mistake(f"{PUBLISH} --metrics nowhere.json", ("nowhere.json", "no such file")),
    Mistake(f"{PUBLISH} --gate bad.json", ("bad.json", "malformed JSON")),
    Mistake(f"{PUBLISH} --card folder", ("folder", "Is a directory")),
    Mistake(f"{PUBLISH} --attach nowhere", ("nowhere", "no such file")),
    Mistake("prm pairs promote math@1 best", ("math@1", "gate", "--force")),
    Mistake(f"{SEARCH} --pair math@7 --registry nowhere", ("nowhere", "no registry")),
    # runs
    Mistake("prm loop status nowhere", ("nowhere", "no loop was started there")),
    Mistake("prm loop --config configs/loop/none.yaml", ("configs/loop/none.yaml", "no such file")),
    Mistake("prm demo --config none", ("none.yaml", "no such file")),
    # places to write to
    *_outputs(),
)


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    status: int
    errors: str
    output: str


_RUN = """
import contextlib, io, json, sys, traceback
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from prmkit.cli import main
answers = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except BaseException:
            status = 1
            traceback.print_exc()
    answers.append([status, err.getvalue(), out.getvalue()])
json.dump(answers, sys.stdout)
"""


def ask(commands: Sequence[str], folder: Path, forbidden: Sequence[str] = ()) -> list[Answer]:
    """Run commands one after another in one process that cannot import the packages named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        arguments = [shlex.split(command.replace("PORT", port))[1:] for command in commands]
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k != "PRMKIT_DEBUG"}
        environment |= {
            "HF_ENDPOINT": "http://hub.invalid",
            "HF_HOME": str(folder / "hub"),
            "PRMKIT_REGISTRY": "registry",
        }
        process = subprocess.run(
            [sys.executable, "-c", _RUN, json.dumps(list(forbidden))],
            input=json.dumps(arguments), capture_output=True, text=True, cwd=folder, env=environment, check=False,
        )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return [
        Answer(
            status,
            *(text.replace(port, "PORT").replace(f"{folder}/", "").replace(str(folder), "here") for text in texts),
        )
        for status, *texts in json.loads(process.stdout)
    ]


def make_workspace(folder: Path) -> None:
    """Fill a folder with a policy, a PRM, labels, a registry with math@1, and what is none of these."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from prmkit.cli import main
    from prmkit.models import ModelCard, save_policy
    from prmkit.models.folders import write_card
    from prmkit.tasks import get_task

    task = get_task("accumulator")
    tokenizer = task.tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    save_policy(Qwen2ForCausalLM(config), tokenizer, task.step_format, folder / "policy")
    shutil.copytree(folder / "policy", folder / "prm")
    write_card(folder / "prm", ModelCard("prm"))
    (folder / "folder").mkdir()
    (folder / "file.txt").write_text("text\n")
    (folder / "bad.json").write_text("{")
    (folder / "bad.yaml").write_text("policy: [\n  }\n")
    (folder / "twice.yaml").write_text("seed_everything: 1\nseed_everything: 2\n")
    record = {"schema": 1, "problem_id": "a", "question": "1+1,2", "answer": "2", "steps": ["1+1=2"], "values": [1.0]}
    record |= {"rollouts": [8], "source": "human", "policy": "people", "correct": True}
    (folder / "labels.jsonl").write_text(json.dumps(record) + "\n")
    publish = ["pairs", "publish", "math", "--registry", str(folder / "registry")]
    status = main([*publish, "--policy", str(folder / "policy"), "--prm", str(folder / "prm")])
    assert status == 0, "the pair of the workspace cannot be published"


def page(answers: Sequence[Answer]) -> str:
    """docs/what_happens_when.md."""
    lines = [
        "# What happens when",
        "",
        "For users who see an error, and for reviewers. Each mistake below was typed in a folder with a policy, a PRM,",
        "labels, a registry with `math@1`, a file and a folder; the answer is one line on standard error, with status",
        "2, before a model is loaded. `--debug` shows the traceback. Tests run the whole table;",
        "`python tests/cli/mistakes.py` writes this page from what the commands say.",
        "",
        "| typed | answer |",
        "|---|---|",
    ]
    for mistake, answer in zip(MISTAKES, answers, strict=True):
        text = answer.errors.strip().removeprefix("error: ")
        lines.append(f"| `{_cell(mistake.command)}` | {_cell(text)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def answers_in(folder: Path) -> list[Answer]:
    """What the commands of all mistakes answer, in order."""
    light = iter(ask([m.command for m in MISTAKES if m.light], folder, HEAVY))
    heavy = iter(ask([m.command for m in MISTAKES if not m.light], folder))
    return [next(light if mistake.light else heavy) for mistake in MISTAKES]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        make_workspace(Path(name))
        PAGE.write_text(page(answers_in(Path(name))), encoding="utf-8")
