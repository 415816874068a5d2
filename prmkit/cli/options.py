"""The options `prm annotate` and `prm search` share, and parsers made of dataclasses.

Nothing here may import models, not even for type checking only: jsonargparse follows those imports, and help would wait
for torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from prmkit.cli.config_tree import read_command_line
from prmkit.cli.fit_settings import take_print_config
from prmkit.cli.parsing import user_errors
from prmkit.cli.signatures import Plain, Record, Setting, Signature, signature
from prmkit.cli.yaml_text import load_config
from prmkit.engines.config import ENGINE_KINDS, EngineConfig
from prmkit.errors import ConfigError, PrmkitError
from prmkit.scoring.config import ScorerConfig

__all__ = [
    "SERVER_FLAGS",
    "EngineConfig",
    "ProblemSource",
    "ScorerConfig",
    "build",
    "expand_servers",
    "make_parser",
    "parse_settings",
    "peek",
    "print_help",
    "wants_help",
]

T = TypeVar("T")

log = logging.getLogger(__name__)
_WITH_JSON = ("prm search", "prm regime", "prm annotate", "prm annotate --convert", "prm annotate --judge")


@dataclass(frozen=True)
class ProblemSource:
    """Which problems.

    Attributes:
        task: accumulator, multistep_arithmetic, gsm8k, math, math500, bbh, jsonl or hub.
        data: file or folder of the tasks that read one; null takes the set of that name from the hub.
        split: one of the task's splits; null takes the command's usual one.
        offset: number of the first problem, from 0.
        limit: problems at most; null takes all, which endless splits refuse.
        task_options: further options of the task, e.g. {slip_hard: 0.3}.
    """

    task: str = "accumulator"
    data: str | None = None
    split: str | None = None
    offset: int = 0
    limit: int | None = None
    task_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise ConfigError("offset", self.offset, "an integer of at least 0")
        if self.limit is not None and self.limit < 1:
            raise ConfigError("limit", self.limit, "an integer of at least 1, or null for all")


def make_parser(
    command: str, usage: str, flat: Iterable[type], groups: Mapping[str, type], shared: Collection[str] = ()
) -> Any:
    """A jsonargparse parser for dataclasses; `parse_settings` puts it to use.

    Args:
        command: e.g. "prm search".
        usage: the usage line, without "usage:".
        flat: dataclasses whose fields are options of their own; fields that are named in `groups` are left to those.
        groups: dataclasses whose fields are options under a name, e.g. `--sampling.temperature`.
        shared: fields that groups leave out, because they are options of the whole command.
    """
    from jsonargparse import ArgumentParser

    from prmkit.cli.json_output import JSON_HELP

    parser = ArgumentParser(prog=command, usage=usage, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with these settings; later ones win, key by key")
    settings: dict[str, Setting] = {}
    schema: dict[str, Signature] = {"": Signature("", {})}
    if command in _WITH_JSON:
        parser.add_argument("--json", action="store_true", help=JSON_HELP)
        settings["json"] = Setting(Plain("bool"), False)
    for kind in flat:
        parser.add_class_arguments(kind, skip={f.name for f in fields(kind)} & set(groups))
        settings |= {name: setting for name, setting in _signature(kind).items() if name not in groups}
    for name, kind in groups.items():
        parser.add_class_arguments(kind, name, skip={f.name for f in fields(kind)} & set(shared))
        inner = {key: setting for key, setting in _signature(kind).items() if key not in shared}
        schema[name] = Signature(name, inner)
        settings[name] = Setting(Record(name), False)
    parser.prmkit_signature = (Signature("", settings), schema)
    return parser


def _signature(kind: type) -> Mapping[str, Setting]:
    found = signature(f"{kind.__module__}.{kind.__qualname__}")
    assert found is not None, kind  # a class of this package, whose source is there
    return found.settings


def parse_settings(parser: Any, argv: Sequence[str]) -> Any:
    """The instantiated settings of a command line, by the rules of `prmkit.cli.config_tree`.

    With `--print_config` among the arguments they are printed instead, and the command ends (SystemExit).

    Args:
        parser: from `make_parser`.
        argv: arguments; `--config` values are files that exist.

    Raises:
        PrmkitError: a setting that is unknown, missing or of another kind; whatever the dataclasses refuse.
    """
    prints, arguments = take_print_config(argv)
    top, schema = parser.prmkit_signature
    arguments = ["--json=true" if argument == "--json" else argument for argument in arguments]
    line = read_command_line(arguments, top, schema)
    missing = [name for name, setting in top.settings.items() if setting.required and line.tree.get(name) is None]
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        raise PrmkitError(f"{names}: not given. Give --{missing[0]} VALUE; {parser.prog} --help has examples")
    for text in line.said:
        log.info(text)
    with user_errors(parser.prog, parser):
        config = parser.parse_object(line.tree)
        if prints:
            print(parser.dump(config, skip_unset=False), end="")
            raise SystemExit(0)
        return parser.instantiate(config)


SERVER_FLAGS = """
where the models compute:
  --engine hf|http|vllm      in this process, on servers, or with vLLM in this process (--engine.kind)
  --endpoint URL             a server of the policy; again for each further one (--engine.http.endpoints)
  --model NAME               its name there (--engine.http.model)"""

_SHORT = {"--model": "--engine.http.model", "--prm_model": "--scorer.http.model"}
_ENDPOINTS = {"--endpoint": "engine", "--prm_endpoint": "scorer"}


def expand_servers(argv: Sequence[str]) -> list[str]:
    """Put settings in place of the short flags of `SERVER_FLAGS`, and of --prm_endpoint and --prm_model.

    Endpoints take the place of those in a config; naming one says that the kind is http.
    """
    arguments: list[str] = []
    urls: dict[str, list[str]] = {}
    rest = iter(argv)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag not in ("--engine", *_SHORT, *_ENDPOINTS):
            arguments.append(argument)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("--"):
            raise ConfigError(flag.lstrip("-"), value, "a value behind it")
        if flag == "--engine":
            if value not in ENGINE_KINDS:
                raise ConfigError("engine", value, " | ".join(ENGINE_KINDS))
            arguments.append(f"--engine.kind={value}")
        elif flag in _SHORT:
            arguments.append(f"{_SHORT[flag]}={value}")
        else:
            urls.setdefault(_ENDPOINTS[flag], []).append(value)
    for where, found in urls.items():
        if not any(argument.startswith(f"--{where}.kind") for argument in arguments):
            arguments.append(f"--{where}.kind=http")
        arguments.append(f"--{where}.http.endpoints={json.dumps(found)}")
    return arguments


def print_help(parser: Any, summary: str, *more: str) -> None:
    """Print what a command does, its options, and what is to be said behind them."""
    print(f"{summary[0].upper()}{summary[1:]}.\n\n{parser.format_help()}{''.join(more)}")


def wants_help(argv: Sequence[str]) -> bool:
    """Does a command line ask for help?"""
    return any(argument in ("-h", "--help") for argument in argv)


def peek(arguments: Sequence[str], name: str, default: str) -> str:
    """A setting before there is a parser that knows the others: the last of `--NAME VALUE`, else the last config's.

    Args:
        arguments: with the files of `--config` found, as `expand_configs` gives them.
        name: e.g. "method", which decides what other settings there are.
        default: when it is set nowhere.
    """
    found: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", f"--{name}"):
            continue
        value = value if equals else next(rest, "")
        if flag != "--config":
            found[flag] = value
        elif (of_file := load_config(Path(value)).get(name)) is not None:
            found[flag] = str(of_file)
    return found.get(f"--{name}", found.get("--config", default))


def build(kind: type[T], values: Any) -> T:
    """A dataclass from the instantiated options of a parser."""
    return kind(**{f.name: values[f.name] for f in fields(kind)})  # type: ignore[arg-type]
