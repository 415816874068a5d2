"""Solutions of the same prompts as trees: what they have in common is computed once.

The samples of one prompt share it, and often more: with a policy that is sure of itself many are the same word for
word. Rows become the paths of a tree, a tree a prompt; a node attends to its ancestors and itself, so hidden states,
log-probabilities and gradients are those of the rows, but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prmkit.models.policy import hidden_states

__all__ = ["PrefixForest", "forest_states", "plant_forest"]

_CPU_TOKENS, _TOKENS = 2048, 32768  # padded nodes of a forward pass: what caches hold, and what fills a GPU


@dataclass(slots=True)
class _Tree:
    """A prompt and what follows it. Node n has a parent, an earlier node; the prompt is nodes 0 .. P-1."""

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    edges: dict[tuple[int, int], int] = field(default_factory=dict)  # (node, next token) -> number in the forest
    children: dict[int, int] = field(default_factory=dict)  # edge -> the node it leads to, where one was needed

    @classmethod
    def of(cls, prompt: Sequence[int]) -> _Tree:
        return cls(list(prompt), [max(0, n - 1) for n in range(len(prompt))], list(range(len(prompt))))

    def child(self, node: int, edge: int, token: int) -> int:
        if edge not in self.children:
            self.children[edge] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(node)
            self.depths.append(self.depths[node] + 1)
        return self.children[edge]

    def ancestors(self) -> Tensor:
        """[W, W] bool, True where a node (row) may attend to another (column)."""
        table = torch.eye(len(self.tokens), dtype=torch.bool).numpy()
        for node, parent in enumerate(self.parents):
            table[node] |= table[parent]
        return torch.from_numpy(table)


@dataclass(frozen=True, slots=True)
class PrefixForest:
    """Rows of tokens as trees. An edge is a token behind a node: what is to be predicted, once.

    Attributes:
        trees: a tree a prompt.
        edge_tree, edge_node, edge_token: [E] the edge's tree, the node before it, and its token.
        edge_of: [N] edge of each token that the mask marks, row by row.
    """

    trees: tuple[_Tree, ...]
    edge_tree: Tensor
    edge_node: Tensor
    edge_token: Tensor
    edge_of: Tensor

    @property
    def nodes(self) -> int:
        """Tokens to be computed."""
        return sum(len(tree.tokens) for tree in self.trees)


def plant_forest(input_ids: Tensor, mask: Tensor) -> PrefixForest:
    """The forest of some rows. Rows with the same tokens before their first marked one make a tree.

    Args:
        input_ids: [B, T] token ids.
        mask: [B, T] bool, True where a token is to be predicted; False in column 0. Rows without any are left out.
    """
    trees: dict[tuple[int, ...], tuple[int, _Tree]] = {}
    edges: list[tuple[int, int, int]] = []
    edge_of: list[int] = []
    for row, marks in zip(input_ids.tolist(), mask.tolist(), strict=True):
        if True not in marks:
            continue
        first, last = marks.index(True), len(marks) - 1 - marks[::-1].index(True)
        prompt = tuple(row[:first])
        number, tree = trees.setdefault(prompt, (len(trees), _Tree.of(prompt)))
        node = first - 1
        for place in range(first, last + 1):
            token = row[place]
            edge = tree.edges.setdefault((node, token), len(edges))
            if edge == len(edges):
                edges.append((number, node, token))
            if marks[place]:
                edge_of.append(edge)
            if place < last:
                node = tree.child(node, edge, token)
    places, nodes, tokens = torch.tensor(edges, dtype=torch.long).view(-1, 3).unbind(1)
    grown = tuple(tree for _, tree in trees.values())
    return PrefixForest(grown, places, nodes, tokens, torch.tensor(edge_of, dtype=torch.long))


def forest_states(backbone: nn.Module, forest: PrefixForest, device: torch.device) -> Tensor:
    """Hidden states that predict the edges' tokens, [E, H]; gradients flow through.

    The attention implementation must take a mask of its own ("sdpa", "eager").

    Args:
        backbone: decoder without head.
        forest: at least one tree.
        device: where the backbone is.
    """
    pieces, begins, offset = [], torch.zeros(len(forest.trees), dtype=torch.long), 0
    dtype = next(backbone.parameters()).dtype
    for numbers in _buckets(forest.trees, _CPU_TOKENS if device.type == "cpu" else _TOKENS):
        trees = [forest.trees[number] for number in numbers]
        width = max(len(tree.tokens) for tree in trees)
        ids, depths = torch.zeros(2, len(trees), width, dtype=torch.long)
        allowed = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
        for place, tree in enumerate(trees):
            size = len(tree.tokens)
            ids[place, :size], depths[place, :size] = torch.tensor(tree.tokens), torch.tensor(tree.depths)
            allowed[place, :size, :size] = tree.ancestors()
            begins[numbers[place]] = offset + place * width
        bias = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
        hidden = hidden_states(backbone, ids.to(device), bias[:, None].to(device), depths.to(device))
        pieces.append(hidden.flatten(0, 1))
        offset += len(trees) * width
    return torch.cat(pieces)[(begins[forest.edge_tree] + forest.edge_node).to(device)]


def _buckets(trees: Sequence[_Tree], tokens: int) -> Iterator[list[int]]:
    """Numbers of trees that are computed together, at most so many padded nodes, largest first."""
    order = sorted(range(len(trees)), key=lambda number: -len(trees[number].tokens))
    start = 0
    while start < len(order):
        room = max(1, tokens // len(trees[order[start]].tokens))
        yield order[start : start + room]
        start += room
