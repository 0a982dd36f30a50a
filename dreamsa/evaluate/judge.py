"""Judges: CLIP-type dual encoders that look at pictures and never guide. `toybox`, the embedded one, was trained on other renders than
the guidance; any CLIP model of transformers (a folder or a Hub id) can take its place.

A judge compares a picture with texts, and says which fits best: the bare words for all objects, colours and views, or whole captions.
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

from dreamsa.assets import asset
from dreamsa.guidance.prompts import VIEWS
from dreamsa.toybox.shapes import COLOURS, TOYS

EMBEDDED = "toybox"
"""The name of the embedded judge."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What OpenAI's CLIP normalises pixels with (arXiv:2103.00020)."""


class JudgeNotFound(ValueError):
    """No usable judge where the user pointed; the message says what was found and what to do."""


class Verdict(NamedTuple):
    """Probabilities per picture, each row summing to 1."""

    objects: Float[Tensor, "b objects"]  # in the order of TOYS
    colours: Float[Tensor, "b colours"]  # in the order of COLOURS
    views: Float[Tensor, "b views"]  # in the order of VIEWS


@dataclass
class Judge:
    model: Any
    tokenizer: Any
    name: str = EMBEDDED
    size: int = 64
    """Side of the pictures that it looks at, in pixels."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Pixels in [0, 1] become (pixel - mean) / std, per channel."""
    _known: dict[tuple[str, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(cls, name: str | None = None) -> "Judge":
        """The embedded judge, a folder (a CLIP model of transformers, or what `dreamsa toybox train` wrote), or a CLIP model's Hub id.

        Weights are read from safetensors only; a folder is never looked up on the Hub.

        Raises:
            JudgeNotFound: Not there, or not such a model.
        """
        from transformers import CLIPTokenizer

        from dreamsa.toybox.dual_encoder import load_dual_encoder

        name = name or EMBEDDED
        kind, where = locate_judge(name)
        if kind == "toybox":
            return cls(load_dual_encoder(where), CLIPTokenizer.from_pretrained(where, local_files_only=True), name)
        return _load_clip(where, name, local=kind == "folder")

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Float[Tensor, "n d"]:
        """Unit vectors; lists that were asked for before are remembered."""
        if tuple(texts) in self._known:
            return self._known[tuple(texts)]
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt").input_ids
        chunks = [self.model.get_text_features(part).pooler_output for part in tokens.split(256)]
        self._known[tuple(texts)] = torch.nn.functional.normalize(torch.cat(chunks), dim=-1)
        return self._known[tuple(texts)]

    @torch.no_grad()
    def image_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors of pictures in [0, 1], resized to `size` where they are not."""
        if images.shape[-2:] != (self.size, self.size):
            images = torch.nn.functional.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        chunks = [self.model.get_image_features((part - mean) / std).pooler_output for part in images.split(64)]
        return torch.nn.functional.normalize(torch.cat(chunks), dim=-1)

    @cached_property
    def _words(self) -> tuple[Tensor, ...]:
        """Features of the bare words for objects, colours and views."""
        return tuple(self.text_features(words) for words in (list(TOYS), list(COLOURS), [f"{view} view" for view in VIEWS]))

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Verdict:
        """What is on pictures in [0, 1]."""
        seen, scale = self.image_features(images), self.scale
        return Verdict(*((scale * seen @ words.T).softmax(1) for words in self._words))

    @property
    def scale(self) -> float:
        """What cosine similarities are multiplied with before a softmax makes probabilities of them."""
        return float(self.model.logit_scale.detach().exp().clamp(max=100))

    def probabilities(self, images: Float[Tensor, "b 3 h w"], texts: list[str]) -> Float[Tensor, "b n"]:
        """How probable each text is among all of them."""
        return (self.scale * self.image_features(images) @ self.text_features(texts).T).softmax(1)


def locate_judge(name: str) -> tuple[str, str]:
    """What a judge's name means, without loading it: ("toybox", folder), ("folder", folder of a CLIP model) or ("hub", id).

    Raises:
        JudgeNotFound: A path that is not there, or a folder that is no judge.
    """
    path = Path(str(asset("toybox-clip"))) if name == EMBEDDED else Path(name).expanduser()
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir():
            raise JudgeNotFound(
                f"There is no judge at {name!r}. Give {EMBEDDED!r}, the folder of a CLIP model, or its Hub id such as openai/clip-vit-base-patch32."
            )
        return "hub", name
    try:
        kind = json.loads((path / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise JudgeNotFound(f"{path} is not a judge: its config.json names no model_type ({type(error).__name__}).") from error
    if kind not in ("clip", "vision-text-dual-encoder"):
        raise JudgeNotFound(f"{path} holds a model of type {kind!r}; a judge is a CLIP model.")
    if not any(path.glob("*.safetensors")):
        raise JudgeNotFound(f"{path} holds no .safetensors weights. Convert them; pickled weights are never read.")
    return ("folder" if kind == "clip" else "toybox"), str(path)


def _load_clip(where: str, name: str, local: bool) -> Judge:
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.utils import cached_file

    try:
        model = CLIPModel.from_pretrained(where, local_files_only=local, use_safetensors=True, dtype=torch.float32).eval()
        tokenizer = CLIPTokenizer.from_pretrained(where, local_files_only=local)
        found = cached_file(where, "preprocessor_config.json", local_files_only=local)
        facts = json.loads(Path(str(found)).read_text())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise JudgeNotFound(f"The judge {name!r} cannot be loaded: {reason}. Give {EMBEDDED!r} or the folder of a CLIP model.") from error
    vision: Any = model.config.vision_config
    return Judge(
        model, tokenizer, name, vision.image_size, tuple(facts.get("image_mean", CLIP_MEAN)), tuple(facts.get("image_std", CLIP_STD))
    )
