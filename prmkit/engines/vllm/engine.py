"""vLLM in this process: an engine for a machine that vLLM has to itself, or shares with a trainer (sleep and wake).

vLLM does the batching, with prefix caching on. What it is told is that of `options.engine_arguments`; what it
answers is checked against what was asked, so that a version that means something else fails loudly. Stop strings are
vLLM's matter, texts are decoded here: a completion keeps the whole token that completes a stop string.

vLLM is imported when an engine is made. For vLLM in another environment or on another machine see `server` and
the HTTP engine.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.engines.driver import Driver, Job
from prmkit.engines.stops import find_stop
from prmkit.engines.vllm.options import VLLMOptions
from prmkit.engines.vllm.start import open_llm, tokenizer_folder
from prmkit.errors import ConfigError, EngineLostError
from prmkit.formats.bound import BoundStepFormat
from prmkit.records import Completion, FinishReason, GenerationRequest

if TYPE_CHECKING:
    from torch import Tensor

    from prmkit.engines.vllm.weight_sync import SyncReport

__all__ = ["HOTTEST", "VLLMEngine", "VLLMStats", "open_vllm_engine"]

HOTTEST = 2.0  # vLLM refuses higher temperatures


@dataclass(slots=True)
class VLLMStats:
    """What the engine has done so far.

    Attributes:
        requests: requests answered.
        generated_tokens: tokens of finished samples.
        weight_updates: times that new weights were taken.
    """

    requests: int = 0
    generated_tokens: int = 0
    weight_updates: int = 0


class VLLMEngine:
    """vLLM in this process; implements `prmkit.protocols.Engine`.

    Sample i of a request depends on (prompt, parameters, seed, i) and the weights, up to rounding: vLLM's kernels may
    round otherwise in another batch, and tokens differ where a random number falls into that gap. vLLM gives sample i
    the seed `seed + i`, so the seeds of requests must lie at least n apart, as those of `derive_seed` do.

    Args:
        model: model folder or hub name. With `options.extra["load_format"] = "dummy"` only its config.json is needed,
            and weights are those of the first `update_weights`.
        bound_format: the policy's step format in its tokenizer's ids.
        options: see VLLMOptions.
        weight_version: stamped on completions until weights are updated.

    Attributes:
        stats: counters.

    Raises:
        MissingDependencyError: vLLM is not installed, or its version is not supported.
        ConfigError: vLLM refuses an option, or the model does not fit.
    """

    def __init__(
        self,
        model: str | Path,
        bound_format: BoundStepFormat,
        options: VLLMOptions = VLLMOptions(),  # noqa: B008
        weight_version: int = 0,
    ) -> None:
        self._options, self._format = options, bound_format
        self._resources = contextlib.ExitStack()
        tokenizer = self._resources.enter_context(tokenizer_folder(bound_format))
        try:
            self._llm = open_llm(model, tokenizer, options)
        except BaseException:
            self._resources.close()
            raise
        self.stats = VLLMStats()
        self._worker = _Worker(self._llm.llm_engine, bound_format, self.stats)
        self._driver: Driver[GenerationRequest, list[Completion]] = Driver(self._worker)
        self._set_version(weight_version)
        self._asleep = False

    @property
    def format(self) -> BoundStepFormat:
        return self._format

    @property
    def weight_version(self) -> int:
        return self._worker.weight_version

    async def generate(self, request: GenerationRequest) -> list[Completion]:
        """`request.n` completions, in sample order.

        Raises:
            ConfigError: the prompt leaves no room in the model's context, holds an id that the model does not have, or
                the temperature is above 2.
            EngineLostError: vLLM failed; open the engine again.
            RuntimeError: the engine sleeps.
        """
        if self._asleep:
            raise RuntimeError("generate while the engine sleeps; call wake first")
        self._worker.check(request)
        return await self._driver.submit(request)

    # -- weights --

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> SyncReport:
        """Take new weights, and forget all keys and values.

        Args:
            weights: all of the model's, under the names of its checkpoint (`weight_sync.iter_weights`).
            version: stamped on completions from now on.

        Raises:
            ConfigError: the engine was opened without `options.weight_updates`.
            EngineLostError: vLLM did not take them; it holds parts of two policies. Open the engine again.
            RuntimeError: samples are being written; their tokens would come from two policies.
        """
        from prmkit.engines.vllm.weight_sync import send_weights

        if self._driver.busy:
            raise RuntimeError("update_weights while requests are in flight; await them first")
        if not self._options.weight_updates:
            raise ConfigError("vllm.weight_updates", False, "true, to take new weights")
        report = send_weights(_LocalChannel(self._llm), weights, version)
        self.stats.weight_updates += 1
        self._worker.weight_version = version
        return report

    def _set_version(self, version: int) -> None:
        self._llm.llm_engine.set_weight_version(str(version))
        self._worker.weight_version = version

    # -- memory shared with a trainer --

    def sleep(self, level: int = 1) -> None:
        """Give the GPU's memory back: weights go to the CPU (level 1) or are dropped (level 2), keys and values are
        forgotten. After level 2, `update_weights` must follow `wake`.

        Raises:
            ConfigError: the engine was opened without `options.sleep`, or another level than 1 or 2.
            RuntimeError: requests are in flight.
        """
        if not self._options.sleep:
            raise ConfigError("vllm.sleep", False, "true, for an engine that sleeps (needs a GPU)")
        if level not in (1, 2):
            raise ConfigError("sleep.level", level, "1 or 2")
        if self._driver.busy:
            raise RuntimeError("sleep while requests are in flight; await them first")
        self._llm.sleep(level=level)
        self._asleep = True

    def wake(self) -> None:
        """Take the memory again; nothing happens when the engine is awake."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    # -- end --

    def close(self) -> None:
        """Free what vLLM holds. Nothing may be asked afterwards."""
        self._llm.llm_engine.engine_core.shutdown()
        self._resources.close()

    def __enter__(self) -> VLLMEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_vllm_engine(
    folder: str | Path,
    bound_format: BoundStepFormat,
    options: Mapping[str, Any],
    *,
    dtype: str,
    logprobs: bool,  # noqa: ARG001 - they cost little here, and always come
    weight_version: int,
) -> VLLMEngine:
    """The engine that a configuration's `engine.vllm` names.

    Args:
        folder: local model folder.
        bound_format: the policy's step format in its tokenizer's ids.
        options: fields of VLLMOptions by name.
        dtype: type of the weights, unless options name one.
        logprobs: whether completions need log-probabilities; they have them anyway.
        weight_version: stamped on completions.

    Raises:
        ConfigError: an unknown option, or a value out of range.
        MissingDependencyError: vLLM is not installed, or its version is not supported.
    """
    known = {field.name for field in fields(VLLMOptions)}
    for name in options:
        if name not in known:
            raise ConfigError(f"engine.vllm.{name}", options[name], ", ".join(sorted(known)))
    return VLLMEngine(folder, bound_format, VLLMOptions(**{"dtype": dtype, **options}), weight_version)


class _LocalChannel:
    """Weight updates of a `vllm.LLM`; see `weight_sync.WeightChannel`."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def initialise(self, info: dict[str, Any]) -> None:
        self._llm.init_weight_transfer_engine({"init_info": info})

    def start(self) -> None:
        self._llm.start_weight_update()

    def update(self, info: dict[str, Any]) -> None:
        self._llm.update_weights({"update_info": info})

    def finish(self, version: int) -> None:
        self._llm.finish_weight_update(str(version))
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not forget its keys and values")


class _Worker:
    """Feeds vLLM's engine for the driver, one scheduler step a piece of work."""

    def __init__(self, engine: Any, bound_format: BoundStepFormat, stats: VLLMStats) -> None:
        self._engine, self._format, self._stats = engine, bound_format, stats
        config = engine.vllm_config
        self._context = int(config.model_config.max_model_len)
        self._vocab_size = int(config.model_config.get_vocab_size())
        self._rows = int(config.scheduler_config.max_num_seqs)
        self._numbers = itertools.count()
        self._jobs: dict[str, Job[GenerationRequest, list[Completion]]] = {}
        self.weight_version = 0

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that cannot be run."""
        length = len(request.prompt_ids)
        if length >= self._context:
            raise ConfigError(
                "request.prompt_ids", f"{length} ids", f"at most {self._context - 1} ids, one less than the context"
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self._vocab_size:
            raise ConfigError("request.prompt_ids", request.prompt_ids, f"ids from 0 to {self._vocab_size - 1}")
        if request.params.temperature > HOTTEST:
            raise ConfigError("sampling.temperature", request.params.temperature, f"at most {HOTTEST} with vLLM")

    # -- called by the driver --

    def is_full(self, jobs: list[Job[GenerationRequest, list[Completion]]]) -> bool:
        """See `Worker.is_full`."""
        return sum(job.payload.n for job in jobs) >= self._rows

    def reset(self) -> None:
        """See `Worker.reset`."""
        lost, self._jobs = list(self._jobs), {}
        if lost:
            with contextlib.suppress(Exception):  # it may be what failed; it says so when used
                self._engine.abort_request(lost)

    def advance(self, jobs: list[Job[GenerationRequest, list[Completion]]]) -> bool:
        """See `Worker.advance`."""
        try:
            for job in jobs:
                self._add(job)
            gone = [name for name, job in self._jobs.items() if job.future.done()]
            if gone:
                self._engine.abort_request(gone)
                for name in gone:
                    del self._jobs[name]
            outputs = self._engine.step() if self._jobs else []
        except Exception as error:
            raise EngineLostError(
                f"vLLM failed ({type(error).__name__}: {error}). Open the engine again; its own log has the cause."
            ) from error
        for output in outputs:
            if output.finished:
                self._answer(output)
        return bool(self._jobs)

    def _add(self, job: Job[GenerationRequest, list[Completion]]) -> None:
        from vllm import TokensPrompt

        name = f"prmkit-{next(self._numbers)}"
        request = job.payload
        (prompt,) = self._engine.renderer.render_cmpl([TokensPrompt(prompt_token_ids=list(request.prompt_ids))])
        self._engine.add_request(name, prompt, self._params(request))
        self._jobs[name] = job

    def _params(self, request: GenerationRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = request.params
        greedy = params.temperature == 0.0
        return SamplingParams(
            n=1 if greedy else request.n,  # vLLM refuses several greedy samples: they are all the same
            seed=None if greedy else request.seed % 2**63,  # sample i takes seed + i, as over HTTP
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            max_tokens=min(params.max_tokens, self._context - len(request.prompt_ids)),
            stop=list(params.stop),
            stop_token_ids=sorted(self._format.end_ids),
            ignore_eos=True,  # ends at those alone: they are what the model's files name, and the format's own
            detokenize=bool(params.stop),
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            logprobs=0,  # of the sampled token only
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _answer(self, output: Any) -> None:
        job = self._jobs.pop(output.request_id)
        if job.future.done():
            return
        request = job.payload
        samples = sorted(output.outputs, key=lambda sample: sample.index)
        try:
            found = [self._complete(request, sample) for sample in samples]
        except (EngineLostError, RuntimeError) as error:
            job.future.set_exception(error)
            return
        if request.params.temperature == 0.0:
            found *= request.n
        self._stats.requests += 1
        self._stats.generated_tokens += sum(len(completion.token_ids) for completion in found)
        job.future.set_result(found)

    def _complete(self, request: GenerationRequest, sample: Any) -> Completion:
        ids = tuple(sample.token_ids)
        if sample.finish_reason not in ("stop", "length") or not ids:
            raise EngineLostError(
                f"vLLM ended a sample with {sample.finish_reason!r} after {len(ids)} tokens; its log has the cause"
            )
        flat = sample.logprobs
        logprobs = tuple(flat.logprobs[start] for start in flat.start_indices)
        if len(logprobs) != len(ids) or not all(map(math.isfinite, logprobs)):
            raise RuntimeError(f"vLLM gives log-probabilities that are missing or not finite ({len(ids)} tokens)")
        text = self._format.decode(ids)
        ended = ids[-1] in self._format.end_ids
        stop = None if ended or not request.params.stop else find_stop(text, request.params.stop)
        reason: FinishReason = "stop" if ended or stop is not None else "length"
        if reason != sample.finish_reason:
            raise EngineLostError(
                f"vLLM ended a sample with {sample.finish_reason!r}, the tokenizer here says {reason!r}: the two read "
                f"{ids[-8:]} differently. Give the engine the tokenizer that the model was trained with."
            )
        return Completion(ids, logprobs, text, reason, stop, self._version(sample))

    def _version(self, sample: Any) -> int:
        """Version of the weights that wrote the last token, as vLLM noted it."""
        spans = sample.weight_versions
        return int(spans[-1].version) if spans else self.weight_version
