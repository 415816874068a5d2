"""Every fenced block of README and docs: commands are understood, configs are read, code resolves, diagrams hold none.

README's commands that need no server and no GPU are run in their order, smaller, in a folder that holds nothing
(`test_readme_from_top_to_bottom`); all commands of prm are parsed by their own parsers. Those of the other pages
that a CPU can run are run by `test_commands_of_all_pages_run`.
"""

import ast
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from prmkit.cli import COMMANDS, convert, judge, main
from prmkit.cli.options import expand_servers, parse_settings, peek
from prmkit.cli.parsing import expand_configs
from prmkit.cli.prm_option import gathered_prms
from prmkit.resources import find_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
RUN_ELSEWHERE = ("docs/extending.md",)  # with the package that the page describes: tests/cli/test_extending.py
SHELLS = ("bash", "sh", "console")
# What stands for something of the reader's own.
PLACEHOLDERS = {
    "C": "configs/annotate/accumulator.yaml",
    "JOB.yaml": "configs/prm/quick.yaml",
    "P": "runs/policy",
    "M": "runs/prm",
    "M1": "runs/prm",
    "M2": "runs/prm-2",
    "MODEL": "runs/policy",
    "POLICY": "runs/policy",
    "PRM": "runs/prm",
    "CKPT": "runs/a.ckpt",
    "OUT": "out",
    "REMOTE": "s3://bucket/pairs",
}

# Commands of prm whose parser is argparse's.
PLAIN = ("completion", "configs", "demo", "doctor", "estimate", "export", "grade", "pairs")
# Programs that are not ours: what they are given is not looked at.
OTHERS = ("break", "pip", "python", "sleep", "vllm")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
            found.append(Block(page, text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


BLOCKS = [block for block in blocks() if block.page not in RUN_ELSEWHERE]


def of(*languages: str) -> list:
    return [pytest.param(block, id=f"{block.page}:{block.line}") for block in BLOCKS if block.language in languages]


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block, as a shell would split them, comments and substitutions left out."""
    lines: list[list[str]] = []
    for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
        lexer = shlex.shlex(
            re.sub(r"\$\((?!which)(?:[^()]|\([^()]*\))*\)", "", line), posix=True, punctuation_chars=";&|"
        )
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip(";&|"):
                words.append(PLACEHOLDERS.get(word, word))
                continue
            while words and re.fullmatch(r"\w+=.*|do|done|export|srun", words[0]):
                words = words[1:]
            lines += [words] if words and words[0] != "for" else []
            words = []
    return lines


def prm_arguments(words: list[str]) -> list[str] | None:
    """The arguments of `prm` in a command, also under torchrun; None where it is not run."""
    if words[0] == "prm":
        return words[1:]
    for start in (["-m", "prmkit.cli"], ["$(which", "prm)"], ["-m", "prmkit"]):
        for index in range(len(words) - len(start)):
            if words[0] == "torchrun" and words[index : index + len(start)] == start:
                return words[index + len(start) :]
    return None


def parse(argv: list[str], capsys) -> None:
    """Have a command's own parser read its arguments; nothing is loaded or run."""
    command, *rest = argv
    assert command in COMMANDS, f"prm {command}"
    if "--pair" in rest and command != "pairs":  # stands for the folders of a version
        index = rest.index("--pair")
        rest[index : index + 2] = ["--policy", "p", *(["--prm", "m"] if command in ("search", "regime") else [])]
    module = importlib.import_module(COMMANDS[command].module)
    if "--help" in rest:
        assert main(argv) == 0
    elif command in ("fit", "validate", "test", "predict"):
        status = main([command, *rest, "--print_config"])
        assert status == 0, capsys.readouterr().err
    elif command in PLAIN:
        module.parser().parse_args(rest)
    elif argv[:2] == ["loop", "status"]:
        assert set(rest[2:]) <= {"--watch", "--json"}
    elif command == "loop":
        module.parse(rest)
    else:
        parse_settings(*_settings_of(command, rest))


def _settings_of(command: str, arguments: list[str]) -> tuple[Any, list[str]]:
    """The parser of a command with settings, and its arguments with configs and abbreviations expanded."""
    if "--convert" in arguments:
        return convert.parser(), expand_configs(convert._gathered(arguments))[0]
    if "--judge" in arguments:
        return judge.parser(), expand_configs(expand_servers(arguments))[0]
    module = importlib.import_module(COMMANDS[command].module)
    if command == "serve":
        return module.parser(), expand_configs(arguments)[0]
    gathered = gathered_prms(arguments) if command in ("search", "regime") else arguments
    expanded, _ = expand_configs(expand_servers(gathered))
    chosen = {"annotate": ("omegaprm", str), "search": ("best_of_n", getattr(module, "method_list", None))}
    if command not in chosen:
        return module.parser(), expanded
    default, kind = chosen[command]
    return module.parser(kind(peek(expanded, "method", default))), expanded


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRMKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("block", of(*SHELLS))
def test_commands_are_understood(block, capsys):
    for words in commands(block):
        argv = prm_arguments(words)
        if argv is not None:
            parse(argv, capsys)
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        elif words[0] == "sbatch":
            assert (ROOT / words[1]).is_file()
        else:
            assert words[0] in OTHERS, words


@pytest.mark.parametrize("block", of(""))
def test_a_block_without_a_language_holds_no_command(block):
    assert not re.search(r"^(prm|make|torchrun|pip|python|export|git|docker) ", block.text, re.M)


def base_of(tree: dict) -> list[str]:
    """The config that an excerpt goes on top of."""
    if "iterations" in tree:
        return []
    name = "grpo/accumulator" if "data" in tree or "trainer" in tree else "annotate/accumulator"
    return ["--config", str(find_config(f"configs/{name}.yaml"))]


@pytest.mark.parametrize("block", of("yaml"))
def test_configs_are_read(block, capsys):
    tree = yaml.safe_load(block.text)
    Path("excerpt.yaml").write_text(block.text)
    argv = [*base_of(tree), "--config", "excerpt.yaml"]
    if "iterations" in tree:
        importlib.import_module("prmkit.cli.loop").parse(argv)
    elif "trainer" in tree or "data" in tree:
        assert main(["fit", *argv, "--print_config"]) == 0, capsys.readouterr().err
    else:
        command = "search" if "scorer" in tree else "annotate"
        argv = argv[2:] if command == "search" else argv
        module = importlib.import_module(f"prmkit.cli.{command}")
        extra = ["--policy", "p", "--output", "o"] + (["--prm", "m"] if command == "search" else [])
        parser = module.parser(("best_of_n",)) if command == "search" else module.parser()
        parse_settings(parser, [*argv, *extra])


@pytest.mark.parametrize("block", of("python"))
def test_code_resolves(block):
    """Imports exist; what is called with keywords takes them."""
    tree = ast.parse(block.text) if "await" not in block.text else ast.parse(f"async def f():\n{_indented(block.text)}")
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            signature = inspect.signature(names[node.func.id])
            signature.bind_partial(*node.args, **{k.arg: None for k in node.keywords if k.arg})


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


@pytest.mark.parametrize("block", of("json"))
def test_json_is_json(block):
    json.loads(block.text)


def test_every_language_is_looked_at():
    assert {block.language for block in BLOCKS} <= {*SHELLS, "", "yaml", "python", "json"}
    assert any(block.page == "README.md" for block in BLOCKS)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target
    for name in re.findall(r"configs/[\w/.-]+\.yaml", text):
        if not re.search(r"configs/(sft|prm)/math\.yaml", name) and page != "docs/what_happens_when.md":  # mistakes
            assert find_config(name), name


# -- README, as it is typed -------------------------------------------------------------------------------------------

SMALLER = {
    "configs/sft/accumulator.yaml": "--trainer.max_steps 20 --data.train.0.count 400 --data.val.0.count 20",
    "configs/annotate/accumulator.yaml": "--limit 30 --rollouts 2",
    "configs/prm/accumulator.yaml": "--trainer.max_steps 3 --data.train.0.offset 5 --data.val.0.count 5",
    "configs/grpo/accumulator.yaml": "--trainer.max_epochs 1 --data.iteration.prompts 4 --data.validation.count 4",
    "configs/search/accumulator.yaml": "--limit 6 --n 4",
}


def test_readme_from_top_to_bottom(tmp_path):
    """The commands that need no server and no GPU, in their order, in processes of their own."""
    block = next(block for block in BLOCKS if block.page == "README.md" and "prm fit" in block.text)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    ran = []
    for words in commands(block):
        config = words[words.index("--config") + 1] if "--config" in words else None
        if config not in SMALLER or words[0] != "prm":
            continue
        typed = [*words, *SMALLER[config].split()]
        ended = subprocess.run(typed, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{shlex.join(words)}\n{ended.stderr}"
        ran.append(words[1])
    assert ran == ["fit", "annotate", "fit", "fit", "search"]
    assert {"policy", "model"} <= {path.name for path in tmp_path.glob("runs/accumulator/*/*")}


@pytest.mark.slow  # about ten minutes
def test_commands_of_all_pages_run(tmp_path, monkeypatch):
    """Those that a CPU can run, smaller, in their order, in processes of their own."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    found = importlib.import_module("_doc_commands").run_commands(sys.modules[__name__], tmp_path)
    assert found["doc_failures"] == {}
    assert found["doc_commands_run"] > 40
