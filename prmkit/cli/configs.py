"""`prm configs`: the configs that ship with the package, listed, shown and copied. Nothing here imports torch."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from prmkit.cli.outputs import check_output_file
from prmkit.cli.plain_parser import PlainParser
from prmkit.errors import ConfigError, PrmkitError
from prmkit.io import write_atomic
from prmkit.resources import closest_configs, config_root, shipped_configs

__all__ = ["describe_config", "run"]

EXAMPLES = """examples:
  prm configs list                       names and what each is for
  prm configs list prm                   those of one job
  prm configs show prm/accumulator       the file, with its comments
  prm configs copy prm/accumulator mine.yaml

A name is written as `--config` takes it: configs/prm/accumulator.yaml, prm/accumulator.yaml or prm/accumulator."""


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_args(list(argv) or ["--help"])
    if arguments.action == "list":
        _list(arguments.job, arguments.json)
    elif arguments.action == "show":
        print(_shipped(arguments.name).read_text(encoding="utf-8"), end="")
    else:
        _copy(arguments.name, arguments.target, arguments.force)
    return 0


def parser() -> PlainParser:
    """The command's parser."""
    from argparse import RawDescriptionHelpFormatter

    made = PlainParser(
        prog="prm configs",
        description="List, show and copy the configs that ship with prmkit.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    actions = made.add_subparsers(dest="action", title="commands", metavar="<command>", required=True)
    listing = actions.add_parser("list", help="names and what each is for")
    listing.add_argument("job", nargs="?", choices=_jobs(), metavar="JOB", help=f"one of {', '.join(_jobs())}")
    listing.add_argument("--json", action="store_true", help="print JSON")
    actions.add_parser("show", help="print a config").add_argument("name", metavar="NAME")
    copying = actions.add_parser("copy", help="copy a config, to change it")
    copying.add_argument("name", metavar="NAME")
    copying.add_argument("target", nargs="?", type=Path, metavar="FILE", help="(default: the name, in this folder)")
    copying.add_argument("--force", action="store_true", help="replace an existing file")
    return made


def describe_config(file: Path) -> str:
    """The first sentence of the comment that a config begins with; "" where it begins without one."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# ").strip())
    return textwrap.shorten(" ".join(words).split(". ", 1)[0].rstrip("."), 110, placeholder=" ...")


def _jobs() -> list[str]:
    return sorted(path.name for path in config_root().iterdir() if path.is_dir())


def _list(job: str | None, as_json: bool) -> None:
    found = {name: describe_config(_shipped(name)) for name in shipped_configs(job)}
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    width = max(map(len, found))
    for name, text in found.items():
        print(f"{name:<{width}}  {text}".rstrip())


def _shipped(name: str) -> Path:
    """The shipped file of a name; a user's file of the same name is not looked at."""
    parts = Path(name).parts[1:] if name.startswith("configs/") else Path(name).parts
    place = config_root().joinpath(*parts)
    for file in (place, place.with_name(f"{place.name}.yaml")):
        if file.is_file() and file.resolve().is_relative_to(config_root().resolve()):
            return file
    raise ConfigError("NAME", name, f"a shipped config, e.g. {closest_configs(name)}", "`prm configs list` has all.")


def _copy(name: str, target: Path | None, force: bool) -> None:
    source = _shipped(name)
    place = Path(source.name) if target is None else target / source.name if target.is_dir() else target
    if place.exists() and not force:
        raise PrmkitError(f"{place}: exists. Name another file, or replace it with --force.")
    check_output_file("FILE", place)
    write_atomic(place, source.read_bytes())
    print(f"{place}: {describe_config(source)}")
