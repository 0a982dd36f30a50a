"""`dreamsa bench`: times of a step, of its parts, and of two runs side by side.

Medians and ratios, measured in alternation or in one process, because machines are shared.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numba
import torch
from torch import Tensor

from dreamsa.config import HashGridConfig, RunConfig
from dreamsa.device import resolve_device
from dreamsa.fields.backends import resolve_backend
from dreamsa.fields.encode_numba import encode_numba
from dreamsa.fields.encode_torch import encode_torch
from dreamsa.fields.layout import PRIMES, Encode, Layout
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.stable_diffusion import StableDiffusion
from dreamsa.presets import preset
from dreamsa.rendering.cameras import camera_rays
from dreamsa.rendering.kernels import kernels_for, resolve_kernels
from dreamsa.rendering.volume import march
from dreamsa.settings import with_overrides
from dreamsa.train import Training, draw_views, new_training, sds_step


def median_ms(run: Callable[[], Any], rounds: int) -> float:
    """Median wall-clock time of `run` in ms, including GPU work, after a warm-up call."""
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
    """Time a step of the preset toybox, its parts, two runs side by side, and the hash grids.

    Args:
        overrides: Settings of the steps, as `with_overrides` takes them.

    Raises:
        ValueError: `steps` is out of range, or a setting is wrong.
    """
    if not 3 <= steps <= 10_000:
        raise ValueError(f"steps must lie in [3, 10000], got {steps}.")
    return {
        "step": bench_step(steps, overrides or {}),
        "two runs side by side": bench_side_by_side(2 * steps, overrides or {}),
        "hash grid, 1 thread": bench_hash_grids(max(steps // 6, 3)),
        "threads": torch.get_num_threads(),
    }


def _rabbit(overrides: dict[str, Any]) -> tuple[Training, StableDiffusion, ViewPrompt]:
    """A run of "a rabbit" before its first step."""
    config: RunConfig = with_overrides(preset("toybox", "a rabbit"), overrides)
    device = resolve_device(config.device)
    score = StableDiffusion.load(config.model, device)
    return new_training(config, device), score, ViewPrompt(score, config.prompt)


def bench_step(steps: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Median times of a step and of its parts, with the scene after `steps` steps."""
    training, score, prompt = _rabbit(overrides)
    total = median_ms(lambda: sds_step(training, score, prompt), steps)
    parts = _parts_of(training, score, prompt)
    samples = parts.pop("samples")()
    times = {name: median_ms(run, steps) for name, run in parts.items()}
    rendering = times["marching"] + times["compositing, with backward"]
    config, device = training.config, score.alpha_bar.device
    backend, _ = resolve_backend(config.field.backend, device)
    kernels, _ = resolve_kernels(device, config.render.kernels)
    return {
        "whole step, ms": total,
        "hash grid, renderer": f"{backend}, {kernels}",
        "samples": samples,
        **{f"{name}, ms": value for name, value in times.items()},
        "marching and compositing, fraction of the step": round(rendering / total, 3),
        "peak memory, MB": _peak_memory(),
    }


def _parts_of(
    training: Training, score: StableDiffusion, prompt: ViewPrompt
) -> dict[str, Callable[[], Any]]:
    """The parts of a step as functions, and their number of samples."""
    scene, config, device = training.scene, training.config, score.alpha_bar.device
    size = config.camera.resolution
    draw = draw_views(config, training.step, 1000).to(device)
    rays = camera_rays(draw.cameras, size, size)
    origins, directions = (values.reshape(-1, 3) for values in rays)
    jitter, step = draw.jitter.reshape(-1), config.render.step(config.field.radius)
    kernels = kernels_for(device, config.render.kernels)
    samples = march(scene.occupancy, origins, directions, step, jitter, kernels)
    density, rgb = (value.detach() for value in scene.field.query(samples.points))
    image = torch.rand(1, 3, size, size, device=device)
    latents = score.encode(image)
    condition = prompt(draw.cameras.azimuth_deg, draw.cameras.elevation_deg)
    texts = condition.texts(("negative", "positive"))

    def field() -> None:
        out = scene.field.query(samples.points)
        (out.density.sum() + out.rgb.sum()).backward()

    def composite() -> None:
        values = torch.cat([rgb, rgb], 1).requires_grad_()
        optical_depth = density.requires_grad_() * step
        kernels.composite(optical_depth, values, samples.starts).sum().backward()

    return {
        "samples": lambda: len(samples.t_mid),
        "UNet, both halves of guidance": lambda: score.predict_noise(
            latents, draw.timesteps, texts
        ),
        "image to latents, with backward": lambda: (
            score.encode(image.requires_grad_()).sum().backward()
        ),
        "field, with backward": field,
        "marching": lambda: march(scene.occupancy, origins, directions, step, jitter, kernels),
        "compositing, with backward": composite,
        "optimizer": training.optimizer.step,
    }


def bench_side_by_side(steps: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Median times of a step of one run alone, and of each of two runs at the same time."""
    (alone,) = _timed_runs(1, steps, overrides)
    both = _timed_runs(2, steps, overrides)
    return {
        "alone, ms": alone,
        "each of two, ms": ", ".join(f"{ms:g}" for ms in both),
        "ratio": round(statistics.mean(both) / alone, 2),
    }


def _timed_runs(count: int, steps: int, overrides: dict[str, Any]) -> list[float]:
    """Time `count` runs that begin together, in processes with the thread policy of the CLI."""
    command = [sys.executable, "-m", "dreamsa.studies.speed", str(steps), json.dumps(overrides)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    runs: list[Any] = [
        subprocess.Popen(command, env=environment, text=True, **pipes) for _ in range(count)
    ]
    try:
        for run in runs:
            if run.stdout.readline() != "ready\n":
                raise RuntimeError(f"A timed run failed: {run.stderr.read().strip()[-300:]}")
        for run in runs:
            run.stdin.write("start\n")
            run.stdin.flush()
        return [float(run.stdout.readline()) for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.communicate()


def _time_steps(steps: int, overrides: dict[str, Any]) -> None:
    """Warm up, wait for a line on stdin, and print the median time of a step in ms."""
    training, score, prompt = _rabbit(overrides)
    sds_step(training, score, prompt)
    print("ready", flush=True)
    sys.stdin.readline()
    print(median_ms(lambda: sds_step(training, score, prompt), steps), flush=True)


def bench_hash_grids(rounds: int, points: int = 65_536) -> dict[str, Any]:
    """Forward and backward of 16 levels on one thread: numba against nerfstudio's encoding."""
    threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    try:
        return {
            f"T = 2^{log2_size}, N = {points}": _hash_grid_times(log2_size, rounds, points)
            for log2_size in (15, 17)
        }
    finally:
        torch.set_num_threads(threads)
        numba.set_num_threads(numba_threads)


def _hash_grid_times(log2_size: int, rounds: int, points: int) -> dict[str, Any]:
    layout = Layout(HashGridConfig(levels=16, log2_size=log2_size, coarsest=16, finest=4096))
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(points, 3, generator=rng)
    upstream = torch.randn(points, layout.width, generator=rng)
    hashed = torch.randn(layout.config.levels * 2**log2_size, 2, generator=rng).requires_grad_()
    dense = torch.randn(layout.entries, 2, generator=rng).requires_grad_()
    encodings = {
        "nerfstudio-style torch": (torch_indexing(layout), hashed),
        "reference torch": (encode_torch(layout), dense),
        "numba": (encode_numba(layout), dense),
    }

    def both(encode: Encode, table: Tensor) -> None:
        table.grad = None
        encode(x, table).backward(upstream)

    times = {
        name: median_ms(lambda pair=pair: both(*pair), rounds) for name, pair in encodings.items()
    }
    ratio = round(times["nerfstudio-style torch"] / times["numba"], 1)
    return {**{f"{name}, ms": ms for name, ms in times.items()}, "numba is faster by": ratio}


def torch_indexing(layout: Layout) -> Encode:
    """The usual torch hash encoding, as in nerfstudio: every level hashed, eight `table[index]`
    gathers, seven interpolations."""
    config = layout.config
    scales = [float(int(config.coarsest * layout.growth**level)) for level in range(config.levels)]
    scale = torch.tensor(scales).view(-1, 1)
    size = 2**config.log2_size
    offsets, primes = torch.arange(config.levels) * size, torch.tensor(PRIMES)

    def hashed(corner: Tensor) -> Tensor:
        product = corner * primes
        return (product[..., 0] ^ product[..., 1] ^ product[..., 2]) % size + offsets

    def encode(points: Tensor, table: Tensor) -> Tensor:
        scaled = points[:, None] * scale
        high, low = scaled.ceil().int(), scaled.floor().int()
        fraction = scaled - low
        corners = {}
        for i in range(8):
            picked = [(high if i >> axis & 1 else low)[..., axis] for axis in range(3)]
            corners[i] = table[hashed(torch.stack(picked, -1))]
        for axis in range(3):
            weight = fraction[..., axis : axis + 1]
            corners = {
                i >> 1: corners[i] * (1 - weight) + corners[i + 1] * weight
                for i in sorted(corners)
                if i % 2 == 0
            }
        return corners[0].flatten(-2)

    return encode


def _peak_memory() -> int:
    """The GPU's if there is one, else the process's."""
    import resource

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    _time_steps(int(sys.argv[1]), json.loads(sys.argv[2]))
