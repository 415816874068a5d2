"""Where a version comes from: the tree of parents and children, as text and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from registry.aliases import aliases
from registry.listing import Summary, summaries
from registry.names import PairRef, parse_ref
from registry.storage import Storage

__all__ = ["Lineage", "draw_lineage", "lineage", "lineage_text"]

_FIGURE = "accuracy"


@dataclass(frozen=True, slots=True)
class Lineage:
    """The versions related to one.

    Attributes:
        ref: the one.
        nodes: it, its ancestors, and all that descends from the oldest, by reference. An ancestor that the store does
            not have is None.
        children: references by parent, ascending.
        root: the oldest ancestor.
        names: aliases by reference.
    """

    ref: str
    nodes: Mapping[str, Summary | None]
    children: Mapping[str, tuple[str, ...]]
    root: str
    names: Mapping[str, tuple[str, ...]]


def lineage(storage: Storage, ref: PairRef) -> Lineage:
    """The tree that holds a version. Parents may be versions of other pairs; of those only the ancestors are shown."""
    known: dict[str, Summary | None] = {}
    names: dict[str, list[str]] = {}
    loaded: set[str] = set()

    def load(pair: str) -> None:
        if pair not in loaded:
            loaded.add(pair)
            known.update({f"{s.pair}@{s.version}": s for s in summaries(storage, pair)})
            for alias, version in aliases(storage, pair).items():
                names.setdefault(f"{pair}@{version}", []).append(alias)

    load(ref.pair)
    root = str(ref)
    while (node := known.get(root)) is not None and node.parent is not None:
        load(parse_ref(node.parent).pair)
        known.setdefault(node.parent, None)
        root = node.parent
    children: dict[str, list[str]] = {}
    for name, summary in known.items():
        if summary is not None and summary.parent is not None:
            children.setdefault(summary.parent, []).append(name)
    reached = _reach(root, children)
    return Lineage(
        ref=str(ref),
        nodes={name: known[name] for name in reached},
        children={name: tuple(children[name]) for name in reached if name in children},
        root=root,
        names={name: tuple(sorted(names[name])) for name in reached if name in names},
    )


def _reach(root: str, children: Mapping[str, list[str]]) -> list[str]:
    """The root and all below it, parents first."""
    reached = [root]
    for name in reached:
        reached += children.get(name, ())
    return reached


def lineage_text(tree: Lineage) -> str:
    """The tree, a line a version, the one asked for marked with `*`."""
    lines: list[str] = []

    # Not recursive: a loop's pairs form chains of any length.
    waiting = [(tree.root, "", "")]
    while waiting:
        name, lead, below = waiting.pop()
        lines.append(f"{lead}{_label(tree, name)}{' *' if name == tree.ref else ''}")
        inner = tree.children.get(name, ())
        if len(inner) == 1:  # a chain stays straight
            waiting.append((inner[0], below, below))
            continue
        for child in reversed(inner):
            last = child == inner[-1]
            waiting.append((child, f"{below}{'└─ ' if last else '├─ '}", f"{below}{'   ' if last else '│  '}"))
    return "\n".join(lines)


def _label(tree: Lineage, name: str, figure: str = _FIGURE) -> str:
    node = tree.nodes[name]
    if node is None:
        return f"{name}  (not in this registry)"
    parts = [name]
    if name in tree.names:
        parts.append(f"[{', '.join(tree.names[name])}]")
    if figure in node.figures:
        parts.append(f"{figure} {node.figures[figure]:.4f}")
    parts.append(node.published[:10])
    return "  ".join(parts)


def draw_lineage(tree: Lineage, path: str | Path) -> None:
    """The tree as a picture (PNG, or what the suffix says): generations from left to right, accuracy in the boxes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    places = _places(tree)
    columns, rows = (max(axis) + 1 for axis in zip(*places.values(), strict=True))
    figure, axes = plt.subplots(figsize=(max(4.0, 1.8 * columns), max(1.6, 0.9 * rows)), layout="constrained")
    for parent, children in tree.children.items():
        for child in children:
            (x0, y0), (x1, y1) = places[parent], places[child]
            axes.plot([x0, x1], [-y0, -y1], color="0.6", linewidth=1.2, zorder=1)
    for name, (x, y) in places.items():
        node = tree.nodes[name]
        passed = node is not None and node.passed
        accuracy = "" if node is None or _FIGURE not in node.figures else f"\n{100 * node.figures[_FIGURE]:.1f} %"
        called = f"\n{', '.join(tree.names[name])}" if name in tree.names else ""
        axes.text(
            x,
            -y,
            f"{name}{accuracy}{called}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if name == tree.ref else "normal",
            bbox={
                "boxstyle": "round,pad=0.4",
                "facecolor": "#d7ecd9" if passed else "#f0f0f0",
                "edgecolor": "black" if name == tree.ref else "0.6",
            },
            zorder=2,
        )
    axes.set(xlim=(-0.6, columns - 0.4), ylim=(-rows + 0.4, 0.6))
    axes.axis("off")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _places(tree: Lineage) -> dict[str, tuple[int, int]]:
    """Column (generation) and row of every version; a first child stays in its parent's row."""
    places: dict[str, tuple[int, int]] = {}
    row = 0
    waiting = [(tree.root, 0)]
    while waiting:
        name, column = waiting.pop()
        places[name] = (column, row)
        inner = tree.children.get(name, ())
        if not inner:
            row += 1
        waiting += [(child, column + 1) for child in reversed(inner)]
    return places
