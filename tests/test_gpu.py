"""The whole tool on a CUDA device, against the same on the CPU: `make test-gpu`."""

from dataclasses import replace

import pytest
import torch

from dreamsa import api
from dreamsa.config import EditConfig, HashGridConfig
from dreamsa.fields.encode_torch import encode_torch
from dreamsa.fields.layout import Layout
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.stable_diffusion import StableDiffusion
from dreamsa.presets import preset
from dreamsa.rendering.cameras import orbit
from dreamsa.scene import Scene
from dreamsa.settings import with_overrides
from dreamsa.train import draw_views, new_training, sds_step
from train_cls.config import TrainConfig
from train_cls.data import DataConfig, load_splits
from train_cls.train import new_training as new_classifier
from train_cls.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_torch_encoding_is_the_same_on_both():
    layout = Layout(HashGridConfig())
    rng = torch.Generator().manual_seed(0)
    points, table = (
        torch.rand(4096, 3, generator=rng),
        torch.randn(layout.entries, 2, generator=rng),
    )
    encode = encode_torch(layout)
    torch.testing.assert_close(
        encode(points.cuda(), table.cuda()).cpu(), encode(points, table), atol=1e-5, rtol=1e-5
    )


def test_a_scene_looks_the_same_on_both():
    config = preset("toybox", "a rabbit")
    here, there = (
        Scene(config.field, config.render, 0, "cpu"),
        Scene(config.field, config.render, 0, "cuda"),
    )
    with torch.no_grad():
        here.field.table.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    here.refresh(0, 0, full=True)
    there.restore({name: value.cuda() for name, value in here.tensors().items()})
    cameras = orbit([0.0, 130.0])
    seen = [scene.view(cameras, 64, background=0.5) for scene in (here, there)]
    assert (seen[0].rgb - seen[1].rgb.cpu()).abs().mean() < 1e-3
    assert (seen[0].opacity - seen[1].opacity.cpu()).abs().mean() < 1e-3


def test_half_precision_guidance_points_where_single_precision_does():
    config = preset("toybox", "a rabbit")
    predicted = []
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=rng)
    draw = draw_views(config, 0, 1000)
    for device in ("cpu", "cuda"):
        score = StableDiffusion.load(config.model, device)
        condition = ViewPrompt(score, config.prompt)(
            draw.cameras.azimuth_deg.to(device), draw.cameras.elevation_deg.to(device)
        )
        latents, texts = score.encode(image.to(device)), condition.texts(("positive",))
        (noise,) = score.predict_noise(latents, draw.timesteps.to(device), texts)
        predicted.append(noise.cpu().flatten())
    assert torch.nn.functional.cosine_similarity(*predicted, dim=0) > 0.999


def test_a_replayed_unet_says_what_the_unet_says():
    """Other inputs than those of the capture, and another batch."""
    score = StableDiffusion.load(preset("toybox", "a rabbit").model, "cuda")
    rng = torch.Generator("cuda").manual_seed(0)
    for batch in (2, 2, 4):
        latents = torch.randn(
            batch,
            *score.encode(torch.rand(1, 3, 64, 64, device="cuda")).shape[1:],
            generator=rng,
            device="cuda",
        ).half()
        times = torch.randint(1000, (batch,), generator=rng, device="cuda")
        texts = score.embed(["a rabbit"] * batch).half()
        with torch.no_grad():
            torch.testing.assert_close(
                score._run_unet(latents, times, texts),
                score._unet_output(latents, times, texts),
                atol=2e-2,
                rtol=2e-2,
            )


def test_an_annealed_edit_runs_stops_and_goes_on(tmp_path):
    config = with_overrides(preset("toybox", "a rabbit"), {"steps": 40, "device": "cuda"})
    parent = api.generate(config=config, runs=tmp_path)
    assert [p.step for p in parent][-1] == 40
    job = api.edit(parent.run, "a purple rabbit", steps=20, ascent_steps=8, runs=tmp_path)
    for progress in job:
        if progress.step == 12:
            job.stop()
            break
    phases = [row["phase"] for row in job.run.metrics()]
    assert phases[0] == "ascend"
    for _ in api.resume(job.run):
        pass
    assert job.run.status == "finished"
    assert job.run.metrics()[-1]["phase"] == "descend"


def test_the_ascent_climbs_here_too():
    """With all else equal, the first ascending step moves the scene against the first descending
    one."""
    config = preset("toybox", "a rabbit")
    score = StableDiffusion.load(config.model, "cuda")
    moved = []
    for steps in (0, 3):
        edit = EditConfig("parent", ascent_steps=steps, scale=1.0)
        training = new_training(replace(config, edit=edit), "cuda")
        before = training.scene.field.table.detach().clone()
        sds_step(training, score, ViewPrompt(score, config.prompt))
        moved.append((training.scene.field.table.detach() - before).flatten())
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) < -0.9


@pytest.mark.parametrize(
    ("precision", "method"),
    [("float32", "seal"), ("float16", "seal"), ("bfloat16", "seal"), ("float32", "swa")],
)
def test_a_classifier_learns_digits(precision, method):
    config = TrainConfig(
        method=method,
        epochs=15,
        generations=2,
        batch=20,
        lr=0.05,
        precision=precision,
        device="cuda",
        model="preresnet-small",
        splits=DataConfig(per_class=20, validation=50),
    )
    splits = load_splits("digits", config.splits)
    training = new_classifier(config, splits.train)
    results = list(train(training, splits))
    assert results[-1].scores["test accuracy"] > 0.7
