"""Score distillation sampling as pure functions, in float32 (DreamFusion, arXiv:2209.14988)."""

from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "b c h w"]


def sds_weight(alpha_bar: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Weight of a timestep: 1 - alpha_bar."""
    return 1 - alpha_bar


def clip_per_view(grad: Latents, max_norm: float) -> Latents:
    """Clip the norm of each view's gradient to `max_norm`; 0 is off."""
    if max_norm == 0:
        return grad
    norms = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return grad * (max_norm / norms.clamp(min=1e-12)).clamp(max=1)


def sds_loss(latents: Latents, grad: Latents) -> Float[Tensor, ""]:
    """Loss <grad, latents> / b, whose gradient in the latents is `grad / b`.

    Linear, so that factors on the loss scale the gradient, sign included; the usual
    0.5 |z - (z - grad)|^2 has the same value for ascent and descent.
    """
    return (grad.detach().float() * latents.float()).sum() / len(latents)
