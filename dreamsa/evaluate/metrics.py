"""Measures of an object and of an edit, as pure functions of pictures, features and counts."""

import statistics
from collections.abc import Mapping, Sequence
from math import nan
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor


def retrieved(similarity: Float[Tensor, "b n"]) -> Bool[Tensor, "b"]:
    """Whether each picture is more similar to text 0, its own, than to every other text. A tie is a miss.

    The mean is CLIP R-precision with real distractors (Park et al. 2021, "Benchmark for compositional text-to-image synthesis"; Dream
    Fields, arXiv:2112.01455), over the views of one object here.
    """
    if similarity.shape[1] < 2:
        raise ValueError("R-precision needs at least one distractor beside the picture's own text.")
    return similarity[:, 0] > similarity[:, 1:].max(1).values


def directional_similarity(
    image_before: Float[Tensor, "b d"], image_after: Float[Tensor, "b d"], text_before: Float[Tensor, "d"], text_after: Float[Tensor, "d"]
) -> Float[Tensor, "b"]:
    """Cosine between how the pictures' features and how the prompts' features have moved, in [-1, 1]; 0 where nothing has moved.

    CLIP directional similarity (StyleGAN-NADA, arXiv:2108.00946, eq. 3; as a measure: InstructPix2Pix, arXiv:2211.09800). Features are unit
    vectors; pictures are paired, the same camera before and after.
    """
    return torch.nn.functional.cosine_similarity(image_after - image_before, (text_after - text_before)[None], dim=1, eps=1e-6)


def front_everywhere(similarity: Float[Tensor, "b views"], own: Int[Tensor, "b"], front: int = 0) -> Bool[Tensor, "b"]:
    """Whether a picture is more similar to the front's text than to that of its own view `own`, which is another.

    The share of true ones over side and back views is a proxy for the Janus problem, a face on every side. It can be no better than the
    judge tells views apart.
    """
    return similarity[:, front] > similarity.gather(1, own[:, None])[:, 0]


def foreground_fraction(opacity: Float[Tensor, "b h w"]) -> Float[Tensor, "b"]:
    """Share of pixels with an opacity above a half: near 0 an object has vanished, near 1 it is fog or a wall."""
    return (opacity > 0.5).float().mean((1, 2))


def psnr(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio of pictures in [0, 1], dB; at most 100, for equal ones."""
    return -10 * (a - b).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def silhouette_overlap(a: Float[Tensor, "b h w"], b: Float[Tensor, "b h w"]) -> Float[Tensor, "b"]:
    """Intersection over union of where opacities exceed a half; 1 where both are empty."""
    one, other = a > 0.5, b > 0.5
    both, any_ = (one & other).sum((1, 2)).float(), (one | other).sum((1, 2)).float()
    return torch.where(any_ > 0, both / any_.clamp(min=1), torch.ones_like(any_))


class Rate(NamedTuple):
    """A share of successes with its 95 % interval."""

    successes: int
    trials: int
    low: float
    high: float


def wilson(successes: int, trials: int) -> Rate:
    """Wilson's score interval, 95 % (Wilson 1927); [0, 1] without trials."""
    if trials == 0:
        return Rate(0, 0, 0.0, 1.0)
    interval = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return Rate(successes, trials, float(interval.low), float(interval.high))


class Mean(NamedTuple):
    """A mean, or one of paired differences, with its 95 % interval; not a number where there are fewer than two values."""

    mean: float
    low: float
    high: float
    count: int


def student_mean(values: Sequence[float]) -> Mean:
    """With Student's interval (1908): for few values, such as seeds, where a bootstrap's intervals are much too narrow."""
    if len(values) < 2:
        return Mean(values[0] if values else nan, nan, nan, len(values))
    mean, half = statistics.mean(values), float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return Mean(mean, mean - half, mean + half, len(values))


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Mean:
    """With the percentile bootstrap interval, 10,000 draws: for a dozen values or more."""
    if len(values) < 2 or min(values) == max(values):
        spread = values[0] if len(values) > 1 else nan
        return Mean(values[0] if values else nan, spread, spread, len(values))
    rng = np.random.default_rng(seed)
    interval = stats.bootstrap((np.asarray(values),), np.mean, n_resamples=10_000, method="percentile", rng=rng).confidence_interval
    return Mean(statistics.mean(values), float(interval.low), float(interval.high), len(values))


class PairedTest(NamedTuple):
    """Does one arm succeed more often than another on the same trials?"""

    only_first: int
    """Trials that only the first arm has passed."""
    only_second: int
    both: int
    neither: int
    p: float
    """Of McNemar's exact test, two-sided: trials that both or neither passed say nothing."""
    p_holm: float
    """Adjusted for the number of tests that are made together (Holm 1979)."""


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> PairedTest:
    """McNemar's exact test (1947) of paired successes; p = 1 where the arms never differ. `p_holm` is p until `holm` sets it."""
    counts = {outcome: sum((bool(a), bool(b)) == outcome for a, b in pairs) for outcome in ((True, False), (False, True), (True, True))}
    first, second, both = counts.values()
    p = float(stats.binomtest(first, first + second, 0.5).pvalue) if first + second else 1.0
    return PairedTest(first, second, both, len(pairs) - first - second - both, p, p)


def holm(tests: Mapping[str, PairedTest]) -> dict[str, PairedTest]:
    """The same tests with `p_holm` adjusted for there being several (Holm 1979)."""
    order = sorted(tests, key=lambda name: tests[name].p)
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * tests[name].p))
        adjusted[name] = highest
    return {name: test._replace(p_holm=adjusted[name]) for name, test in tests.items()}
