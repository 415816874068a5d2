"""The commands of README and docs, run: smaller, in their order, in one folder that an earlier demo has filled.

What needs a network, a GPU, vLLM, a cluster or a package index is not run, and servers are started otherwise; the tests
of tests/docs parse those commands.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

# What is not run, by a word of the command.
_ELSEWHERE = (
    "make", "serve", "torchrun", "sbatch", "vllm", "pip", "python", "break", "sleep", "loop", "openr_figure4",
    "qwen2.5", "multistep_arithmetic", "accumulator@best",
)  # fmt: skip
_EPOCH = "--trainer.max_epochs 1 --data.iteration.prompts 4 --data.prompts.count 8 --data.validation.count 4"
_LABELS = "--trainer.max_steps 2 --data.train.0.offset 5 --data.val.0.count 5"
_STEPS = "runs/demo/annotate/annotations.jsonl"
_VALIDATED = f"--data.val [{{path: {_STEPS}}}]"
# Arguments that make a command small, by the first pattern found in it.
_SMALLER = (
    (r"--help|^prm (estimate|export)", ""),
    (r"^prm demo", "--config quick"),
    (r"^prm fit .*configs/(grpo|ppo)", _EPOCH),
    (r"^prm fit .*hard.jsonl", f"--trainer.max_steps 2 --data.init_args.train [{{path: {_STEPS}}}] {_VALIDATED}"),
    (
        r"^prm fit .*configs/prm/quick",
        f"--trainer.max_steps 2 --model.source.path runs/policy --data.train.0.path {_STEPS}",
    ),
    (r"^prm fit .*configs/prm", _LABELS),
    (r"^prm fit .*configs/sft", "--trainer.max_steps 20 --data.train.0.count 400 --data.val.0.count 20"),
    (r"^prm annotate .*traces", "--limit 4 --rollouts 2"),
    (r"^prm annotate", "--limit 30 --rollouts 2"),
    (r"^prm search .*(mcts.yaml|methods|dvts|rebase)", "--limit 1 --budgets 64"),
    (r"^prm search .*beam_search", "--limit 2 --budgets 4"),
    (r"^prm search", "--limit 4 --n 4"),
    (r"^prm pairs promote", "--force"),
)
# What stands for a place of the reader's own.
_PLACES = (
    (r"s3://bucket/pairs", "remote"),
    (r"math@7", "math@1"),
    (r"my_package\.MyGrader", "prmkit.grading.MathGrader"),
    (r"/shared/", "shared/"),
    (r"^runs/prm$", "runs/demo/prm"),  # of `prm export`: the run
)
_PRM = str(Path(sys.executable).with_name("prm"))


def run_commands(pages: Any, folder: Path) -> dict[str, Any]:
    """Run what can be run here; returns counts, and the first line of every failure.

    Args:
        pages: the module tests/docs/test_doc_commands.py.
        folder: an empty folder.
    """
    found = [
        (f"{block.page}:{block.line}", words)
        for block in pages.BLOCKS
        if block.language in pages.SHELLS and block.page != "docs/extending.md"  # run by its own test
        for words in pages.commands(block)
    ]
    here = [(place, words) for place, words in found if words[0] == "prm" and not _elsewhere(words)]
    (demo,), others = [[item for item in here if (item[1] == ["prm", "demo"]) == first] for first in (True, False)]
    failures: dict[str, str] = {}

    def run(place: str, words: list[str], typed: list[str]) -> None:
        ended = _run(typed, folder)
        print(ended.returncode, shlex.join(typed), flush=True)
        if ended.returncode:
            lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
            failures[f"{place} {shlex.join(words)}"] = (lines or ended.stderr.splitlines() or ["no output"])[-1]

    run(*demo, _typed(demo[1], []))  # the other pages go on from it
    _furnish(folder)
    with _servers(folder) as addresses:
        for place, words in others:
            typed = _typed(words, addresses)
            if "--output" in typed and words[1] == "annotate":  # pages show several ways to make one file
                for labels in folder.glob(f"{typed[typed.index('--output') + 1]}*"):
                    shutil.rmtree(labels) if labels.is_dir() else labels.unlink()
            run(place, words, typed)
    return {
        "doc_commands": len(found),
        "doc_commands_run": len(here),
        "doc_commands_failed": len(failures),
        "doc_failures": failures,
    }


def _elsewhere(words: list[str]) -> bool:
    text = " ".join(words)
    needs = ("--engine vllm", "--model policy", "--task math500", "pairs list accumulator")
    return any(word in (words[0], words[1]) or (len(word) > 6 and word in text) for word in _ELSEWHERE) or any(
        need in text for need in needs
    )


def _typed(words: list[str], addresses: list[str]) -> list[str]:
    """A command with places and servers that are there, and its arguments that make it small."""
    text = shlex.join(words)
    if text.startswith("prm pairs fetch"):
        return ["pairs", "fetch", "runs/registry", "math@1", "--registry", "fetched"]
    small = next((more for pattern, more in _SMALLER if re.search(pattern, text)), "")
    typed: list[str] = []
    for word in words[1:]:
        if word.startswith("http://"):
            word = addresses[typed[-1] == "--prm_endpoint"]
            if word in typed:  # several servers of the same model
                typed.pop()
                continue
        for pattern, place in _PLACES:
            if words[1] == "export" or "demo" not in place:
                word = re.sub(pattern, place, word)
        typed.append(word)
    return [*typed, *re.findall(r"\[.*?\]|\S+", small)]


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PRMKIT_CACHE": str(folder / "cache")}
    return subprocess.run([_PRM, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _furnish(folder: Path) -> None:
    """What the pages take for granted: a policy, PRMs, labels, problems."""
    demo = folder / "runs" / "demo"
    for source, name in (("sft/policy", "policy"), ("prm/model", "prm"), ("prm/model", "prm-2")):
        shutil.copytree(demo / source, folder / "runs" / name)
    shutil.copytree(demo / "sft" / "policy", folder / "my-policy")
    for name in ("math", "shared"):
        (folder / name).mkdir()
    (folder / "answers.jsonl").write_text('{"answer": "1/2", "gold": "0.5"}\n')
    (folder / "problems.jsonl").write_text('{"question": "One and one?", "gold": "2"}\n')
    (folder / "math" / "train.jsonl").write_text('{"problem": "1+1", "final_answer": "2"}\n' * 3)


@contextmanager
def _servers(folder: Path) -> Iterator[list[str]]:
    """`prm serve` with the policy, and with the PRM; gives their addresses."""
    with ExitStack() as stack:
        models = (("--policy", "runs/policy"), ("--prm", "runs/prm"))
        yield [stack.enter_context(_server(folder, *model)) for model in models]


@contextmanager
def _server(folder: Path, option: str, model: str) -> Iterator[str]:
    command = [_PRM, "serve", option, model, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise SystemExit("prm serve did not start")
        try:
            yield address[0]
        finally:
            process.send_signal(signal.SIGTERM)
