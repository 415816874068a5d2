"""YAML of configs and of values on the command line, read strictly.

A key given twice in one mapping is an error, dates stay text, and `1e-4` is a number: YAML 1.1 alone would keep the
last of two keys, make a date of `2024-11-30` and text of `1e-4`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from prmkit.errors import PrmkitError

__all__ = ["load_config", "load_value"]

_FLOAT = re.compile(
    r"[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*(?:[eE][-+]?\d+)?"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)


@cache
def _loader() -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it is there: ten times as fast

    class StrictLoader(base):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            first: dict[Any, Any] = {}
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, (list, dict)):
                    problem = "a key must be plain text; values that begin with { or [ need quotes"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
                if key in first:
                    lines = f"lines {first[key].line + 1} and {key_node.start_mark.line + 1}"
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key!r} is given twice, in {lines}; keep one of them",
                        problem_mark=key_node.start_mark,
                    )
                first.setdefault(key, key_node.start_mark)
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    dropped = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
    StrictLoader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in entries if tag not in dropped]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    return StrictLoader


def load_value(text: str) -> Any:
    """The value of a text from the command line: null, a number, a boolean, a list, a mapping, or the text itself."""
    import yaml

    try:
        value = yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError):  # not YAML, e.g. '{epoch}-{step}', or a number that YAML cannot hold
        return text
    return text if isinstance(value, (bytes, set)) else value


def load_config(file: Path) -> dict[str, Any]:
    """The content of a config file.

    Raises:
        PrmkitError: with file and line: not readable, not YAML, a key given twice, or not a mapping of texts.
    """
    import yaml

    try:
        content = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=_loader())
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PrmkitError(f"{file}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or an impossible number
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PrmkitError(f"{file}: not valid YAML: {reason}") from error
    except OSError as error:
        raise PrmkitError(f"{file}: cannot be read: {error.strerror}") from error
    if content is None:
        raise PrmkitError(f"{file}: is empty; a config is a mapping of keys to values")
    if not isinstance(content, dict):
        raise PrmkitError(f"{file}: holds {type(content).__name__}; a config is a mapping of keys to values")
    return content
