"""An engine that writes what a script says: for tests, documentation and dry runs. No model, no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prmkit.engines.stops import find_stop
from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat
from prmkit.records import Completion, FinishReason, GenerationRequest

__all__ = ["Script", "ScriptedEngine", "ScriptedStats"]

Script = Callable[[str, int, int], str]


@dataclass(slots=True)
class ScriptedStats:
    """What was asked of the engine.

    Attributes:
        requests: calls of `generate`.
        generated_tokens: tokens in all completions.
    """

    requests: int = 0
    generated_tokens: int = 0


class ScriptedEngine:
    """Completions from a script, with the conventions of a real engine: stop strings, limits, end of sequence.

    Args:
        bound_format: turns text into ids and back.
        script: called with (text of the prefix, sample index, seed), returns the whole continuation; or a mapping from
            the prefix's text to the continuation. What it returns ends with an end of sequence unless a stop string
            or the limit cuts it earlier.
        weight_version: stamped on completions.
        logprob: log-probability reported for every token.

    Raises:
        ConfigError: from `generate`, when a mapping has no entry for a prefix.
    """

    def __init__(
        self,
        bound_format: BoundStepFormat,
        script: Script | Mapping[str, str],
        *,
        weight_version: int = 0,
        logprob: float = 0.0,
    ) -> None:
        self._format = bound_format
        self._script = script
        self._weight_version = weight_version
        self._logprob = logprob
        self.stats = ScriptedStats()

    @property
    def format(self) -> BoundStepFormat:
        return self._format

    @property
    def weight_version(self) -> int:
        return self._weight_version

    async def generate(self, request: GenerationRequest) -> list[Completion]:
        """`request.n` completions, in sample order. Yields to the event loop once, as a real engine does."""
        await asyncio.sleep(0)
        prefix = self._format.decode(request.prompt_ids)
        self.stats.requests += 1
        completions = [self._complete(request, prefix, index) for index in range(request.n)]
        self.stats.generated_tokens += sum(len(completion.token_ids) for completion in completions)
        return completions

    def _complete(self, request: GenerationRequest, prefix: str, index: int) -> Completion:
        ids = [*self._format.encode_piece(self._write(prefix, index, request.seed)), self._format.eos_id]
        params = request.params
        finish: FinishReason = "stop"
        stop: str | None = None
        if params.stop:
            for end in range(1, len(ids)):
                stop = find_stop(self._format.decode(ids[:end]), params.stop)
                if stop is not None:
                    ids = ids[:end]
                    break
        if len(ids) > params.max_tokens:
            ids, finish, stop = ids[: params.max_tokens], "length", None
        return Completion(
            token_ids=tuple(ids),
            logprobs=(self._logprob,) * len(ids),
            text=self._format.decode(ids),
            finish_reason=finish,
            stop_reason=stop,
            weight_version=self._weight_version,
        )

    def _write(self, prefix: str, index: int, seed: int) -> str:
        if not isinstance(self._script, Mapping):
            return self._script(prefix, index, seed)
        if prefix not in self._script:
            raise ConfigError("script", prefix, "a prefix that the script has an entry for")
        return self._script[prefix]
