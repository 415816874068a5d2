"""`prm completion`: a script that has a shell complete commands, options, choices, configs and files.

shtab writes the scripts from parsers of argparse. Those of jsonargparse and the keys of `prm fit`, whose own parser
would need torch, are put in terms of argparse here.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prmkit.cli.plain_parser import PlainParser
from prmkit.errors import MissingDependencyError
from prmkit.resources import config_root, shipped_configs

__all__ = ["SHELLS", "command_parsers", "run"]

SHELLS = ("bash", "zsh", "tcsh")

EXAMPLES = """examples:
  eval "$(prm completion bash)"                              in ~/.bashrc
  prm completion zsh > ~/.zfunc/_prm                         with ~/.zfunc in fpath, before compinit
  prm completion tcsh > ~/.prm.tcsh; source ~/.prm.tcsh      in ~/.tcshrc"""

_BUILT = ("annotate", "search", "regime", "serve", "loop")  # commands whose parsers jsonargparse makes
_PLAIN = {
    "export": ("prmkit.cli.export", "parser"),
    "pairs": ("prmkit.cli.pairs", "parser"),
    "demo": ("prmkit.cli.demo", "parser"),
    "doctor": ("prmkit.cli.doctor", "parser"),
    "configs": ("prmkit.cli.configs", "parser"),
    "grade": ("prmkit.cli.grade", "parser"),
}
_FIT = ("fit", "validate", "test", "predict", "estimate")
_FIT_JOBS = ("sft", "prm", "grpo", "ppo", "dpo", "strategy")
_FIT_OPTIONS = ("--ckpt_path", "--pair", "--registry", "--print_config", "--help-all", "--model.help", "--data.help")
_FOR_FILES = ("path", "folder", "file", "output", "policy", "prm", "discriminator", "checkpoint", "picture", "report")


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_args(list(argv) or ["--help"])
    try:
        import shtab
    except ModuleNotFoundError:
        raise MissingDependencyError("shell completion needs shtab: pip install shtab") from None
    print(shtab.complete(_everything(shtab.FILE), arguments.shell, preamble=_preamble()))
    return 0


def parser() -> PlainParser:
    """The command's parser."""
    made = PlainParser(
        prog="prm completion",
        description="Print a script that completes prm's commands, options and configs in a shell.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("shell", choices=SHELLS)
    return made


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """A plain parser of every command of `prm`, with its options. Models and Lightning are not imported."""
    from prmkit.cli import COMMANDS

    made: dict[str, argparse.ArgumentParser] = {}
    for name in COMMANDS:
        if name == "completion":
            made[name] = parser()
        elif name in _FIT:
            made[name] = _of_keys(name)
        elif name in _BUILT:
            built = importlib.import_module(f"prmkit.cli.{name}").parser()
            made[name] = _of_options(name, built._actions)
        else:
            module, function = _PLAIN[name]
            made[name] = getattr(importlib.import_module(module), function)()
    return made


def _everything(files: Any) -> argparse.ArgumentParser:
    from prmkit.cli import COMMANDS

    root = argparse.ArgumentParser(prog="prm", description="Train a policy and a process reward model.")
    commands = root.add_subparsers()
    for name, made in command_parsers().items():
        commands.add_parser(name, help=_text(COMMANDS[name].summary))
        commands.choices[name] = made  # type: ignore[index]
        for action in _all_actions(made):
            action.help = _text(action.help)
            if action.dest == "config":
                action.complete = {"bash": "_prm_configs", "zsh": "_prm_configs", "tcsh": "f"}  # type: ignore[attr-defined]
            elif action.choices is None and action.nargs != 0 and _takes_a_file(action):
                action.complete = files  # type: ignore[attr-defined]
    return root


def _preamble() -> dict[str, str]:
    """Functions of the shells that complete `--config`: the user's files and the shipped configs."""
    names = " ".join(shipped_configs())
    return {
        "bash": f'_prm_configs() {{\n  compgen -f -- "$1"\n  compgen -W "{names}" -- "$1"\n}}\n',
        "zsh": f'_prm_configs() {{\n  _alternative "files:file:_files" "configs:shipped config:({names})"\n}}\n',
    }


def _all_actions(made: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _all_actions(inner)
        else:
            yield action


def _takes_a_file(action: argparse.Action) -> bool:
    return action.type is Path or action.dest.rpartition(".")[2].rpartition("_")[2] in _FOR_FILES


def _of_options(name: str, actions: Sequence[argparse.Action]) -> argparse.ArgumentParser:
    """A plain parser with the options of another."""
    made = argparse.ArgumentParser(prog=f"prm {name}")
    for action in actions:
        flags = [flag for flag in action.option_strings if flag not in ("-h", "--help")]
        if not flags or action.help == argparse.SUPPRESS:
            continue
        kind: dict[str, Any] = {"action": "store_true"} if action.nargs == 0 else {"choices": _choices(action)}
        made.add_argument(*flags, help=action.help, **kind)
    return made


def _choices(action: argparse.Action) -> Sequence[str] | None:
    """What an option accepts, where that is a few words."""
    from typing import Literal, get_args, get_origin

    hint = getattr(action, "_typehint", None)
    if hint is bool:
        return ("true", "false")
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return None if action.choices is None else [str(value) for value in action.choices]


def _of_keys(name: str) -> argparse.ArgumentParser:
    """A plain parser of a command on training configs: its options, and the keys that the shipped configs set."""
    import yaml

    configs = [file for job in _FIT_JOBS for file in shipped_configs(job)]
    made = argparse.ArgumentParser(prog=f"prm {name}")
    made.add_argument("--config", help="YAML file; later ones win, key by key")
    keys: set[str] = set()
    for file in configs:
        content = yaml.safe_load((config_root().parent / file).read_text(encoding="utf-8"))
        keys |= set(_keys(content, ()))
    for flag in (*_FIT_OPTIONS, *(f"--{key}" for key in sorted(keys))):
        made.add_argument(flag)
    return made


def _keys(node: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[str]:
    """Dotted keys of all values of a config in their short form, without `init_args`."""
    for name, value in node.items():
        path = above if name == "init_args" else (*above, str(name))
        if isinstance(value, Mapping):
            yield from _keys(value, path)
        elif name != "class_path" or len(path) == 2:
            yield ".".join(path).removesuffix(".class_path")


def _text(help_text: str | None) -> str:
    """Help in one line without signs that shells or argparse read as their own."""
    plain = "".join(sign for sign in " ".join((help_text or "").split()) if sign not in "\"'`$%[]{}\\!:")
    return plain[:100]
