"""Learning rates and temperatures as pure functions of the step."""

from collections.abc import Callable, Sequence
from math import cos, log, pi


def generation_cosine(period: int, warmup: int = 0, floor: float = 0.0) -> Callable[[int], float]:
    """Factor on the learning rate for `ScaleRate` or torch's LambdaLR: linear warm-up, then half a
    cosine from 1 to `floor`, restarted every `period` steps (SEAL)."""
    if not 0 <= warmup < period:
        raise ValueError(f"warmup must lie in [0, period={period}), got {warmup}.")

    def factor(step: int) -> float:
        at = step % period
        if at < warmup:
            return (at + 1) / warmup
        return floor + (1 - floor) * 0.5 * (1 + cos(pi * (at - warmup) / (period - warmup)))

    return factor


def step_decay(
    period: int, drops: Sequence[int], factor: float = 0.1, warmup: int = 0
) -> Callable[[int], float]:
    """Factor on the learning rate: linear warm-up, then times `factor` at each of the steps `drops`
    of every period."""

    def rate(step: int) -> float:
        at = step % period
        if at < warmup:
            return (at + 1) / warmup
        return factor ** sum(at >= drop for drop in drops)

    return rate


def logarithmic_cooling(energy: float) -> Callable[[int], float]:
    """E / ln(step + 2) (Todea, eq. 2.6): converges, slowly, if E exceeds the critical height."""
    return lambda step: energy / log(step + 2)


def geometric_cooling(initial: float, rate: float) -> Callable[[int], float]:
    return lambda step: initial * rate**step
