"""Contrastive image-text pairs (CLIP, arXiv:2103.00020): the embedded model's text tower, and the judge."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false
# (decorators of diffusers and transformers hide their own types)

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from dreamsa.guidance.prompts import VIEWS
from dreamsa.randomness import seed_for
from dreamsa.toybox.captions import CHIRAL, LOOK_ALIKE, caption
from dreamsa.toybox.dataset import COLOUR_NAMES, NAMES, UNTOLD, Pictures, wild_backgrounds
from dreamsa.toybox.fit import FitConfig, FitStep, fit
from dreamsa.toybox.shapes import COLOUR_SYNONYMS
from dreamsa.toybox.tokenizer import MAX_LENGTH

TEXT_WIDTH = 128

VIEW_PHRASES = [f"{view} view" for view in VIEWS]
PHRASES: tuple[list[str], ...] = (list(NAMES), [name or "natural" for name in COLOUR_NAMES], VIEW_PHRASES)
"""The bare words for objects, colours and views, in the order of the labels."""


class PooledResNet(ResNetModel):
    """transformers' ResNet for small pictures: no max pooling at its entrance, and pooled features as vectors."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        self.embedder.pooler = torch.nn.Identity()

    def forward(self, pixel_values: Float[Tensor, "b 3 h w"], **kwargs: Any) -> Any:
        out = super().forward(pixel_values)
        out.pooler_output = out.pooler_output.flatten(1)
        return out


def new_dual_encoder(tokenizer: CLIPTokenizer) -> VisionTextDualEncoderModel:
    """A four-stage ResNet and a three-layer CLIP text tower."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = ResNetConfig(num_channels=3, embedding_size=32, hidden_sizes=[32, 64, 128, 192], depths=[1, 2, 2, 2], layer_type="basic")
    vision.hidden_size = 192  # of the last stage, where VisionTextDualEncoderModel looks for it
    return VisionTextDualEncoderModel(vision_model=PooledResNet(vision), text_model=CLIPTextModel(text))


def load_dual_encoder(folder: Path | str) -> VisionTextDualEncoderModel:
    """A dual encoder that `save_pretrained` wrote, in float32 and evaluation mode."""
    config = VisionTextDualEncoderConfig.from_pretrained(folder, local_files_only=True)
    model = VisionTextDualEncoderModel(vision_model=PooledResNet(config.vision_config), text_model=CLIPTextModel(config.text_config))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.float().eval()


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str], length: int = MAX_LENGTH) -> Int64[Tensor, "n {length}"]:
    """Token ids, padded and truncated."""
    return tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def random_captions(labels: Int[np.ndarray, "n 3"], rng: np.random.Generator) -> list[str]:
    """One caption per label: the view is left out of a tenth and where it is untold, black is sometimes written for ebony, and so on."""
    texts = []
    for name, colour, view in labels:
        word = COLOUR_NAMES[colour]
        if rng.random() < 0.4:
            word = next((other for other, meant in COLOUR_SYNONYMS.items() if meant == word), word)
        text = caption(NAMES[name], word, VIEWS[view] if rng.random() < 0.9 and view != UNTOLD else None)
        texts.append("the" + text[text.index(" ") :] if rng.random() < 0.1 else text)
    return texts


def _moved(pictures: Pictures, rng: np.random.Generator, most: int = 4) -> Pictures:
    """Half of the pictures mirrored, where that keeps object, colour and view; each shifted by up to `most` pixels."""
    padded = np.pad(pictures.rgba, ((0, 0), (most, most), (most, most), (0, 0)))
    size, moved = pictures.rgba.shape[1], np.empty_like(pictures.rgba)
    for i, (y, x) in enumerate(rng.integers(0, 2 * most + 1, (len(pictures), 2))):
        one = padded[i, y : y + size, x : x + size]
        mirror = rng.random() < 0.5 and NAMES[pictures.labels[i, 0]] not in CHIRAL
        moved[i] = one[:, ::-1] if mirror else one
    return Pictures(moved, pictures.labels)


def _blurred(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Some pictures soft and noisy, as a NeRF's renders are."""
    small = torch.nn.functional.interpolate(images, scale_factor=float(rng.uniform(0.4, 0.8)), mode="bilinear", antialias=True)
    soft = torch.nn.functional.interpolate(small, size=images.shape[-2:], mode="bilinear")
    chosen = torch.from_numpy(rng.random((len(images), 1, 1, 1)) < 0.4)
    noise = torch.from_numpy(rng.normal(0, 1, images.shape).astype(np.float32)) * rng.uniform(0, 0.05)
    return (torch.where(chosen, soft, images) + noise).clamp(0, 1)


def train_dual_encoder(
    folder: Path,
    model: VisionTextDualEncoderModel,
    tokenizer: CLIPTokenizer,
    pictures: Pictures,
    config: FitConfig,
    seed: int,
    batch: int = 64,
) -> Iterator[FitStep]:
    """Cross-entropy both ways over the batch, pictures whose captions are equal sharing the target; and, picture to text,
    over the bare words for the object ("rabbit"), the colour ("purple") and the view ("side view")."""
    model.vision_model.to(memory_format=torch.channels_last)
    shares = draw_shares(pictures.labels)
    phrases = [tokenize(tokenizer, texts).to(model.device) for texts in PHRASES]
    cross_entropy = torch.nn.functional.cross_entropy

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng(seed_for(seed, step, "dual encoder"))
        index = rng.choice(len(pictures), size=batch, p=shares)
        chosen = _moved(Pictures(pictures.rgba[index], pictures.labels[index]), rng)
        images = _blurred(chosen.over(np.arange(batch), wild_backgrounds(batch, rng)), rng)
        texts = random_captions(pictures.labels[index], rng)
        image_features, text_features = features(
            model, images.to(model.device, memory_format=torch.channels_last), tokenize(tokenizer, texts).to(model.device)
        )
        scale = model.logit_scale.clamp(max=4.6).exp()
        logits = scale * image_features @ text_features.T
        same = torch.tensor([[a == b for b in texts] for a in texts], dtype=torch.float32, device=logits.device)
        same = same / same.sum(1, keepdim=True)
        loss = (cross_entropy(logits.float(), same) + cross_entropy(logits.T.float(), same)) / 2
        for kind, tokens in enumerate(phrases):
            targets = torch.from_numpy(targets_of(pictures.labels[index], kind)).to(logits.device)
            words = torch.nn.functional.normalize(model.get_text_features(tokens).pooler_output.float(), dim=-1)
            loss = loss + cross_entropy((scale * image_features @ words.T).float(), targets)
        return loss

    yield from fit(folder, model, loss_at, config)


def targets_of(labels: Int[np.ndarray, "n 3"], kind: int) -> Int64[np.ndarray, "n"]:
    """The labels' classes of one kind; views that nobody can tell are -100, which cross-entropy leaves out."""
    targets = labels[:, kind].astype(np.int64)
    if PHRASES[kind] is VIEW_PHRASES:
        targets[[NAMES[name] in LOOK_ALIKE or view == UNTOLD for name, _, view in labels]] = -100
    return targets


def draw_shares(labels: Int[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n"]:
    """How often each picture is drawn, summing to 1: objects with a front twice as often, for their views are the hardest to learn."""
    shares = np.array([1.0 if NAMES[name] in LOOK_ALIKE else 2.0 for name in labels[:, 0]])
    return shares / shares.sum()


def features(
    model: VisionTextDualEncoderModel, images: Float[Tensor, "b 3 h w"], tokens: Int[Tensor, "n length"]
) -> tuple[Float32[Tensor, "b d"], Float32[Tensor, "n d"]]:
    """Unit feature vectors of images in [0, 1] and of token ids."""
    image = model.get_image_features(images * 2 - 1).pooler_output
    text = model.get_text_features(tokens).pooler_output
    return torch.nn.functional.normalize(image.float(), dim=-1), torch.nn.functional.normalize(text.float(), dim=-1)
