"""Renderer kernels in plain torch: the reference for numba's and Triton's."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

PerSample = Float[Tensor, "samples"]
PerRay = Float[Tensor, "rays"]
Vectors = Float[Tensor, "rays 3"]
Starts = Int64[Tensor, "edges"]


def march(
    occupied: Bool[Tensor, "n n n"],
    radius: float,
    origins: Vectors,
    directions: Vectors,
    near: PerRay,
    far: PerRay,
    first: PerRay,
    step: float,
) -> tuple[Int64[Tensor, "rays+1"], PerSample]:
    """(starts, t_mid): midpoints near + (k + first) * step below `far` whose cell is occupied.

    Args:
        first: Position of each ray's first sample in its first interval, in [0, 1].
    """
    steps = ((far - near) / step).ceil().clamp(min=0).long()
    ray = torch.repeat_interleave(steps)
    k = torch.arange(len(ray), device=ray.device) - (steps.cumsum(0) - steps)[ray]
    t = near[ray] + (k + first[ray]) * step
    cells = occupied.shape[0]
    points = origins[ray] + t[:, None] * directions[ray]
    index = ((points + radius) * (cells / (2 * radius))).long().clamp(0, cells - 1)
    keep = (t < far[ray]) & occupied[index.unbind(-1)]
    counts = torch.bincount(ray[keep], minlength=len(origins))
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), t[keep]


def visible(optical_depth: PerSample, starts: Starts, threshold: float) -> Bool[Tensor, "samples"]:
    """Samples whose transmittance exceeds `threshold`."""
    before = optical_depth.double().cumsum(0) - optical_depth.double()
    first = torch.cat([before, before.new_zeros(1)])[starts[:-1]]
    first = torch.repeat_interleave(first, starts.diff())
    return (first - before).exp() > threshold


def sample_weights(optical_depth: PerSample, starts: Starts) -> PerSample:
    """Transmittance times opacity: exp(-sum of the optical depths before) * (1 - exp(-depth)).

    The weights of a ray sum to its opacity. The cumulative sum is in float64: in float32 it loses
    1e-3 over 1e5 packed samples.

    Args:
        optical_depth: density * step, at least 0.
    """
    total = optical_depth.double().cumsum(0)
    before = total - optical_depth.double()
    total = torch.cat([total.new_zeros(1), total])[starts[:-1]]
    first = torch.repeat_interleave(total, starts.diff())
    return (first - before).exp().to(optical_depth) * -torch.expm1(-optical_depth)


def accumulate(
    weights: PerSample, values: Float[Tensor, "samples c"], starts: Starts
) -> Float[Tensor, "edges-1 c"]:
    """Per-ray sums of weights * values; 0 for rays without samples."""
    ray = torch.repeat_interleave(starts.diff())
    return values.new_zeros(len(starts) - 1, values.shape[1]).index_add(
        0, ray, weights[:, None] * values
    )


def composite(
    optical_depth: PerSample, values: Float[Tensor, "samples c"], starts: Starts
) -> Float[Tensor, "edges-1 c"]:
    """Alpha-composite packed samples front to back: per-ray sums of weight * value."""
    return accumulate(sample_weights(optical_depth, starts), values, starts)
