"""The recipe of the embedded models, stage by stage: `dreamsa toybox train FOLDER`.

pictures -> text (contrastive text encoder) -> autoencoder -> diffusion -> FOLDER/toybox-sd;
judge -> FOLDER/toybox-clip. Each stage resumes where an earlier call stopped; finished stages do
not run again.
"""

# Decorators of diffusers and transformers hide types:
# pyright: reportArgumentType=false, reportReturnType=false

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float16
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from dreamsa.choices import VIEWS, Stage
from dreamsa.device import resolve_device
from dreamsa.files import write_atomic, write_json
from dreamsa.guidance.stable_diffusion import VOCABULARY
from dreamsa.media import contact_sheet, to_uint8, write_png
from dreamsa.toybox.autoencoder import (
    encode_images,
    new_autoencoder,
    reconstruction_psnr,
    train_autoencoder,
)
from dreamsa.toybox.captions import HELD_OUT, caption
from dreamsa.toybox.dataset import ImageSet, cached_images
from dreamsa.toybox.diffusion import assemble, new_unet, sample, train_diffusion
from dreamsa.toybox.dual_encoder import load_dual_encoder, new_dual_encoder, train_dual_encoder
from dreamsa.toybox.fit import FitConfig, FitStep, draw_losses
from dreamsa.toybox.shapes import COLOURS, TOYS
from dreamsa.toybox.tokenizer import new_tokenizer
from dreamsa.version import __version__

STAGES: tuple[Stage, ...] = ("pictures", "text", "autoencoder", "diffusion", "judge")
STEPS = {"text": 1500, "autoencoder": 3500, "diffusion": 12_000, "judge": 7500}
LEARNING_RATES = {"text": 1e-3, "autoencoder": 2e-3, "diffusion": 6e-4, "judge": 1e-3}


def fit_config(stage: str, steps: int | None) -> FitConfig:
    ema, warmup = (0.9995, 300) if stage == "diffusion" else (0.999, 200)
    return FitConfig(steps or STEPS[stage], LEARNING_RATES[stage], warmup, ema, bfloat16=True)


def train_toybox(
    folder: Path,
    stage: Stage,
    steps: int | None,
    pictures: int,
    seed: int,
    device: str,
    start: Path | None = None,
) -> Iterator[str]:
    """Run one stage, or all in order; yields lines of progress.

    Args:
        pictures: Number of training images.
        start: A folder with a finished `toybox-sd` and `toybox-clip`: keep its autoencoder, and
            continue from its other weights.

    Raises:
        ValueError: An argument is wrong, or the stage's inputs are missing.
    """
    if not 1 <= pictures <= 10_000_000:
        raise ValueError(f"pictures must lie in [1, 10000000], got {pictures}.")
    where = resolve_device(device)
    stages = STAGES if stage == "all" else (stage,)
    if start is not None:
        _check_start(start, stage)
        stages = [name for name in stages if name not in ("text", "autoencoder")]
    for name in stages:
        yield f"{name}: starts"
        judge = name == "judge"
        seed_here = seed + judge
        images = cached_images(folder / "pictures", pictures, seed_here, judge=judge)
        if name == "pictures":
            yield f"pictures: {len(images)} rendered"
        elif name == "text":
            out = folder / name / "final"
            yield from _dual_encoder(folder / name, images, steps, seed, where, out)
        elif name == "autoencoder":
            yield from _autoencoder(folder, images, steps, seed, where)
        elif name == "diffusion":
            finished = start and start / "toybox-sd"
            yield from _diffusion(folder, images, steps, seed, where, finished)
        else:
            out, finished = folder / "toybox-clip", start and start / "toybox-clip"
            yield from _dual_encoder(folder / name, images, steps, seed_here, where, out, finished)


def _check_start(start: Path, stage: str) -> None:
    for name, file in (("toybox-sd", "model_index.json"), ("toybox-clip", "config.json")):
        if not (start / name / file).is_file():
            raise ValueError(
                f"There is no finished model to start from at {start / name}. "
                f"Give a folder that holds {name}."
            )
    if stage in ("text", "autoencoder"):
        raise ValueError(
            f"With --start the stage {stage} is taken from {start}; there is nothing to train. "
            "Leave one of the two out."
        )


def _progress(folder: Path, steps: Iterable[FitStep]) -> Iterator[str]:
    for at in steps:
        if at.step % 100 == 0:
            yield f"{folder.name}: step {at.step}, loss {at.loss:.4f}, {at.seconds:.2f} s a step"
        if at.step % 500 == 0:
            draw_losses(folder)
    if (folder / "log.jsonl").exists():
        yield f"{folder.name}: losses plotted in {draw_losses(folder)}"


def _dual_encoder(
    folder: Path,
    images: ImageSet,
    steps: int | None,
    seed: int,
    device: torch.device,
    out: Path,
    start: Path | None = None,
) -> Iterator[str]:
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(start) if start else new_tokenizer()
    model = (load_dual_encoder(start) if start else new_dual_encoder(tokenizer)).to(device)
    config = fit_config(folder.name, steps)
    training = train_dual_encoder(folder, model, tokenizer, images, config, seed)
    yield from _progress(folder, training)
    model.to("cpu", torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    yield f"{folder.name}: written to {out}"


def _autoencoder(
    folder: Path, images: ImageSet, steps: int | None, seed: int, device: torch.device
) -> Iterator[str]:
    torch.manual_seed(seed)
    model, folder = new_autoencoder().to(device), folder / "autoencoder"
    config = fit_config("autoencoder", steps)
    yield from _progress(folder, train_autoencoder(folder, model, images, config, seed, batch=16))
    model.cpu().save_pretrained(folder / "final")
    yield f"autoencoder: reconstructs with {reconstruction_psnr(model, images, seed):.1f} dB"


def _parts(
    folder: Path, start: Path | None
) -> tuple[CLIPTokenizer, CLIPTextModel, AutoencoderTiny, UNet2DConditionModel]:
    """The parts of a finished model, or those of the earlier stages and a new UNet."""
    if start is not None:
        float32 = {"torch_dtype": torch.float32}
        return (
            CLIPTokenizer.from_pretrained(start, subfolder="tokenizer"),
            CLIPTextModel.from_pretrained(start, subfolder="text_encoder", dtype=torch.float32),
            AutoencoderTiny.from_pretrained(start, subfolder="vae", **float32),
            UNet2DConditionModel.from_pretrained(start, subfolder="unet", **float32),
        )
    for name in ("text", "autoencoder"):
        if not (folder / name / "final").is_dir():
            raise ValueError(
                f"The stage diffusion needs the stage {name} first: "
                f"dreamsa toybox train {folder} --stage {name}"
            )
    text = folder / "text" / "final"
    return (
        CLIPTokenizer.from_pretrained(text),
        load_dual_encoder(text).text_model,
        AutoencoderTiny.from_pretrained(folder / "autoencoder" / "final"),
        new_unet(),
    )


def _cached_latents(
    folder: Path, autoencoder: AutoencoderTiny, images: ImageSet, seed: int, copies: int = 2
) -> Float16[Tensor, "n 8 16 16"]:
    """Latents of all images over `copies` backgrounds, in a file named after weights and images."""
    state = autoencoder.state_dict().values()
    weights = b"".join(value.float().cpu().numpy().tobytes() for value in state)
    digest = hashlib.sha256(weights).hexdigest()[:12]
    path = folder / f"{len(images)}-{seed}-{digest}.safetensors"
    if not path.exists():
        latents = [encode_images(autoencoder, images, seed + i) for i in range(copies)]
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, partial(save_file, {"latents": torch.cat(latents)}))
    return load_file(path)["latents"]


def _diffusion(
    folder: Path,
    images: ImageSet,
    steps: int | None,
    seed: int,
    device: torch.device,
    start: Path | None = None,
) -> Iterator[str]:
    torch.manual_seed(seed)
    tokenizer, text_encoder, autoencoder, unet = _parts(folder, start)
    latents = _cached_latents(folder / "latents", autoencoder, images, seed)
    scale = float(latents.float().std())
    autoencoder.register_to_config(scaling_factor=1 / scale)
    yield f"diffusion: {len(latents)} latents with standard deviation {scale:.3f}"
    training = train_diffusion(
        folder / "diffusion",
        unet.to(device),
        text_encoder.to(device),
        tokenizer,
        (latents.float() / scale).half(),
        np.concatenate([images.labels] * 2),
        fit_config("diffusion", steps),
        seed,
    )
    yield from _progress(folder / "diffusion", training)
    out = folder / "toybox-sd"
    # the text encoder stays float32: transformers keeps a file's dtype, diffusers loads float32
    pipeline = assemble(tokenizer, text_encoder.cpu(), autoencoder.half(), unet.cpu().half())
    _save_pipeline(pipeline, out, seed)
    loaded = StableDiffusionPipeline.from_pretrained(out, safety_checker=None, dtype=torch.float32)
    texts, sheet = [caption(n, view=view) for n in TOYS for view in VIEWS], folder / "samples.png"
    write_png(contact_sheet(to_uint8(sample(loaded, texts, seed)), columns=24), sheet)
    yield f"diffusion: written to {out}; an image of every object and view in {sheet}"


def _save_pipeline(pipeline: StableDiffusionPipeline, out: Path, seed: int) -> None:
    """Save with the vocabulary, without the local paths that diffusers records."""
    pipeline.save_pretrained(out)
    for path in out.glob("*/config.json"):
        facts = json.loads(path.read_text())
        facts.pop("_name_or_path", None)
        write_json(path, facts)
    words = {
        "objects": list(TOYS),
        "colours": [*COLOURS, "black", "gray"],
        "held_out": [f"{colour} {name}" for colour, name in sorted(HELD_OUT)],
        "version": __version__,
        "seed": seed,
    }
    write_json(out / VOCABULARY, words)
