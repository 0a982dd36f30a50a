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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float16
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from dreamsa.choices import Stage
from dreamsa.files import write_atomic, write_json
from dreamsa.guidance.prompts import VIEW_ANGLES
from dreamsa.guidance.vocabulary import VOCABULARY
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
from dreamsa.toybox.dual_encoder import (
    load_dual_encoder,
    new_dual_encoder,
    text_encoder_with,
    train_dual_encoder,
    with_vocabulary,
)
from dreamsa.toybox.fit import FitConfig, FitStep, draw_losses
from dreamsa.toybox.shapes import COLOURS, TOYS
from dreamsa.toybox.tokenizer import new_tokenizer
from dreamsa.version import __version__

STAGES: tuple[Stage, ...] = ("pictures", "text", "autoencoder", "diffusion", "judge")
STEPS = {"text": 1500, "autoencoder": 3500, "diffusion": 12_000, "judge": 7500}
LEARNING_RATES = {"text": 1e-3, "autoencoder": 2e-3, "diffusion": 6e-4, "judge": 1e-3}
BATCHES = {"text": 64, "autoencoder": 16, "diffusion": 32, "judge": 64}


@dataclass(frozen=True)
class TrainingOptions:
    """How stages are trained."""

    steps: int | None = None
    """Optimizer steps of each stage; None is its own number, STEPS."""
    batch: int | None = None
    """Images per step; None is the stage's own number, BATCHES."""
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compile: bool = False
    """Compile the UNet first: a quarter faster on CPUs; needs a C++ compiler."""
    workers: int = 1
    """Processes that render the images."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    def fit_config(self, stage: str) -> FitConfig:
        ema, warmup = (0.9995, 300) if stage == "diffusion" else (0.999, 200)
        steps, rate = self.steps or STEPS[stage], LEARNING_RATES[stage]
        return FitConfig(steps, rate, warmup, ema, bfloat16=has_bfloat16(self.device))

    def batch_of(self, stage: str) -> int:
        return self.batch or BATCHES[stage]


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is fast: on GPUs, and on CPUs with AVX-512 BF16."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def train_toybox(
    folder: Path,
    stage: Stage,
    pictures: int,
    options: TrainingOptions,
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
    stages = STAGES if stage == "all" else (stage,)
    if start is not None:
        _check_start(start, stage)
        stages = [name for name in stages if name not in ("text", "autoencoder")]
    for name in stages:
        yield f"{name}: starts"
        judge = name == "judge"
        here = replace(options, seed=options.seed + judge)
        images = cached_images(
            folder / "pictures", pictures, here.seed, judge=judge, workers=here.workers
        )
        if name == "pictures":
            yield f"pictures: {len(images)} rendered"
        elif name == "text":
            out = folder / name / "final"
            yield from _dual_encoder(folder / name, images, here, out)
        elif name == "autoencoder":
            yield from _autoencoder(folder, images, here)
        elif name == "diffusion":
            finished = start and start / "toybox-sd"
            yield from _diffusion(folder, images, here, finished)
        else:
            out, finished = folder / "toybox-clip", start and start / "toybox-clip"
            yield from _dual_encoder(folder / name, images, here, out, finished)


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
    options: TrainingOptions,
    out: Path,
    start: Path | None = None,
) -> Iterator[str]:
    torch.manual_seed(options.seed)
    tokenizer = new_tokenizer()
    if start is None:
        model = new_dual_encoder(tokenizer)
    else:
        known = CLIPTokenizer.from_pretrained(start)
        model = with_vocabulary(load_dual_encoder(start), known, tokenizer)
    model.to(options.device)
    config, batch = options.fit_config(folder.name), options.batch_of(folder.name)
    training = train_dual_encoder(folder, model, tokenizer, images, config, options.seed, batch)
    yield from _progress(folder, training)
    model.to("cpu", torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    yield f"{folder.name}: written to {out}"


def _autoencoder(folder: Path, images: ImageSet, options: TrainingOptions) -> Iterator[str]:
    seed, folder = options.seed, folder / "autoencoder"
    torch.manual_seed(seed)
    model = new_autoencoder().to(options.device)
    config, batch = options.fit_config("autoencoder"), options.batch_of("autoencoder")
    yield from _progress(folder, train_autoencoder(folder, model, images, config, seed, batch))
    model.cpu().save_pretrained(folder / "final")
    yield f"autoencoder: reconstructs with {reconstruction_psnr(model, images, seed):.1f} dB"


def _parts(
    folder: Path, start: Path | None
) -> tuple[CLIPTokenizer, CLIPTextModel, AutoencoderTiny, UNet2DConditionModel]:
    """The parts of a finished model, or those of the earlier stages and a new UNet."""
    if start is not None:
        tokenizer, float32 = new_tokenizer(), {"torch_dtype": torch.float32}
        known = CLIPTokenizer.from_pretrained(start, subfolder="tokenizer")
        text = CLIPTextModel.from_pretrained(start, subfolder="text_encoder", dtype=torch.float32)
        return (
            tokenizer,
            text_encoder_with(text, known, tokenizer),
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
    folder: Path, images: ImageSet, options: TrainingOptions, start: Path | None = None
) -> Iterator[str]:
    seed = options.seed
    torch.manual_seed(seed)
    tokenizer, text_encoder, autoencoder, unet = _parts(folder, start)
    latents = _cached_latents(folder / "latents", autoencoder.to(options.device), images, seed)
    scale = float(latents.float().std())
    autoencoder.register_to_config(scaling_factor=1 / scale)
    yield f"diffusion: {len(latents)} latents with standard deviation {scale:.3f}"
    unet.to(options.device)
    if options.compile:
        unet.compile()
    training = train_diffusion(
        folder / "diffusion",
        unet,
        text_encoder.to(options.device),
        tokenizer,
        (latents.float() / scale).half(),
        np.concatenate([images.labels] * 2),
        options.fit_config("diffusion"),
        seed,
        options.batch_of("diffusion"),
    )
    yield from _progress(folder / "diffusion", training)
    out = folder / "toybox-sd"
    # the text encoder stays float32: transformers keeps a file's dtype, diffusers loads float32
    halves = autoencoder.cpu().half(), unet.cpu().half()
    pipeline = assemble(tokenizer, text_encoder.cpu(), *halves)
    _save_pipeline(pipeline, out, seed)
    loaded = StableDiffusionPipeline.from_pretrained(out, safety_checker=None, dtype=torch.float32)
    texts = [caption(name, angles=at) for name in TOYS for at in VIEW_ANGLES.values()]
    sheet = folder / "samples.png"
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
