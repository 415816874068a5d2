"""How `prm pairs` prints pairs: plain text, so that a thousand versions are listed at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prmkit.progress import format_size
from registry.gate import gate_word

if TYPE_CHECKING:
    from registry.aliases import Move
    from registry.difference import Difference
    from registry.listing import Summary
    from registry.manifest import Manifest

__all__ = [
    "describe",
    "difference_text",
    "history_text",
    "metric_lines",
    "plain",
    "table",
    "versions_text",
]

_SHOWN = ("accuracy", "majority", "pass_at_1", "prm_auroc", "prm_ece")
_CARD = ("license", "languages", "base_models", "intended_use", "limitations", "contact", "tags")


def plain(text: str) -> str:
    """The text without control characters: what others wrote into a manifest must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns two spaces apart; those numbered in `right` are set to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    )


def versions_text(summaries: Sequence[Summary], aliases: Mapping[str, Mapping[str, int]]) -> str:
    """A line a version: number, aliases, metrics, gate, parent, size, date.

    Args:
        summaries: of one or several pairs.
        aliases: by pair.
    """
    present = [name for name in _SHOWN if any(name in summary.figures for summary in summaries)]
    names: dict[tuple[str, int], list[str]] = {}
    for pair, targets in aliases.items():
        for alias, version in targets.items():
            names.setdefault((pair, version), []).append(alias)
    rows = [
        [
            f"{s.pair}@{s.version}",
            ", ".join(names.get((s.pair, s.version), ())),
            *(f"{s.figures[name]:.4f}" if name in s.figures else "-" for name in present),
            gate_word(s.passed),
            s.parent or "-",
            format_size(s.size),
            s.published[:16].replace("T", " "),
        ]
        for s in summaries
    ]
    count = len(present)
    return table(
        ["version", "aliases", *present, "gate", "parent", "size", "published"],
        rows,
        right=(*range(2, 2 + count), 4 + count),
    )


def history_text(manifests: Sequence[Summary], moves: Sequence[Move]) -> str:
    """Every change of a pair, by time."""
    lines = [(s.published, f"{s.pair}@{s.version} published by {s.by}") for s in manifests]
    for move in moves:
        before, after = (f"@{n}" if n is not None else "nothing" for n in (move.before, move.after))
        text = f"{move.pair}@{move.alias} moved from {before} to {after} by {move.by}"
        text += ", gate overruled" if move.forced else ""
        lines.append((move.time, text + (f": {move.reason}" if move.reason else "")))
    return "\n".join(f"{when}  {text}" for when, text in sorted(lines))


def difference_text(first: str, second: str, found: Difference) -> str:
    """What differs, a section a kind."""
    lines = [f"{first} -> {second}"]
    for sign, paths in (("+", found.added), ("-", found.removed), ("~", found.changed)):
        lines += [f"  {sign} {path}" for path in paths]
    lines.append(f"  {found.same} files the same; {format_size(found.new)} new, {format_size(found.shared)} shared")
    for name, (mine, theirs) in found.figures.items():
        values = ["-" if value is None else f"{value:.4f}" for value in (mine, theirs)]
        change = "" if mine is None or theirs is None else f"  ({theirs - mine:+.4f})"
        lines.append(f"  {name}: {values[0]} -> {values[1]}{change}")
    lines += [f"  {name}: {_short(mine)} -> {_short(theirs)}" for name, (mine, theirs) in found.fields.items()]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def describe(manifest: Manifest, aliases: Sequence[str]) -> str:
    """A version's manifest for people."""
    lines = [f"{manifest.ref}  {manifest.card.summary}".rstrip()]

    def add(name: str, text: str, *more: str) -> None:
        lines.append(f"{name:<13}{text}")
        lines.extend(f"{'':<13}{line}" for line in more)

    add("aliases", ", ".join(aliases) or "-")
    add("published", f"{manifest.published} by {manifest.by}")
    add("parent", manifest.parent or "-")
    for name, entry in (("policy", manifest.policy), ("prm", manifest.prm)):
        size = format_size(sum(file.size for file in entry.files))
        facts = entry.facts
        what = f"{facts.architecture}, {facts.parameters:,} parameters, context {facts.context_length}, {size}"
        add(name, what, *(f"{file.sha256[:12]}  {file.path}" for file in entry.files))
    add("attachments", ", ".join(file.path for file in manifest.attachments) or "-")
    if manifest.metrics is not None:
        add("measured on", f"{manifest.metrics.dataset}, {manifest.metrics.problems} problems", *metric_lines(manifest))
    add("gate", gate_word(manifest.gate.passed), *manifest.gate.reasons)
    verdict = manifest.compatibility
    add("compatible", "yes" if verdict.ok else "no", *verdict.problems, *verdict.notes)
    for field in _CARD:
        value = getattr(manifest.card, field)
        if value:
            add(field.replace("_", " "), ", ".join(value) if isinstance(value, tuple) else value)
    if manifest.recipe.revision is not None:
        add("code", manifest.recipe.revision + (" with changes on top" if manifest.recipe.dirty else ""))
    return "\n".join(lines)


def metric_lines(manifest: Manifest) -> list[str]:
    """A version's metrics with their confidence intervals, a line each."""
    if manifest.metrics is None:
        return []
    lines = []
    for name, figure in manifest.metrics.figures.items():
        interval = ""
        if figure.low is not None and figure.high is not None:
            interval = f"  [{figure.low:.4f}, {figure.high:.4f}]"
        lines.append(f"{name} {figure.value:.4f}{interval}")
    return lines
