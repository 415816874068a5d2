"""Resampling of per-problem results."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["resampled_means"]

FloatArray = npt.NDArray[np.float64]
_AT_ONCE = 2**22  # indices drawn together, for bounded memory


def resampled_means(values: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Means of resamples with replacement, [resamples].

    Args:
        values: [P], one a problem, at least one.
        resamples: how many.
        seed: of the draws; the same values, resamples and seed give the same means.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // len(values))
    means = [
        values[generator.integers(0, len(values), (min(rows, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    joined: FloatArray = np.concatenate(means)
    return joined
