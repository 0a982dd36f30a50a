"""`dreamsa benchmark distillation --latents`: does a method average, or do an object's views
disagree?

One latent per view is optimized without a NeRF, so that nothing joins the views. If they are grey,
the objective averages; if each is a valid colour but another one, the views disagree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, max_pool2d

from dreamsa import job
from dreamsa.choices import VIEWS
from dreamsa.config import RunConfig
from dreamsa.device import resolve_device
from dreamsa.distill.timesteps import sample_timesteps
from dreamsa.evaluation.colour import colour_error, colour_spread, mean_lab, nearest_colour
from dreamsa.evaluation.judge import Judge
from dreamsa.evaluation.scores import describe, named
from dreamsa.evaluation.views import AZIMUTHS, QUARTERS, fixed_cameras, strip, valid_views
from dreamsa.files import write_atomic, write_json
from dreamsa.guidance.noise import Latents
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.score_model import ScoreModel
from dreamsa.guidance.stable_diffusion import StableDiffusion
from dreamsa.media import Images, write_png
from dreamsa.pool import Stop, default_workers, each
from dreamsa.randomness import generator_for
from dreamsa.rendering.cameras import Cameras
from dreamsa.rendering.volume import Image
from dreamsa.statistics import student_mean
from dreamsa.studies.distillation_plan import DistillationBenchmark, DistillationTrial
from dreamsa.studies.methods import method_of
from dreamsa.studies.plans import Result, result_of
from dreamsa.studies.report import figure, image, interval, page, table
from dreamsa.studies.trials import shared_judge
from dreamsa.train import Draw, distill

LR = 0.05
"""Of Adam, falling to a tenth by a cosine."""
STEPS = 300
"""By default."""
BORDER = 2
"""Pixels by which the true silhouette shrinks before colours are compared: the model chooses its
own framing."""


def benchmark_latents(
    benchmark: DistillationBenchmark, *, workers: int | None = None, stop: Stop = lambda: False
) -> Iterator[str]:
    """Optimize latents of four views for every method, object and seed, and judge them.

    Yields a line per trial as it finishes, and last the path of the report. The same call resumes a
    stopped benchmark; a trial that was under way begins again. FOLDER/latents/report.html opens
    without a network; results.json holds its numbers.

    Raises:
        ValueError: The folder holds another benchmark or is not writable, or a setting is wrong.
    """
    for trial in benchmark.trials[: len(benchmark.methods) * len(benchmark.subjects)]:
        job.check(trial.config)
    benchmark = replace(benchmark, folder=benchmark.folder / "latents")
    benchmark.keep()
    return _benchmark(benchmark, workers or default_workers(), stop)


def _benchmark(benchmark: DistillationBenchmark, workers: int, stop: Stop) -> Iterator[str]:
    due = benchmark.due
    yield f"{len(benchmark.trials)} trials; {len(due)} of them are to be done"
    for i, result in enumerate(each(run_latents, due, workers, stop), 1):
        names = ", ".join(view["judge"] for view in result["views"])
        head = f"{result['method']}, seed {result['seed']}: {result['prompt']}"
        yield f"trial {i}/{len(due)}: {head}: {names}"
    if any(benchmark.results.values()):
        yield str(write_latents(benchmark))


def gradient(
    config: RunConfig,
    step: int,
    score: ScoreModel,
    prompt: ViewPrompt,
    cameras: Cameras,
    latents: Latents,
) -> Latents:
    """The gradient of the configured method in the latents of views that show nothing but it."""
    rng, count = generator_for(config.seed, step, "latents"), len(latents)
    timesteps = sample_timesteps(
        config.distill, step, config.steps, count, rng, len(score.alpha_bar)
    )
    noise = torch.randn(latents.shape, generator=rng).to(latents)
    unused, opaque = torch.zeros(count, 3), torch.ones(count, *latents.shape[-2:])
    draw = Draw(cameras, opaque, unused, unused, timesteps)
    rgb, zero = opaque[:, None].expand(-1, 3, -1, -1), torch.zeros(())
    views = Image(rgb, opaque.to(latents), opaque, zero, zero, 0)
    return distill(config, step, score, prompt, draw, views, latents, noise)[0]


def optimized_latents(
    config: RunConfig,
    score: ScoreModel,
    prompt: ViewPrompt,
    cameras: Cameras,
    shape: Sequence[int],
    stop: Stop = lambda: False,
) -> Latents | None:
    """Latents [views, *shape] after `config.steps` steps of Adam from Gaussian noise; None if
    stopped."""
    rng = generator_for(config.seed, 0, "first latents")
    latents = torch.randn(len(cameras), *shape, generator=rng).to(score.alpha_bar.device)
    optimizer = torch.optim.Adam([latents], lr=LR)
    for step in range(config.steps):
        if stop():
            return None
        rate = 0.55 + 0.45 * cos(pi * step / config.steps)
        optimizer.param_groups[0]["lr"] = LR * rate
        latents.grad = gradient(config, step, score, prompt, cameras, latents)
        optimizer.step()
    return latents


@torch.no_grad()
def decode(score: Any, latents: Latents) -> Images:
    """Images in [0, 1] of a Stable Diffusion's latents, on the CPU."""
    vae = score.vae
    decoded = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1).cpu()


def run_latents(trial: DistillationTrial, stop: Stop = lambda: False) -> Result | None:
    """Run a trial and judge it; None if stopped. A finished one does not run again."""
    done = result_of(trial.folder)
    if done is not None:
        return done
    trial.folder.mkdir(parents=True, exist_ok=True)
    config, _ = job.check(trial.config)
    device = resolve_device(config.device)
    score = StableDiffusion.shared(config.model, device)
    texts = config.prompt, config.negative_prompt
    prompt = ViewPrompt(score, *texts, config.views, config.distill.bridge_words)
    cameras = fixed_cameras(config.camera, QUARTERS)
    shape = score.encode(torch.zeros(1, 3, *(config.camera.resolution,) * 2, device=device)).shape
    latents = optimized_latents(config, score, prompt, cameras, shape[1:], stop)
    if latents is None:
        return None
    images = decode(score, latents)
    write_png(strip(images), trial.folder / "views.png")
    judge = shared_judge(trial.recipe.judge)
    result = {**trial.facts, "steps": config.steps, **judged(judge, images, trial)}
    write_json(trial.folder / "result.json", result)
    return result


def judged(judge: Judge, images: Images, trial: DistillationTrial) -> dict[str, Any]:
    """The judge's names, nearest valid colours and mean colours of images from QUARTERS.

    Colours are compared inside the true silhouette, as an image without a scene has none.
    """
    name, colour = trial.subject.name, trial.subject.colour
    truths = valid_views(trial.config.camera, name, colour)
    own = torch.tensor([AZIMUTHS.index(azimuth) for azimuth in QUARTERS])
    inside = shrunk(truths[0].opacity[own]) > 0.5
    verdict, views, labs = judge(images), [], []
    small = adaptive_avg_pool2d(images, truths[0].rgb.shape[-1])
    sides = ("front", "side", "back", "side")
    for i, words in enumerate(describe(judge, images)):
        one, mask = small[i : i + 1], inside[i : i + 1]
        targets = (truth.rgb[own][i : i + 1] for truth in truths)
        nearest = nearest_colour([colour_error(one, target, mask) for target in targets])
        lab = mean_lab(one, mask)
        labs += [] if lab is None else [lab]
        found = named(words)
        views.append(
            {
                "azimuth_deg": QUARTERS[i],
                "judge": words,
                "object_right": found.object == name,
                "colour_right": None if colour is None else found.colour == colour,
                "view_right": VIEWS[int(verdict.views[i].argmax())] == sides[i],
                "colour_error": nearest.error,
                "colour_variant": nearest.variant,
                "colour_margin": nearest.margin,
                "chroma": None if lab is None else (lab[1] ** 2 + lab[2] ** 2) ** 0.5,
            }
        )
    return {"views": views, "colour_spread": colour_spread(labs)}


def shrunk(mask: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """A mask without the BORDER pixels at its rim."""
    return -max_pool2d(-mask[:, None], 2 * BORDER + 1, stride=1, padding=BORDER)[:, 0]


COLUMNS = {
    "object_right": "object right",
    "colour_right": "colour right",
    "view_right": "view right",
    "colour_error": "colour error",
    "chroma": "chroma",
}


def write_latents(benchmark: DistillationBenchmark) -> Path:
    """Write FOLDER/report.html and results.json from the finished trials."""
    results = {method: own for method, own in benchmark.results.items() if own}
    trials = [result for own in results.values() for result in own]
    write_json(benchmark.folder / "results.json", {"trials": trials})
    rows = []
    for method, own in results.items():
        cells = []
        for column in COLUMNS:
            views = [[view[column] for view in result["views"]] for result in own]
            known = [[float(v) for v in one if v is not None] for one in views]
            cells.append(interval(student_mean([sum(v) / len(v) for v in known if v]), 2))
        spread = [r["colour_spread"] for r in own if r["colour_spread"] is not None]
        about = f"<b>{escape(method)}</b> {escape(method_of(method).title)}"
        rows.append([about, str(len(own)), *cells, interval(student_mean(spread), 1)])
    head = ["method", "trials", *COLUMNS.values(), "colour spread over the views"]
    parts = [
        "<p>One latent per view, without a NeRF. Large colour errors with small chroma: the "
        "objective averages. Small errors with a large spread: the views disagree.</p>",
        table(head, rows),
        "<h2>Every trial</h2>",
        *_gallery(benchmark),
    ]
    path = benchmark.folder / "report.html"
    write_atomic(path, page("Latents without a NeRF", parts).encode())
    return path


def _gallery(benchmark: DistillationBenchmark) -> Iterator[str]:
    for trial in sorted(benchmark.trials, key=lambda t: benchmark.subjects.index(t.subject)):
        result = result_of(trial.folder)
        if result is not None:
            names = ", ".join(
                f"{view['judge']} {view['colour_error'] or 0:.0f}" for view in result["views"]
            )
            head = f"<b>{escape(trial.method)}</b>, {escape(trial.subject.prompt)}, {trial.seed}"
            caption = f"{head}<br><small>{escape(names)}</small>"
            yield figure(caption, image(trial.folder / "views.png", f"views of {result['prompt']}"))
