"""Python modules as they stand in their files: which names a module defines or imports, and what is behind a name.
Nothing is imported."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

__all__ = ["Module", "find", "module_of", "resolve"]


@dataclass
class Module:
    """The names at the top of a source file: a definition, or (module, name) of an import."""

    name: str
    names: dict[str, ast.AST | tuple[str, str]] = field(default_factory=dict)


def find(path: str) -> tuple[Module, ast.AST] | None:
    """The module and the definition that a dotted path names; None where its source is not found."""
    module, _, name = path.rpartition(".")
    loaded = module_of(module) if module else None
    return None if loaded is None else resolve(loaded, name)


def resolve(module: Module, name: str, depth: int = 0) -> tuple[Module, ast.AST] | None:
    """The definition behind a name in a module, imports followed."""
    first, _, rest = name.partition(".")
    found = module.names.get(first)
    if found is None or depth > 20:
        return None
    if not isinstance(found, tuple):
        return None if rest else (module, found)
    source, attribute = found
    if not attribute:  # `import a.b as name`
        return find(f"{source}.{rest}") if rest else None
    loaded = module_of(source)
    if loaded is not None and attribute in loaded.names:
        return resolve(loaded, f"{attribute}.{rest}" if rest else attribute, depth + 1)
    return find(f"{source}.{attribute}.{rest}") if rest else None


@cache
def module_of(name: str) -> Module | None:
    """A module by its name; None where its source is not found or cannot be read."""
    file = _source_file(name)
    if file is None:
        return None
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    module = Module(name)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    _collect(module, package, tree.body)
    return module


def _collect(module: Module, package: str, body: list[ast.stmt]) -> None:
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            module.names[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    module.names[target.id] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            module.names[node.target.id] = node
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            module.names |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                module.names[alias.asname or first] = (alias.name if alias.asname else first, "")
        else:
            for inner in ("body", "handlers", "orelse"):
                found = getattr(node, inner, [])
                for part in found:
                    _collect(module, package, part.body if isinstance(part, ast.ExceptHandler) else [part])


def _source_file(name: str) -> Path | None:
    first, *rest = name.split(".")
    spec = next(filter(None, (finder.find_spec(first, None) for finder in sys.meta_path)), None)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for root in spec.submodule_search_locations or ():
        place = Path(root, *rest)
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                return file
    return None
