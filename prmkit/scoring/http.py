"""A scorer on the other side of HTTP: PRMs behind vLLM's `/pooling` (token classification), or behind `prm serve`.

The input is sent as token ids, assembled by the step format here; the server gives label probabilities for every token,
or for those of its step tag, and scores are read at the format's positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from prmkit.engines.remote.client import HttpClient, OverHTTP
from prmkit.engines.remote.protocol import understood
from prmkit.engines.remote.served import Served, ask_served
from prmkit.errors import ConfigError, EngineLostError, ServerError
from prmkit.formats.bound import BoundStepFormat, EncodedSteps
from prmkit.records import StepScores
from prmkit.scoring.config import HttpScorerConfig

__all__ = ["HTTPScorer", "HTTPScorerStats", "read_scores"]

_PROBE = ("1+1", ("1+1=2", "2"))
_SUM_TOLERANCE = 1e-2  # of probabilities of two labels, which half precision rounds


@dataclass(slots=True)
class HTTPScorerStats:
    """What the scorer has done so far.

    Attributes:
        requests: calls answered.
        encoded_tokens: tokens of their inputs, less those that servers say they had in their caches.
    """

    requests: int = 0
    encoded_tokens: int = 0


class HTTPScorer(OverHTTP):
    """Scorer over HTTP; implements `prmkit.protocols.StepScorer`. A context manager, which closes the connections.

    Making one contacts the endpoints: each must serve the model and score a small input.

    Args:
        config: the servers.
        bound_format: the PRM's step format in the ids of the tokenizer that the servers use too.

    Attributes:
        served: the model as the servers describe it.
        stats: counters of scores; `client_stats` are those of requests.

    Raises:
        ConfigError: a server serves another model.
        EngineLostError: no server answers, or one gives what are not scores.
    """

    def __init__(self, config: HttpScorerConfig, bound_format: BoundStepFormat) -> None:
        self._config = config
        self._format = bound_format
        self._served: Served | None = None
        self.stats = HTTPScorerStats()
        super().__init__(config, self._probe)
        assert self._served is not None
        self.served: Served = self._served

    @property
    def format(self) -> BoundStepFormat:
        """The PRM's step format in its tokenizer's ids."""
        return self._format

    async def score(self, question: str, steps: Sequence[str]) -> StepScores:
        """One score in [0, 1] for every step, each given the steps before it.

        Raises:
            ConfigError: the steps do not fit into the server's context.
            ServerError: the server refuses the request, or every attempt at it failed.
            EngineLostError: the endpoints are gone, or give what are not scores.
        """
        if not steps:
            return StepScores(())
        encoded = _needed(self._format.encode_steps(question, steps))
        context = self.served.context
        if context is not None and len(encoded.input_ids) > context:
            raise ConfigError(
                "score.steps",
                f"{len(steps)} steps of {len(encoded.input_ids)} tokens with the question",
                f"at most {context} tokens, the server's context",
            )
        reply = await self._client.post("/pooling", self._body(encoded, self.served))
        scores = read_scores(encoded, reply.body, self._config.right_column, reply.url)
        self.stats.requests += 1
        self.stats.encoded_tokens += scores.encoded_tokens
        return scores

    def _body(self, encoded: EncodedSteps, served: Served) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": served.model,
            "input": list(encoded.input_ids),
            "task": "token_classify",
            "use_activation": True,
        }
        if served.read_positions:
            body["positions"] = list(encoded.positions)
        return body

    async def _probe(self, client: HttpClient, url: str) -> None:
        """See `prmkit.engines.remote.client.Probe`: is it the model, and does it score?"""
        served = await ask_served(client, url)
        encoded = _needed(self._format.encode_steps(*_PROBE))
        try:
            reply = await client.ask(url, "/pooling", self._body(encoded, served))
        except ServerError as error:
            raise EngineLostError(
                f"{error}: a small input is refused. vLLM serves PRMs with --runner pooling, see docs/engines.md."
            ) from error
        read_scores(encoded, reply, self._config.right_column, url)
        known = self._served
        if known is not None and served.identity() != known.identity():
            raise ConfigError(
                "http.endpoints", f"{url}: {served.identity()}", f"servers of the same model, {known.identity()}"
            )
        self._served = served if known is None else known.narrowed_to(served)


def _needed(encoded: EncodedSteps) -> EncodedSteps:
    """Nothing behind the last score is needed."""
    return encoded.truncate(len(encoded.input_ids))


def read_scores(encoded: EncodedSteps, reply: Mapping[str, Any], right_column: int, where: str) -> StepScores:
    """Scores from a reply of `/pooling`.

    Args:
        encoded: what was sent, and where its scores are read.
        reply: parsed JSON; its rows are those of all tokens, or of the positions, in order.
        right_column: see HttpScorerConfig.
        where: the endpoint's address, for errors.

    Raises:
        EngineLostError: other rows, or values that are not probabilities.
    """
    with understood(where):
        return _scores(encoded, reply, right_column, where)


def _scores(encoded: EncodedSteps, reply: Mapping[str, Any], right_column: int, where: str) -> StepScores:
    data = reply.get("data")
    rows = data[0].get("data") if isinstance(data, list) and len(data) == 1 else None
    if not isinstance(rows, list):
        _broken(where, "one list of scores", data)
    if len(rows) == len(encoded.input_ids):
        rows = [rows[position] for position in encoded.positions]
    elif len(rows) != len(encoded.positions):
        _broken(
            where,
            f"scores of {len(encoded.input_ids)} tokens or of {len(encoded.positions)} steps",
            f"{len(rows)} of them",
        )
    values = tuple(_probability(row, right_column, where) for row in rows)
    usage = reply.get("usage") or {}
    read = usage.get("prompt_tokens", len(encoded.input_ids))
    if read != len(encoded.input_ids):
        _broken(where, f"usage of {len(encoded.input_ids)} tokens, those sent", read)
    cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    return StepScores(values, encoded_tokens=read - cached)


def _probability(row: Any, right_column: int, where: str) -> float:
    labels = row if isinstance(row, list) else [row]
    if not 1 <= len(labels) <= 2 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in labels):
        _broken(where, "one or two probabilities a token", row)
    total = math.fsum(labels)
    if not all(0.0 <= value <= 1.0 for value in labels) or (len(labels) == 2 and abs(total - 1) > _SUM_TOLERANCE):
        _broken(where, "probabilities", row, "The server must apply its activation (use_activation).")
    return float(labels[right_column] if len(labels) == 2 else labels[0])


def _broken(where: str, promise: str, got: object, remedy: str = "") -> NoReturn:
    tail = f" {remedy}" if remedy else ""
    raise EngineLostError(f"{where} does not do what it was asked: expected {promise}, got {got}.{tail}")
