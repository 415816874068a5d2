"""The in-process scorer: a PRM that encodes only what is new under a prefix it has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prmkit.engines.driver import Driver, Job
from prmkit.engines.inprocess.decoder import build_decoder
from prmkit.engines.inprocess.prefixes import PrefixEncoder
from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat, EncodedSteps
from prmkit.models.lora import merged_state_dict
from prmkit.records import StepScores

if TYPE_CHECKING:
    from prmkit.models.prm import PRMModel

__all__ = ["PRMScorer", "ScorerStats"]

_HEAD_ROWS = 64
_TAKEN = 65536  # tokens of calls taken into one piece of work, shared ones and seen ones included
_PATIENCE = 2  # passes of the event loop to wait for more; see `Driver`


@dataclass(slots=True)
class ScorerStats:
    """What the scorer has done so far.

    Attributes:
        requests: calls answered.
        encoded_tokens: tokens computed.
        reused_tokens: tokens found in the cache, or shared with another call of the same batch, instead.
        batches: pieces of work, each of all the calls that waited.
    """

    requests: int = 0
    encoded_tokens: int = 0
    reused_tokens: int = 0
    batches: int = 0


class PRMScorer:
    """In-process scorer; implements `prmkit.protocols.StepScorer`.

    Calls that wait at the same time run as one batch. Whatever two of them share from the beginning (the question, the
    steps of a common ancestor, everything) is encoded once. Scores equal those of the model's own forward to 1e-5 and,
    on x86 CPUs in float32 for models up to a hidden size of about 512, do not depend by a bit on what else is scored.

    Args:
        model: the PRM. Architectures of `FUSED_ARCHITECTURES` are computed from copies of the decoder's weights: call
            `update_weights` after training it.
        max_batch_tokens: tokens computed at once at most, padding included.
        cache_tokens: tokens of prefixes kept for later calls; 0 keeps none.

    Attributes:
        stats: counters.
    """

    def __init__(self, model: PRMModel, *, max_batch_tokens: int = 2048, cache_tokens: int = 65536) -> None:
        if max_batch_tokens < 1:
            raise ConfigError("scorer.max_batch_tokens", max_batch_tokens, "an integer of at least 1")
        if cache_tokens < 0:
            raise ConfigError("scorer.cache_tokens", cache_tokens, "an integer of at least 0")
        self._model = model
        self._vocabulary = int(model.model.config.get_text_config().vocab_size)
        self._decoder = build_decoder(model.backbone, columnwise=False)
        self._encoder = PrefixEncoder(self._decoder, cache_tokens, max_batch_tokens, keep_hidden=True)
        self.stats = ScorerStats()
        self._waiting: list[Job[EncodedSteps, StepScores]] = []
        self._driver: Driver[EncodedSteps, StepScores] = Driver(self, patience=_PATIENCE)

    @property
    def format(self) -> BoundStepFormat:
        """The PRM's step format in its tokenizer's ids."""
        return self._model.format

    @property
    def context(self) -> int:
        """Tokens of the longest sequence that the model reads."""
        return int(self._decoder.context)

    async def score(self, question: str, steps: Sequence[str]) -> StepScores:
        """One score in [0, 1] for every step, each given the steps before it.

        Raises:
            ConfigError: the steps do not fit into the model's context.
        """
        if not steps:
            return StepScores(())
        return await self.score_encoded(self._model.format.encode_steps(question, steps))

    async def score_encoded(self, encoded: EncodedSteps) -> StepScores:
        """One score in [0, 1] for every position of an input; at least one.

        Raises:
            ConfigError: the input does not fit into the model's context, or holds an id that the model does not have.
        """
        encoded = encoded.truncate(len(encoded.input_ids))  # nothing behind the last score is needed
        if not 0 <= min(encoded.input_ids) <= max(encoded.input_ids) < self._vocabulary:
            raise ConfigError("score.input_ids", encoded.input_ids, f"ids from 0 to {self._vocabulary - 1}")
        if len(encoded.input_ids) > self._decoder.context:
            raise ConfigError(
                "score.steps",
                f"{len(encoded.positions)} steps of {len(encoded.input_ids)} tokens with the question",
                f"at most {self._decoder.context} tokens, the model's context",
            )
        return await self._driver.submit(encoded)

    def update_weights(self, source: nn.Module | Mapping[str, Tensor] | None = None) -> None:
        """Take new weights of the decoder, and forget all keys and values. The head is the model's own at every call.

        Args:
            source: a PRM's decoder, or a state dict under its names; None reads the scorer's own model again, after it
                was trained in place.

        Raises:
            RuntimeError: calls are waiting for scores.
        """
        if self._driver.busy:
            raise RuntimeError("update_weights while calls are waiting for scores; await them first")
        own = self._model.backbone if source is None else source
        self._decoder.load(merged_state_dict(own) if isinstance(own, nn.Module) else own)
        self._encoder.clear()

    # -- the worker's side, called by the driver --------------------------------------------------------------------

    def reset(self) -> None:
        """See `Worker.reset`."""
        self._waiting = []
        self._encoder.clear()

    def is_full(self, jobs: list[Job[EncodedSteps, StepScores]]) -> bool:
        """See `Worker.is_full`."""
        return sum(len(job.payload.input_ids) for job in jobs) >= _TAKEN

    @torch.inference_mode()
    def advance(self, jobs: list[Job[EncodedSteps, StepScores]]) -> bool:
        """See `Worker.advance`: scores everything that waits, a bounded part at a time."""
        self._waiting += jobs
        taken: list[Job[EncodedSteps, StepScores]] = []
        size = 0
        while self._waiting and (not taken or size < _TAKEN):
            job = self._waiting.pop(0)
            if not job.future.done():
                taken.append(job)
                size += len(job.payload.input_ids)
        if taken:
            self._score(taken)
        return bool(self._waiting)

    def _score(self, jobs: list[Job[EncodedSteps, StepScores]]) -> None:
        encoded = self._encoder.encode([job.payload.input_ids for job in jobs])
        hidden = [node.read_hidden(job.payload.positions) for job, (node, _) in zip(jobs, encoded, strict=True)]
        probabilities = self._probabilities([state for states in hidden for state in states])
        self._encoder.trim()
        self.stats.batches += 1
        begin = 0
        for job, (_, new) in zip(jobs, encoded, strict=True):
            end = begin + len(job.payload.positions)
            self.stats.requests += 1
            self.stats.encoded_tokens += new
            self.stats.reused_tokens += len(job.payload.input_ids) - new
            job.future.set_result(StepScores(tuple(probabilities[begin:end]), encoded_tokens=new))
            begin = end

    def _probabilities(self, states: list[Tensor]) -> list[float]:
        """The head on hidden states [H], in blocks of one size: products of other sizes differ in the last bits."""
        found: list[float] = []
        for begin in range(0, len(states), _HEAD_ROWS):
            block = torch.stack(states[begin : begin + _HEAD_ROWS])
            padded = torch.nn.functional.pad(block, (0, 0, 0, _HEAD_ROWS - len(block)))
            found += self._model.probability(self._model.logits_at(padded))[: len(block)].tolist()
        return found
