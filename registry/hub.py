"""A version in the layout of the Hugging Face hub: one repository folder for the policy, one for the PRM.

    FOLDER/math-policy/   README.md (model card), pair.json, the model's files
    FOLDER/math-prm/      the same

Each can be uploaded as it is (`huggingface-cli upload ORG/math-policy FOLDER/math-policy`) and opened by
`from_pretrained` and vLLM. Nothing here talks to the hub.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prmkit.errors import DataError
from prmkit.io import write_atomic
from prmkit.ownership import file_sizes, remove_file
from registry.errors import ConflictError
from registry.gate import gate_word
from registry.manifest import Manifest
from registry.pull import PULLED_FILE, PulledPair
from registry.transfer import hash_file

__all__ = ["check_hub_layout", "hub_card", "write_hub_layout"]

_TASKS = {"policy": "text-generation", "prm": "token-classification"}
_TITLES = {"policy": "policy", "prm": "process reward model"}
_FIGURES = ("accuracy", "majority", "pass_at_1", "prm_auroc", "prm_ece")


def write_hub_layout(pulled: PulledPair, folder: str | Path, *, organisation: str | None = None) -> dict[str, Path]:
    """Write both repository folders; returns them by member. Files that are there already are replaced.

    Args:
        pulled: a version on this machine.
        folder: what holds the repositories.
        organisation: name on the hub, for the links between the two cards.

    Raises:
        ConflictError: a folder holds a file that no export has left there, or one that was changed since.
    """
    check_hub_layout(pulled.manifest.pair, folder, organisation)
    places: dict[str, Path] = {}
    for member, source in (("policy", pulled.policy), ("prm", pulled.prm)):
        place = Path(folder) / f"{pulled.manifest.pair}-{member}"
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
        write_atomic(place / "README.md", hub_card(pulled.manifest, member, organisation))
        write_atomic(place / PULLED_FILE, pulled.manifest.to_bytes())
        places[member] = place
    return places


def check_hub_layout(pair: str, folder: str | Path, organisation: str | None = None) -> None:
    """Refuse a folder in which `write_hub_layout` would replace what no export has left there (ConflictError)."""
    for member in _TASKS:
        _check_place(Path(folder) / f"{pair}-{member}", member, organisation)


def hub_card(manifest: Manifest, member: str, organisation: str | None = None) -> str:
    """README.md of a repository: YAML front matter as the hub reads it, and a page for people."""
    other = "prm" if member == "policy" else "policy"
    prefix = "" if organisation is None else f"{organisation}/"
    name = f"{manifest.pair}-{member}"
    card = manifest.card
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": _TASKS[member],
        "tags": ["prmkit", "reasoning", *(["reward-model"] if member == "prm" else []), *card.tags],
    }
    if card.license is not None:
        head["license"] = card.license
    if card.languages:
        head["language"] = list(card.languages)
    if card.base_models:
        head["base_model"] = list(card.base_models)
    if manifest.metrics is not None:
        head["model-index"] = [_model_index(manifest, name)]
    # JSON is YAML; what others wrote into a manifest stays text.
    front = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items())
    facts = manifest.policy.facts if member == "policy" else manifest.prm.facts
    lines = [
        f"# {name}, version {manifest.version}",
        card.summary or f"The {_TITLES[member]} of the pair {manifest.ref}.",
        f"Its other half is `{prefix}{manifest.pair}-{other}` of the same version: the PRM was trained on the mistakes "
        f"of a policy of this line, and scores no other as well.",
        f"- architecture: {facts.architecture}, {facts.parameters:,} parameters, context {facts.context_length}\n"
        f"- steps: see `step_format.json`\n"
        f"- published: {manifest.published}\n"
        f"- made from: {manifest.parent or 'nothing earlier'}\n"
        f"- gate: {gate_word(manifest.gate.passed)}",
        *_section("Gate", [f"- {reason}" for reason in manifest.gate.reasons]),
        *_section("Figures", _figures(manifest)),
        *_section("Intended use", [card.intended_use] if card.intended_use else []),
        *_section("Limitations", [card.limitations] if card.limitations else []),
        *_section("Contact", [card.contact] if card.contact else []),
    ]
    return f"---\n{front}\n---\n\n" + "\n\n".join(lines) + "\n"


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "\n".join(lines)] if lines else []


def _figures(manifest: Manifest) -> list[str]:
    if manifest.metrics is None:
        return []
    rows = [
        f"On {manifest.metrics.dataset}, {manifest.metrics.problems} problems.",
        "",
        "| figure | value | 95 % |",
        "|---|---|---|",
    ]
    for name, figure in manifest.metrics.figures.items():
        interval = "" if figure.low is None or figure.high is None else f"{figure.low:.4f} to {figure.high:.4f}"
        rows.append(f"| {name} | {figure.value:.4f} | {interval} |")
    return rows


def _model_index(manifest: Manifest, name: str) -> Mapping[str, Any]:
    assert manifest.metrics is not None
    metrics = manifest.metrics
    values = [
        {"type": figure, "name": figure, "value": metrics.figures[figure].value}
        for figure in _FIGURES
        if figure in metrics.figures
    ]
    dataset = {"type": metrics.dataset.partition("[")[0], "name": metrics.dataset}
    task = {"type": "text-generation", "name": "reasoning"}
    return {"name": name, "results": [{"task": task, "dataset": dataset, "metrics": values}]}


def _check_place(place: Path, member: str, organisation: str | None) -> None:
    """Refuse a folder that holds anything but what an earlier export of a version has written (ConflictError)."""
    if not place.exists():
        return
    found = file_sizes(place) if place.is_dir() else {place.name: 0}
    if PULLED_FILE in found:
        manifest = _exported(place)
        written = {file.path: file.sha256 for file in manifest.files(member)}
        written[PULLED_FILE] = hash_file(place / PULLED_FILE)
        cards = (hub_card(manifest, member, name).encode() for name in (organisation, None))
        found = {name: size for name, size in found.items() if written.get(name) != hash_file(place / name)}
        if "README.md" in found and (place / "README.md").read_bytes() in cards:
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
