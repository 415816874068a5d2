"""`--pair NAME@VERSION`: commands that take a version of the registry where they take model folders.

The option is put in terms of the command's own before its parser sees it. What is given explicitly wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.errors import PrmkitError

if TYPE_CHECKING:
    from registry import PulledPair

__all__ = ["PAIR_HELP", "with_pair", "with_pair_for_fit"]

PAIR_HELP = """
a version of the registry in place of folders:
  --pair NAME@VERSION     math@7, math@best (an alias), math@latest, math; pulled into a cache and verified
  --registry URL          folder or URL (default: $PRMKIT_REGISTRY, else runs/registry)"""


def with_pair(arguments: Sequence[str], members: Mapping[str, str], name: str | None = None) -> list[str]:
    """Arguments with the folders of a pair in place of `--pair` and `--registry`; unchanged without `--pair`.

    Args:
        arguments: of the command.
        members: option by member, e.g. {"policy": "--policy", "prm": "--prm"}.
        name: option that takes the version's name, e.g. math@7; None for none.

    Raises:
        PrmkitError: `--pair` twice or without a value; whatever the registry says, IncompatibleError among it.
    """
    ref, url, rest = _taken(arguments)
    if ref is None:
        return list(arguments)
    pulled = _checkout(ref, url)
    folders = {"policy": pulled.policy, "prm": pulled.prm}
    given = {argument.partition("=")[0] for argument in rest}
    added = [part for name, option in members.items() if option not in given for part in (option, str(folders[name]))]
    if name is not None and name not in given:
        added += [name, pulled.manifest.ref]
    if set(members) == {"policy", "prm"} and given & set(members.values()):
        _check_mixed(rest, folders, members)
    return [*rest, *added]


def with_pair_for_fit(arguments: Sequence[str], configs: Sequence[Path]) -> list[str]:
    """The same for `prm fit`: a PRM goes on from the pair's PRM, any other module from its policy; where rollouts get
    process rewards, the pair's PRM gives them.

    Args:
        arguments: of the command.
        configs: the files of `--config`, in order.
    """
    ref, url, rest = _taken(arguments)
    if ref is None:
        return list(arguments)
    pulled = _checkout(ref, url)
    model, data = _last(rest, configs, "model"), _last(rest, configs, "data")
    is_prm = str(model.get("class_path", "")).endswith(".PRM")
    added = {"model.init_args.source.path": str(pulled.prm if is_prm else pulled.policy)}
    process = ((data.get("init_args") or {}).get("rewards") or {}).get("process") is not None
    if process or any(
        argument.startswith(("--data.rewards.process", "--data.init_args.rewards.process")) for argument in rest
    ):
        added["data.init_args.prm.path"] = str(pulled.prm)
    given = {argument.partition("=")[0].replace(".init_args", "") for argument in rest}
    # Before the rest, so that an explicit setting comes later; but behind the configs, over which they win.
    wanted = [part for key, path in added.items() if f"--{key.replace('.init_args', '')}" not in given
              for part in (f"--{key}", path)]  # fmt: skip
    return [*rest, *wanted]


def _taken(arguments: Sequence[str]) -> tuple[str | None, str | None, list[str]]:
    """(--pair's value, --registry's value, the other arguments). `--registry` counts only with `--pair`."""
    found: dict[str, str] = {}
    rest: list[str] = []
    items = iter(arguments)
    for argument in items:
        flag, equals, value = argument.partition("=")
        if flag not in ("--pair", "--registry"):
            rest.append(argument)
            continue
        given = value if equals else next(items, None)
        if given is None or flag in found:
            raise PrmkitError(f"{flag}: {'given twice' if flag in found else 'a value must follow'}")
        found[flag] = given
    return found.get("--pair"), found.get("--registry"), rest


def _checkout(ref: str, url: str | None) -> PulledPair:
    from prmkit.progress import TransferProgress
    from registry import Registry

    progress = TransferProgress("pull")
    try:
        return Registry(url).checkout(ref, watch=progress)
    finally:
        progress.close()


def _check_mixed(rest: Sequence[str], folders: Mapping[str, Path], members: Mapping[str, str]) -> None:
    """One member comes from the pair, the other was given: they have to fit too, where both are folders."""
    from registry import check_folders

    chosen = dict(folders)
    for name, option in members.items():
        for position, argument in enumerate(rest):
            flag, equals, value = argument.partition("=")
            if flag == option:
                chosen[name] = Path(value if equals else rest[position + 1])
    if all((folder / "config.json").is_file() for folder in chosen.values()):
        check_folders(chosen["policy"], chosen["prm"]).require("--pair with " + " and ".join(members.values()))


def _last(rest: Sequence[str], configs: Sequence[Path], name: str) -> dict[str, Any]:
    """What the config files say of a node, the last one's word by key; and its class, when the arguments name it."""
    import yaml

    node: dict[str, Any] = {}
    for config in configs:
        found = yaml.safe_load(config.read_text(encoding="utf-8")).get(name)
        if isinstance(found, dict):
            node |= found
    for position, argument in enumerate(rest):
        flag, equals, value = argument.partition("=")
        if flag in (f"--{name}", f"--{name}.class_path"):
            node["class_path"] = value if equals else rest[position + 1]
    return node
