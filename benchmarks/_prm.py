"""Commands of prmkit, run in this process."""

from __future__ import annotations

from prmkit.cli import main
from prmkit.errors import PrmkitError

__all__ = ["run_prm"]


def run_prm(*arguments: str) -> None:
    """`prm ARGUMENTS`; PrmkitError when it does not end well."""
    status = main(list(arguments))
    if status:
        raise PrmkitError(f"prm {arguments[0]} ended with status {status}")
