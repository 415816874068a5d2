"""`prm pairs publish`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.cli.pairs_options import registry_command
from prmkit.errors import ConfigError

if TYPE_CHECKING:
    from registry import Card, GateConfig

__all__ = ["add_command"]


def add_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `prm pairs`."""
    command = add("publish", "a new version from two model folders", _publish)
    command.add_argument("pair", help="name of the pair, e.g. math")
    command.add_argument("--policy", type=Path, required=True, help="model folder of the policy")
    command.add_argument("--prm", type=Path, required=True, help="model folder of the PRM")
    command.add_argument(
        "--metrics", type=Path, help="output folder of `prm search`, or a JSON file of metrics (docs/registry.md)"
    )
    command.add_argument("--parent", metavar="PAIR@VERSION", help="the version it was made from, and has to beat")
    command.add_argument("--alias", help="name the version; `best` asks the gate first")
    command.add_argument("--force", action="store_true", help="overrule the gate for --alias best")
    command.add_argument("--key", help="the publication's own name: publishing again under it changes nothing")
    command.add_argument(
        "--once", action="store_true", help="publish nothing when these very models are a version already"
    )
    command.add_argument("--tokens", type=int, help="longest question with its solution, for the compatibility check")
    command.add_argument("--allow-incompatible", action="store_true", help="publish a PRM that cannot score the policy")
    command.add_argument("--report", type=Path, metavar="FILE", help="write the manifest to a file too")
    recipe = command.add_argument_group("recipe", "what made the pair, for `prm pairs reproduce`")
    recipe.add_argument("--command", action="append", default=[], metavar="TEXT", help="a command; may be repeated")
    recipe.add_argument(
        "--data", action="append", default=[], metavar="FILE", help="data that was read; may be repeated"
    )
    recipe.add_argument("--seed", type=int)
    recipe.add_argument(
        "--attach", action="append", default=[], metavar="[PATH=]FILE", help="a file to keep, e.g. a config; repeatable"
    )
    card = command.add_argument_group("card")
    card.add_argument(
        "--card", type=Path, help="JSON file with the fields below and intended_use, limitations, contact"
    )
    card.add_argument("--summary", help="one line")
    card.add_argument("--license", help="e.g. apache-2.0")
    card.add_argument("--tag", action="append", default=[], help="may be repeated")
    gate = command.add_argument_group("gate", "what it takes to be better than the parent")
    gate.add_argument("--gate", type=Path, help="JSON file with fields of GateConfig, e.g. min_gain, auroc_tolerance")


def _publish(arguments: argparse.Namespace) -> None:
    from prmkit.cli.ending import show_ending
    from prmkit.cli.pairs_text import metric_lines
    from prmkit.io import write_atomic
    from prmkit.ownership import check_file, json_has
    from prmkit.progress import TransferProgress
    from registry import Publication, Registry, read_metrics, record_recipe
    from registry.gate import gate_word
    from registry.publish import content_key

    if arguments.once and arguments.key is not None:
        raise ConfigError("--key", arguments.key, "no key together with --once")
    if arguments.report is not None:
        check_file("--report", arguments.report, json_has("pair", "version", "policy", "prm"), "manifest of a pair")
    publication = Publication(
        pair=arguments.pair,
        policy=arguments.policy,
        prm=arguments.prm,
        metrics=None if arguments.metrics is None else read_metrics(arguments.metrics),
        parent=arguments.parent,
        recipe=record_recipe(arguments.command, arguments.data, seed=arguments.seed),
        card=_card(arguments),
        attachments=_attachments(arguments.attach),
        gate=_gate(arguments.gate),
        key=content_key(arguments.policy, arguments.prm) if arguments.once else arguments.key,
        tokens=arguments.tokens,
        allow_incompatible=arguments.allow_incompatible,
    )
    registry = Registry(arguments.registry, single_writer=arguments.single_writer)
    progress = TransferProgress("publish")
    try:
        manifest = registry.publish(publication, alias=arguments.alias, force=arguments.force, watch=progress)
    finally:
        progress.close()
    if arguments.report is not None:
        write_atomic(arguments.report, manifest.to_bytes())
    named = f", {arguments.pair}@{arguments.alias}" if arguments.alias else ""
    notes = [f"note: {text}" for text in (*manifest.compatibility.problems, *manifest.compatibility.notes)]
    passed = manifest.gate.passed
    promote = ("promote", manifest.ref, "best") if passed and arguments.alias != "best" else ("show", manifest.ref)
    show_ending(
        [f"{manifest.ref}{named} in {registry.storage.url}"],
        [*metric_lines(manifest), f"gate {gate_word(passed)}", *(f"  {r}" for r in manifest.gate.reasons), *notes],
        [registry_command(arguments, *promote)],
    )


def _card(arguments: argparse.Namespace) -> Card:
    from registry import Card
    from registry.records import decode

    value: dict[str, Any] = {} if arguments.card is None else _object(arguments.card)
    given = {"summary": arguments.summary, "license": arguments.license, "tags": arguments.tag}
    return decode(Card, value | {name: item for name, item in given.items() if item}, "card")


def _gate(path: Path | None) -> GateConfig:
    from registry import GateConfig
    from registry.records import decode

    return decode(GateConfig, {} if path is None else _object(path), "gate")


def _object(path: Path) -> dict[str, Any]:
    from prmkit.io import read_json

    value = read_json(path)
    if not isinstance(value, dict):
        raise ConfigError(str(path), type(value).__name__, "a JSON object")
    return value


def _attachments(texts: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        path, given, file = text.partition("=")
        name = path if given else Path(text).name
        if name in found:
            raise ConfigError("--attach", text, f"another name than {name!r}, which is taken")
        found[name] = Path(file if given else text)
    return found
