"""What made a pair, written down when it is published, and done again from what was written."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prmkit.errors import DataError
from registry.manifest import DataSource, Manifest, Recipe
from registry.names import blob_key
from registry.storage import URL_VARIABLE, Silent, Storage
from registry.storage.transfer import download, hash_file

__all__ = ["recipe_lines", "record_recipe", "reproduce"]

PACKAGES = ("prmkit", "torch", "lightning", "transformers", "peft", "numpy", "vllm", "deepspeed")


def record_recipe(
    commands: Iterable[str | Sequence[str]] = (), data: Iterable[str | Path] = (), *, seed: int | None = None
) -> Recipe:
    """A recipe with what can be found out here: git revision, installed packages, hashes of data files.

    Args:
        commands: in order; a text is split as a shell would.
        data: files (hashed) or names of data sets.
        seed: None when unknown.

    Raises:
        DataError: a command that is empty or has an open quotation.
    """
    revision, dirty = _git()
    return Recipe(
        commands=tuple(_arguments(command) for command in commands),
        data=tuple(_source(item) for item in data),
        revision=revision,
        dirty=dirty,
        packages=dict(_installed()),
        seed=seed,
    )


def _arguments(command: str | Sequence[str]) -> tuple[str, ...]:
    try:
        arguments = shlex.split(command) if isinstance(command, str) else command
    except ValueError as error:
        raise DataError(f"command {command!r}: {error}") from None
    if not arguments:
        raise DataError(f"command {command!r}: empty")
    return tuple(arguments)


def _source(item: str | Path) -> DataSource:
    path = Path(item)
    if path.is_file():
        return DataSource(str(item), hash_file(path), path.stat().st_size)
    return DataSource(str(item))


def _installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _git() -> tuple[str | None, bool | None]:
    """Revision of the working folder's repository and whether files differ; (None, None) outside one."""

    def ask(*arguments: str) -> str | None:
        try:
            run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:  # no git
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    revision = ask("rev-parse", "HEAD")
    changes = ask("status", "--porcelain", "--untracked-files=no") if revision else None
    return revision, None if changes is None else bool(changes)


def recipe_lines(manifest: Manifest) -> list[str]:
    """The way to make the pair again, as lines for a shell: comments, then the commands.

    A pair without recorded commands gets all that is known of its origin, and a line that says what is missing.
    """
    recipe = manifest.recipe
    lines = [f"# {manifest.ref}, published {manifest.published} by {manifest.by}"]
    if recipe.revision is not None:
        lines.append(f"# code: git checkout {recipe.revision}" + (" (with changes on top)" if recipe.dirty else ""))
    if recipe.packages:
        lines.append("# packages: " + " ".join(f"{name}=={number}" for name, number in recipe.packages.items()))
    for source in recipe.data:
        lines.append(f"# data: {source.name}" + (f" sha256 {source.sha256}" if source.sha256 else ""))
    if manifest.parent is not None:
        lines.append(f"# made from: {manifest.parent}")
    if not recipe.commands:
        lines += _origin(manifest)
    return [*(line.replace("\n", " ") for line in lines), *(shlex.join(command) for command in recipe.commands)]


def _origin(manifest: Manifest) -> Iterator[str]:
    """What can be said of a pair that records no commands, as comments."""
    yield "# commands: none are recorded (`prm pairs publish --command TEXT` records them)"
    for name, entry in (("policy", manifest.policy), ("prm", manifest.prm)):
        yield f"# {name}: {entry.facts.architecture}, {entry.facts.parameters:,} parameters"
    if manifest.recipe.seed is not None:
        yield f"# seed: {manifest.recipe.seed}"
    if manifest.card.base_models:
        yield f"# base models: {', '.join(manifest.card.base_models)}"
    if manifest.attachments:
        yield f"# attachments: {', '.join(file.path for file in manifest.attachments)}"
    if manifest.metrics is not None:
        known = {name: value for name, value in manifest.metrics.protocol.items() if value is not None}
        protocol = ", ".join(f"{name} {value}" for name, value in known.items())
        yield f"# measured on: {manifest.metrics.dataset}" + (f" ({protocol})" if protocol else "")


def reproduce(storage: Storage, manifest: Manifest, folder: Path) -> None:
    """Run the commands of a pair in a folder that first receives its attachments. Commands that name no registry use
    this one.

    The commands are programs that somebody wrote into a manifest: run those of people you trust.

    Raises:
        DataError: there are no commands, the data here are not those of the recipe, or a command fails.
    """
    if not manifest.recipe.commands:
        raise DataError(f"{manifest.ref}: records no commands")
    for source in manifest.recipe.data:
        path = folder / source.name
        if source.sha256 is not None and path.is_file() and hash_file(path) != source.sha256:
            raise DataError(f"{path}: not the data that {manifest.ref} was made from (SHA-256 {source.sha256})")
    folder.mkdir(parents=True, exist_ok=True)
    for file in manifest.attachments:
        if not (folder / file.path).exists():
            download(storage, blob_key(file.sha256), file.sha256, file.size, folder / file.path, Silent())
    local = storage.local_path("")
    environment = {**os.environ, URL_VARIABLE: storage.url if local is None else str(local.resolve())}
    for command in manifest.recipe.commands:
        try:
            status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
        except FileNotFoundError:
            raise DataError(f"{shlex.join(command)}: no such program here") from None
        if status != 0:
            raise DataError(f"{shlex.join(command)}: ended with status {status}")
