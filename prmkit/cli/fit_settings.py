"""The settings of `prm fit` and its siblings, read and checked before Lightning is imported; and configs as text.

A config that is printed or saved keeps its interpolations, so that one key still moves all that hangs on it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from prmkit.cli.config_tree import CommandLine, read_command_line
from prmkit.cli.config_values import is_reference
from prmkit.cli.signatures import ClassOf, Kind, Plain, Record, Setting, Signature, Union, signature
from prmkit.errors import PrmkitError

__all__ = ["DEFAULTS", "config_text", "normalise", "read_fit", "take_print_config", "wants_parser_help"]

_TEXT, _FLAG = Union((Plain("str"), Plain("null"))), Plain("bool")

# Settings beside trainer, model and data: (type, default, help); one table for both parsers.
DEFAULTS: dict[str, tuple[Any, Any, str]] = {
    "ckpt_path": (str | None, None, "checkpoint to load, or `last` for the newest complete"),
    "weights_only": (bool, True, "refuse checkpoints that hold more than tensors"),
    "predictions": (
        str | None,
        None,
        "prm predict: file to write; null: predictions.jsonl in the run folder",
    ),
    "export": (bool, True, "prm fit: write the model's folder when the config has no ExportPretrained"),
    "summary": (bool, True, "prm fit: write training.json when the config has no TrainingSummary"),
    "preemption": (bool, True, "prm fit: save and end with status 75 on SIGTERM or SIGUSR1"),
}
_PRINT = "--print_config"


def read_fit(argv: Sequence[str], command: str) -> CommandLine:
    """The settings of a command line of `prm fit` and its siblings; no class is imported.

    Args:
        argv: arguments; `--config` values are files that exist.
        command: e.g. "fit", for messages.

    Raises:
        PrmkitError: what `read_command_line` refuses; no model or no data.
    """
    top, schema = _signatures()
    line = read_command_line(argv, top, schema)
    missing = ", ".join(f"`{name}`" for name in ("data", "model") if not line.tree.get(name))
    if missing:
        raise PrmkitError(
            f"{missing}: not given. Name a config that has it: prm {command} --config FILE "
            f"(`prm configs list` names the shipped ones)"
        )
    return line


def wants_parser_help(argv: Sequence[str]) -> bool:
    """True if the arguments ask for the settings of a class, or for all: `--model.help CLASS`, `--help-all`."""
    flags = [argument.partition("=")[0] for argument in argv]
    return any(flag == "--help-all" or (flag.startswith("--") and flag.endswith(".help")) for flag in flags)


def take_print_config(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether `--print_config` is among the arguments, wherever; and the others.

    Raises:
        PrmkitError: it has a value.
    """
    for argument in argv:
        if argument.startswith(f"{_PRINT}="):
            raise PrmkitError(f"{argument}: takes no value; {_PRINT} prints the merged config with every default")
    return _PRINT in argv, [argument for argument in argv if argument != _PRINT]


def _signatures() -> tuple[Signature, dict[str, Signature]]:
    trainer = signature("lightning.pytorch.trainer.trainer.Trainer")
    kinds: dict[Any, Kind] = {bool: _FLAG, str | None: _TEXT}
    settings = {
        "seed_everything": Setting(Union((Plain("bool"), Plain("int"))), False),
        "trainer": Setting(Record("trainer"), False),
        "model": Setting(ClassOf("lightning.pytorch.LightningModule"), False),
        "data": Setting(ClassOf("lightning.pytorch.LightningDataModule"), False),
        **{name: Setting(kinds[kind], False) for name, (kind, _, _) in DEFAULTS.items()},
    }
    known = {} if trainer is None else trainer.settings
    return Signature("", settings), {"trainer": Signature("trainer", known, trainer is None), "": Signature("", {})}


def config_text(resolved: dict[str, Any], raw: dict[str, Any]) -> str:
    """A config as YAML, every default in it, and interpolations as they were written.

    Args:
        resolved: the whole config, interpolations resolved.
        raw: what files and command line gave.
    """
    import yaml

    return yaml.safe_dump(_with_references(resolved, raw), sort_keys=False, allow_unicode=True, width=1 << 20)


def _with_references(resolved: Any, raw: Any) -> Any:
    if is_reference(raw):
        return raw
    if isinstance(resolved, dict) and isinstance(raw, dict):
        return {key: _with_references(value, raw[key]) if key in raw else value for key, value in resolved.items()}
    if isinstance(resolved, list) and isinstance(raw, list) and len(raw) == len(resolved):
        return [_with_references(value, written) for value, written in zip(resolved, raw, strict=True)]
    return resolved


def normalise(resolved: Any, raw: Any) -> Any:
    """A resolved config in which paths made by interpolation have no `..` within.

    `runs/prm/../sft` does not lead to `runs/sft` while there is no folder `runs/prm`; `runs/sft` does.
    """
    if is_reference(raw) and isinstance(resolved, str) and "/../" in resolved and "://" not in resolved:
        return os.path.normpath(resolved)
    if isinstance(resolved, dict) and isinstance(raw, dict):
        return {key: normalise(value, raw.get(key)) for key, value in resolved.items()}
    if isinstance(resolved, list) and isinstance(raw, list) and len(raw) == len(resolved):
        return [normalise(value, written) for value, written in zip(resolved, raw, strict=True)]
    return resolved
