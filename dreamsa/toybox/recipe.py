"""The whole recipe of the embedded models, stage by stage: `dreamsa toybox train FOLDER`.

pictures -> text (contrastive text tower) -> autoencoder -> diffusion -> FOLDER/toybox-sd; judge -> FOLDER/toybox-clip.
Every stage goes on where an earlier call stopped, and a finished stage is not run again.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false, reportReturnType=false
# (decorators of diffusers and transformers hide their own types)

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from dreamsa import __version__
from dreamsa.export.video import contact_sheet, write_png
from dreamsa.guidance.prompts import VIEWS
from dreamsa.guidance.stable_diffusion import VOCABULARY
from dreamsa.toybox.autoencoder import encode_pictures, new_autoencoder, reconstruction_psnr, train_autoencoder
from dreamsa.toybox.captions import HELD_OUT, caption
from dreamsa.toybox.dataset import Pictures, cached_pictures
from dreamsa.toybox.diffusion import assemble, new_unet, sample, train_diffusion
from dreamsa.toybox.dual_encoder import load_dual_encoder, new_dual_encoder, train_dual_encoder
from dreamsa.toybox.fit import FitConfig, FitStep, draw_losses
from dreamsa.toybox.renderer import to_uint8
from dreamsa.toybox.shapes import COLOURS, TOYS
from dreamsa.toybox.tokenizer import new_tokenizer

Stage = Literal["all", "pictures", "text", "autoencoder", "diffusion", "judge"]

STEPS: dict[str, int] = {"text": 1500, "autoencoder": 3500, "diffusion": 12_000, "judge": 7500}
LEARNING_RATES: dict[str, float] = {"text": 1e-3, "autoencoder": 2e-3, "diffusion": 6e-4, "judge": 1e-3}


def fit_config(stage: str, steps: int | None) -> FitConfig:
    """The recipe's settings of one stage."""
    ema, warmup = (0.9995, 300) if stage == "diffusion" else (0.999, 200)
    return FitConfig(steps or STEPS[stage], LEARNING_RATES[stage], warmup, ema, bfloat16=True)


def train_toybox(
    folder: Path, stage: Stage, steps: int | None, pictures: int, seed: int, device: str, start: Path | None = None
) -> Iterator[str]:
    """Run one stage, or all in order; yields lines that tell how it goes.

    Args:
        start: A folder with a finished `toybox-sd` and `toybox-clip`, such as `assets`: the autoencoder is taken as it is; the UNet, its
            text tower and the judge go on from their weights.

    Raises:
        ValueError: A stage whose inputs are not there yet.
    """
    if not 1 <= pictures <= 10_000_000:
        raise ValueError(f"pictures must lie in [1, 10000000], got {pictures}.")
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    stages: Iterable[str] = ("pictures", "text", "autoencoder", "diffusion", "judge") if stage == "all" else (stage,)
    if start is not None:
        for name, file in (("toybox-sd", "model_index.json"), ("toybox-clip", "config.json")):
            if not (start / name / file).is_file():
                raise ValueError(f"There is no finished model to start from at {start / name}. Give a folder that holds {name}.")
        if stage in ("text", "autoencoder"):
            raise ValueError(f"With --start the stage {stage} is taken from {start}; there is nothing to train. Leave one of the two out.")
        stages = [one for one in stages if one not in ("text", "autoencoder")]
    for one in stages:
        yield f"{one}: starts"
        if one == "pictures":
            yield f"pictures: {len(_pictures(folder, pictures, seed))} rendered"
        elif one == "text":
            yield from _dual_encoder(
                folder / "text", "text", _pictures(folder, pictures, seed), steps, seed, where, folder / "text" / "final"
            )
        elif one == "autoencoder":
            yield from _autoencoder(folder, _pictures(folder, pictures, seed), steps, seed, where)
        elif one == "diffusion":
            yield from _diffusion(folder, _pictures(folder, pictures, seed), steps, seed, where, start and start / "toybox-sd")
        else:
            renders = cached_pictures(folder / "pictures", pictures, seed + 1, judge=True)
            out, before = folder / "toybox-clip", start and start / "toybox-clip"
            yield from _dual_encoder(folder / "judge", "judge", renders, steps, seed + 1, where, out, before)


def _pictures(folder: Path, count: int, seed: int) -> Pictures:
    return cached_pictures(folder / "pictures", count, seed)


def _told(folder: Path, stage: str, steps: Iterable[FitStep]) -> Iterator[str]:
    for at in steps:
        if at.step % 100 == 0:
            yield f"{stage}: step {at.step}, loss {at.loss:.4f}, {at.seconds:.2f} s a step"
        if at.step % 500 == 0:
            draw_losses(folder)
    if (folder / "log.jsonl").exists():
        yield f"{stage}: losses drawn in {draw_losses(folder)}"


def _dual_encoder(
    folder: Path, stage: str, pictures: Pictures, steps: int | None, seed: int, device: torch.device, out: Path, start: Path | None = None
) -> Iterator[str]:
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(start) if start else new_tokenizer()
    model = (load_dual_encoder(start) if start else new_dual_encoder(tokenizer)).to(device)
    yield from _told(folder, stage, train_dual_encoder(folder, model, tokenizer, pictures, fit_config(stage, steps), seed))
    model.to("cpu", torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    yield f"{stage}: written to {out}"


def _autoencoder(folder: Path, pictures: Pictures, steps: int | None, seed: int, device: torch.device) -> Iterator[str]:
    torch.manual_seed(seed)
    model = new_autoencoder().to(device)
    config = fit_config("autoencoder", steps)
    yield from _told(
        folder / "autoencoder", "autoencoder", train_autoencoder(folder / "autoencoder", model, pictures, config, seed, batch=16)
    )
    model.cpu().save_pretrained(folder / "autoencoder" / "final")
    yield f"autoencoder: reconstructs with {reconstruction_psnr(model, pictures, seed):.1f} dB"


def _ingredients(folder: Path, start: Path | None) -> tuple[CLIPTokenizer, CLIPTextModel, AutoencoderTiny, UNet2DConditionModel]:
    """Text tower and autoencoder of the earlier stages and a new UNet; or all of them from a finished model."""
    if start is not None:
        return (
            CLIPTokenizer.from_pretrained(start, subfolder="tokenizer"),
            CLIPTextModel.from_pretrained(start, subfolder="text_encoder", dtype=torch.float32),
            AutoencoderTiny.from_pretrained(start, subfolder="vae", torch_dtype=torch.float32),
            UNet2DConditionModel.from_pretrained(start, subfolder="unet", torch_dtype=torch.float32),
        )
    for needed in ("text", "autoencoder"):
        if not (folder / needed / "final").is_dir():
            raise ValueError(f"The stage diffusion needs the stage {needed} first: dreamsa toybox train {folder} --stage {needed}")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "text" / "final")
    return (
        tokenizer,
        load_dual_encoder(folder / "text" / "final").text_model,
        AutoencoderTiny.from_pretrained(folder / "autoencoder" / "final"),
        new_unet(),
    )


def _cached_latents(folder: Path, autoencoder: AutoencoderTiny, pictures: Pictures, seed: int, copies: int = 2) -> torch.Tensor:
    """Latents of every picture over `copies` backgrounds, float16 [copies * n, 8, 16, 16]; kept under a name that tells what they came from."""
    weights = b"".join(value.float().cpu().numpy().tobytes() for value in autoencoder.state_dict().values())
    path = folder / f"{len(pictures)}-{seed}-{hashlib.sha256(weights).hexdigest()[:12]}.safetensors"
    if not path.exists():
        latents = torch.cat([encode_pictures(autoencoder, pictures, seed + i) for i in range(copies)])
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"latents": latents}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return load_file(path)["latents"]


def _diffusion(
    folder: Path, pictures: Pictures, steps: int | None, seed: int, device: torch.device, start: Path | None = None
) -> Iterator[str]:
    torch.manual_seed(seed)
    tokenizer, text_encoder, autoencoder, unet = _ingredients(folder, start)
    latents = _cached_latents(folder / "latents", autoencoder, pictures, seed)
    scale = float(latents.float().std())
    autoencoder.register_to_config(scaling_factor=1 / scale)
    yield f"diffusion: {len(latents)} latents with standard deviation {scale:.3f}"
    scaled, labels = (latents.float() / scale).half(), np.concatenate([pictures.labels] * 2)
    towers = (unet.to(device), text_encoder.to(device), tokenizer)
    config = fit_config("diffusion", steps)
    yield from _told(folder / "diffusion", "diffusion", train_diffusion(folder / "diffusion", *towers, scaled, labels, config, seed))
    out = folder / "toybox-sd"
    pipeline = assemble(tokenizer, text_encoder.cpu(), autoencoder.half(), unet.cpu().half())
    pipeline.save_pretrained(out)  # the text tower in float32: transformers keeps a file's dtype where diffusers makes it float32
    for path in out.glob("*/config.json"):  # diffusers notes where it loaded a part from; nobody else has that folder
        facts = json.loads(path.read_text())
        facts.pop("_name_or_path", None)
        path.write_text(json.dumps(facts, indent=2) + "\n")
    words = {"objects": list(TOYS), "colours": [*COLOURS, "black", "gray"], "held_out": [f"{c} {n}" for c, n in sorted(HELD_OUT)]}
    (out / VOCABULARY).write_text(json.dumps({**words, "version": __version__, "seed": seed}, indent=2) + "\n")
    texts = [caption(name, view=view) for name in TOYS for view in VIEWS]
    images = sample(StableDiffusionPipeline.from_pretrained(out, safety_checker=None, dtype=torch.float32), texts, seed)
    write_png(contact_sheet(to_uint8(images), columns=24), folder / "samples.png")
    yield f"diffusion: written to {out}; one picture of every object and view in {folder / 'samples.png'}"
