"""`prm pairs`: the registry of versioned pairs of policy and PRM. Nothing here imports torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prmkit.cli import pairs_publish
from prmkit.cli.outputs import check_output_file, check_output_folder
from prmkit.cli.pairs_options import registry_command, registry_options
from prmkit.cli.plain_parser import PlainParser
from prmkit.errors import ConfigError

if TYPE_CHECKING:
    from prmkit.progress import TransferProgress
    from registry import Manifest, Registry

__all__ = ["run"]

FOUND_PROBLEMS = 1
_PICTURES = (".png", ".pdf", ".svg")

EXAMPLES = """a version is named math@7, math@best (an alias), math@latest, or math (the latest)

examples:
  prm pairs publish math --policy runs/demo/sft/policy --prm runs/demo/prm/model --metrics runs/demo/search
  prm pairs list math
  prm pairs promote math@2 best
  prm pairs pull math@best here                 here/policy and here/prm open with from_pretrained and vLLM
  prm pairs export math@best hub                hub/math-policy and hub/math-prm, ready to be uploaded
  prm pairs push s3://bucket/pairs math@best
  prm pairs push hf://org/math math@best        org/math-policy and org/math-prm on the Hugging Face hub

The registry is a folder, s3://bucket/prefix, or what fsspec reaches: --registry, else the environment variable
PRMKIT_REGISTRY, else runs/registry."""


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status: 1 when `verify` or `check` found problems."""
    arguments = parser().parse_args(argv)
    check_output_folder("FOLDER", getattr(arguments, "folder", None))
    check_output_file("--report", getattr(arguments, "report", None))
    check_output_file("--picture", getattr(arguments, "picture", None))
    action: Callable[[argparse.Namespace], int | None] = arguments.action
    return action(arguments) or 0


def parser() -> PlainParser:
    """The command's parser."""
    made = PlainParser(
        prog="prm pairs",
        description="Publish, list, compare, pull and promote versions of pairs of a policy and its PRM.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(title="commands", metavar="<command>", required=True)
    common = registry_options()

    def add(name: str, summary: str, action: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        found = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", parents=[common]
        )
        found.set_defaults(action=action)
        return found

    _looking(add)
    pairs_publish.add_command(add)
    _moving(add)
    _caring(add)
    return made


Add = Callable[[str, str, Callable[[argparse.Namespace], "int | None"]], argparse.ArgumentParser]


def _looking(add: Add) -> None:
    command = add("list", "versions with aliases, metrics, parents, sizes and dates", _list)
    command.add_argument("pair", nargs="?", help="one pair; all when not given")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = add("show", "the manifest of a version", _show)
    command.add_argument("ref", metavar="PAIR[@VERSION]")
    command.add_argument("--json", action="store_true", help="print the manifest as it is stored")
    command = add("diff", "what differs from one version to another", _diff)
    command.add_argument("first", metavar="PAIR@VERSION")
    command.add_argument("second", metavar="PAIR@VERSION")
    command = add("lineage", "the tree of versions that a version belongs to", _lineage)
    command.add_argument("ref", metavar="PAIR[@VERSION]")
    command.add_argument("--picture", type=Path, metavar="FILE", help="draw it too, e.g. lineage.png")
    command = add("history", "every publication and every move of an alias, by time", _history)
    command.add_argument("pair")
    command = add("check", "may this PRM score that policy? Two folders, before anything is published", _check)
    command.add_argument("policy", type=Path)
    command.add_argument("prm", type=Path)
    command.add_argument("--tokens", type=int, help="longest question with its solution, in tokens")
    command = add("reproduce", "print the commands that made a version", _reproduce)
    command.add_argument("ref", metavar="PAIR[@VERSION]")
    command.add_argument("--run", action="store_true", help="run them: programs somebody wrote into the manifest")
    command.add_argument("--into", type=Path, default=Path(), help="folder to run them in (default: this one)")


def _moving(add: Add) -> None:
    command = add("pull", "verified files of a version into a folder; only what is missing is copied", _pull)
    command.add_argument("ref", metavar="PAIR[@VERSION]")
    command.add_argument("folder", type=Path)
    command.add_argument("--force", action="store_true", help="overwrite changed files; pull incompatible pairs too")
    command = add("export", "both models as repository folders of the Hugging Face hub, with model cards", _export)
    command.add_argument("ref", metavar="PAIR[@VERSION]")
    command.add_argument("folder", type=Path)
    command.add_argument("--organisation", help="name on the hub, for the links between the two")
    command = add("promote", "move an alias to a version that passed the gate", _promote)
    command.add_argument("ref", metavar="PAIR@VERSION")
    command.add_argument("alias", nargs="?", default="best", help="(default: best)")
    command.add_argument("--force", action="store_true", help="overrule the gate; the history says so")
    command.add_argument("--if-passed", action="store_true", help="a refusal is an answer, with status 0")
    command.add_argument("--report", type=Path, metavar="FILE", help="write the answer to a JSON file too")
    command.add_argument("--reason", default="", help="for the history")
    command = add("alias", "name a version, without the gate", _alias)
    command.add_argument("ref", metavar="PAIR[@VERSION]")
    command.add_argument("alias")
    command.add_argument("--remove", action="store_true", help="take the name away instead")
    command.add_argument("--reason", default="", help="for the history")
    for name, summary, action in (
        ("push", "copy a version to another registry, under the same number", _push),
        ("fetch", "copy a version from another registry, under the same number", _fetch),
    ):
        command = add(name, summary, action)
        hub = ", or hf://ORGANISATION/NAME for the Hugging Face hub" if name == "push" else ""
        command.add_argument("remote", metavar="REMOTE", help=f"folder or URL of the other registry{hub}")
        command.add_argument("ref", metavar="PAIR[@VERSION]")
        command.add_argument("--ancestors", action="store_true", help="the versions it was made from too")
        if name == "push":
            command.add_argument("--private", action="store_true", help="make new repositories of the hub private")


def _caring(add: Add) -> None:
    command = add("verify", "read and hash what is stored; status 1 when something is damaged", _verify)
    command.add_argument("ref", nargs="?", metavar="PAIR[@VERSION]", help="one version; everything when not given")
    command.add_argument("--all", action="store_true", help="everything, said aloud")
    command.add_argument(
        "--remove-damaged", action="store_true", help="remove damaged contents, so that they can be published again"
    )
    command = add("gc", "remove contents that no version needs, and what killed publishers left", _gc)
    command.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    command.add_argument("--patience", type=float, default=60.0, help="seconds to wait for publishers (default: 60)")
    command.add_argument(
        "--grace", type=float, default=24.0, help="hours after which a publisher on S3 counts as dead (default: 24)"
    )


def _open(arguments: argparse.Namespace, url: str | None = None) -> Registry:
    from registry import Registry

    return Registry(url or arguments.registry, single_writer=arguments.single_writer)


@contextmanager
def _progress(name: str) -> Iterator[TransferProgress]:
    from prmkit.progress import TransferProgress

    progress = TransferProgress(name)
    try:
        yield progress
    finally:
        progress.close()


def _list(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from prmkit.cli.pairs_text import plain, versions_text
    from registry.aliases import aliases
    from registry.listing import list_pairs, resolve, summaries
    from registry.storage import open_storage, registry_url, require_registry

    # Without `Registry`: a list of a thousand versions should not wait for what publishing needs.
    storage = open_storage(registry_url(arguments.registry))
    require_registry(storage)
    if arguments.pair:
        resolve(storage, f"{arguments.pair}@latest")
    pairs = [arguments.pair] if arguments.pair else list_pairs(storage)
    found = {pair: summaries(storage, pair) for pair in pairs}
    named = {pair: aliases(storage, pair) for pair in pairs}
    if arguments.json:
        value = {pair: {"aliases": named[pair], "versions": [asdict(s) for s in found[pair]]} for pair in pairs}
        print(json.dumps(value, indent=2))
    elif pairs:
        print(plain(versions_text([summary for pair in pairs for summary in found[pair]], named)))
    else:
        print(f"no pairs in {storage.url}")


def _show(arguments: argparse.Namespace) -> None:
    from prmkit.cli.pairs_text import describe, plain

    registry = _open(arguments)
    manifest = registry.manifest(arguments.ref)
    if arguments.json:
        print(manifest.to_bytes().decode(), end="")
        return
    aliases = registry.aliases(manifest.pair)
    print(plain(describe(manifest, [name for name, version in aliases.items() if version == manifest.version])))


def _diff(arguments: argparse.Namespace) -> None:
    from prmkit.cli.pairs_text import difference_text, plain

    registry = _open(arguments)
    first, second = (str(registry.resolve(ref)) for ref in (arguments.first, arguments.second))
    print(plain(difference_text(first, second, registry.diff(first, second))))


def _lineage(arguments: argparse.Namespace) -> None:
    from prmkit.cli.pairs_text import plain
    from prmkit.ownership import check_file, mentions
    from registry.lineage import draw_lineage, lineage_text

    if arguments.picture is not None:
        if arguments.picture.suffix not in _PICTURES:
            raise ConfigError("--picture", str(arguments.picture), f"a file name that ends in {' | '.join(_PICTURES)}")
        check_file("--picture", arguments.picture, mentions(b"atplotlib"), "picture that prmkit drew")
    tree = _open(arguments).lineage(arguments.ref)
    print(plain(lineage_text(tree)))
    if arguments.picture is not None:
        draw_lineage(tree, arguments.picture)
        print(arguments.picture)


def _history(arguments: argparse.Namespace) -> None:
    from prmkit.cli.pairs_text import history_text, plain

    registry = _open(arguments)
    print(plain(history_text(registry.summaries(arguments.pair), registry.history(arguments.pair))))


def _check(arguments: argparse.Namespace) -> int:
    from registry import check_folders

    verdict = check_folders(arguments.policy, arguments.prm, tokens=arguments.tokens)
    print("this PRM may score this policy" if verdict.ok else "this PRM cannot score this policy")
    for text in verdict.problems:
        print(f"  problem: {text}")
    for text in verdict.notes:
        print(f"  note: {text}")
    return 0 if verdict.ok else FOUND_PROBLEMS


def _reproduce(arguments: argparse.Namespace) -> None:
    from prmkit.cli.pairs_text import plain

    registry = _open(arguments)
    print(plain("\n".join(registry.recipe(arguments.ref))), flush=True)
    if arguments.run:
        registry.reproduce(arguments.ref, arguments.into)


def _pull(arguments: argparse.Namespace) -> None:
    from prmkit.cli.ending import search_command, show_ending
    from prmkit.cli.pairs_text import metric_lines

    with _progress("pull") as progress:
        pulled = _open(arguments).pull(arguments.ref, arguments.folder, force=arguments.force, watch=progress)
    manifest = pulled.manifest
    show_ending(
        [pulled.policy, pulled.prm],
        [
            f"{manifest.ref} in {pulled.folder}: {pulled.copied} of {len(manifest.located())} files copied",
            *metric_lines(manifest),
        ],
        [search_command(pulled.policy, pulled.prm, pulled.folder / "search", task=_task(manifest))],
    )


def _task(manifest: Manifest) -> str | None:
    """The task that a version was measured on; None when it is unknown."""
    return manifest.metrics.dataset.partition("/")[0] if manifest.metrics is not None else None


def _export(arguments: argparse.Namespace) -> None:
    from prmkit.cli.ending import show_ending
    from registry.hub import write_hub_layout

    registry = _open(arguments)
    with _progress("pull") as progress:
        pulled = registry.checkout(arguments.ref, watch=progress)
    heritage = registry.heritage(pulled.manifest.ref)
    places = write_hub_layout(pulled, arguments.folder, organisation=arguments.organisation, heritage=heritage)
    uploads = [("hf", "upload", f"{arguments.organisation or 'ORGANISATION'}/{p.name}", p) for p in places.values()]
    show_ending(places.values(), [f"repositories of the hub for {pulled.manifest.ref}"], uploads)


def _promote(arguments: argparse.Namespace) -> None:
    from prmkit.cli.ending import show_ending
    from prmkit.io import write_json
    from prmkit.ownership import check_file, json_has
    from registry.errors import GateRefusedError

    if arguments.report is not None:
        check_file("--report", arguments.report, json_has("ref", "alias", "promoted"), "report of prm pairs promote")
    reasons: list[str] = []
    try:
        move = _open(arguments).promote(arguments.ref, arguments.alias, force=arguments.force, reason=arguments.reason)
    except GateRefusedError as refusal:
        if not arguments.if_passed:
            raise
        promoted, reasons = False, list(refusal.reasons)
        text = f"{arguments.ref} does not get {arguments.alias!r}: refused by the gate"
        following = ["show", arguments.ref]
    else:
        promoted, reasons = True, list(move.gate["reasons"]) if move.gate is not None else []
        text = f"{move.pair}@{move.alias} is {move.pair}@{move.after}" + (", gate overruled" if move.forced else "")
        following = ["pull", f"{move.pair}@{move.alias}", move.pair]
    show_ending([], [text, *(f"  {reason}" for reason in reasons)], [registry_command(arguments, *following)])
    if arguments.report is not None:
        write_json(
            arguments.report,
            {"ref": arguments.ref, "alias": arguments.alias, "promoted": promoted, "reasons": reasons},
        )


def _alias(arguments: argparse.Namespace) -> None:
    registry = _open(arguments)
    if arguments.remove:
        move = registry.remove_alias(registry.resolve(arguments.ref).pair, arguments.alias, reason=arguments.reason)
        print(f"{move.pair}@{move.alias} is no more")
    else:
        move = registry.set_alias(arguments.ref, arguments.alias, reason=arguments.reason)
        print(f"{move.pair}@{move.alias} is {move.pair}@{move.after}")


def _push(arguments: argparse.Namespace) -> None:
    from prmkit.cli.ending import show_ending
    from registry.hub_push import HUB_SCHEME

    if arguments.remote.startswith(HUB_SCHEME):
        _push_to_hub(arguments)
        return
    if arguments.private:
        raise ConfigError("--private", True, "nothing, unless the remote is hf://ORGANISATION/NAME")
    registry, remote = _open(arguments), _open(arguments, arguments.remote)
    with _progress("push") as progress:
        copied = registry.push(remote, arguments.ref, ancestors=arguments.ancestors, watch=progress)
    show_ending(
        [],
        [f"{', '.join(map(str, copied)) or 'nothing new'} in {remote.storage.url}"],
        [("prm", "pairs", "list", "--registry", arguments.remote)],
    )


def _push_to_hub(arguments: argparse.Namespace) -> None:
    from registry.hub_push import parse_hub_url, push_to_hub

    if arguments.ancestors:
        raise ConfigError("--ancestors", True, "nothing with hf://, where a repository shows one version")
    parse_hub_url(arguments.remote)
    registry = _open(arguments)
    with _progress("pull") as progress:
        pulled = registry.checkout(arguments.ref, watch=progress)
    heritage = registry.heritage(pulled.manifest.ref)
    for address in push_to_hub(pulled, arguments.remote, heritage, private=arguments.private):
        print(f"{pulled.manifest.ref} in {address}")


def _fetch(arguments: argparse.Namespace) -> None:
    from prmkit.cli.ending import show_ending
    from registry.hub_push import HUB_SCHEME

    if arguments.remote.startswith(HUB_SCHEME):
        remedy = "Models on the hub are named as they are (--policy ORG/NAME-policy, --prm ORG/NAME-prm)."
        raise ConfigError("REMOTE", arguments.remote, "folder or URL of a registry", remedy)
    registry, remote = _open(arguments), _open(arguments, arguments.remote)
    with _progress("fetch") as progress:
        copied = registry.fetch(remote, arguments.ref, ancestors=arguments.ancestors, watch=progress)
    show_ending(
        [],
        [f"{', '.join(map(str, copied)) or 'nothing new'} in {registry.storage.url}"],
        [registry_command(arguments, "list")],
    )


def _verify(arguments: argparse.Namespace) -> int:
    from prmkit.progress import format_size

    registry = _open(arguments)
    with _progress("verify") as progress:
        ref = None if arguments.all else arguments.ref
        report = registry.verify(ref, remove_damaged=arguments.remove_damaged, watch=progress)
    for problem in report.problems:
        print(f"{problem.key}: {problem.text}", file=sys.stderr)
        for affected in problem.affects:
            print(f"  needed by {affected}", file=sys.stderr)
    state = "sound" if report.ok else f"{len(report.problems)} problems"
    print(f"{state}: {report.versions} versions, {report.blobs} contents, {format_size(report.size)} read")
    return 0 if report.ok else FOUND_PROBLEMS


def _gc(arguments: argparse.Namespace) -> None:
    from prmkit.progress import format_size

    report = _open(arguments).collect_garbage(
        dry_run=arguments.dry_run, patience=arguments.patience, grace=arguments.grace * 3600
    )
    if arguments.dry_run:
        for entry in (*report.blobs, *report.leftovers):
            print(f"{entry.key}  {format_size(entry.size)}")
    verb = "would be removed" if arguments.dry_run else "removed"
    print(f"{len(report.blobs)} contents and {len(report.leftovers)} leftovers {verb}, {format_size(report.size)}")
