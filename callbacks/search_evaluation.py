"""Search inside a fit: how well the policy (or the PRM) under training does at test time, on a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.seed import isolate_rng

from prmkit.errors import ConfigError
from prmkit.evaluation.budgets import BudgetPlan, BudgetUnit, make_searchers, plan_searches, share_sampling
from prmkit.evaluation.comparison import comparison_figures, levels_of, search_truth
from prmkit.evaluation.comparison_plots import comparison_figure, save_figure
from prmkit.evaluation.summary import check_headline
from prmkit.io import write_json
from prmkit.models import PRMModel, load_policy, resolve_folder
from prmkit.search.methods import make_params, needs_prm
from prmkit.search.rows import SearchRow
from prmkit.search.runner import RunParams, search_all
from prmkit.tasks import get_task
from prmkit.types import Grader, Problem, SamplingParams, Task, VerifiableTask
from prmkit.weights import Kind, check_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prmkit.engines import HFEngine
    from prmkit.scoring import PRMScorer

__all__ = ["SearchEvaluation"]

_PRM_FIGURES = ("auroc", "step_accuracy", "first_error_f1")


class SearchEvaluation(Callback):
    """Solves problems with searches every so often in a fit, and logs how many are answered right.

    With a PRM under training, `policy` names the fixed policy. With a policy under training (SFT and every module that
    has `model` and `bound_format`), `prm` names the fixed PRM, where there is one. The weights are copied into an
    engine (or scorer) as they are at that moment, adapters folded in.

    Rank 0 searches and the others wait. Random states, training modes and gradients are afterwards what they were
    before. Logged are `search/<method>/<budget>/<figure>` for pass_at_1, majority, oracle, the headline and
    generated_tokens, and `search/prm/<figure>` where the task can check steps; `callback_metrics` has them too, for
    ModelCheckpoint. A picture goes to TensorBoard and wandb (offline too) and, with all figures, into the folder as
    `step=N.png` and `step=N.json`.

    Args:
        methods: settings of each method by name, e.g. {best_of_n: {}, beam_search: {width: 4}}; sampling and seed are
            those given here.
        budgets: given to every method.
        budget_unit, tokens_per_sample: see `prmkit.evaluation.budgets.BudgetPlan`.
        every_n_steps: optimiser steps between two evaluations; None for none by steps.
        every_n_epochs: epochs between two evaluations; None for none by epochs. Exactly one of the two is set.
        policy: folder or hub name of the fixed policy, when a PRM is trained.
        prm: folder or hub name of the fixed PRM, when a policy is trained; None leaves majority and oracle.
        task, data, task_options, split, limit, offset: which problems, as in `prm search`; the split is by default
            "validation" where there is one, and else the last.
        sampling: how tokens are drawn; None takes the defaults of SamplingParams.
        seed: of the searches; the same problems and random numbers every time.
        headline: the selection of the PRM that is drawn, e.g. product_vote.
        in_flight: searches in work at once.
        max_rows: samples decoded together at most.
        dirpath: folder of pictures and figures; None is `search` in the trainer's root folder.
    """

    leaves_files = True  # left out of a fast_dev_run

    def __init__(
        self,
        methods: dict[str, dict[str, Any]],
        budgets: list[int],
        budget_unit: BudgetUnit = "samples",
        tokens_per_sample: int | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        policy: str | None = None,
        prm: str | None = None,
        task: str = "accumulator",
        data: str | None = None,
        task_options: dict[str, Any] | None = None,
        split: str | None = None,
        limit: int | None = 100,
        offset: int = 0,
        sampling: SamplingParams | None = None,
        seed: int = 0,
        headline: str = "product_vote",
        in_flight: int = 64,
        max_rows: int = 128,
        dirpath: str | None = None,
    ) -> None:
        if (every_n_steps is None) == (every_n_epochs is None):
            raise ConfigError("search_evaluation.every_n_steps", every_n_steps, "a number, or null with every_n_epochs")
        for name, value in (("every_n_steps", every_n_steps), ("every_n_epochs", every_n_epochs)):
            if value is not None and value < 1:
                raise ConfigError(f"search_evaluation.{name}", value, "an integer of at least 1, or null")
        if not methods:
            raise ConfigError("search_evaluation.methods", methods, "at least one method with its settings")
        drawn = sampling or SamplingParams()
        chosen = {name: share_sampling(make_params(name, values), drawn, seed) for name, values in methods.items()}
        self.budget_unit = budget_unit
        self.planned = plan_searches(chosen, BudgetPlan(tuple(budgets), budget_unit, tokens_per_sample))
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs
        self.policy = policy
        self.prm = prm
        self.problems = _Problems(task, data, task_options or {}, split, limit, offset)
        self.headline = check_headline(headline)
        self.run_params = RunParams(in_flight)
        self.max_rows = max_rows
        self.dirpath = dirpath
        self._last_step = 0  # before the first step there is nothing to look at
        self._models: _Models | None = None

    # -- hooks ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        strategy = trainer.strategy
        sharded = isinstance(strategy, FSDPStrategy | ModelParallelStrategy) or (
            isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3
        )
        if sharded:
            raise ConfigError(
                "trainer.strategy",
                type(strategy).__name__,
                "a strategy with whole weights on every rank, for SearchEvaluation",
                "Search the exported model with `prm search` instead.",
            )
        guided = [search.method for search in self.planned if needs_prm(search.method)]
        if _trains_prm(pl_module):
            if self.policy is None:
                raise ConfigError("search_evaluation.policy", None, "a policy's folder: a PRM is being trained")
        elif guided and self.prm is None:
            raise ConfigError("search_evaluation.prm", None, f"a PRM's folder: {guided[0]} is guided by one")
        fixed: Kind = "policy" if _trains_prm(pl_module) else "prm"
        path = self.policy if fixed == "policy" else self.prm
        if path is not None:
            check_kind(f"search_evaluation.{fixed}", path, resolve_folder(path), fixed)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._last_step:
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._evaluate(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._models = None

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]

    # -- an evaluation ----------------------------------------------------------------------------------------------

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        metrics: dict[str, float] = {}
        if trainer.is_global_zero:
            with isolate_rng(), _evaluating(pl_module):
                rows = self._search(pl_module, trainer.global_step)
            metrics = self._publish(trainer, rows)
        metrics = trainer.strategy.broadcast(metrics)  # the others wait here
        pl_module.log_dict(metrics, logger=False)

    def _search(self, pl_module: LightningModule, step: int) -> list[SearchRow]:
        if self._models is None:
            self._models = _Models(pl_module, self.policy, self.prm, self.max_rows)
        engine, scorer = self._models.current(step)
        task, problems = self.problems.load()
        with ExitStack() as stack:
            grader = stack.enter_context(_entered(task.grader))
            searchers = make_searchers(self.planned, engine, scorer, grader)
            return search_all(problems, searchers, self.run_params)

    def _publish(self, trainer: Trainer, rows: Sequence[SearchRow]) -> dict[str, float]:
        """Write figures and picture, hand them to the loggers; returns the metrics."""
        task, problems = self.problems.load()
        figures = comparison_figures(rows, self.headline, levels_of(rows, problems))
        if isinstance(task, VerifiableTask) and any(t.scores is not None for row in rows for t in row.traces):
            figures["prm"] = search_truth(rows, problems, task)
        metrics = _metrics(figures, self.headline)
        step = trainer.global_step
        folder = Path(self.dirpath or Path(trainer.default_root_dir) / "search")
        write_json(folder / f"step={step}.json", {"step": step, "epoch": trainer.current_epoch, "figures": figures})
        picture = comparison_figure(figures, self.budget_unit, f"step {step}")
        save_figure(picture, folder / f"step={step}.png")
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("search/accuracy", picture, step)
            elif isinstance(logger, WandbLogger):
                logger.log_image("search/accuracy", [str(folder / f"step={step}.png")], step=step)
        return metrics


class _Problems:
    """Which problems, read when they are first needed."""

    def __init__(
        self,
        task: str,
        data: str | None,
        options: Mapping[str, Any],
        split: str | None,
        limit: int | None,
        offset: int,
    ) -> None:
        self._task = get_task(task, data, **options)
        splits = self._task.splits
        self._split = split or ("validation" if "validation" in splits else splits[-1])
        self._limit = limit
        self._offset = offset
        self._loaded: list[Problem] = []

    def load(self) -> tuple[Task, list[Problem]]:
        if not self._loaded:
            self._loaded = list(self._task.problems(self._split, self._limit, self._offset))
        return self._task, self._loaded


class _Models:
    """The model under training as an engine or a scorer, and the fixed one beside it."""

    engine: HFEngine
    scorer: PRMScorer | None

    def __init__(self, module: LightningModule, policy: str | None, prm: str | None, max_rows: int) -> None:
        from prmkit.engines import HFEngine
        from prmkit.scoring import PRMScorer

        self._module = module
        if _trains_prm(module):
            assert policy is not None  # checked in setup
            loaded = load_policy(policy, device=module.device)
            self.engine = HFEngine(loaded.model, loaded.format, max_rows=max_rows, weight_version=loaded.weight_version)
            self.scorer = PRMScorer(_model(module))
        else:
            self.engine = HFEngine(_model(module), module.bound_format, max_rows=max_rows)
            fixed = None if prm is None else PRMModel.from_pretrained(prm, device=module.device).eval()
            self.scorer = None if fixed is None else PRMScorer(fixed)

    def current(self, step: int) -> tuple[HFEngine, PRMScorer | None]:
        """Both, with the weights that the module has now."""
        if _trains_prm(self._module):
            assert self.scorer is not None
            self.scorer.update_weights()
        else:
            self.engine.update_weights(None, version=step)
        return self.engine, self.scorer


def _model(module: LightningModule) -> Any:
    """The model that a module trains; there once `configure_model` has run."""
    return module.model


def _trains_prm(module: LightningModule) -> bool:
    """Does a module train a PRM? Its model may not be built yet, but its step format says where scores are read."""
    from lightning_modules.prm import PRM

    return isinstance(module, PRM)


@contextmanager
def _evaluating(module: LightningModule) -> Iterator[None]:
    """The module in evaluation mode and without gradients; every part is as it was afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def _entered(grader: Grader) -> AbstractContextManager[Any]:
    """The grader, its worker processes (if it has any) ended with the block."""
    return grader if isinstance(grader, AbstractContextManager) else nullcontext(grader)


def _metrics(figures: Mapping[str, Any], headline: str) -> dict[str, float]:
    """Figures by the names they are logged under; what is not defined is left out."""
    metrics: dict[str, float] = {}
    for search in figures["searches"]:
        parts = ("search", search["method"], *(() if search["budget"] is None else (str(search["budget"]),)))
        where = "/".join(parts)
        shown = {
            name: search["accuracy"][name]["mean"]
            for name in ("majority", "oracle", headline)
            if name in search["accuracy"]
        }
        shown["pass_at_1"] = search["pass_at_1"]["mean"]
        shown["generated_tokens"] = search["tokens"]["generated"]
        metrics |= {f"{where}/{name}": float(value) for name, value in shown.items()}
    truth = figures.get("prm", {})
    return metrics | {f"search/prm/{name}": float(truth[name]) for name in _PRM_FIGURES if truth.get(name) is not None}
