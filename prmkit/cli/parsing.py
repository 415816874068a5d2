"""What the commands built on jsonargparse share: config files found anywhere, and errors a person can read.

jsonargparse reports a wrong key as a stack of union types; `readable` keeps the key, the value, what is accepted and
the nearest match. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prmkit.errors import PrmkitError
from prmkit.json_objects import shown
from prmkit.resources import find_config

__all__ = ["expand_configs", "readable", "user_errors"]

_CONFIG_FLAGS = ("-c", "--config")
_LEVEL = re.compile(r"Parser key \"(?P<key>[^\"]+)\":|Problem with given class_path '(?P<owner>[^']+)':\n")
_CHOICES = re.compile(r"(?:typing\.)?Literal\[([^\]]+)\]")
_LISTS = ("callbacks", "logger", "plugins")
_BASES = {
    "lightning.LightningModule": "lightning_modules.prm.PRM",
    "lightning.LightningDataModule": "datamodules.step_labels.StepLabelDataModule",
}


def expand_configs(argv: Sequence[str]) -> tuple[list[str], tuple[Path, ...]]:
    """Put the path of the file found in place of every `--config NAME`; returns the arguments and those files.

    Raises PrmkitError, with the shipped names, for a file that is nowhere, and for one that is no config.
    """
    arguments: list[str] = []
    files: list[Path] = []
    rest = iter(argv)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag not in _CONFIG_FLAGS:
            arguments.append(argument)
            continue
        files.append(find_config(value if equals else next(rest, "")))
        arguments += ["--config", str(files[-1])]
    return arguments, tuple(files)


@contextmanager
def user_errors(command: str, parser: Any = None) -> Iterator[None]:
    """Turn errors of parsing and instantiation that a user caused into one PrmkitError.

    jsonargparse wraps what a constructor raises; a PrmkitError within is raised itself. `parser`, when given, is asked
    for the known keys. `command` (e.g. "prm fit") stands in hints.
    """
    try:
        yield
    except PrmkitError:
        raise
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        cause = _own_error(error)
        if cause is not None:
            raise cause from error
        if isinstance(error, argparse.ArgumentError):
            raise PrmkitError(readable(str(error), command, _known_keys(parser))) from error
        if type(error).__module__.startswith("omegaconf"):
            raise PrmkitError(_interpolation(str(error))) from error
        raise


def _own_error(error: BaseException) -> PrmkitError | None:
    """The PrmkitError in a chain of causes, or in what members of a union refused; None when there is none."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop(0)
        if isinstance(link, PrmkitError):
            return link
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            waiting += [link.__cause__ or link.__context__, *_members_errors(link)]
    return None


def _members_errors(error: BaseException) -> list[BaseException]:
    """What the members of a union refused a value for. jsonargparse raises from the first of them, and has the others
    in a variable only."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "raise_union_unexpected_value":
            return [each for each in trace.tb_frame.f_locals["exceptions"] if isinstance(each, BaseException)]
        trace = trace.tb_next
    return []


def _interpolation(message: str) -> str:
    lines = [line.strip() for line in message.splitlines()]
    where = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "config")
    return f"{where}: {lines[0]}; `${{a.b}}` stands for the value of the key a.b of the merged config"


def readable(message: str, command: str, known: Iterable[str] = ()) -> str:
    """One clear message from a jsonargparse error: the full key, what is wrong with it, what is near or accepted."""
    if required := re.search(r"arguments are required: (.+)", message):
        keys = ", ".join(f"`{key.strip().lstrip('-')}`" for key in required[1].split(","))
        return (
            f"{keys}: not given. Name a config that has it: {command} --config FILE "
            f"(`prm configs list` names those that are shipped)"
        )
    prefix, owner, body = _descend(message)
    if bare := re.search(r"Expected a dot import path string: (\S+)", message):
        return f"{prefix}.class_path: got {bare[1]!r}; accepted: an import path, e.g. lightning_modules.prm.PRM"
    if owner in _BASES:
        return f"{_class_path(prefix)}: not given; accepted: an import path, e.g. {_BASES[owner]}"
    if missing := re.search(r"module '.+' has no attribute '\w+'|No module named '.+'", body):
        return f"{_class_path(prefix)}: {owner}: {missing[0]}"
    return _unknown_key(body, prefix, owner, _class_keys(owner) if owner else list(known)) or _wrong_value(body, prefix)


def _descend(message: str) -> tuple[str, str, str]:
    """Follow the keys and classes that a message names one inside the other.

    Returns the dotted key reached, the innermost class named ("" for none), and the text about it.
    """
    key, owner, body = "", "", message
    while match := _LEVEL.search(body):
        body = _inner_block(body[match.end() :]) if match["owner"] else body[match.end() :]
        if match["owner"] is None:
            key = ".".join(part for part in (key, match["key"]) if part)
            continue
        owner = match["owner"]
        if not _is_record(owner):
            many = key.rpartition(".")[2] in _LISTS
            key += f"[{owner.rpartition('.')[2]}].init_args" if many else ".init_args"
    return key, owner, body


def _class_path(prefix: str) -> str:
    return prefix.removesuffix(".init_args") + ".class_path"


def _inner_block(text: str) -> str:
    """The lines that belong to a problem: its first line and those indented at least as deep."""
    lines = [line for line in text.splitlines() if line.strip()]
    depth = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    return "\n".join(itertools.takewhile(lambda line: len(line) - len(line.lstrip()) >= depth, lines))


def _unknown_key(body: str, prefix: str, owner: str, known: list[str]) -> str | None:
    if match := re.search(r"Group '([^']+)' does not accept option '([^']+)'", body):
        key = f"{match[1]}.{match[2]}"
    elif match := re.search(r"Option '([^']+)' is not accepted", body):
        key = match[1]
    elif match := re.search(r"unrecognized arguments: (\S+)", body):
        key = match[1].partition("=")[0]
        if not key.startswith("-"):
            return f"{key}: not an argument here; settings are given as --key value or --key=value"
        key = key.lstrip("-")
    else:
        return None
    where = ".".join(part for part in (prefix, key) if part)
    what = f"{where}: no such setting" + (f" of {owner}" if owner else "")
    near = _nearest(key, known)
    if near:
        return f"{what}. Did you mean {' or '.join(f'`{name}`' for name in near)}?"
    parent = key.rpartition(".")[0]
    inside = [name for name in known if not parent or name.startswith(f"{parent}.")]
    depth = len(parent.split(".")) + 1 if parent else 1
    siblings = dict.fromkeys(".".join(name.split(".")[:depth]) for name in inside or known)
    return f"{what}. Accepted: {', '.join(siblings)}."


def _nearest(key: str, known: list[str]) -> list[str]:
    """Known keys like this one as a whole, or with the same last part under another parent."""
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.75)
    last = key.rpartition(".")[2]
    return near or [name for name in known if name.rpartition(".")[2] == last][:2]


def _wrong_value(body: str, prefix: str) -> str:
    body = _CHOICES.sub(lambda found: found[1].replace("'", "").replace(", ", " | "), body)
    kinds = re.findall(r"Expected (?:a|an) (?:<class '([^']+)'>|(\S.*?))(?:\. Got value|\.?$)", body, re.M)
    accepted = " | ".join(dict.fromkeys((plain or other).replace("NoneType", "null") for plain, other in kinds))
    got = re.search(r"(?:Got value|Given value): (.+)", body)
    if other := re.search(r"Import path (\S+) does not correspond to a subclass of ([\w.]+)", body):
        return f"{prefix}: got {other[1]!r}; accepted: a subclass of {other[2]}"
    if prefix and kinds and got:
        return f"{prefix}: got {shown(got[1].rstrip('.'))}; accepted: {accepted}"
    dropped = ("Does not validate", "Subtypes:", "Errors:", "Given value", "- Expected a <class 'NoneType'>")
    lines = [line.strip() for line in body.splitlines() if not line.strip().startswith(dropped)]
    text = " ".join(line for line in lines if line)
    return f"{prefix}: {text}" if prefix else text


def _known_keys(parser: Any) -> list[str]:
    return [] if parser is None else list(parser.get_defaults(skip_validation=True).keys())


def _find_class(class_path: str) -> Any:
    """A class by its import path; None when it cannot be imported, which the message at hand says already."""
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _is_record(class_path: str) -> bool:
    """Whether a class is a plain record of settings, written without `class_path` and `init_args`."""
    return dataclasses.is_dataclass(_find_class(class_path))


def _class_keys(class_path: str) -> list[str]:
    """Settings of a class by its import path; none when it cannot be imported."""
    from jsonargparse import ArgumentParser

    owner = _find_class(class_path)
    if owner is None:
        return []
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(owner, fail_untyped=False, sub_configs=True)
    return list(parser.get_defaults(skip_validation=True).keys())
