"""Files that ship with the package: where the configs are, in a checkout and in an installed wheel.

Finds files only; parsing them is the business of the command that uses them.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from prmkit.errors import PrmkitError

__all__ = ["closest_configs", "config_root", "find_config", "shipped_configs"]

_PACKAGE = Path(__file__).resolve().parent


def config_root() -> Path:
    """Folder of the shipped configs: `prmkit/configs` in a wheel, `configs` beside the packages in a checkout."""
    for root in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if root.is_dir():
            return root
    raise PrmkitError(f"no configs beside {_PACKAGE}: the installation is incomplete; install prmkit again")


def shipped_configs(job: str | None = None) -> tuple[str, ...]:
    """Names of the shipped configs as `--config` takes them (`configs/prm/accumulator.yaml`), sorted.

    `job` keeps one folder: "sft", "prm", "annotate", "search".
    """
    root = config_root()
    files = sorted((root / job if job else root).rglob("*.yaml"))
    return tuple(str(Path("configs") / file.relative_to(root)) for file in files)


def closest_configs(name: str | Path) -> str:
    """The shipped names most like a name, or the first ones, in words for an error."""
    shipped = shipped_configs()
    return ", ".join(difflib.get_close_matches(str(name), shipped, n=3, cutoff=0.4) or shipped[:3])


def find_config(name: str | Path) -> Path:
    """The file meant by a `--config` argument.

    Looked up from the working directory first, then among the shipped configs, where the leading `configs/` may be
    left out. Raises PrmkitError with the shipped names when there is no such file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if str(name) and not path.is_absolute():
        parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
        shipped = config_root().joinpath(*parts)
        if shipped.is_file():
            return shipped
    raise PrmkitError(
        f"--config {name}: no such file, neither from {Path.cwd()} nor among the shipped configs, e.g. "
        f"{closest_configs(name)}. `prm configs list` has all."
    )
