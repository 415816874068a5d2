"""prmkit: train a policy and a process reward model that improve each other.

    import prmkit

    policy, prm = prmkit.load_policy("runs/demo/sft/policy"), prmkit.load_prm("runs/demo/prm/model")
    solution = prmkit.solve("f+5g*3h-8,7", policy, prm, task="accumulator", n=16)

Names are imported from their modules on first use: `import prmkit` imports no torch. `__init__.pyi` beside this file
says which names there are; docs/python.md shows them at work, docs/extending.md how to add parts (`register_*`).
"""

import importlib
from functools import cache
from typing import Any


@cache
def _modules() -> dict[str, str]:
    """The module of every public name, by `__init__.pyi`."""
    import ast
    from pathlib import Path

    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    found = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in found for alias in node.names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_modules())
    if name.startswith("_") or name not in _modules():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_modules()[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_modules()})
