"""Intervals and paired tests for comparisons over few seeds; PSNR and silhouettes."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import fsum, nan, sqrt
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy import special, stats
from scipy.optimize import bisect
from torch import Tensor


class Rate(NamedTuple):
    """A success rate with its 95 % interval."""

    successes: int
    trials: int
    low: float
    high: float


def wilson(successes: int, trials: int) -> Rate:
    """Success rate with Wilson's score interval (Wilson 1927); [0, 1] without trials."""
    if trials == 0:
        return Rate(0, 0, 0.0, 1.0)
    interval = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return Rate(successes, trials, float(interval.low), float(interval.high))


class Mean(NamedTuple):
    """A mean with its 95 % interval, which is NaN for fewer than two values."""

    mean: float
    low: float
    high: float
    count: int


def student_mean(values: Sequence[float]) -> Mean:
    """Mean with Student's t interval; for few values, where bootstrap intervals are too narrow."""
    if len(values) < 2:
        return Mean(values[0] if values else nan, nan, nan, len(values))
    mean, deviation = _moments(values)
    half = float(special.stdtrit(len(values) - 1, 0.975)) * deviation / len(values) ** 0.5
    return Mean(mean, mean - half, mean + half, len(values))


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, exactly 0 for equal values."""
    if min(values) == max(values):
        return float(values[0]), 0.0
    mean = fsum(values) / len(values)
    return mean, sqrt(fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Mean:
    """Mean with the percentile bootstrap interval of 10,000 draws, for a dozen values or more."""
    if len(values) < 2 or min(values) == max(values):
        bound = values[0] if len(values) > 1 else nan
        return Mean(values[0] if values else nan, bound, bound, len(values))
    low, high = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=seed
    ).confidence_interval
    return Mean(fsum(values) / len(values), float(low), float(high), len(values))


class PairedTest(NamedTuple):
    """Comparison of two arms' successes on the same trials."""

    only_first: int
    """Trials in which only the first arm succeeds."""
    only_second: int
    both: int
    neither: int
    p: float
    """Two-sided p-value of McNemar's exact test; concordant trials carry no information."""
    p_holm: float
    """Adjusted for multiple tests (Holm 1979)."""


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> PairedTest:
    """McNemar's exact test (1947); p = 1 if no trial is discordant, `p_holm` = p (see `holm`)."""
    first = sum(bool(a) and not b for a, b in pairs)
    second = sum(bool(b) and not a for a, b in pairs)
    both = sum(bool(a and b) for a, b in pairs)
    discordant = first + second
    p = float(stats.binomtest(first, discordant, 0.5).pvalue) if discordant else 1.0
    return PairedTest(first, second, both, len(pairs) - discordant - both, p, p)


class PairedDifference(NamedTuple):
    """Mean of differences of pairs, with Student's 95 % interval."""

    mean: float
    low: float
    high: float
    """NaN, as `low`, for a single pair."""
    wins: int
    """Pairs whose first value is the larger one."""
    count: int
    deviation: float
    """Standard deviation of the differences; NaN for a single pair."""
    p: float
    """Two-sided p-value of Student's paired t-test; 1 for a single pair."""
    p_holm: float
    """Adjusted for multiple tests (Holm 1979); `p` unless `holm` has adjusted it."""


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Mean of first - second over pairs, such as two methods with the same seeds.

    Raises:
        ValueError: The sequences have different lengths, or are empty.
    """
    differences = [x - y for x, y in zip(first, second, strict=True)]
    if not differences:
        raise ValueError("A paired difference needs at least one pair.")
    mean, low, high, count = student_mean(differences)
    wins, deviation, p = sum(d > 0 for d in differences), nan, 1.0
    if count > 1:
        _, deviation = _moments(differences)
        if deviation > 0:
            p = float(2 * special.stdtr(count - 1, -abs(mean) / (deviation / count**0.5)))
        else:
            p = float(mean == 0)
    return PairedDifference(mean, low, high, wins, count, deviation, p, p)


def detectable_difference(deviation: float, pairs: int, power: float = 0.8) -> float:
    """The mean difference that a two-sided paired t-test at 5 % finds with probability `power`.

    NaN for fewer than two pairs.

    Args:
        deviation: Standard deviation of the differences.
    """
    return nan if pairs < 2 else _detectable_t(pairs - 1, power) * deviation / pairs**0.5


@lru_cache
def _detectable_t(freedom: int, power: float) -> float:
    """Noncentrality at which a two-sided t-test at 5 % has this power."""
    critical = float(special.stdtrit(freedom, 0.975))

    def excess(shift: float) -> float:
        # allowed: scipy's lower tail is NaN where it is negligible
        lower = np.nan_to_num(stats.nct.cdf(-critical, freedom, shift))
        return float(1 - stats.nct.cdf(critical, freedom, shift) + lower) - power

    highest = 1.0
    while excess(highest) < 0:
        highest *= 2
    return float(bisect(excess, 0.0, highest))  # pyright: ignore[reportArgumentType]


Test = TypeVar("Test", PairedTest, PairedDifference)


def holm(tests: Mapping[str, Test]) -> dict[str, Test]:
    """The same tests with `p_holm` adjusted for their number (Holm 1979)."""
    adjusted, highest = dict(tests), 0.0
    for rank, name in enumerate(sorted(tests, key=lambda name: tests[name].p)):
        highest = max(highest, min(1.0, (len(tests) - rank) * tests[name].p))
        adjusted[name] = tests[name]._replace(p_holm=highest)
    return adjusted


def psnr(a: Float[Tensor, "b *shape"], b: Float[Tensor, "b *shape"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio in dB of each item, values in [0, 1]; 100 for equal ones."""
    return -10 * (a - b).square().flatten(1).mean(1).clamp(min=1e-10).log10()


def silhouette_iou(a: Float[Tensor, "b h w"], b: Float[Tensor, "b h w"]) -> Float[Tensor, "b"]:
    """Intersection over union of the pixels with opacity above 0.5; 1 if both are empty."""
    one, other = a > 0.5, b > 0.5
    both, either = (one & other).sum((1, 2)).float(), (one | other).sum((1, 2)).float()
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(either))
