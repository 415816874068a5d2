"""The options that all commands of `prm pairs` share."""

from __future__ import annotations

import argparse

from prmkit.cli.plain_parser import PlainParser

__all__ = ["registry_command", "registry_options"]


def registry_options() -> PlainParser:
    """A parent parser with `--registry` and `--single-writer`."""
    common = PlainParser(add_help=False)
    common.add_argument(
        "--registry", metavar="URL", help="folder or URL (default: $PRMKIT_REGISTRY, else runs/registry)"
    )
    common.add_argument(
        "--single-writer",
        action="store_true",
        help="nobody else changes the registry meanwhile; needed where there are no conditional writes",
    )
    return common


def registry_command(arguments: argparse.Namespace, *words: str) -> list[str]:
    """The words of another `prm pairs` command on the same registry."""
    named = [] if arguments.registry is None else ["--registry", str(arguments.registry)]
    return ["prm", "pairs", *words, *named]
