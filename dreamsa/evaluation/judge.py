"""Judges: CLIP-like dual encoders that score images and never guide.

The embedded one, `toybox`, was trained on other renders than the guidance; any CLIP model of
transformers (a folder or a Hub id) can replace it.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from dreamsa.assets import asset
from dreamsa.choices import VIEWS
from dreamsa.guidance.prompts import ANGLE_STEP_DEG
from dreamsa.media import Images
from dreamsa.toybox.shapes import COLOURS, TOYS

EMBEDDED = "toybox"
"""Name of the embedded judge."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Pixel normalisation of OpenAI's CLIP (arXiv:2103.00020)."""


class JudgeNotFound(ValueError):
    """No usable judge at the given place; the message says what was found and what to do."""


class Verdict(NamedTuple):
    """Probabilities per image; each row sums to 1."""

    objects: Float[Tensor, "b objects"]  # in the order of TOYS
    colours: Float[Tensor, "b colours"]  # in the order of COLOURS
    views: Float[Tensor, "b views"]  # in the order of VIEWS
    azimuths: Float[Tensor, "b azimuths"]  # 0 to 345 degrees; noise unless `names_azimuths`


@dataclass
class Judge:
    model: Any
    tokenizer: Any
    name: str = EMBEDDED
    size: int = 64
    """Side of the model's input images, pixels."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Pixels in [0, 1] become (pixel - mean) / std, per channel."""
    _text_cache: dict[tuple[str, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(cls, name: str | None = None) -> "Judge":
        """Load the embedded judge, a folder (a CLIP model of transformers, or one written by
        `dreamsa toybox train`), or a CLIP model by its Hub id, from safetensors only.

        Raises:
            JudgeNotFound: Missing, or not such a model.
        """
        from transformers import CLIPTokenizer

        from dreamsa.toybox.dual_encoder import load_dual_encoder

        name = name or EMBEDDED
        kind, where = locate_judge(name)
        if kind == "toybox":
            tokenizer = CLIPTokenizer.from_pretrained(where, local_files_only=True)
            return cls(load_dual_encoder(where), tokenizer, name)
        return _load_clip(where, name, local=kind == "folder")

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Float[Tensor, "n d"]:
        """Unit vectors, cached per list."""
        key = tuple(texts)
        if key not in self._text_cache:
            tokens = self.tokenizer(
                texts,
                padding="max_length",
                max_length=self.model.config.text_config.max_position_embeddings,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            parts = tokens.split(256)
            chunks = [self.model.get_text_features(part).pooler_output for part in parts]
            self._text_cache[key] = normalize(torch.cat(chunks), dim=-1)
        return self._text_cache[key]

    @torch.no_grad()
    def image_features(self, images: Images) -> Float[Tensor, "b d"]:
        """Unit vectors of images in [0, 1], resized to `size` if necessary."""
        size = (self.size, self.size)
        if images.shape[-2:] != size:
            images = interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = torch.tensor((self.mean, self.std), device=images.device)[..., None, None]
        parts = ((part - mean) / std for part in images.split(64))
        chunks = [self.model.get_image_features(part).pooler_output for part in parts]
        return normalize(torch.cat(chunks), dim=-1)

    @cached_property
    def _word_features(self) -> tuple[Tensor, ...]:
        words = (
            list(TOYS),
            list(COLOURS),
            [f"{view} view" for view in VIEWS],
            [f"azimuth {azimuth:03d}" for azimuth in range(0, 360, ANGLE_STEP_DEG)],
        )
        return tuple(map(self.text_features, words))

    def __call__(self, images: Images) -> Verdict:
        """Classify images in [0, 1]."""
        features, scale = self.image_features(images), self.scale
        return Verdict(*((scale * features @ words.T).softmax(1) for words in self._word_features))

    @property
    def names_azimuths(self) -> bool:
        """Whether azimuths were among the words of its training."""
        return self.name == EMBEDDED and len(self.tokenizer.tokenize("azimuth")) == 1

    @property
    def scale(self) -> float:
        """Factor on cosine similarities before the softmax: the inverse temperature."""
        return float(self.model.logit_scale.detach().exp().clamp(max=100))

    def probabilities(self, images: Images, texts: list[str]) -> Float[Tensor, "b n"]:
        """Probability of each text among all of them."""
        return (self.scale * self.image_features(images) @ self.text_features(texts).T).softmax(1)


def locate_judge(name: str) -> tuple[str, str]:
    """Resolve a judge's name to ("toybox" or "folder", path) or ("hub", id), without loading it.

    Raises:
        JudgeNotFound: The path does not exist, or the folder holds no judge.
    """
    path = Path(str(asset("toybox-clip"))) if name == EMBEDDED else Path(name).expanduser()
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir():
            raise JudgeNotFound(
                f"There is no judge at {name!r}. Give {EMBEDDED!r}, the folder of a CLIP model, "
                "or its Hub id such as openai/clip-vit-base-patch32."
            )
        return "hub", name
    try:
        kind = json.loads((path / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise JudgeNotFound(
            f"{path} is not a judge: its config.json names no model_type ({type(error).__name__})."
        ) from error
    if kind not in ("clip", "vision-text-dual-encoder"):
        raise JudgeNotFound(f"{path} holds a model of type {kind!r}; a judge is a CLIP model.")
    if not any(path.glob("*.safetensors")):
        raise JudgeNotFound(
            f"{path} holds no .safetensors weights. Convert them; pickled weights are never read."
        )
    return ("folder" if kind == "clip" else "toybox"), str(path)


def absolute_judge(name: str) -> str:
    """A judge's name that is valid in every working folder; raises JudgeNotFound."""
    kind, where = locate_judge(name)
    return name if name == EMBEDDED or kind == "hub" else str(Path(where).resolve())


def _load_clip(where: str, name: str, local: bool) -> Judge:
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.utils import cached_file

    try:
        model = CLIPModel.from_pretrained(
            where, local_files_only=local, use_safetensors=True, dtype=torch.float32
        ).eval()
        tokenizer = CLIPTokenizer.from_pretrained(where, local_files_only=local)
        found = cached_file(where, "preprocessor_config.json", local_files_only=local)
        pixels = json.loads(Path(str(found)).read_text())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise JudgeNotFound(
            f"The judge {name!r} cannot be loaded: {reason}. "
            f"Give {EMBEDDED!r} or the folder of a CLIP model."
        ) from error
    vision: Any = model.config.vision_config
    mean, std = pixels.get("image_mean", CLIP_MEAN), pixels.get("image_std", CLIP_STD)
    return Judge(model, tokenizer, name, vision.image_size, tuple(mean), tuple(std))
