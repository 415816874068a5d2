"""Figures of policy optimisation for the logs: of an optimiser step, and of an examination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import MeanMetric

from prmkit.dist import summed
from prmkit.losses import MetricSum
from prmkit.rl.batches import EvalBatch

__all__ = ["MetricWindow", "PolicyEvaluation"]


class MetricWindow:
    """Figures of the loss since the last optimiser step, and those of the iteration that has begun."""

    def __init__(self) -> None:
        self._sums: dict[str, MetricSum] = {}
        self._report: dict[str, float] = {}

    def add(self, metrics: Mapping[str, MetricSum], report: Mapping[str, float] | None) -> None:
        """Count one micro-batch."""
        for name, figure in metrics.items():
            self._sums[name] = self._sums[name] + figure if name in self._sums else figure
        self._report.update(report or {})

    def pop(self) -> tuple[dict[str, MetricSum], dict[str, float]]:
        """Figures over all ranks, and the iteration's; start anew. Collective."""
        names = sorted(self._sums)
        found: dict[str, MetricSum] = {}
        if names:  # the same on every rank
            stacked = torch.stack([torch.stack([self._sums[n].total.double(), self._sums[n].count]) for n in names])
            found = {n: MetricSum(row[0], row[1].long()) for n, row in zip(names, summed(stacked), strict=True)}
        report = self._report
        self._sums, self._report = {}, {}
        return found, report


class PolicyEvaluation(nn.Module):
    """Means over the solutions of EvalBatches: pass@1, length, steps, share cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.ModuleDict({name: MeanMetric() for name in ("pass_at_1", "length", "steps", "truncated")})

    def record(self, module: LightningModule, batch: EvalBatch, stage: str) -> None:
        """Count a batch, and log the means under the names of a stage."""
        values = {"pass_at_1": batch.right, "length": batch.length, "steps": batch.steps, "truncated": batch.truncated}
        for name, value in values.items():
            self.means[name].update(value)  # type: ignore[operator]
        for name, mean in self.means.items():
            module.log(f"{stage}/{name}", cast(MeanMetric, mean), on_step=False, on_epoch=True)
