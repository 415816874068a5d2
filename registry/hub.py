"""A version in the layout of the Hugging Face hub: one repository folder for the policy, one for the PRM.

    FOLDER/math-policy/   README.md (model card), pair.json, the model's files
    FOLDER/math-prm/      the same

Each can be opened by `from_pretrained` and vLLM, and uploaded as it is. `registry.hub_push` does so; nothing here talks
to the hub.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from prmkit.io import write_atomic
from registry.cards import Heritage, hub_card
from registry.errors import ConflictError
from registry.pull import PULLED_FILE, PulledPair
from registry.transfer import hash_file

__all__ = ["write_hub_layout"]


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
        ConflictError: a folder holds something that is neither a version of this pair nor empty.
    """
    places: dict[str, Path] = {}
    name = name or pulled.manifest.pair
    heritage = heritage or Heritage.of([pulled.manifest])
    for member, source in (("policy", pulled.policy), ("prm", pulled.prm)):
        place = Path(folder) / f"{name}-{member}"
        _make_room(place)
        place.mkdir(parents=True, exist_ok=True)
        for file in pulled.manifest.files(member):
            if file.path == "README.md":  # the card takes its place
                continue
            target = place / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file.path, target)
            if hash_file(target) != file.sha256:
                raise ConflictError(f"{source / file.path}: is not the file of {pulled.manifest.ref}; pull it again")
        write_atomic(place / "README.md", hub_card(pulled.manifest, member, heritage, organisation, name))
        write_atomic(place / PULLED_FILE, pulled.manifest.to_bytes())
        places[member] = place
    return places


def _make_room(place: Path) -> None:
    """Empty a folder that an earlier export has written."""
    if not place.exists():
        return
    if any(place.iterdir()) and not (place / PULLED_FILE).is_file():
        raise ConflictError(f"{place}: holds something else; export into another folder")
    shutil.rmtree(place)
