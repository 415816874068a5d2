"""Model folders and data files that a config names, looked for before anything is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prmkit.cli.config_values import members
from prmkit.cli.fit_settings import normalise
from prmkit.cli.signatures import Kind, ListOf, Record, signature
from prmkit.errors import ConfigError, DataError
from prmkit.io import expand_paths

__all__ = ["check_files"]

_MODELS = ("prmkit.models.source.ModelSource", "prmkit.rl.collector.PRMSource")
_ROWS = ("datamodules.sources.SourceConfig",)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


def check_files(tree: dict[str, Any], command: str) -> None:
    """Refuse a model folder, a file of rows or a checkpoint that is not there.

    Names like "org/model" may be on the hub and are left to those who load them, and so is what follows from defaults.

    Args:
        tree: settings, interpolations unresolved.
        command: "fit", "validate", "test" or "predict": data of other stages are not looked for.

    Raises:
        ConfigError, DataError: with the key and the path.
    """
    checkpoint = tree.get("ckpt_path")
    if checkpoint not in (None, "last") and "://" not in checkpoint and not Path(checkpoint).exists():
        raise ConfigError("ckpt_path", checkpoint, "an existing checkpoint, or `last`")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException:  # of defaults, which are not known here; the parser reports what is wrong
        return
    plain: Any = normalise(resolved, tree)
    for part in ("model", "data"):
        node = plain.get(part)
        found = signature(str(node.get("class_path"))) if isinstance(node, dict) else None
        arguments = node.get("init_args") if isinstance(node, dict) else None
        if found is None or not isinstance(arguments, dict):
            continue
        for name, value in arguments.items():
            setting = found.settings.get(name)
            others = {stage for stages in _STAGES.values() for stage in stages} - set(_STAGES[command])
            if setting is not None and name not in others:
                for where, record, entry in _records(value, setting.kind, f"{part}.init_args.{name}"):
                    _check(where, record, entry)


def _records(value: Any, kind: Kind, where: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(key, class, settings) of every group of settings at or below a value."""
    for member in members(kind):
        if isinstance(member, ListOf) and isinstance(value, list):
            for index, entry in enumerate(value):
                yield from _records(entry, member.item, f"{where}.{index}")
        if isinstance(member, Record) and isinstance(value, dict):
            yield where, member.path, value
            found = signature(member.path)
            for name, entry in value.items():
                if found is not None and name in found.settings:
                    yield from _records(entry, found.settings[name].kind, f"{where}.{name}")


def _check(where: str, record: str, entry: dict[str, Any]) -> None:
    path = entry.get("path")
    if path is None or (record in _ROWS and entry.get("kind", "jsonl") != "jsonl"):
        return
    if record in _ROWS:
        try:
            expand_paths(path)
        except DataError as error:
            raise DataError(f"{where}.path: {error}") from None
    if record in _MODELS:
        for name in [path] if isinstance(path, str) else path:
            if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
                raise DataError(
                    f"{where}.path: {name}: no such model folder; accepted: a folder, or a hub name org/model"
                )
