"""argparse for the commands without configs: a mistake is one line, as everywhere else."""

from __future__ import annotations

import argparse
from typing import NoReturn

from prmkit.errors import PrmkitError

__all__ = ["PlainParser"]


class PlainParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are PrmkitErrors, without the usage before them."""

    def error(self, message: str) -> NoReturn:
        """Raise PrmkitError with the message and where the options are listed."""
        raise PrmkitError(f"{self.prog}: {message}. `{self.prog} --help` lists what it takes.")
