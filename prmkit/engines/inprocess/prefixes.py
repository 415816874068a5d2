"""Keys and values of prefixes seen before, kept in a trie of token ids, and the encoder that extends it.

Each node holds a run of tokens and their keys and values; sequences that begin alike share the nodes of their
beginning, in memory and in work. Sequences that arrive together are laid into the trie first; then all nodes still
empty are computed level by level, each level in a few batches. So a prompt is encoded once for all its samples, a step
once for all traces that go on from it, and nothing is encoded again until it is evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from prmkit.engines.inprocess.decoder import Decoder
from prmkit.engines.inprocess.kv import Scratch, round_up

__all__ = ["PrefixCache", "PrefixEncoder", "PrefixNode"]

_LEAST_TOKENS = 16  # matrix products of fewer rows take other kernels, whose last bits differ


class PrefixNode:
    """A run of tokens behind its parent's.

    Attributes:
        tokens: the run; empty only at the root.
        parent: the node before; None at the root.
        children: by first token.
        start: position of the first token.
        kv: [L, 2, K, len(tokens), D]; None until computed.
        hidden: [len(tokens), H] final hidden states; None when not kept.
    """

    __slots__ = ("children", "hidden", "kv", "parent", "start", "tokens")

    def __init__(self, tokens: tuple[int, ...], parent: PrefixNode | None) -> None:
        self.tokens = tokens
        self.parent = parent
        self.children: dict[int, PrefixNode] = {}
        self.start: int = parent.end if parent is not None else 0
        self.kv: Tensor | None = None
        self.hidden: Tensor | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def path(self) -> list[PrefixNode]:
        """Nodes from the one below the root to this one."""
        nodes: list[PrefixNode] = []
        node: PrefixNode | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def read_kv(self, into: Tensor) -> None:
        """Copy the keys and values of the whole path into the first columns of [L, 2, ..., K, T, D]; dimensions in
        the place of the dots are filled with copies."""
        runs = [node.kv for node in self.path() if node.kv is not None]
        assert sum(run.shape[-2] for run in runs) == self.end
        if not runs:
            return
        whole = runs[0] if len(runs) == 1 else torch.cat(runs, dim=-2)
        into[..., : self.end, :] = whole if into.dim() == whole.dim() else whole.unsqueeze(2)

    def read_hidden(self, positions: Sequence[int]) -> list[Tensor]:
        """[H] hidden states at positions of the path, which must ascend."""
        nodes = iter(self.path())
        node = next(nodes)
        found = []
        for position in positions:
            while position >= node.end:
                node = next(nodes)
            assert node.hidden is not None
            found.append(node.hidden[position - node.start])
        return found


class PrefixCache:
    """The trie. What was used longest ago goes first, leaves before their parents.

    Args:
        capacity: tokens kept after `trim`; 0 keeps nothing.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._root = PrefixNode((), None)
        self._used: OrderedDict[PrefixNode, None] = OrderedDict()  # oldest first; every parent after its children
        self.tokens = 0

    def insert(self, ids: Sequence[int]) -> tuple[PrefixNode, int]:
        """Lay a non-empty sequence into the trie.

        Returns:
            The node that ends exactly with the sequence, and how many of its tokens were not in the trie before. Where
            there were any, they are this node's whole run, and its `kv` is None.
        """
        node, at = self._root, 0
        while at < len(ids):
            child = node.children.get(ids[at])
            if child is None:
                child = PrefixNode(tuple(ids[at:]), node)
                node.children[ids[at]] = child
                self.tokens += len(child.tokens)
                self._touch(child)
                return child, len(child.tokens)
            shared = _common(child.tokens, ids, at)
            node = child if shared == len(child.tokens) else self._split(child, shared)
            at += shared
        self._touch(node)
        return node, 0

    def trim(self) -> None:
        """Evict until the capacity holds."""
        while self.tokens > self.capacity:
            node, _ = self._used.popitem(last=False)
            assert node.parent is not None
            assert not node.children
            del node.parent.children[node.tokens[0]]
            self.tokens -= len(node.tokens)

    def _split(self, node: PrefixNode, at: int) -> PrefixNode:
        """Cut a node in two; the object given stays the lower part. Returns the upper part."""
        parent = node.parent
        assert parent is not None
        upper = PrefixNode(node.tokens[:at], parent)
        parent.children[node.tokens[0]] = upper
        upper.children[node.tokens[at]] = node
        node.tokens, node.parent, node.start = node.tokens[at:], upper, node.start + at
        if node.kv is not None:  # copies, so that evicting one part frees its memory
            upper.kv, node.kv = node.kv[..., :at, :].clone(), node.kv[..., at:, :].clone()
        if node.hidden is not None:
            upper.hidden, node.hidden = node.hidden[:at].clone(), node.hidden[at:].clone()
        self._touch(node)
        return upper

    def _touch(self, node: PrefixNode) -> None:
        current: PrefixNode | None = node
        while current is not None and current.parent is not None:
            self._used[current] = None
            self._used.move_to_end(current)
            current = current.parent


def _common(run: tuple[int, ...], ids: Sequence[int], at: int) -> int:
    """Length of the common beginning of a run and ids[at:]."""
    if tuple(ids[at : at + len(run)]) == run:
        return len(run)
    length = 0
    for own, other in zip(run, ids[at : at + len(run)], strict=False):
        if own != other:
            break
        length += 1
    return length


class PrefixEncoder:
    """Makes sure that sequences are in the cache, at the least cost.

    Args:
        decoder: computes.
        capacity: tokens the cache keeps.
        batch_tokens: tokens computed at once at most, padding included; a single run longer than that goes alone.
        keep_hidden: keep final hidden states too.
    """

    def __init__(self, decoder: Decoder, capacity: int, batch_tokens: int, *, keep_hidden: bool) -> None:
        self.cache = PrefixCache(capacity)
        self._decoder = decoder
        self._batch_tokens = batch_tokens
        self._keep_hidden = keep_hidden
        self.clear()

    def clear(self) -> None:
        """Forget everything, also what a failure may have left that is not finite."""
        self.cache.clear()
        self._scratch = Scratch(self._decoder.spec)

    def encode(self, sequences: Sequence[Sequence[int]]) -> list[tuple[PrefixNode, int]]:
        """Nodes that end with each of these non-empty sequences, and the tokens that had to be computed for each.

        A run that several need counts for the first. The cache is not trimmed: call `trim` when the nodes were read.
        On failure the cache is emptied.
        """
        found = [self.cache.insert(ids) for ids in sequences]
        try:
            for level in _empty_levels([node for node, _ in found]):
                for batch in self._batches(level):
                    self._compute(batch)
        except BaseException:
            self.clear()
            raise
        return found

    def trim(self) -> None:
        """Evict what is over capacity."""
        self.cache.trim()

    def _batches(self, nodes: list[PrefixNode]) -> list[list[PrefixNode]]:
        """Runs of like length together; neither queries nor key columns of a batch exceed the limits."""
        batches: list[list[PrefixNode]] = []
        columns = 0
        for node in sorted(nodes, key=lambda node: (len(node.tokens), node.end)):
            columns = max(columns, round_up(node.end))
            full = batches and (
                (len(batches[-1]) + 1) * len(node.tokens) > self._batch_tokens
                or (len(batches[-1]) + 1) * columns > 4 * self._batch_tokens
            )
            if not batches or full:
                batches.append([])
                columns = round_up(node.end)
            batches[-1].append(node)
        return batches

    def _compute(self, nodes: list[PrefixNode]) -> None:
        """Fill nodes whose parents are filled."""
        device = self._decoder.spec.device
        longest_run = max(len(node.tokens) for node in nodes)
        # Torch's attention takes another kernel for less than 4 queries, whose last bits differ.
        width = longest_run if self._decoder.columnwise else round_up(longest_run, 8)
        rows = max(len(nodes), -(-_LEAST_TOKENS // width))
        last_start = max(node.start for node in nodes)
        kv = self._scratch.take(rows, round_up(last_start + width))
        families: dict[PrefixNode | None, list[PrefixNode]] = {}
        for node in nodes:
            families.setdefault(node.parent, []).append(node)
        nodes = [node for family in families.values() for node in family]
        at = 0
        for parent, family in families.items():
            if parent is not None:
                parent.read_kv(kv[:, :, at : at + len(family)])
            at += len(family)
        idle = rows - len(nodes)
        ids = torch.tensor([node.tokens + (0,) * (width - len(node.tokens)) for node in nodes] + [(0,) * width] * idle)
        start = torch.tensor([node.start for node in nodes] + [0] * idle)
        hidden = self._decoder.forward(ids.to(device), start.to(device), kv, last_start + 1, self._keep_hidden)
        for row, node in enumerate(nodes):
            node.kv = kv[:, :, row, :, node.start : node.end].clone()
            if self._keep_hidden:
                assert hidden is not None
                node.hidden = hidden[row, : len(node.tokens)].clone()


def _empty_levels(leaves: Sequence[PrefixNode]) -> list[list[PrefixNode]]:
    """Nodes not computed yet on the paths to these leaves, those with no empty node above them first."""
    levels: list[list[PrefixNode]] = []
    seen: set[PrefixNode] = set()
    for leaf in leaves:
        empty = [node for node in leaf.path() if node.kv is None]
        for depth, node in enumerate(empty):
            if node in seen:
                continue
            seen.add(node)
            if depth == len(levels):
                levels.append([])
            levels[depth].append(node)
    return levels
