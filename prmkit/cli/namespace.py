"""The four packages beside prmkit under their own names, whatever lies in the working directory.

`callbacks`, `datamodules`, `lightning_modules` and `registry` are usual names in projects of this field. With
`python -m` and with PYTHONPATH a user's folder of such a name comes first on the path. Here the names are pinned to the
folder that prmkit itself was imported from. Modules of the user's folders stay importable under their names.

Nothing but the standard library is imported here: it runs before everything else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from prmkit.errors import PrmkitError

__all__ = ["PACKAGES", "check_packages", "clashes", "pin_packages"]

PACKAGES = ("callbacks", "datamodules", "lightning_modules", "registry")
_HOME = Path(__file__).resolve().parents[2]


class _Pinned:
    """A finder of `PACKAGES` beside prmkit. A user's folders of the same name follow in the package's path."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if path is not None or name not in PACKAGES:
            return None
        spec = PathFinder.find_spec(name, [str(_HOME)])
        if spec is not None and spec.submodule_search_locations is not None:
            spec.submodule_search_locations = [*spec.submodule_search_locations, *map(str, _strangers(name))]
        return spec


class _WorkingDirectory:
    """A finder of the user's own modules in the working directory, for what is found nowhere else.

    `python -m` has that directory on the path, the script `prm` and `python -P` do not: a class path of a config means
    the same under all of them. Folders without `__init__.py` are left out: a folder `wandb` of logs is no package.
    """

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if path is not None:
            return None
        spec = PathFinder.find_spec(name, [os.getcwd()])  # noqa: PTH109 - without pathlib's cost at every miss
        return None if spec is None or spec.loader is None or spec.origin is None else spec


def pin_packages() -> None:
    """Install both finders, once, and have processes that are started from here with `-m` find this prmkit too.

    A package `prmkit` in the working directory would come first there. The variable keeps that directory off their
    path; their own modules are still found by the second finder.
    """
    if not any(isinstance(finder, _Pinned) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Pinned())  # type: ignore[arg-type]
        sys.meta_path.append(_WorkingDirectory())  # type: ignore[arg-type]
    here = PathFinder.find_spec("prmkit", [os.getcwd()])  # noqa: PTH109
    foreign = here is not None and here.origin is not None and Path(here.origin).resolve().parents[1] != _HOME
    if foreign or sys.flags.safe_path:
        os.environ["PYTHONSAFEPATH"] = "1"


def check_packages() -> None:
    """Refuse to run among foreign modules (PrmkitError): one of the names was imported from elsewhere before."""
    for name in PACKAGES:
        module = sys.modules.get(name)
        if module is not None and str(_HOME / name) not in list(getattr(module, "__path__", ())):
            where = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "nowhere")
            raise PrmkitError(
                f"{name}: imported from {where} before prmkit's own {_HOME / name}. Import prmkit.cli first, or rename "
                f"that package."
            )


def clashes() -> list[str]:
    """One line for each folder of the user's that has a part which prmkit's package of the same name hides."""
    found = []
    for name in PACKAGES:
        ours = {entry.stem for entry in (_HOME / name).glob("*.py")}
        for folder in _strangers(name):
            hidden = sorted(file for file in folder.glob("*.py") if file.stem in ours and file.stat().st_size > 0)
            if hidden:
                parts = ", ".join(file.name for file in hidden)
                found.append(
                    f"{folder}: {parts} {'is' if len(hidden) == 1 else 'are'} hidden by prmkit's own {name} "
                    f"({_HOME / name}). Class paths {name}.* mean prmkit's where both have the name; rename yours to "
                    f"use it."
                )
    return found


def _strangers(name: str) -> list[Path]:
    """Folders of this name on the path and in the working directory that are not prmkit's."""
    places = dict.fromkeys(Path(entry or ".").absolute() for entry in [*sys.path, os.getcwd()])  # noqa: PTH109
    folders = (place / name for place in places)
    return [folder for folder in folders if folder.is_dir() and folder.resolve() != _HOME / name]
