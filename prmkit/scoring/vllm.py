"""A PRM in a vLLM of this process: the scorer's side of `prmkit.engines.vllm.engine`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prmkit.engines.driver import Driver, Job
from prmkit.engines.vllm.options import VLLMOptions
from prmkit.engines.vllm.start import open_llm, tokenizer_folder
from prmkit.errors import ConfigError, EngineLostError
from prmkit.formats.bound import BoundStepFormat, EncodedSteps
from prmkit.losses.prm import log_odds
from prmkit.records import StepScores
from prmkit.scoring.vllm_plan import PoolingPlan, plan_pooling

__all__ = ["VLLMScorer"]


class VLLMScorer:
    """Scores from vLLM's pooling in this process; implements `prmkit.protocols.StepScorer`.

    Args:
        folder: local model folder of the PRM.
        bound_format: its step format in its tokenizer's ids.
        options: see VLLMOptions.

    Attributes:
        plan: how vLLM serves the format.

    Raises:
        ConfigError: vLLM does not serve this PRM, with the reason; take `PRMScorer`.
        MissingDependencyError: vLLM is not installed, or its version is not supported.
    """

    def __init__(
        self,
        folder: str | Path,
        bound_format: BoundStepFormat,
        options: VLLMOptions = VLLMOptions(),  # noqa: B008
    ) -> None:
        self.plan = plan_pooling(folder, bound_format)
        if not self.plan.serves:
            raise ConfigError(
                "prm.path", str(folder), "a PRM that vLLM's pooling serves",
                f"{self.plan.reason}. Score in process (`prmkit.scoring.PRMScorer`).",
            )  # fmt: skip
        self._format = bound_format
        self._resources = contextlib.ExitStack()
        tokenizer = self._resources.enter_context(tokenizer_folder(bound_format))
        self._llm = open_llm(folder, tokenizer, options, **self.plan.arguments)
        self._worker = _Worker(self._llm.llm_engine, self.plan)
        self._driver: Driver[EncodedSteps, StepScores] = Driver(self._worker)

    @property
    def format(self) -> BoundStepFormat:
        """The PRM's step format in its tokenizer's ids."""
        return self._format

    async def score(self, question: str, steps: Sequence[str]) -> StepScores:
        """One score in [0, 1] for every step, each given the steps before it.

        Raises:
            ConfigError: the steps do not fit into the model's context.
            EngineLostError: vLLM failed; open the scorer again.
        """
        if not steps:
            return StepScores(())
        encoded = self._format.encode_steps(question, steps)
        encoded = encoded.truncate(len(encoded.input_ids))  # nothing behind the last score is needed
        if len(encoded.input_ids) > self._worker.context:
            raise ConfigError(
                "score.steps",
                f"{len(steps)} steps of {len(encoded.input_ids)} tokens with the question",
                f"at most {self._worker.context} tokens, the model's context",
            )
        return await self._driver.submit(encoded)

    def close(self) -> None:
        """Free what vLLM holds. Nothing may be asked afterwards."""
        self._llm.llm_engine.engine_core.shutdown()
        self._resources.close()

    def __enter__(self) -> VLLMScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """Feeds vLLM's engine for the driver, one scheduler step a piece of work."""

    def __init__(self, engine: Any, plan: PoolingPlan) -> None:
        self._engine, self._plan = engine, plan
        self.context = int(engine.vllm_config.model_config.max_model_len)
        self._rows = int(engine.vllm_config.scheduler_config.max_num_seqs)
        self._numbers = itertools.count()
        self._jobs: dict[str, Job[EncodedSteps, StepScores]] = {}

    def is_full(self, jobs: list[Job[EncodedSteps, StepScores]]) -> bool:
        """See `Worker.is_full`."""
        return len(jobs) >= self._rows

    def reset(self) -> None:
        """See `Worker.reset`."""
        lost, self._jobs = list(self._jobs), {}
        if lost:
            with contextlib.suppress(Exception):  # it may be what failed; it says so when used
                self._engine.abort_request(lost)

    def advance(self, jobs: list[Job[EncodedSteps, StepScores]]) -> bool:
        """See `Worker.advance`."""
        from vllm import PoolingParams, TokensPrompt

        try:
            for job in jobs:
                name = f"prmkit-{next(self._numbers)}"
                params = PoolingParams(task="token_classify", use_activation=False)
                ids = TokensPrompt(prompt_token_ids=list(job.payload.input_ids))
                (prompt,) = self._engine.renderer.render_cmpl([ids])
                self._engine.add_request(name, prompt, params)
                self._jobs[name] = job
            outputs = self._engine.step() if self._jobs else []
        except Exception as error:
            raise EngineLostError(
                f"vLLM failed ({type(error).__name__}: {error}). Open the scorer again; its own log has the cause."
            ) from error
        for output in outputs:
            if output.finished:
                self._answer(self._jobs.pop(output.request_id), output.outputs.data)
        return bool(self._jobs)

    def _answer(self, job: Job[EncodedSteps, StepScores], rows: torch.Tensor) -> None:
        if job.future.done():
            return
        logits = torch.stack(self._plan.pick(job.payload, list(rows.reshape(len(rows), -1)))).float()
        if logits.shape[1] != self._plan.outputs or not bool(logits.isfinite().all()):
            job.future.set_exception(
                EngineLostError(f"vLLM gave logits of shape {tuple(logits.shape)}, or not finite ones")
            )
            return
        values = tuple(torch.sigmoid(log_odds(logits)).tolist())
        job.future.set_result(StepScores(values, encoded_tokens=len(job.payload.input_ids)))
