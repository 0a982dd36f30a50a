"""Stable Diffusion as a score model: a folder, a single .safetensors file, or a Hub id.

Components are loaded by class, from safetensors only, and never with remote code; the names in a
model's `model_index.json` are ignored.
"""

import hashlib
import json
import os
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from dreamsa.assets import asset
from dreamsa.config import TOYBOX, ModelConfig
from dreamsa.device import resolve_device
from dreamsa.guidance.graph import Graphed
from dreamsa.guidance.noise import Latents, Timesteps, epsilon_from_v
from dreamsa.presets import KNOWN_MODELS, MODEL_ALIASES

COMPONENTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")

FORBIDDEN = {"auto_map", "quantization_config"}
"""Entries of a component's configuration that load code or further libraries."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelNotFound(ValueError):
    """There is no usable model; the message says what was found and what to do."""


def locate_model(config: ModelConfig) -> tuple[Literal["folder", "file", "hub"], str]:
    """Resolve `config.model` without loading it: ("folder", path), ("file", path) or ("hub", id).

    Raises:
        ModelNotFound: A missing path, a folder without a complete model, or neither path nor id.
    """
    name = MODEL_ALIASES.get(config.model, config.model)
    if name == TOYBOX:
        return "folder", str(_checked_folder(asset("toybox-sd")))
    path = Path(name).expanduser()
    if path.is_dir():
        return "folder", str(_checked_folder(path))
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelNotFound(
                f"{name} is a file of type {path.suffix or '(none)'}; "
                "only .safetensors files are read, never pickles."
            )
        return "file", str(path)
    if (
        name.startswith((".", "/", "~"))
        or name.count("/") != 1
        or path.suffix in {".safetensors", ".ckpt"}
        or (path.parent.is_dir() and str(path.parent) != ".")
    ):
        raise ModelNotFound(
            f"There is no model at {name!r}. Give a folder that diffusers can load, a .safetensors "
            f"file, {', '.join(MODEL_ALIASES)}, a Hub id such as {KNOWN_MODELS[0]}, or {TOYBOX!r} "
            "for the embedded model."
        )
    if not _HUB_ID.fullmatch(name):
        raise ModelNotFound(
            f"{name!r} is neither a path nor a Hub id (owner/name). "
            f"Use e.g. {KNOWN_MODELS[0]}, or {TOYBOX!r}."
        )
    return "hub", name


def absolute_paths(config: ModelConfig) -> ModelConfig:
    """The configuration with absolute paths of existing files and folders, and Hub ids in place of
    aliases.

    Hub ids and `toybox` stay.
    """

    def absolute(name: str | None) -> str | None:
        path = Path(name or "").expanduser()
        return str(path.resolve()) if name and path.exists() else name

    name = MODEL_ALIASES.get(config.model, config.model)
    model = name if name == TOYBOX else absolute(name)
    parts, encoder = absolute(config.parts), absolute(config.encoder)
    return replace(config, model=model, parts=parts, encoder=encoder)


def _checked_folder(folder: Path) -> Path:
    missing = [f"{part}/" for part in COMPONENTS if not (folder / part).is_dir()]
    if len(missing) == len(COMPONENTS):
        raise ModelNotFound(
            f"{folder} is not a Stable Diffusion model: it has none of {', '.join(missing)}."
        )
    if missing:
        raise ModelNotFound(
            f"{folder} is an incomplete Stable Diffusion model: {', '.join(missing)} missing. "
            "Copy the complete folder."
        )
    for part in COMPONENTS[1:4]:
        if not any((folder / part).glob("*.safetensors")):
            raise ModelNotFound(
                f"{folder / part} holds no .safetensors weights. "
                "Convert them; pickled weights are never read."
            )
    return folder


def weights_digest(config: ModelConfig) -> str | None:
    """Which weights a local model has: a SHA-256 of its files' names, sizes, headers and at least
    a hundred blocks, so that gigabytes are not read; of a Hub id, its revision."""
    kind, source = locate_model(config)
    if kind == "hub":
        return config.revision
    root = Path(source)
    files = [root] if kind == "file" else sorted(root.glob("*/*.safetensors"))
    if config.encoder and Path(config.encoder).is_dir():
        files += sorted(Path(config.encoder).glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in [0, *range(2**16, size, max(2**16, min(size // 100, 2**24)))]:
                file.seek(start)
                digest.update(file.read(2**16 if start == 0 else 4096))
    return digest.hexdigest()[:16]


@dataclass
class StableDiffusion:
    """A frozen Stable Diffusion with epsilon or v prediction."""

    tokenizer: Any
    text_encoder: Any
    vae: Any
    unet: Any
    scheduler: Any
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    offload: bool = False
    source: str = ""
    """Path or Hub id, for the run's record."""

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
            raise ModelNotFound(
                f"The model predicts {kind!r}; score distillation needs epsilon or v_prediction."
            )
        self.predicts_v = kind == "v_prediction"
        self.image_size = self.unet.config.sample_size * _downscaling(self.vae)
        graphed = self.device.type == "cuda" and not self.offload
        self._graphed = Graphed(self._unet_output) if graphed else None

    @classmethod
    def load(cls, config: ModelConfig, device: torch.device | str = "cpu") -> "StableDiffusion":
        """Load a model.

        Raises:
            ModelNotFound: There is no usable model, or the Hub lacks it or cannot be reached.
        """
        os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
        import diffusers

        _quieten()
        device = torch.device(device)
        auto = "float32" if device.type == "cpu" else "float16"
        dtype = getattr(torch, auto if config.dtype == "auto" else config.dtype)
        kind, source = locate_model(config)
        try:
            if kind == "file":
                parts = _single_file_parts(source, config, dtype)
            else:
                common: dict[str, Any] = {"local_files_only": config.offline or kind == "folder"}
                if kind == "hub":
                    common["revision"] = config.revision
                parts = _parts(source, common, dtype)
            if config.encoder:
                local = config.offline or Path(config.encoder).is_dir()
                parts["vae"] = diffusers.AutoencoderTiny.from_pretrained(
                    config.encoder, use_safetensors=True, dtype=dtype, local_files_only=local
                )
        except ModelNotFound:
            raise
        except Exception as error:  # libraries raise anything for files that they do not expect
            first = (str(error).strip().splitlines() or [""])[0]
            first = (
                first
                if isinstance(error, OSError | ValueError)
                else f"{type(error).__name__}: {first}"
            )
            if kind == "hub":
                first += f" Known ids: {', '.join(KNOWN_MODELS)}; a local folder needs no network."
            raise ModelNotFound(f"Cannot load the model {config.model!r}: {first}") from error
        if config.vae_slicing:
            parts["vae"].enable_slicing()
        return cls(**parts, device=device, offload=config.cpu_offload, source=source)

    @classmethod
    def shared(cls, config: ModelConfig, device: torch.device | str = "cpu") -> "StableDiffusion":
        """Like `load`, with a cache of one model per device, keyed on configuration and files."""
        device = resolve_device(str(device))
        with _loading:
            kind, source = locate_model(config)
            path = Path(source).resolve() if kind != "hub" else None
            files: list[Path] = []
            if path is not None:
                files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
            key = (config, path, tuple(file.stat().st_mtime_ns for file in files))
            cached = _shared.get(device)
            if cached is None or cached[0] != key:
                _shared.pop(device, None)
                del cached  # free the old model before the new one is loaded
                cached = _shared[device] = (key, cls.load(config, device))
            return cached[1]

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Float[Tensor, "n tokens width"]:
        """Text embeddings. Warns of texts that it truncates."""
        length = self.tokenizer.model_max_length
        for ids in self.tokenizer(texts, verbose=False).input_ids:
            if len(ids) > length:
                rest = self.tokenizer.decode(ids[length - 1 : -1]).strip()
                warnings.warn(
                    f"The text encoder reads {length - 2} tokens; "
                    f"this part of the prompt is ignored: {rest[:200]!r}",
                    stacklevel=2,
                )
        ids = self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids.to(self.device)).last_hidden_state

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float32[Tensor, "b c latent_h latent_w"]:
        """Scaled latents, differentiable in the images, which are resized to the model's size.

        Of an AutoencoderKL, the posterior's mean: its variance is far below any timestep's noise.
        """
        size = self.image_size
        if images.shape[-1] != size:
            images = torch.nn.functional.interpolate(
                images, (size, size), mode="bilinear", antialias=images.shape[-1] > size
            )
        encoded = self.vae.encode((images * 2 - 1).to(self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor

    def _unet_output(self, inputs: Tensor, timesteps: Tensor, texts: Tensor) -> Tensor:
        return self.unet(inputs, timesteps, texts).sample

    def _run_unet(self, inputs: Tensor, timesteps: Tensor, texts: Tensor) -> Tensor:
        if self._graphed is not None:
            return self._graphed(inputs, timesteps, texts)
        self.unet.to(self.device)
        out = self._unet_output(inputs, timesteps, texts)
        if self.offload:
            self.unet.to("cpu")
        return out

    @torch.no_grad()
    def predict_noise(
        self, noisy: Latents, timesteps: Timesteps, texts: Float[Tensor, "k b tokens width"]
    ) -> tuple[Latents, ...]:
        """One UNet call on all k times b inputs."""
        copies = len(texts)
        inputs, embeddings = torch.cat([noisy] * copies), texts.flatten(0, 1).to(self.unet.dtype)
        repeated = timesteps.repeat(copies)
        out = self._run_unet(inputs.to(self.unet.dtype), repeated, embeddings).float()
        if self.predicts_v:
            out = epsilon_from_v(out, inputs, self.alpha_bar[repeated])
        return out.chunk(copies)


_shared: dict[torch.device, tuple[Any, StableDiffusion]] = {}
_loading = Lock()


def read_json(path: Path) -> dict[str, Any]:
    """An object of a model's folder.

    Raises:
        ModelNotFound: It is damaged.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFound(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelNotFound(f"{path} must hold an object, found {type(found).__name__}.")
    return found


def _check_part(source: str, part: str, common: dict[str, Any]) -> None:
    """Check what a component's files ask of the libraries that read them.

    Raises:
        ModelNotFound: A shard is a pickle or lies outside the folder, or the configuration names
            code or a quantizer.
    """
    for path in _part_files(source, part, common):
        found = read_json(path)
        shards = found.get("weight_map", {})
        names = shards.values() if isinstance(shards, dict) else [shards]
        for name in names:
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
                raise ModelNotFound(
                    f"{path} names the shard {str(name)[:100]!r}; only .safetensors files in the "
                    "same folder are read, never pickles."
                )
        for key in FORBIDDEN & set(found):
            raise ModelNotFound(f"{path} asks for {key}, which is not supported: remove the entry.")


def _part_files(source: str, part: str, common: dict[str, Any]) -> list[Path]:
    """Configuration and index of shards of a component, from a folder or the Hub."""
    if Path(source).is_dir():
        folder = Path(source) / part
        return [p for p in (folder / "config.json", *folder.glob("*.index.json")) if p.is_file()]
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    found = []
    for name in ("config.json", f"{stem}.safetensors.index.json"):
        with suppress(EntryNotFoundError):
            found.append(Path(hf_hub_download(source, name, subfolder=part, **common)))
    return found


def _quieten() -> None:
    """Switch off what the libraries print while they load, unless the user has asked for it."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    if "DIFFUSERS_VERBOSITY" not in os.environ:
        of_diffusers.set_verbosity_error()


def _parts(source: str, common: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Components in diffusers' layout, from a folder or the Hub."""
    import diffusers
    import transformers

    for part in COMPONENTS[1:4]:
        _check_part(source, part, common)
    weights = {**common, "use_safetensors": True, "dtype": dtype}
    vae: Any = diffusers.AutoencoderKL.load_config(source, subfolder="vae", **common)
    tiny = vae["_class_name"] == "AutoencoderTiny"
    classes = {
        "tokenizer": transformers.CLIPTokenizer,
        "text_encoder": transformers.CLIPTextModel,
        "vae": diffusers.AutoencoderTiny if tiny else diffusers.AutoencoderKL,
        "unet": diffusers.UNet2DConditionModel,
        "scheduler": diffusers.DDIMScheduler,
    }
    ours = {**weights, "attn_implementation": "sdpa"}  # else a configuration's is obeyed
    options = {"tokenizer": common, "scheduler": common, "text_encoder": ours}
    return {
        name: kind.from_pretrained(source, subfolder=name, **options.get(name, weights))
        for name, kind in classes.items()
    }


def _single_file_parts(path: str, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The components of a .safetensors file in Stable Diffusion's original layout.

    Configurations and tokenizer come from `config.parts`, else from the Hub id that diffusers
    infers. Its pipeline loader imports names from `model_index.json` and contacts the Hub offline.
    """
    import diffusers
    import transformers
    from diffusers.loaders import single_file_utils as single_file
    from huggingface_hub import snapshot_download

    weights: Any = single_file.load_single_file_checkpoint(path)
    infer = single_file.fetch_diffusers_config
    folder = config.parts or infer(weights)["pretrained_model_name_or_path"]
    if not Path(folder).is_dir():
        folder = snapshot_download(
            folder, allow_patterns=["*.json", "*.txt"], local_files_only=config.offline
        )
    common: dict[str, Any] = {"local_files_only": True}
    convert: dict[str, Any] = {**common, "config": str(folder), "dtype": dtype}
    try:
        return {
            "tokenizer": transformers.CLIPTokenizer.from_pretrained(
                folder, subfolder="tokenizer", **common
            ),
            "text_encoder": single_file.create_diffusers_clip_model_from_ldm(
                transformers.CLIPTextModel, weights, "text_encoder", str(folder), dtype, **common
            ),
            "vae": diffusers.AutoencoderKL.from_single_file(weights, subfolder="vae", **convert),
            "unet": diffusers.UNet2DConditionModel.from_single_file(
                weights, subfolder="unet", **convert
            ),
            "scheduler": diffusers.DDIMScheduler.from_pretrained(
                folder, subfolder="scheduler", **common
            ),
        }
    except single_file.SingleFileComponentError as error:
        raise ValueError(str(error)) from error


def _downscaling(vae: Any) -> int:
    """Pixels per latent."""
    stages = getattr(vae.config, "block_out_channels", None)
    return 2 ** (len(stages or vae.config.encoder_block_out_channels) - 1)
