"""Overrides that reach into lists: `--trainer.callbacks.0.init_args.save_top_k 2`.

jsonargparse takes a list as one value (and gives `--trainer.callbacks.save_top_k` to its last item). Such arguments are
held back, the rest is parsed, and each list they reach into is handed over whole with the items changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from prmkit.errors import PrmkitError

__all__ = ["parse_arguments"]

_INDEXED = re.compile(r"--([A-Za-z_][\w.]*?)\.(\d+)((?:\.\w+)*)$")


def parse_arguments(parser: Any, argv: Sequence[str]) -> Any:
    """`parser.parse_args`, indexed overrides included.

    Raises PrmkitError for an index that a list does not have, and whatever the parser raises.
    """
    plain, indexed = _split(argv)
    if indexed:
        plain += _as_whole_lists(parser, plain, indexed)
    return parser.parse_args(plain)


def _split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Arguments without indices, and (key, value) of those with one."""
    plain: list[str] = []
    indexed: list[tuple[str, str]] = []
    rest = iter(argv)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if not _INDEXED.match(flag):
            plain.append(argument)
            continue
        given = value if equals else next(rest, None)
        if given is None:
            raise PrmkitError(f"{flag}: a value must follow")
        indexed.append((flag, given))
    return plain, indexed


def _as_whole_lists(parser: Any, plain: Sequence[str], indexed: Sequence[tuple[str, str]]) -> list[str]:
    import yaml

    before = parser.parse_args([argument for argument in plain if not argument.startswith("--print_config")])
    tree = yaml.safe_load(parser.dump(before, skip_none=False, skip_link_targets=False))
    changed: dict[str, list[Any]] = {}
    for flag, value in indexed:
        match = _INDEXED.match(flag)
        assert match is not None
        name, index, inside = match[1], int(match[2]), match[3].split(".")[1:]
        items = _enter(tree, name.split("."))
        if not isinstance(items, list) or index >= len(items):
            held = f"a list of {len(items)}" if isinstance(items, list) else "not a list"
            raise PrmkitError(f"{name}.{index}: no such item; {name} is {held}, and items are counted from 0")
        if inside:
            parent = _enter(items[index], inside[:-1])
            if not isinstance(parent, dict):
                raise PrmkitError(f"{flag.lstrip('-')}: {'.'.join(inside[:-1]) or name} holds no settings")
            if inside[-1] not in parent and isinstance(parent.get("init_args"), dict):
                parent = parent["init_args"]
            parent[inside[-1]] = yaml.safe_load(value)
        else:
            items[index] = yaml.safe_load(value)
        changed[name] = items
    return [part for name, items in changed.items() for part in (f"--{name}", json.dumps(items))]


def _enter(node: Any, keys: Sequence[str]) -> Any:
    """The value under keys; `init_args` may be left out, as in the parser's own short form. None when not there."""
    for key in keys:
        if isinstance(node, dict) and key not in node and isinstance(node.get("init_args"), dict):
            node = node["init_args"]
        node = node.get(key) if isinstance(node, dict) else None
    return node
