"""Learning rates and temperatures as pure functions of the step."""

from collections.abc import Callable
from math import cos, log, pi


def generation_cosine(period: int, warmup: int = 0, floor: float = 0.0) -> Callable[[int], float]:
    """Factor on the learning rate for torch's LambdaLR: linear warm-up over `warmup` steps, then half a cosine from 1 to `floor`;
    again every `period` steps, one generation each (SEAL restarts it so)."""
    if period < 1 or not 0 <= warmup < period:
        raise ValueError(f"A generation needs at least one step and a warm-up shorter than itself, got period {period}, warm-up {warmup}.")

    def factor(step: int) -> float:
        at = step % period
        if at < warmup:
            return (at + 1) / warmup
        return floor + (1 - floor) * 0.5 * (1 + cos(pi * (at - warmup) / (period - warmup)))

    return factor


def logarithmic_cooling(energy: float) -> Callable[[int], float]:
    """T(t) = E / ln t with t = step + 2 (Todea, eq. 2.6): converges if E exceeds the critical height, and cools very slowly."""
    return lambda step: energy / log(step + 2)


def geometric_cooling(initial: float, rate: float) -> Callable[[int], float]:
    """T(t) = initial * rate^step: what is used in practice."""
    return lambda step: initial * rate**step
