"""Lanes: rows of the key/value buffer. Samples whose tokens are the same so far are on one lane.

The samples of a prompt begin as one lane, and part where they draw different tokens. A decode step computes lanes, not
samples, so what samples have in common is computed and kept once: with a policy that is sure of itself, most of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from prmkit.engines.inprocess.kv import KVSpec
from prmkit.engines.inprocess.prefixes import PrefixNode

__all__ = ["Lanes"]

_LEAST_LANES = 16  # matrix products of fewer rows take other kernels, whose last bits differ


class Lanes:
    """The lane of every sample, and the lanes' keys and values.

    Args:
        spec: of the buffer.
        samples: at most.
        share: False gives every sample a lane of its own, with the sample's number: a GPU would have to wait in every
            step to learn who parts.

    Attributes:
        of: [samples] long, lane of each sample.
        count: lanes in use; the first ones.
    """

    def __init__(self, spec: KVSpec, samples: int, share: bool) -> None:
        self._spec = spec
        self._most = max(samples, _LEAST_LANES)
        self._share = share
        self._own = True  # whether every sample is on the lane of its own number
        self._together = False  # whether any lane has several samples that go on
        self._kv = spec.allocate(_LEAST_LANES if share else self._most, 0)
        self.of = torch.zeros(self._most, dtype=torch.long, device=spec.device)
        self.count = 0

    @property
    def computed(self) -> int:
        """Lanes that a decode step computes; those above `count` serve nobody."""
        return max(self.count, _LEAST_LANES)

    def kv(self, columns: int) -> Tensor:
        """Keys and values of the lanes that a step computes: [L, 2, computed, K, columns, D]."""
        return self._kv[:, :, : self.computed, :, :columns]

    def kv_of(self, sample: int, start: int, end: int) -> Tensor:
        """A copy of a sample's keys and values at positions start .. end-1: [L, 2, K, end-start, D]."""
        return self._kv[:, :, int(self.of[sample]), :, start:end].clone()

    def begin(self, first: int, prompts: Iterable[tuple[PrefixNode | None, int]]) -> None:
        """Put samples first, first+1, ... on lanes, by their prompts as (all but the last token, last token)."""
        prompts = list(prompts)
        keys = [(id(prefix), last) for prefix, last in prompts]
        lane = self._open(len(set(keys)) if self._share else len(keys))
        known: dict[tuple[int, int], int] = {}
        lanes: list[int] = []
        for key, run in groupby(keys):
            count = len(list(run))
            if key not in known or not self._share:
                known[key], width = lane, 1 if self._share else count
                prefix = prompts[len(lanes)][0]
                if prefix is not None:
                    prefix.read_kv(self._kv[:, :, lane : lane + width])
                lane += width
            lanes += [known[key]] * count if self._share else range(known[key], lane)
        self.of[first : first + len(lanes)] = torch.tensor(lanes, device=self.of.device)
        if self._share and len(known) < len(lanes):
            self._own, self._together = False, True

    def leaders(self, length: Tensor, done: Tensor) -> Tensor:
        """The sample whose last token each lane is fed: [computed] long.

        One that goes on if there is any, else the longest: what it writes stands behind all that others still need.

        Args:
            length: [N] long, tokens of each sample.
            done: [N] bool.
        """
        if self._own:
            return torch.arange(self.computed, device=length.device).clamp_(max=len(length) - 1)
        numbers = torch.arange(len(length))
        rank = (2 * length + ~done) * len(length) + numbers
        best = torch.zeros(self.computed, dtype=torch.long).scatter_reduce_(0, self.of[: len(length)], rank, "amax")
        return best % len(length)

    def spread(self, values: Tensor, samples: int) -> Tensor:
        """Values of lanes [computed, ...] as values of samples [samples, ...]."""
        return values[:samples] if self._own else values.index_select(0, self.of[:samples])

    def part(self, tokens: Tensor, done: Tensor, vocabulary: int, columns: int) -> None:
        """Give samples that go on lanes of their own where their new tokens differ.

        Args:
            tokens: [N] long, the tokens just drawn.
            done: [N] bool.
            vocabulary: no token's id is as large.
            columns: of the buffer that hold anything.
        """
        if not self._together:
            return
        going = (~done).nonzero().squeeze(1)
        branches, branch = torch.unique(self.of[going] * vocabulary + tokens[going], return_inverse=True)
        lanes = branches // vocabulary
        parted = torch.zeros_like(lanes, dtype=torch.bool)
        parted[1:] = lanes[1:] == lanes[:-1]  # the first branch of a lane stays on it
        sources = lanes[parted].tolist()
        if sources:
            first = self._open(len(sources))
            lanes[parted] = torch.arange(first, self.count)
            self.of[going] = lanes[branch]
            self._copy(sources, range(first, self.count), columns)
        self._together = len(branches) < len(going)

    def rejoin(self, groups: Iterable[Sequence[int]], used: int, columns: int) -> None:
        """Give samples that rested lanes on which they can go on: those of a group, who are the same so far, one lane.

        Args:
            groups: numbers of samples.
            used: samples in use.
            columns: of the buffer that hold anything.
        """
        if self._own:
            return
        for group in groups:
            lane = int(self.of[group[0]])
            if int((self.of[:used] == lane).sum()) > len(group):  # somebody else is on it, and has gone on perhaps
                self.of[torch.tensor(group)] = self._open(1)
                self._copy([lane], [self.count - 1], columns)
            self._together |= len(group) > 1

    def compact(self, used: int, columns: int) -> None:
        """Give lanes free that none of the first `used` samples is on, and move lanes from the end into them."""
        kept = torch.unique(self.of[:used]).tolist()
        self.count = len(kept)
        self._own |= not kept
        holes = sorted(set(range(self.count)).difference(kept))
        moving = [lane for lane in kept if lane >= self.count]
        if moving:
            place = torch.arange(self._kv.shape[2], device=self.of.device)
            place[torch.tensor(moving)] = torch.tensor(holes, device=self.of.device)
            self.of[:used] = place[self.of[:used]]
            self._copy(moving, holes, columns)

    def reserve(self, columns: int) -> None:
        """Make room for positions below `columns`."""
        if columns > self._kv.shape[4]:
            self._grow(self._kv.shape[2], columns)

    def _open(self, count: int) -> int:
        """Take lanes; the first one's number."""
        first, self.count = self.count, self.count + count
        if self.count > self._kv.shape[2]:
            self._grow(min(self._most, max(self.count, self._kv.shape[2] * 2)), self._kv.shape[4])
        return first

    def _grow(self, lanes: int, columns: int) -> None:
        grown = self._spec.allocate(lanes, columns)
        old = self._kv
        grown[:, :, : old.shape[2], :, : old.shape[4]] = old
        self._kv = grown

    def _copy(self, sources: Iterable[int], targets: Iterable[int], columns: int) -> None:
        for source, target in zip(sources, targets, strict=True):
            self._kv[:, :, target, :, :columns] = self._kv[:, :, source, :, :columns]
