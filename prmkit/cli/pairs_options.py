"""The options that all commands of `prm pairs` share."""

from __future__ import annotations

from prmkit.cli.plain_parser import PlainParser

__all__ = ["registry_options"]


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
