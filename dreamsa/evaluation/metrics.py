"""Measures of an object and of an edit, as pure functions of images and features.

PSNR of complete images and the overlap of silhouettes are in `dreamsa.statistics`, so that the
toybox and edits can use them too.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def retrieved(similarity: Float[Tensor, "b n"]) -> Bool[Tensor, "b"]:
    """Whether each image is most similar to its own text, number 0; a tie is a miss.

    The mean over the views of an object is CLIP R-precision (Park et al. 2021, "Benchmark for
    compositional text-to-image synthesis"; Dream Fields, arXiv:2112.01455).

    Raises:
        ValueError: There is no distractor.
    """
    if similarity.shape[1] < 2:
        raise ValueError("R-precision needs at least one distractor.")
    return similarity[:, 0] > similarity[:, 1:].max(1).values


def directional_similarity(
    image_before: Float[Tensor, "b d"],
    image_after: Float[Tensor, "b d"],
    text_before: Float[Tensor, "d"],
    text_after: Float[Tensor, "d"],
) -> Float[Tensor, "b"]:
    """Cosine between the changes of the image and text features, in [-1, 1]; 0 without a change.

    All features are unit vectors (StyleGAN-NADA, arXiv:2108.00946, eq. 3; as a measure:
    InstructPix2Pix, arXiv:2211.09800).
    """
    return torch.nn.functional.cosine_similarity(
        image_after - image_before, (text_after - text_before)[None], dim=1, eps=1e-6
    )


def front_everywhere(
    similarity: Float[Tensor, "b views"], own: Int[Tensor, "b"]
) -> Bool[Tensor, "b"]:
    """Whether each image resembles the front's text, number 0, more than that of its own view.

    The fraction over side and back views is a proxy for the Janus problem, a face on every side,
    limited by how well the judge distinguishes views.
    """
    return similarity[:, 0] > similarity.gather(1, own[:, None])[:, 0]


def foreground_fraction(opacity: Float[Tensor, "b h w"]) -> Float[Tensor, "b"]:
    """Fraction of pixels with opacity above 0.5: near 0 for a vanished object, near 1 for fog."""
    return (opacity > 0.5).float().mean((1, 2))


def half_opaque_fraction(opacity: Float[Tensor, "b h w"]) -> float | None:
    """Of the pixels with opacity above 0.1, the fraction below 0.9; None if there are none."""
    visible = opacity[opacity > 0.1]
    return float((visible < 0.9).float().mean()) if len(visible) else None


def fog(opacity: Float[Tensor, "b h w"]) -> float | None:
    """Mean of 4 a (1 - a) over the pixels with opacity a above 0.02; None if there are none."""
    visible = opacity[opacity > 0.02].clamp(max=1)
    return float((4 * visible * (1 - visible)).mean()) if len(visible) else None


def masked_psnr(
    one: Float[Tensor, "b 3 h w"], other: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b h w"]
) -> float:
    """PSNR over the pixels of all images inside a mask, dB; 100 if equal or without pixels."""
    error = (one - other).square().movedim(1, -1)[mask]
    return float(-10 * error.mean().clamp(min=1e-10).log10()) if len(error) else 100.0
