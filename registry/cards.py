"""Model cards: README.md of a published model, with YAML front matter as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from registry.exchange import with_ancestors
from registry.gate import gate_word
from registry.manifest import DataSource, Manifest
from registry.metrics import Figure
from registry.names import PairRef
from registry.storage import Storage
from registry.versions import read_manifest

__all__ = ["Heritage", "heritage_of", "hub_card", "standard_error"]

_TASKS = {"policy": "text-generation", "prm": "token-classification"}
_TITLES = {"policy": "policy", "prm": "process reward model"}
_FIGURES = ("accuracy", "majority", "pass_at_1", "prm_auroc", "prm_ece")
_SHARES = ("accuracy", "majority", "pass_at_1")  # means over problems
_WIDTH = 2 * NormalDist().inv_cdf(0.975)  # of a 95 % interval, in standard errors
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

_SCORE = """import asyncio

from prmkit.models import PRMModel
from prmkit.scoring import PRMScorer

scorer = PRMScorer(PRMModel.from_pretrained("{name}"))
scores = asyncio.run(scorer.score("QUESTION", ["FIRST STEP", "SECOND STEP"]))
print(scores.values)  # the probability in [0, 1] that each step is right"""
_WRITE = """import torch

from prmkit.models import load_policy

policy = load_policy("{name}")
prompt = torch.tensor([policy.format.prompt_ids("QUESTION")])
written = policy.model.generate(prompt, max_new_tokens=64)[0, prompt.shape[1] :]
print([step.text for step in policy.format.split_ids(written.tolist())])"""


@dataclass(frozen=True, slots=True)
class Heritage:
    """What a version has from those it was made from.

    Attributes:
        license, languages, base_models: its own, or those of the nearest ancestor that names any.
        data: what it and its ancestors read, without repetition.
    """

    license: str | None = None
    languages: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    data: tuple[DataSource, ...] = ()

    @classmethod
    def of(cls, manifests: Sequence[Manifest]) -> Heritage:
        """The heritage of the last of some versions, of which each was made from the one before."""
        cards = [manifest.card for manifest in reversed(manifests)]
        return cls(
            license=next((card.license for card in cards if card.license is not None), None),
            languages=next((card.languages for card in cards if card.languages), ()),
            base_models=next((card.base_models for card in cards if card.base_models), ()),
            data=tuple(dict.fromkeys(source for manifest in manifests for source in manifest.recipe.data)),
        )


def heritage_of(storage: Storage, ref: PairRef) -> Heritage:
    """The heritage of a version, as far as the store has its ancestors."""
    return Heritage.of([read_manifest(storage, found) for found in with_ancestors(storage, ref)])


def standard_error(name: str, figure: Figure) -> float | None:
    """The standard error of a figure: from its 95 % interval, or, of a share of problems, from their number."""
    if figure.low is not None and figure.high is not None:
        return (figure.high - figure.low) / _WIDTH
    if name in _SHARES and figure.n and 0 <= figure.value <= 1:
        return float((figure.value * (1 - figure.value) / figure.n) ** 0.5)
    return None


def hub_card(
    manifest: Manifest, member: str, heritage: Heritage, organisation: str | None = None, pair: str | None = None
) -> str:
    """README.md of a repository.

    Args:
        manifest: of the version.
        member: "policy" or "prm".
        heritage: see there.
        organisation: its name on the hub; None where there is none.
        pair: name of the pair on the hub; None is its own.
    """
    other = "prm" if member == "policy" else "policy"
    pair = pair or manifest.pair
    prefix = "" if organisation is None else f"{organisation}/"
    name = f"{pair}-{member}"
    card = manifest.card
    # JSON is YAML; what others wrote into a manifest stays text.
    head = _front_matter(manifest, member, heritage, name)
    front = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items())
    facts = manifest.policy.facts if member == "policy" else manifest.prm.facts
    lines = [
        f"# {name}, version {manifest.version}",
        card.summary or f"The {_TITLES[member]} of the pair {manifest.ref}.",
        f"Its other half is `{prefix}{pair}-{other}` of the same version: the PRM was trained on the mistakes "
        f"of a policy of this line, and scores no other as well.",
        f"- architecture: {facts.architecture}, {facts.parameters:,} parameters, context {facts.context_length}\n"
        f"- steps: see `step_format.json`\n"
        f"- published: {manifest.published}\n"
        f"- made from: {manifest.parent or 'nothing earlier'}\n"
        f"- gate: {gate_word(manifest.gate.passed)}",
        *_section("Gate", [f"- {reason}" for reason in manifest.gate.reasons]),
        *_section("Figures", _figures(manifest)),
        *_section("Use", ["```python", (_SCORE if member == "prm" else _WRITE).format(name=prefix + name), "```"]),
        *_section("Data", [f"- {s.name}" + (f" (SHA-256 {s.sha256})" if s.sha256 else "") for s in heritage.data]),
        *_section("Intended use", [card.intended_use] if card.intended_use else []),
        *_section("Limitations", [card.limitations] if card.limitations else []),
        *_section("Contact", [card.contact] if card.contact else []),
    ]
    return f"---\n{front}\n---\n\n" + "\n\n".join(lines) + "\n"


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "\n".join(lines)] if lines else []


def _front_matter(manifest: Manifest, member: str, heritage: Heritage, name: str) -> dict[str, Any]:
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": _TASKS[member],
        "tags": ["prmkit", "reasoning", *(["reward-model"] if member == "prm" else []), *manifest.card.tags],
    }
    if heritage.license is not None:
        head["license"] = heritage.license
    datasets = [s.name for s in heritage.data if s.sha256 is None and _HUB_NAME.fullmatch(s.name)]
    for key, values in (
        ("language", heritage.languages),
        ("base_model", heritage.base_models),
        ("datasets", datasets),  # names only: the hub links them
    ):
        if values:
            head[key] = list(values)
    if manifest.metrics is not None:
        head["model-index"] = [_model_index(manifest, name)]
    return head


def _figures(manifest: Manifest) -> list[str]:
    if manifest.metrics is None:
        return []
    metrics = manifest.metrics
    accuracy = metrics.figures.get("accuracy")
    problems = metrics.problems or (accuracy.n if accuracy is not None else None) or "an unknown number of"
    rows = [
        f"On {metrics.dataset}, {problems} problems. {_protocol(metrics.protocol)}",
        "",
        "| figure | value | standard error | 95 % | n |",
        "|---|---|---|---|---|",
    ]
    for name, figure in metrics.figures.items():
        interval = "" if figure.low is None or figure.high is None else f"{figure.low:.4f} to {figure.high:.4f}"
        error = standard_error(name, figure)
        shown = "" if error is None else f"{error:.4f}"
        rows.append(
            f"| {_named(name, metrics.protocol)} | {figure.value:.4f} | {shown} | {interval} | {figure.n or ''} |"
        )
    return rows


def _named(figure: str, protocol: Mapping[str, Any]) -> str:
    """A figure's name with how the answer was chosen, and from how many samples."""
    method = {"accuracy": protocol.get("selection"), "majority": "majority"}.get(figure)
    samples = 1 if figure == "pass_at_1" else protocol.get("samples")
    if figure not in _SHARES or samples is None:
        return figure
    told = [*([str(method)] if method is not None else []), f"N = {samples}"]
    return f"{figure} ({', '.join(told)})"


def _protocol(protocol: Mapping[str, Any]) -> str:
    """How the figures were measured, in words."""
    known = {key: protocol[key] for key in ("search", "selection", "samples", "seed") if protocol.get(key) is not None}
    sampling = protocol.get("sampling")
    if isinstance(sampling, Mapping):
        known |= {key: sampling[key] for key in ("temperature", "max_tokens") if key in sampling}
    if not known:
        return "The method is not recorded."
    return "Method: " + ", ".join(f"{key} {value}" for key, value in known.items()) + "."


def _model_index(manifest: Manifest, name: str) -> Mapping[str, Any]:
    assert manifest.metrics is not None
    metrics = manifest.metrics
    values = [
        {"type": figure, "name": _named(figure, metrics.protocol), "value": metrics.figures[figure].value}
        for figure in _FIGURES
        if figure in metrics.figures
    ]
    dataset = {"type": metrics.dataset.partition("[")[0], "name": metrics.dataset}
    task = {"type": "text-generation", "name": "reasoning"}
    return {"name": name, "results": [{"task": task, "dataset": dataset, "metrics": values}]}
