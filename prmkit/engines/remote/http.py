"""An engine on the other side of HTTP: any server of OpenAI's `/v1/completions`, or several of the same model.

Samples are the server's. With `prm serve` they are those of the in-process engine, bit for bit; vLLM gives sample i of
a request the seed `seed + i`, so the seeds of requests must lie at least n apart, as those of `derive_seed` do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prmkit.engines.config import HttpEngineConfig
from prmkit.engines.remote.client import HttpClient, OverHTTP, Reply, Unanswered
from prmkit.engines.remote.protocol import Asked, Sampled, ask_for, completion_of, read_choices, understood
from prmkit.engines.remote.served import Served, ask_served
from prmkit.errors import ConfigError, EngineLostError, ServerError
from prmkit.formats.bound import BoundStepFormat
from prmkit.records import Completion, GenerationRequest, SamplingParams

__all__ = ["HTTPEngine", "HTTPEngineStats"]

logger = logging.getLogger(__name__)

_PROBE_QUESTION = "1+1"
_PROBE_TOKENS = 8
_ABORTED_AGAIN = 3  # times that a sample given up by its server is asked for again


@dataclass(slots=True)
class HTTPEngineStats:
    """What the engine has done so far.

    Attributes:
        requests: calls of `generate` answered.
        generated_tokens: tokens of their samples.
        prompt_tokens: tokens of their prompts, each counted once.
        cached_tokens: of those, tokens that servers say they had in their caches.
    """

    requests: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


class HTTPEngine(OverHTTP):
    """Engine over HTTP; implements `prmkit.protocols.Engine`. A context manager, which closes the connections.

    Making one contacts the endpoints and blocks until they have answered: each must serve the model, take the prompt's
    ids, and honour a small request.

    Args:
        config: the servers.
        bound_format: the policy's step format in the ids of the tokenizer that the servers use too.
        logprobs: ask for log-probabilities. Without, completions have none, and replies are a fraction of the size.
        weight_version: stamped on completions; None takes the server's where it tells, else 0.

    Attributes:
        served: the model as the servers describe it.
        stats: counters of samples; `client_stats` are those of requests.

    Raises:
        ConfigError: a server serves another model, or has another tokenizer.
        EngineLostError: no server answers, or one does not honour its requests.
    """

    def __init__(
        self,
        config: HttpEngineConfig,
        bound_format: BoundStepFormat,
        *,
        logprobs: bool = True,
        weight_version: int | None = None,
    ) -> None:
        if logprobs and config.prompts == "text":
            raise ConfigError("http.prompts", "text", "ids, where log-probabilities are needed")
        self._config = config
        self._format = bound_format
        self._logprobs = logprobs
        self._raw = False
        self._warned = False
        self._served: Served | None = None
        self.stats = HTTPEngineStats()
        super().__init__(config, self._probe)
        assert self._served is not None
        self.served: Served = self._served
        told = self.served.weight_version or 0
        self._weight_version: int = told if weight_version is None else weight_version

    @property
    def format(self) -> BoundStepFormat:
        return self._format

    @property
    def weight_version(self) -> int:
        return self._weight_version

    @weight_version.setter
    def weight_version(self, version: int) -> None:
        """Say that the servers have other weights now; nothing may be in flight."""
        self._weight_version = version

    async def generate(self, request: GenerationRequest) -> list[Completion]:
        """`request.n` completions, in sample order.

        Raises:
            ConfigError: the prompt leaves no room in the server's context, or needs what the server does not give.
            ServerError: the server refuses the request, or every attempt at it failed.
            EngineLostError: the endpoints are gone, or do not do what they are asked.
        """
        self._check_logprobs(request.params)
        version = self._weight_version
        parts = _parts(request, self._config.split_samples)
        asked = [self._asked(part, self.served) for part in parts]
        samples = [sample for found in await asyncio.gather(*map(self._sample, asked)) for sample in found]
        completions = [self._complete(*sample, request.params.stop, version) for sample in samples]
        if len(completions) < request.n:  # greedy: one was asked for, all are alike
            completions *= request.n
        self.stats.requests += 1
        self.stats.prompt_tokens += len(request.prompt_ids)
        self.stats.generated_tokens += sum(len(completion.token_ids) for completion in completions)
        return completions

    def _asked(self, request: GenerationRequest, served: Served) -> Asked:
        text = None
        if self._config.prompts == "text":
            text = str(self._format.tokenizer.decode(list(request.prompt_ids), skip_special_tokens=False))
            if not self._warned and not self._format.keeps_apart(request.prompt_ids):
                self._warned = True
                logger.warning(
                    "engine.http.prompts text: a question or step holds the text of a special token, which the server "
                    "reads as that token. Prompts sent as token ids (engine.http.prompts ids) keep the two apart."
                )
        return ask_for(
            request,
            served.model,
            ends=self._format.end_ids,
            context=served.context,
            logprobs=self._logprobs,
            text=text,
        )

    async def _sample(self, asked: Asked) -> list[tuple[Sampled, str]]:
        """Samples, each with the address of the endpoint that gave it."""
        for _ in range(_ABORTED_AGAIN):
            reply = await self._client.post("/v1/completions", asked.body)
            samples = read_choices(asked, reply.body, reply.url)
            with understood(reply.url):
                self._count_cached(reply)
            if all(sample.finish != "abort" for sample in samples):
                return [(sample, reply.url) for sample in samples]
        raise ServerError(f"{reply.url}: gave up on a sample {_ABORTED_AGAIN} times (finish_reason abort)")

    def _complete(self, sampled: Sampled, url: str, stop: Sequence[str], version: int) -> Completion:
        return completion_of(sampled, self._format, stop, url, exact=self._logprobs, weight_version=version)

    def _count_cached(self, reply: Reply) -> None:
        usage = reply.body.get("usage") or {}
        self.stats.cached_tokens += int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    def _check_logprobs(self, params: SamplingParams) -> None:
        """Refuse log-probabilities that are not of the distribution sampled from."""
        plain = params.top_p == 1.0 and params.top_k == 0 and params.temperature in (0.0, 1.0)
        if self._logprobs and self._raw and not plain:
            raise ConfigError(
                "sampling",
                f"temperature {params.temperature:g}, top_p {params.top_p:g}, top_k {params.top_k}",
                "temperature 1 (or 0) and no truncation: this server's log-probabilities leave them out",
                "Start vLLM with --logprobs-mode processed_logprobs.",
            )

    # -- the probe, in the background loop ---------------------------------------------------------------------------

    async def _probe(self, client: HttpClient, url: str) -> None:
        """See `client.Probe`: is it the model, and does it do what it is asked?"""
        served = await ask_served(client, url)
        self._agree(served, url)
        params = SamplingParams(max_tokens=_PROBE_TOKENS)
        request = GenerationRequest(
            self._format.prompt_ids(_PROBE_QUESTION), 1 if self._config.split_samples else 2, seed=0, params=params
        )
        first = await self._try(client, url, served, request)
        self._check_tokenizer(first, url)
        again = await self._try(client, url, served, request)
        if [s.token_ids or s.text for s in first] != [s.token_ids or s.text for s in again]:
            logger.warning("%s: the same request gives other samples; runs on it cannot be repeated", url)
        if self._logprobs:
            self._raw = self._raw or await self._is_raw(client, url, served, request)
        self._served = self._agree(served, url)

    def _agree(self, served: Served, url: str) -> Served:
        """What all endpoints asked so far have in common; ConfigError when it is not the same model."""
        known = self._served
        if known is None:
            return served
        if served.identity() != known.identity():
            raise ConfigError(
                "http.endpoints", f"{url}: {served.identity()}", f"servers of the same model, {known.identity()}"
            )
        return known.narrowed_to(served)

    async def _try(self, client: HttpClient, url: str, served: Served, request: GenerationRequest) -> list[Sampled]:
        asked = self._asked(request, served)
        try:
            reply = await client.ask(url, "/v1/completions", asked.body)
            samples = read_choices(asked, reply, url)
            for sample in samples:
                completion_of(sample, self._format, (), url, exact=False, weight_version=0)
        except ServerError as error:
            remedy = "" if self._config.prompts == "text" else " (engine.http.prompts text sends no token ids)"
            raise EngineLostError(f"{error}: a small request is refused{remedy}") from error
        if any(sample.finish == "abort" for sample in samples):
            raise Unanswered("it gave up on a sample")
        return samples

    def _check_tokenizer(self, samples: Sequence[Sampled], url: str) -> None:
        for sample in samples:
            if sample.token_ids is None:
                continue
            ours = self._format.decode(sample.token_ids).strip("\ufffd ")
            theirs = sample.text.lstrip("\ufffd ")
            if not theirs.startswith(ours):  # behind it the server may show the end of sequence
                raise ConfigError(
                    "http.endpoints",
                    url,
                    f"a server with the policy's tokenizer: it reads tokens {list(sample.token_ids)} as {theirs!r}, "
                    f"ours as {ours!r}",
                )

    async def _is_raw(self, client: HttpClient, url: str, served: Served, request: GenerationRequest) -> bool:
        """Are log-probabilities those before truncation? With one token to choose from, those behind it are all 0."""
        narrow = SamplingParams(max_tokens=_PROBE_TOKENS, top_k=1)
        (one,) = await self._try(client, url, served, replace(request, n=1, params=narrow))
        return any(logprob < -1e-3 for logprob in one.logprobs)


def _parts(request: GenerationRequest, split: bool) -> list[GenerationRequest]:
    """The requests that are sent for one: greedy samples are all alike, and some servers give one sample only."""
    if request.params.temperature == 0.0:
        return [replace(request, n=1)]
    if split:
        return [replace(request, n=1, seed=request.seed + i) for i in range(request.n)]
    return [request]
