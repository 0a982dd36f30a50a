"""Where the time of a step goes, measured side by side in one process: medians and ratios, because machines are shared."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numba
import torch
from torch import Tensor

from dreamsa.api import device_for, with_overrides
from dreamsa.config import preset
from dreamsa.fields.hashgrid import Encode, HashGridConfig, encode_torch, resolve_backend
from dreamsa.fields.hashgrid_cpu import encode_numba
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.stable_diffusion import StableDiffusion
from dreamsa.render.cameras import camera_rays
from dreamsa.render.volume import kernels_for, march, resolve_kernels
from dreamsa.train import draw_views, new_training, sds_step


def median_ms(run: Callable[[], Any], rounds: int) -> float:
    """Median wall-clock of `run`, milliseconds, a GPU's work included; one call before is not counted."""
    run()
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = []
    for _ in range(rounds):
        wait()
        started = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times), 2)


def bench(steps: int = 30, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """One SDS step of the preset toybox and its parts, then the hash grids.

    Args:
        overrides: Other settings of the step, as `api.with_overrides` takes them.

    Raises:
        ValueError: `steps` out of range, or a setting that is none.
    """
    if not 3 <= steps <= 10_000:
        raise ValueError(f"steps must lie in [3, 10000], got {steps}.")
    return {
        "step": bench_step(steps, overrides or {}),
        "hash grid, 1 thread": bench_hash_grids(max(steps // 6, 3)),
        "threads": torch.get_num_threads(),
    }


def bench_step(steps: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Medians in ms of a whole step and of its parts, on the scene as it is after `steps` steps of "a rabbit"."""
    config = with_overrides(preset("toybox", "a rabbit"), overrides)
    device = device_for(config.device)
    training, score = new_training(config, device), StableDiffusion.load(config.model, device)
    prompt = ViewPrompt(score, config.prompt)
    whole = median_ms(lambda: sds_step(training, score, prompt), steps)
    scene, size = training.scene, config.camera.resolution
    draw = draw_views(config, training.step, 1000).to(device)
    origins, directions = (v.reshape(-1, 3) for v in camera_rays(draw.cameras, size, size))
    step, kernels = config.render.step(config.field.radius), kernels_for(device, config.render.kernels)
    samples = march(scene.occupancy, origins, directions, step, draw.jitter.reshape(-1), kernels)
    density, rgb = (value.detach() for value in scene.field.query(samples.points))
    image = torch.rand(1, 3, size, size, device=device)
    latents = score.encode(image)
    condition = prompt(draw.cameras.azimuth_deg, draw.cameras.elevation_deg)

    def field() -> None:
        out = scene.field.query(samples.points)
        (out.density.sum() + out.rgb.sum()).backward()

    def composited() -> None:
        values = torch.cat([rgb, rgb], 1).requires_grad_()
        kernels.composite(density.requires_grad_() * step, values, samples.starts).sum().backward()

    parts: dict[str, Callable[[], Any]] = {
        "UNet, both halves of guidance": lambda: score.predict_noise(latents, draw.timesteps, condition, 20.0),
        "image to latents, with backward": lambda: score.encode(image.requires_grad_()).sum().backward(),
        "field, with backward": field,
        "marching": lambda: march(scene.occupancy, origins, directions, step, draw.jitter.reshape(-1), kernels),
        "compositing, with backward": composited,
        "optimizer": training.optimizer.step,
    }
    times = {name: median_ms(run, steps) for name, run in parts.items()}
    rendering = times["marching"] + times["compositing, with backward"]
    return {
        "whole step, ms": whole,
        "hash grid, renderer": f"{resolve_backend(config.field.backend, device)[0]}, {resolve_kernels(device, config.render.kernels)[0]}",
        "samples": len(samples.t_mid),
        **{f"{name}, ms": value for name, value in times.items()},
        "marching and compositing, share of the step": round(rendering / whole, 3),
        "peak memory, MB": _peak_memory(),
    }


def bench_hash_grids(rounds: int, points: int = 65_536) -> dict[str, Any]:
    """Forward and backward of 16 levels x 2 on one thread: numba against the torch encoding that nerfstudio uses."""
    threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    table: dict[str, Any] = {}
    try:
        for log2_size in (15, 17):
            config = HashGridConfig(levels=16, log2_size=log2_size, coarsest=16, finest=4096)
            rng = torch.Generator().manual_seed(0)
            x = torch.rand(points, 3, generator=rng)
            weights = torch.randn(points, config.width, generator=rng)
            hashed = torch.randn(config.levels * 2**log2_size, 2, generator=rng).requires_grad_()
            own = torch.randn(config.entries, 2, generator=rng).requires_grad_()
            runs = {
                "nerfstudio-style torch": (torch_indexing(config), hashed),
                "reference torch": (encode_torch(config), own),
                "numba": (encode_numba(config), own),
            }

            def both(encode: Encode, leaf: Tensor, x: Tensor = x, weights: Tensor = weights) -> None:
                leaf.grad = None
                encode(x, leaf).backward(weights)

            times = {name: median_ms(lambda e=e, leaf=leaf: both(e, leaf), rounds) for name, (e, leaf) in runs.items()}
            ratio = round(times["nerfstudio-style torch"] / times["numba"], 1)
            table[f"T = 2^{log2_size}, N = {points}"] = {**{f"{k}, ms": v for k, v in times.items()}, "numba is faster by": ratio}
    finally:
        torch.set_num_threads(threads)
        numba.set_num_threads(numba_threads)
    return table


def torch_indexing(config: HashGridConfig) -> Encode:
    """The usual torch hash encoding, as in nerfstudio: every level hashed, eight `table[index]` gathers, seven lerps."""
    scales = torch.tensor([float(int(config.coarsest * config.growth**level)) for level in range(config.levels)])
    size = 2**config.log2_size
    offsets = torch.arange(config.levels) * size
    primes = torch.tensor([1, 2654435761, 805459861])

    def hashed(corner: Tensor) -> Tensor:
        product = corner * primes
        return (product[..., 0] ^ product[..., 1] ^ product[..., 2]) % size + offsets

    def encode(points: Tensor, table: Tensor) -> Tensor:
        scaled = points[:, None] * scales.view(-1, 1)
        high, low = scaled.ceil().int(), scaled.floor().int()
        part = scaled - low
        corners = {}
        for i in range(8):
            picked = [(high if i >> axis & 1 else low)[..., axis] for axis in range(3)]
            corners[i] = table[hashed(torch.stack(picked, -1))]
        for axis in range(3):
            share = part[..., axis : axis + 1]
            corners = {i >> 1: corners[i] * (1 - share) + corners[i + 1] * share for i in sorted(corners) if i % 2 == 0}
        return corners[0].flatten(-2)

    return encode


def _peak_memory() -> int:
    """The GPU's where there is one, else the process's."""
    import resource

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
