"""The judge of the toybox: a dual encoder that was trained on other renders than the guidance, and never guides.

It compares a picture with the bare words for all objects, colours and views, and says which it sees.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.assets import asset
from dreamsa.guidance.prompts import VIEWS
from dreamsa.toybox.shapes import COLOURS, TOYS


class Verdict(NamedTuple):
    """Probabilities per picture, each row summing to 1."""

    objects: Float[Tensor, "b objects"]  # in the order of TOYS
    colours: Float[Tensor, "b colours"]  # in the order of COLOURS
    views: Float[Tensor, "b views"]  # in the order of VIEWS


@dataclass
class Judge:
    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: str | None = None) -> "Judge":
        """The shipped judge, or one from a folder that `dreamsa toybox train` wrote."""
        from transformers import CLIPTokenizer

        from dreamsa.toybox.dual_encoder import load_dual_encoder

        where = folder or str(asset("toybox-clip"))
        return cls(load_dual_encoder(where), CLIPTokenizer.from_pretrained(where, local_files_only=True))

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Float[Tensor, "n d"]:
        """Unit vectors."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt").input_ids
        chunks = [self.model.get_text_features(part).pooler_output for part in tokens.split(256)]
        return torch.nn.functional.normalize(torch.cat(chunks), dim=-1)

    @torch.no_grad()
    def image_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors of pictures in [0, 1], resized to 64 x 64 where they are not."""
        if images.shape[-2:] != (64, 64):
            images = torch.nn.functional.interpolate(images, (64, 64), mode="bilinear", antialias=True)
        chunks = [self.model.get_image_features(part * 2 - 1).pooler_output for part in images.split(64)]
        return torch.nn.functional.normalize(torch.cat(chunks), dim=-1)

    @cached_property
    def _words(self) -> tuple[Tensor, ...]:
        """Features of the bare words for objects, colours and views."""
        return tuple(self.text_features(words) for words in (list(TOYS), list(COLOURS), [f"{view} view" for view in VIEWS]))

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Verdict:
        """What is on pictures in [0, 1]."""
        seen, scale = self.image_features(images), self._scale
        return Verdict(*((scale * seen @ words.T).softmax(1) for words in self._words))

    @property
    def _scale(self) -> float:
        return float(self.model.logit_scale.detach().exp().clamp(max=100))

    def probability(self, images: Float[Tensor, "b 3 h w"], text: str, against: list[str]) -> Float[Tensor, "b"]:
        """Probability of `text` among itself and `against`."""
        features = self.text_features([text, *against])
        return (self._scale * self.image_features(images) @ features.T).softmax(1)[:, 0]
