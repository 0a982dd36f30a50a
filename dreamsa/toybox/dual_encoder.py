"""Contrastive dual encoders (CLIP, arXiv:2103.00020): the embedded text encoder, and the judge."""

# Decorators of diffusers and transformers hide types:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from math import cos, radians, sin
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, normalize
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from dreamsa.choices import VIEWS
from dreamsa.guidance.prompts import ANGLE_STEP_DEG, nearest_angles
from dreamsa.randomness import seed_for
from dreamsa.toybox.captions import AZIMUTH_WORDS, CHIRAL, ELEVATION_WORDS, LOOK_ALIKE, caption
from dreamsa.toybox.dataset import (
    AMBIGUOUS,
    COLOUR_NAMES,
    NAMES,
    ImageSet,
    Labels,
    azimuth_label,
    view_label,
    wild_backgrounds,
)
from dreamsa.toybox.fit import FitConfig, FitStep, fit
from dreamsa.toybox.shapes import COLOUR_SYNONYMS
from dreamsa.toybox.tokenizer import MAX_LENGTH

TEXT_WIDTH = 128

VIEW_PHRASES = [f"{view} view" for view in VIEWS]
AZIMUTH_PHRASES = [f"azimuth {azimuth:03d}" for azimuth in range(0, 360, ANGLE_STEP_DEG)]
PHRASES = (
    list(NAMES),
    [name or "natural" for name in COLOUR_NAMES],
    VIEW_PHRASES,
    AZIMUTH_PHRASES,
)
"""The bare words for objects, colours, views and azimuths."""

_caption, _view_label = cache(caption), cache(view_label)  # for every image of every step


class PooledResNet(ResNetModel):
    """transformers' ResNet for small images: no first max pooling, features as vectors."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        self.embedder.pooler = torch.nn.Identity()

    def forward(self, pixel_values: Float[Tensor, "b 3 h w"], **kwargs: Any) -> Any:
        out = super().forward(pixel_values)
        out.pooler_output = out.pooler_output.flatten(1)
        return out


def new_dual_encoder(tokenizer: CLIPTokenizer) -> VisionTextDualEncoderModel:
    """A four-stage ResNet and a three-layer CLIP text encoder."""
    text = CLIPTextConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        **_vocabulary_settings(tokenizer),
    )
    vision = ResNetConfig(
        num_channels=3,
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 192],
        depths=[1, 2, 2, 2],
        layer_type="basic",
    )
    vision.hidden_size = 192  # of the last stage; VisionTextDualEncoderModel reads it here
    model = _join(vision, text)
    place_angles(model.text_model.get_input_embeddings().weight, tokenizer.get_vocab())
    return model


def _vocabulary_settings(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """The settings of a text encoder that depend on its tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _join(vision: ResNetConfig, text: CLIPTextConfig) -> VisionTextDualEncoderModel:
    return VisionTextDualEncoderModel(
        vision_model=PooledResNet(vision), text_model=CLIPTextModel(text)
    )


def load_dual_encoder(folder: Path | str) -> VisionTextDualEncoderModel:
    """Load a saved dual encoder, in float32 and evaluation mode."""
    config = VisionTextDualEncoderConfig.from_pretrained(folder, local_files_only=True)
    model = _join(config.vision_config, config.text_config)
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.float().eval()


def text_encoder_with(
    model: CLIPTextModel, old: CLIPTokenizer, new: CLIPTokenizer
) -> CLIPTextModel:
    """A text encoder for another vocabulary.

    A token that both vocabularies have keeps its embedding; a new one starts as the mean of the
    tokens that spell it, an angle in its place among the angles.
    """
    config = CLIPTextConfig.from_dict(model.config.to_dict() | _vocabulary_settings(new))
    state = model.state_dict()
    name = next(key for key in state if key.endswith("token_embedding.weight"))
    known, ids = old.get_vocab(), new.get_vocab()
    spelled = [
        [known[token]]
        if token in known
        else old(token.removesuffix("</w>"), add_special_tokens=False).input_ids
        for token in sorted(ids, key=ids.__getitem__)
    ]
    extended = CLIPTextModel(config)
    rows = torch.stack([state[name][tokens].mean(0) for tokens in spelled])
    place_angles(rows, {token: row for token, row in ids.items() if token not in known})
    extended.load_state_dict({**state, name: rows})
    return extended


@torch.no_grad()
def place_angles(rows: Float[Tensor, "tokens width"], ids: Mapping[str, int]) -> None:
    """Move the embeddings of the angles among `ids` onto a circle: neighbours are near, opposite
    azimuths far.

    From separate embeddings, or from digits, a text encoder has to learn the order of the angles
    first: after 100,000 images it told left from right hardly better than by chance.
    """
    rng = torch.Generator().manual_seed(seed_for(0, 0, "angles"))
    basis = torch.linalg.qr(torch.randn(rows.shape[1], 8, generator=rng))[0].mT
    length = rows.norm(dim=1).median()
    for directions, words in ((basis[:4], AZIMUTH_WORDS), (basis[4:], ELEVATION_WORDS)):
        for word in ids.keys() & words.keys():
            at = radians(words[word])
            place = torch.tensor((2 * cos(at), 2 * sin(at), cos(2 * at), sin(2 * at)))
            rows[ids[word]] = length * (place / 5**0.5) @ directions


def with_vocabulary(
    model: VisionTextDualEncoderModel, old: CLIPTokenizer, new: CLIPTokenizer
) -> VisionTextDualEncoderModel:
    """A dual encoder whose text encoder has another vocabulary, see `text_encoder_with`."""
    text = text_encoder_with(model.text_model, old, new)
    extended = _join(model.vision_model.config, text.config)
    extended.load_state_dict(model.state_dict() | text.state_dict(prefix="text_model."))
    return extended


def tokenize(
    tokenizer: CLIPTokenizer, texts: Sequence[str], length: int = MAX_LENGTH
) -> Int64[Tensor, "n {length}"]:
    """Token ids, padded and truncated."""
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids


def token_cache(tokenizer: CLIPTokenizer) -> Callable[[Sequence[str]], Int64[Tensor, "n length"]]:
    """`tokenize`, but each text only once: 1,024 texts take longer than a step on a GPU."""
    rows: dict[str, np.ndarray] = {}

    def tokens_of(texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in rows]
        if new:
            rows.update(zip(new, tokenize(tokenizer, new).numpy(), strict=True))
        return torch.from_numpy(np.stack([rows[text] for text in texts]))

    return tokens_of


def random_captions(labels: Labels, rng: np.random.Generator) -> list[str]:
    """One caption per label, with random variations: synonyms, "the", no angles, no view.

    A tenth names neither view nor angles; another tenth names no angles where the view is clear.
    """
    texts = []
    for name, colour, azimuth, elevation in labels.tolist():
        word = COLOUR_NAMES[colour]
        if rng.random() < 0.4:
            word = next((other for other, meant in COLOUR_SYNONYMS.items() if meant == word), word)
        kind, view = rng.random(), _view_label(azimuth, elevation)
        if kind < 0.1:
            text = _caption(NAMES[name], word)
        elif kind < 0.2 and view != AMBIGUOUS:
            text = _caption(NAMES[name], word, VIEWS[view])
        else:
            text = _caption(NAMES[name], word, angles=nearest_angles(azimuth, elevation))
        texts.append("the" + text[text.index(" ") :] if rng.random() < 0.1 else text)
    return texts


def _shifted(dataset: ImageSet, rng: np.random.Generator, max_shift: int = 4) -> ImageSet:
    """Shift images by up to `max_shift` pixels; mirror half of those that are not CHIRAL.

    The azimuth of a mirrored image is the negative.
    """
    margin = (max_shift, max_shift)
    padded = np.pad(dataset.rgba, ((0, 0), margin, margin, (0, 0)))
    size, shifted = dataset.rgba.shape[1], np.empty_like(dataset.rgba)
    labels = dataset.labels.copy()
    for i, (y, x) in enumerate(rng.integers(0, 2 * max_shift + 1, (len(dataset), 2))):
        image = padded[i, y : y + size, x : x + size]
        mirrored = rng.random() < 0.5 and NAMES[labels[i, 0]] not in CHIRAL
        shifted[i] = image[:, ::-1] if mirrored else image
        if mirrored:
            labels[i, 2] = -labels[i, 2] % 360
    return ImageSet(shifted, labels)


def _blurred(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur some images and add noise to all, as in a NeRF's renders."""
    scale = float(rng.uniform(0.4, 0.8))
    small = interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)
    soft = interpolate(small, size=images.shape[-2:], mode="bilinear")
    chosen = torch.from_numpy(rng.random((len(images), 1, 1, 1)) < 0.4)
    noise = torch.from_numpy(rng.normal(0, 1, images.shape).astype(np.float32))
    return (torch.where(chosen, soft, images) + noise * rng.uniform(0, 0.05)).clamp(0, 1)


def train_dual_encoder(
    folder: Path,
    model: VisionTextDualEncoderModel,
    tokenizer: CLIPTokenizer,
    dataset: ImageSet,
    config: FitConfig,
    seed: int,
    batch: int = 64,
) -> Iterator[FitStep]:
    """Minimize cross-entropies of images and captions.

    Both ways over the batch, where equal captions share the target; and from image to text over
    each kind of PHRASES.
    """
    model.vision_model.to(memory_format=torch.channels_last)
    draw = drawer(dataset.labels)
    phrases = [tokenize(tokenizer, texts).to(model.device) for texts in PHRASES]

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng(seed_for(seed, step, "dual encoder"))
        index = draw(batch, rng)
        chosen = _shifted(ImageSet(dataset.rgba[index], dataset.labels[index]), rng)
        images = _blurred(chosen.over(np.arange(batch), wild_backgrounds(batch, rng)), rng)
        images = images.to(model.device, memory_format=torch.channels_last)
        texts = random_captions(chosen.labels, rng)
        tokens = tokenize(tokenizer, texts).to(model.device)
        image_features, text_features = features(model, images, tokens)
        scale = model.logit_scale.clamp(max=4.6).exp()
        logits = scale * image_features @ text_features.T
        same = torch.tensor([[a == b for b in texts] for a in texts]).float().to(logits.device)
        same = same / same.sum(1, keepdim=True)
        loss = (cross_entropy(logits.float(), same) + cross_entropy(logits.T.float(), same)) / 2
        for kind, tokens in enumerate(phrases):
            targets = torch.from_numpy(targets_of(chosen.labels, kind)).to(logits.device)
            if (targets < 0).all():
                continue
            words = normalize(model.get_text_features(tokens).pooler_output.float(), dim=-1)
            loss = loss + cross_entropy((scale * image_features @ words.T).float(), targets)
        return loss

    yield from fit(folder, model, loss_at, config)


def targets_of(labels: Labels, kind: int) -> Int64[np.ndarray, "n"]:
    """Indices into PHRASES[kind]. Views and azimuths that are ambiguous are -100, which
    cross-entropy ignores."""
    if PHRASES[kind] is VIEW_PHRASES:
        label_of = view_label
    elif PHRASES[kind] is AZIMUTH_PHRASES:
        label_of = azimuth_label
    else:
        return labels[:, kind].astype(np.int64)
    targets = np.full(len(labels), -100, np.int64)
    for i, (name, _, azimuth, elevation) in enumerate(labels.tolist()):
        label = label_of(azimuth, elevation)
        if NAMES[name] not in LOOK_ALIKE and label != AMBIGUOUS:
            targets[i] = label
    return targets


def draw_weights(labels: Labels) -> Float64[np.ndarray, "n"]:
    """Probability of each image, doubled for objects with a front: views are hard to learn."""
    weights = np.array([1.0 if NAMES[name] in LOOK_ALIKE else 2.0 for name in labels[:, 0]])
    return weights / weights.sum()


def drawer(labels: Labels) -> Callable[[int, np.random.Generator], Int64[np.ndarray, "count"]]:
    """Draws indices as `rng.choice(n, count, p=draw_weights(labels))` does, which sums up all
    weights in every call."""
    cumulative = draw_weights(labels).cumsum()
    cumulative /= cumulative[-1]
    return lambda count, rng: cumulative.searchsorted(rng.random(count), side="right")


def features(
    model: VisionTextDualEncoderModel,
    images: Float[Tensor, "b 3 h w"],
    tokens: Int[Tensor, "n length"],
) -> tuple[Float32[Tensor, "b d"], Float32[Tensor, "n d"]]:
    """Unit feature vectors of images in [0, 1] and of token ids."""
    image = model.get_image_features(images * 2 - 1).pooler_output
    text = model.get_text_features(tokens).pooler_output
    return normalize(image.float(), dim=-1), normalize(text.float(), dim=-1)
