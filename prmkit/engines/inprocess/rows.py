"""State of the rows being decoded, in tensors: a decode step touches no Python object per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prmkit.engines.inprocess.decoder import Decoder
from prmkit.engines.inprocess.kv import round_up
from prmkit.engines.inprocess.lanes import Lanes
from prmkit.engines.inprocess.prefixes import PrefixNode
from prmkit.engines.inprocess.sampling import RowSampling, sample_keys, sample_tokens, uniforms
from prmkit.records import SamplingParams

__all__ = ["Head", "NewRow", "RowBatch"]


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer.

    Attributes:
        weight: [V, H].
        bias: [V]; None when there is none.
    """

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, V] float32 logits of [N, H] hidden states."""
        return torch.nn.functional.linear(hidden, self.weight, self.bias).float()


@dataclass(frozen=True, slots=True)
class NewRow:
    """A sample to begin.

    Attributes:
        prefix: the prompt without its last token; None when it has one token.
        last: the prompt's last token.
        length: tokens of the prompt.
        limit: length at which the row ends, prompt included.
        seed, index: of its randomness.
        params: how to sample.
        stops: number of its set of stop strings in the table given to `RowBatch.set_stops`.
    """

    prefix: PrefixNode | None
    last: int
    length: int
    limit: int
    seed: int
    index: int
    params: SamplingParams
    stops: int


class RowBatch:
    """Rows 0 .. used-1 are decoded together; each is one sample. Those that are the same so far are computed once, on
    CPUs (`Lanes`).

    A row that is `done` goes on computing without effect until it is looked at: its length stands still.

    Attributes:
        used: rows in use.
        computed: rows computed so far, summed over steps: at most the rows in use, unless those are fewer than 16.

    Args:
        decoder: computes hidden states.
        max_rows: rows at most.
    """

    def __init__(self, decoder: Decoder, max_rows: int) -> None:
        self._decoder = decoder
        self.max_rows = max_rows
        self.used = 0
        self.computed = 0
        self._n = n = max_rows
        self._longest = 1  # no row in use is longer
        self._any_greedy = self._any_truncated = False
        device = decoder.spec.device

        def filled(value: float | bool, dtype: torch.dtype, columns: int | None = None) -> Tensor:
            return torch.full((n,) if columns is None else (n, columns), value, dtype=dtype, device=device)

        self._lanes = Lanes(decoder.spec, n, share=device.type == "cpu")
        self._tokens = filled(0, torch.long, 0)  # [n, T], as the three that follow
        self._logprobs = filled(0, torch.float, 0)
        self._uniform = filled(0, torch.double, 0)
        self._keys = filled(0, torch.long)
        self._length = filled(1, torch.long)  # tokens known; the last of them is fed next
        self._limit = filled(1, torch.long)
        self._done = filled(True, torch.bool)
        self._stops = filled(0, torch.long)
        self._temperature = filled(1, torch.float)
        self._greedy = filled(False, torch.bool)
        self._top_k = filled(0, torch.long)
        self._top_p = filled(1, torch.double)
        self._may_stop = torch.zeros(1, 1, dtype=torch.bool, device=device)

    @property
    def free(self) -> int:
        return self.max_rows - self.used

    def set_stops(self, table: Sequence[Sequence[bool]]) -> None:
        """Which tokens may end a sample: one row of V flags for every set of stop strings in use."""
        self._may_stop = torch.tensor(table, dtype=torch.bool, device=self._decoder.spec.device)

    def admit(self, rows: Sequence[NewRow]) -> None:
        """Begin rows in the places used .. used+len(rows)-1. Rows with the same prefix should stand together."""
        first, self.used = self.used, self.used + len(rows)
        device = self._decoder.spec.device
        self._longest = max(self._longest, *(row.length for row in rows))
        self._reserve(self._longest + 1)
        places = slice(first, self.used)

        def put(into: Tensor, values: list[int] | list[float] | list[bool]) -> None:
            into[places] = torch.tensor(values, dtype=into.dtype, device=device)

        put(self._length, [row.length for row in rows])
        put(self._limit, [row.limit for row in rows])
        put(self._stops, [row.stops for row in rows])
        put(self._greedy, [row.params.temperature == 0 for row in rows])
        put(self._temperature, [row.params.temperature or 1.0 for row in rows])
        put(self._top_k, [row.params.top_k if row.params.temperature else 0 for row in rows])
        put(self._top_p, [row.params.top_p if row.params.temperature else 1.0 for row in rows])
        self._done[places] = False
        seeds = torch.tensor([_signed(row.seed) for row in rows], device=device)
        self._keys[places] = sample_keys(seeds, torch.tensor([row.index for row in rows], device=device))
        self._uniform[places] = uniforms(self._keys[places], torch.arange(self._tokens.shape[1], device=device))
        ends = self._length[places] - 1
        self._tokens[torch.arange(first, self.used, device=device), ends] = torch.tensor(
            [row.last for row in rows], device=device
        )
        self._note_sampling()
        self._lanes.begin(first, [(row.prefix, row.last) for row in rows])

    def run(self, head: Head, steps: int, enough: int) -> int:
        """Decode until that many steps are made, or that many rows are done (noticed on the CPU only, where looking is
        cheap). Returns the steps made."""
        self._reserve(self._longest + steps + 1)
        look = self._decoder.spec.device.type == "cpu"
        for made in range(1, steps + 1):
            self._step(head)
            if look and int(self._done[: self.used].sum()) >= enough:
                return made
        return steps

    def _step(self, head: Head) -> None:
        n, columns = self.used, self._tokens.shape[1]
        length, done = self._length[:n], self._done[:n]
        flat = torch.arange(0, n * columns, columns, device=length.device).add_(length)  # place of the token to come
        leaders = self._lanes.leaders(length, done)
        fed = self._tokens.view(-1).index_select(0, flat.index_select(0, leaders) - 1)
        start = length.index_select(0, leaders) - 1
        reach = round_up(self._longest, self._decoder.spec.column_step)
        hidden = self._decoder.forward(fed[:, None], start, self._lanes.kv(reach), self._longest)
        assert hidden is not None
        chosen, logprobs = sample_tokens(
            self._lanes.spread(head.logits(hidden[:, 0]), n),
            self._uniform.view(-1).index_select(0, flat),
            self._sampling(n),
        )
        self._tokens.view(-1).index_copy_(0, flat, chosen)
        self._logprobs.view(-1).index_copy_(0, flat, logprobs)
        length += ~done
        done |= self._may_stop[self._stops[:n], chosen] | (length >= self._limit[:n])
        self.computed += self._lanes.computed
        self._lanes.part(chosen, done, head.weight.shape[0], self._longest)
        self._longest += 1

    def look(self) -> tuple[list[int], list[int], list[list[int]], list[list[float]]]:
        """The rows that are done: places, lengths, and their tokens and log-probabilities, by position; what stands
        before the sample's first token is not meaningful."""
        places = self._done[: self.used].nonzero().squeeze(1)
        lengths = self._length.index_select(0, places).tolist()
        reach = max(lengths, default=0)
        tokens = self._tokens[:, :reach].index_select(0, places).tolist()
        return places.tolist(), lengths, tokens, self._logprobs[:, :reach].index_select(0, places).tolist()

    def kv_of(self, place: int, start: int, end: int) -> Tensor:
        """A copy of a row's keys and values at positions start .. end-1: [L, 2, K, end-start, D]."""
        return self._lanes.kv_of(place, start, end)

    def resume(self, places: Sequence[int]) -> None:
        """Let rows go on that are done only because a token might have completed a stop string."""
        chosen = torch.tensor(places, device=self._done.device)
        self._done[chosen] = False
        length = self._length[chosen]
        state = torch.stack([self._lanes.of[chosen], length, self._tokens[chosen, length - 1]], dim=1).tolist()
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, key in zip(places, state, strict=True):
            groups.setdefault(tuple(key), []).append(place)
        self._lanes.rejoin(groups.values(), self.used, self._longest)

    def release(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Give places free, and move rows from the end into them. Returns the moves as (from, to)."""
        gone = set(places)
        self.used -= len(gone)
        tail = [place for place in range(self.used, self.used + len(gone)) if place not in gone]
        holes = [place for place in sorted(gone) if place < self.used]
        device = self._done.device
        if holes:
            source, target = torch.tensor(tail, device=device), torch.tensor(holes, device=device)
            for state in self._states():
                state[target] = state[source]
        self._done[self.used :] = True
        self._length[self.used :] = 1
        self._lanes.compact(self.used, self._longest)
        self._longest = int(self._length[: self.used].max()) if self.used else 1
        self._note_sampling()
        return list(zip(tail, holes, strict=True))

    def _states(self) -> list[Tensor]:
        return [
            *(self._tokens, self._logprobs, self._uniform, self._keys, self._length, self._limit, self._done),
            *(self._stops, self._temperature, self._greedy, self._top_k, self._top_p, self._lanes.of),
        ]

    def _note_sampling(self) -> None:
        used = slice(0, self.used)
        self._any_greedy = bool(self._greedy[used].any())
        self._any_truncated = bool((self._top_k[used] > 0).any() or (self._top_p[used] < 1).any())

    def _sampling(self, n: int) -> RowSampling:
        return RowSampling(
            self._temperature[:n],
            self._greedy[:n],
            self._top_k[:n],
            self._top_p[:n],
            self._any_greedy,
            self._any_truncated,
        )

    def _reserve(self, columns: int) -> None:
        """Make room for positions below `columns`, half as many again at once."""
        old = self._tokens.shape[1]
        if columns <= old:
            return
        new = round_up(max(columns, old + old // 2))
        self._lanes.reserve(new)
        device = self._tokens.device
        self._tokens = torch.nn.functional.pad(self._tokens, (0, new - old))
        self._logprobs = torch.nn.functional.pad(self._logprobs, (0, new - old))
        self._uniform = uniforms(self._keys, torch.arange(new, device=device))


def _signed(seed: int) -> int:
    """A seed as a signed 64-bit integer."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
