"""A version in the layout of the Hugging Face hub: one repository folder for the policy, one for the PRM.

    FOLDER/math-policy/   README.md (model card), pair.json, the model's files
    FOLDER/math-prm/      the same

Each can be opened by `from_pretrained` and vLLM, and uploaded as it is. `registry.hub_push` does so; nothing here talks
to the hub.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from prmkit.errors import DataError
from prmkit.io import write_atomic
from prmkit.ownership import file_sizes, remove_file
from registry.cards import Heritage, hub_card
from registry.errors import ConflictError
from registry.manifest import Manifest
from registry.pull import PULLED_FILE, PulledPair
from registry.transfer import hash_file

__all__ = ["check_hub_layout", "write_hub_layout"]

_MEMBERS = ("policy", "prm")
_SIGNED = "\n<!-- written by prmkit; SHA-256 of what is above: "


def write_hub_layout(
    pulled: PulledPair,
    folder: str | Path,
    *,
    organisation: str | None = None,
    name: str | None = None,
    heritage: Heritage | None = None,
) -> dict[str, Path]:
    """Write both repository folders; returns them by member. Files that are there already are replaced.

    Args:
        pulled: a version on this machine.
        folder: what holds the repositories.
        organisation: name on the hub, for the links between the two cards.
        name: of the pair on the hub; None is its own.
        heritage: license, base models and data of the versions it was made from; None for those of this one alone.

    Raises:
        ConflictError: a folder holds a file that no export has left there, or one that was changed since.
    """
    name = name or pulled.manifest.pair
    check_hub_layout(name, folder)
    places: dict[str, Path] = {}
    heritage = heritage or Heritage.of([pulled.manifest])
    for member, source in (("policy", pulled.policy), ("prm", pulled.prm)):
        place = Path(folder) / f"{name}-{member}"
        place.mkdir(parents=True, exist_ok=True)
        for path in _written_before(place, member):
            remove_file(place / path)
        for file in pulled.manifest.files(member):
            if file.path == "README.md":  # the card takes its place
                continue
            target = place / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file.path, target)
            if hash_file(target) != file.sha256:
                raise ConflictError(f"{source / file.path}: is not the file of {pulled.manifest.ref}; pull it again")
        write_atomic(place / "README.md", _signed(hub_card(pulled.manifest, member, heritage, organisation, name)))
        write_atomic(place / PULLED_FILE, pulled.manifest.to_bytes())
        places[member] = place
    return places


def check_hub_layout(pair: str, folder: str | Path) -> None:
    """Refuse a folder in which `write_hub_layout` would replace what no export has left there (ConflictError)."""
    for member in _MEMBERS:
        _check_place(Path(folder) / f"{pair}-{member}", member)


def _signed(card: str) -> str:
    """A card with its own hash at its end, so that one that was edited is told from one that was not."""
    return f"{card}{_SIGNED}{hashlib.sha256(card.encode()).hexdigest()} -->\n"


def _is_signed(file: Path) -> bool:
    text = file.read_bytes().decode(errors="replace")
    card, mark, _ = text.rpartition(_SIGNED)
    return bool(mark) and _signed(card) == text


def _check_place(place: Path, member: str) -> None:
    """Refuse a folder that holds anything but what an earlier export of a version has written (ConflictError)."""
    if not place.exists():
        return
    found = file_sizes(place) if place.is_dir() else {place.name: 0}
    if PULLED_FILE in found:
        manifest = _exported(place)
        written = {file.path: file.sha256 for file in manifest.files(member)}
        written[PULLED_FILE] = hash_file(place / PULLED_FILE)
        found = {name: size for name, size in found.items() if written.get(name) != hash_file(place / name)}
        if "README.md" in found and _is_signed(place / "README.md"):
            del found["README.md"]
    if found:
        raise ConflictError(
            f"{place / min(found)}: would be replaced, and is not as an export has left it; move it away, or export "
            f"into another folder"
        )


def _exported(place: Path) -> Manifest:
    """The version that an earlier export has left in a folder (ConflictError for something else)."""
    try:
        return Manifest.from_bytes((place / PULLED_FILE).read_bytes(), str(place / PULLED_FILE))
    except DataError as error:
        raise ConflictError(f"{error} No export has left it there; move it away, or export elsewhere.") from None


def _written_before(place: Path, member: str) -> list[str]:
    """Files of the export that is being replaced."""
    return [file.path for file in _exported(place).files(member)] if (place / PULLED_FILE).is_file() else []
