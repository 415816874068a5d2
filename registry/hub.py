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

from prmkit.io import write_atomic
from registry.errors import ConflictError
from registry.gate import gate_word
from registry.manifest import Manifest
from registry.pull import PULLED_FILE, PulledPair
from registry.transfer import hash_file

__all__ = ["hub_card", "write_hub_layout"]

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
        ConflictError: a folder holds something that is neither a version of this pair nor empty.
    """
    places: dict[str, Path] = {}
    for member, source in (("policy", pulled.policy), ("prm", pulled.prm)):
        place = Path(folder) / f"{pulled.manifest.pair}-{member}"
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
        write_atomic(place / "README.md", hub_card(pulled.manifest, member, organisation))
        write_atomic(place / PULLED_FILE, pulled.manifest.to_bytes())
        places[member] = place
    return places


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


def _make_room(place: Path) -> None:
    """Empty a folder that an earlier export has written."""
    if not place.exists():
        return
    if any(place.iterdir()) and not (place / PULLED_FILE).is_file():
        raise ConflictError(f"{place}: holds something else; export into another folder")
    shutil.rmtree(place)
