"""The in-process engine: a transformers causal language model under our own batched decode loop.

Requests from any number of coroutines run as one batch. A prompt is encoded once for all its samples, rows that finish
make room for rows that wait, and prefixes seen before (prompts, and everything the engine wrote) are not encoded again
while the cache holds them.

A sample depends on (prompt, sampling parameters, seed, sample index) and the weights. On x86 CPUs in float32, for
models up to a hidden size of about 512 that have a fused decoder, that is exact: tokens and log-probabilities are the
same to the last bit alone, in any batch, and step by step or in one go with the same seed (sample 0 of every request).
On other devices, in half precision and for larger models, matrix products of different sizes round differently;
log-probabilities then agree to rounding, and tokens unless a random number falls into that gap.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from prmkit.engines.driver import Driver, Job
from prmkit.engines.inprocess.decoder import Weights, build_decoder, read_weights
from prmkit.engines.inprocess.prefixes import PrefixEncoder
from prmkit.engines.inprocess.rows import Head, NewRow, RowBatch
from prmkit.engines.stops import StopTable, find_stop
from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat
from prmkit.records import Completion, FinishReason, GenerationRequest

__all__ = ["EngineStats", "HFEngine"]

_STEPS = 4  # decode steps between looks at the rows; results do not depend on it
_COLUMNWISE_HIDDEN = 512  # above this, matrix products on the CPU are not the same bit for bit in every batch anyway


@dataclass(slots=True)
class EngineStats:
    """What the engine has done so far.

    Attributes:
        requests: requests answered.
        generated_tokens: tokens of finished samples.
        prefill_tokens: prompt tokens encoded.
        reused_tokens: prompt tokens found in the cache instead.
        decode_steps: batched decode steps.
        decode_rows: rows summed over those steps; over decode_steps, the mean batch.
        computed_rows: rows computed in those steps. On CPUs samples that are the same so far are computed once.
    """

    requests: int = 0
    generated_tokens: int = 0
    prefill_tokens: int = 0
    reused_tokens: int = 0
    decode_steps: int = 0
    decode_rows: int = 0
    computed_rows: int = 0

    @property
    def occupancy(self) -> float:
        """Mean number of rows in a decode step."""
        return self.decode_rows / self.decode_steps if self.decode_steps else 0.0


@dataclass(eq=False, slots=True)
class _Request:
    """A request in work."""

    job: Job[GenerationRequest, list[Completion]]
    limit: int
    stops: int
    begun: int = 0
    finished: dict[int, Completion] = field(default_factory=dict)
    texts: dict[tuple[int, ...], str] = field(default_factory=dict)  # of what samples have written

    @property
    def waiting(self) -> int:
        return self.job.payload.n - self.begun


class HFEngine:
    """In-process engine; implements `prmkit.protocols.Engine`.

    Args:
        model: transformers causal language model. Architectures of `FUSED_ARCHITECTURES` are computed from copies of
            the weights, so training the model changes nothing here until `update_weights`; others are called
            themselves, and the engine writes with whatever weights they have.
        bound_format: the policy's step format in its tokenizer's ids.
        max_rows: samples decoded together at most.
        device: where to compute; None is where the model is.
        weight_version: stamped on completions.
        cache_tokens: tokens of prefixes kept for later requests; 0 keeps none.
        prefill_tokens: prompt tokens encoded at once at most, padding included.

    Attributes:
        stats: counters.

    Raises:
        ConfigError: the model cannot be decoded here, or a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        bound_format: BoundStepFormat,
        *,
        max_rows: int = 128,
        device: str | torch.device | None = None,
        weight_version: int = 0,
        cache_tokens: int = 65536,
        prefill_tokens: int = 2048,
    ) -> None:
        for name, value, least in (
            ("max_rows", max_rows, 1),
            ("cache_tokens", cache_tokens, 0),
            ("prefill_tokens", prefill_tokens, 1),
        ):
            if value < least:
                raise ConfigError(f"engine.{name}", value, f"an integer of at least {least}")
        self._model = model
        self._format = bound_format
        self.stats = EngineStats()
        self._worker = _Worker(
            model,
            bound_format,
            self.stats,
            max_rows=max_rows,
            device=None if device is None else torch.device(device),
            cache_tokens=cache_tokens,
            prefill_tokens=prefill_tokens,
        )
        self._worker.weight_version = weight_version
        self._driver: Driver[GenerationRequest, list[Completion]] = Driver(self._worker)

    @property
    def format(self) -> BoundStepFormat:
        return self._format

    @property
    def weight_version(self) -> int:
        return self._worker.weight_version

    @property
    def context(self) -> int:
        """Tokens of the longest sequence that the model reads."""
        return self._worker.context

    async def generate(self, request: GenerationRequest) -> list[Completion]:
        """`request.n` completions, in sample order.

        Raises:
            ConfigError: the prompt leaves no room in the model's context, or holds an id that the model does not have.
        """
        self._worker.check(request)
        return await self._driver.submit(request)

    def update_weights(self, source: nn.Module | Mapping[str, Tensor] | None, version: int) -> None:
        """Take new weights, and forget all keys and values.

        Args:
            source: a model of the same architecture, or a state dict under its names; None reads the engine's own model
                again, after it was trained in place.
            version: stamped on completions from now on.

        Raises:
            RuntimeError: samples are being written; their tokens would come from two policies.
        """
        if self._driver.busy:
            raise RuntimeError("update_weights while requests are in flight; await them first")
        own = self._model if source is None else source
        weights = read_weights(own) if isinstance(own, nn.Module) else read_weights(self._model, own)
        self._worker.load(weights)
        self._worker.weight_version = version


class _Worker:
    """Does the engine's work for its driver."""

    def __init__(
        self,
        model: Any,
        bound_format: BoundStepFormat,
        stats: EngineStats,
        *,
        max_rows: int,
        device: torch.device | None,
        cache_tokens: int,
        prefill_tokens: int,
    ) -> None:
        backbone = cast(nn.Module, model.base_model)
        first = next(backbone.parameters())
        on_cpu = (device or first.device).type == "cpu" and first.dtype == torch.float32
        exact = on_cpu and model.config.get_text_config().hidden_size <= _COLUMNWISE_HIDDEN
        self._decoder = build_decoder(backbone, columnwise=exact, device=device)
        self._format = bound_format
        self._stats = stats
        self._max_rows = max_rows
        self._encoder = PrefixEncoder(self._decoder, cache_tokens, prefill_tokens, keep_hidden=False)
        self.weight_version = 0
        self._set_head(read_weights(model))
        self._vocab_size = self._head.weight.shape[0]
        self._stop_table = StopTable(bound_format, self._vocab_size)
        self.reset()

    @property
    def context(self) -> int:
        return int(self._decoder.context)

    # -- called from outside the driver -----------------------------------------------------------------------------

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that cannot be run."""
        length, context = len(request.prompt_ids), self._decoder.context
        if length >= context:
            raise ConfigError(
                "request.prompt_ids", f"{length} ids", f"at most {context - 1} ids, one less than the model's context"
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self._vocab_size:
            raise ConfigError("request.prompt_ids", request.prompt_ids, f"ids from 0 to {self._vocab_size - 1}")

    def load(self, weights: Weights) -> None:
        """Take new weights; nothing may be in work."""
        self._decoder.load(weights.backbone)
        self._set_head(weights)
        self._encoder.clear()

    def _set_head(self, weights: Weights) -> None:
        spec, bias = self._decoder.spec, weights.head_bias
        self._head = Head(
            weights.head.to(spec.device, spec.dtype), None if bias is None else bias.to(spec.device, spec.dtype)
        )

    # -- called by the driver ---------------------------------------------------------------------------------------

    def reset(self) -> None:
        """See `Worker.reset`."""
        self._rows = RowBatch(self._decoder, self._max_rows)
        self._owners: list[tuple[_Request, int]] = []  # request and sample index of every row
        self._queue: deque[_Request] = deque()
        self._stop_numbers: dict[tuple[str, ...], int] = {}
        self._encoder.clear()
        self._stop_number(())

    def is_full(self, jobs: list[Job[GenerationRequest, list[Completion]]]) -> bool:
        """See `Worker.is_full`."""
        return sum(job.payload.n for job in jobs) >= self._max_rows

    @torch.inference_mode()
    def advance(self, jobs: list[Job[GenerationRequest, list[Completion]]]) -> bool:
        """See `Worker.advance`."""
        for job in jobs:
            prompt, params = job.payload.prompt_ids, job.payload.params
            limit = min(len(prompt) + params.max_tokens, self._decoder.context)
            self._queue.append(_Request(job, limit, self._stop_number(params.stop)))
        self._drop_cancelled()
        waiting = sum(request.waiting for request in self._queue)
        if waiting and self._rows.free >= min(waiting, max(1, self._max_rows // 8)):
            self._admit()
        if self._owners:
            enough = max(1, len(self._owners) // 8)
            before = self._rows.computed
            steps = self._rows.run(self._head, _STEPS, enough)
            self._stats.computed_rows += self._rows.computed - before
            self._stats.decode_steps += steps
            self._stats.decode_rows += steps * len(self._owners)
            self._retire()
        return bool(self._owners or self._queue)

    def _stop_number(self, stops: tuple[str, ...]) -> int:
        if stops not in self._stop_numbers:
            self._stop_numbers[stops] = len(self._stop_numbers)
            self._rows.set_stops([self._stop_table.flags(known) for known in self._stop_numbers])
        return self._stop_numbers[stops]

    def _drop_cancelled(self) -> None:
        self._queue = deque(request for request in self._queue if not request.job.future.done())
        self._release([n for n, (request, _) in enumerate(self._owners) if request.job.future.done()])

    def _admit(self) -> None:
        """Fill free rows from the queue, in order of arrival."""
        chosen: list[tuple[_Request, int]] = []
        free = self._rows.free
        while self._queue and len(chosen) < free:
            request = self._queue[0]
            count = min(request.waiting, free - len(chosen))
            chosen += [(request, request.begun + n) for n in range(count)]
            request.begun += count
            if not request.waiting:
                self._queue.popleft()
        prefixes = list({id(request): request.job.payload.prompt_ids[:-1] for request, _ in chosen}.values())
        encoded = self._encoder.encode([prefix for prefix in prefixes if prefix])
        nodes = {ids: node for ids, (node, _) in zip((p for p in prefixes if p), encoded, strict=True)}
        new = sum(count for _, count in encoded)
        self._stats.prefill_tokens += new
        self._stats.reused_tokens += sum(len(prefix) for prefix in prefixes) - new
        rows = []
        for request, index in chosen:
            payload = request.job.payload
            rows.append(
                NewRow(
                    prefix=nodes.get(payload.prompt_ids[:-1]),
                    last=payload.prompt_ids[-1],
                    length=len(payload.prompt_ids),
                    limit=request.limit,
                    seed=payload.seed,
                    index=index,
                    params=payload.params,
                    stops=request.stops,
                )
            )
        self._rows.admit(rows)
        self._owners += chosen
        self._encoder.trim()

    def _retire(self) -> None:
        """Answer rows that are done, and let rows go on whose flagged token completed no stop string after all."""
        places, lengths, tokens, logprobs = self._rows.look()
        finished, going_on = [], []
        for n, place in enumerate(places):
            request, index = self._owners[place]
            begin = len(request.job.payload.prompt_ids)
            ids = tuple(tokens[n][begin : lengths[n]])
            completion = self._complete(request, ids, tuple(logprobs[n][begin : lengths[n]]))
            if completion is None:
                going_on.append(place)
                continue
            finished.append(place)
            if ids not in request.texts:
                request.texts[ids] = completion.text
                self._remember(request.job.payload.prompt_ids + ids[:-1], place)
            self._stats.generated_tokens += len(ids)
            request.finished[index] = completion
            self._answer(request)
        if going_on:
            self._rows.resume(going_on)
        self._release(finished)
        self._encoder.trim()

    def _complete(self, request: _Request, ids: tuple[int, ...], logprobs: tuple[float, ...]) -> Completion | None:
        """The completion that a row's tokens make; None when it has not ended."""
        if not all(map(math.isfinite, logprobs)):
            raise RuntimeError(f"the model gives logits that are not finite (weight version {self.weight_version})")
        text = request.texts.get(ids)
        if text is None:
            text = self._format.decode(ids)
        stops = request.job.payload.params.stop
        ended = ids[-1] in self._format.end_ids
        stop = None if ended or not stops else find_stop(text, stops)
        reason: FinishReason = "stop"
        if not ended and stop is None:
            if len(request.job.payload.prompt_ids) + len(ids) < request.limit:
                return None
            reason = "length"
        return Completion(ids, logprobs, text, reason, stop, self.weight_version)

    def _remember(self, ids: Sequence[int], place: int) -> None:
        """Keep what a row has encoded, for requests that go on from it or from a part of it."""
        if not self._encoder.cache.capacity or not ids:
            return
        node, new = self._encoder.cache.insert(ids)
        if new:
            node.kv = self._rows.kv_of(place, node.start, node.end)

    def _answer(self, request: _Request) -> None:
        payload, future = request.job.payload, request.job.future
        if len(request.finished) == payload.n and not future.done():
            self._stats.requests += 1
            future.set_result([request.finished[index] for index in range(payload.n)])

    def _release(self, places: Sequence[int]) -> None:
        if not places:
            return
        for source, target in self._rows.release(places):
            self._owners[target] = self._owners[source]
        del self._owners[self._rows.used :]
