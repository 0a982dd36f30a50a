"""View-dependent prompts: camera angles -> text (DreamFusion, sec. 3.2)."""

import unicodedata
from math import exp

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.choices import VIEWS, View
from dreamsa.config import ViewConfig
from dreamsa.guidance.score_model import Condition, ScoreModel

MAX_PROMPT = 1000
"""Characters; CLIP text encoders read at most 77 tokens."""


def view_text(config: ViewConfig, prompt: str, view: View) -> str:
    """The text of one view. Braces in the prompt are text, not fields."""
    return config.wording.replace("{view}", view).replace("{prompt}", prompt)


def check_prompt(prompt: object, name: str = "prompt") -> str:
    """The prompt in NFC, with normalised white space.

    Raises:
        ValueError: Empty, too long, or not text (control characters, lone surrogates).
    """
    if not isinstance(prompt, str):
        raise ValueError(f"The {name} must be text, got {type(prompt).__name__}.")
    if len(prompt) > MAX_PROMPT:
        raise ValueError(
            f"The {name} has {len(prompt):,} characters; at most {MAX_PROMPT:,} are allowed. "
            "Describe the object in a sentence."
        )
    bad = {c for c in prompt if unicodedata.category(c) in ("Cc", "Cs", "Cn") and c not in "\t\n"}
    if bad:
        raise ValueError(
            f"The {name} holds {min(bad)!a}, which is not text. Type the {name} as plain words."
        )
    prompt = " ".join(unicodedata.normalize("NFC", prompt).split())
    if not prompt:
        raise ValueError(f'The {name} is empty. Name an object, e.g. "a rabbit".')
    return prompt


def view_of(azimuth_deg: float, elevation_deg: float, config: ViewConfig = ViewConfig()) -> View:
    if elevation_deg > config.overhead_deg:
        return "overhead"
    off_front = _off_front(azimuth_deg)
    if off_front <= config.front_deg:
        return "front"
    return "back" if off_front >= 180 - config.front_deg else "side"


def view_weights(azimuth_deg: float, elevation_deg: float, config: ViewConfig) -> dict[View, float]:
    """Weight of each view's text; positive, summing to 1. A single view unless `interpolate`."""
    if not config.interpolate:
        return {view_of(azimuth_deg, elevation_deg, config): 1.0}
    off_front = _off_front(azimuth_deg)
    fraction = off_front % 90 / 90 if off_front < 180 else 1.0
    overhead = min(max((elevation_deg - config.overhead_deg) / 30 + 0.5, 0.0), 1.0)
    sectors: tuple[View, View] = ("front", "side") if off_front < 90 else ("side", "back")
    weights = (1 - fraction) * (1 - overhead), fraction * (1 - overhead), overhead
    pairs = zip((*sectors, "overhead"), weights, strict=True)
    return {view: weight for view, weight in pairs if weight > 0}


def perpendicular_weights(
    azimuth_deg: float, elevation_deg: float, config: ViewConfig
) -> tuple[float, float]:
    """Perp-Neg's weights of the front and side prompts, at most 0, with its authors' decays."""
    strength = config.perpendicular
    if elevation_deg > config.overhead_deg or strength == 0:
        return 0.0, 0.0
    off_front = _off_front(azimuth_deg)
    if off_front < 90:
        r = 1 - off_front / 90
        return -strength * exp(-2 * r), -strength * exp(10 * (r - 1))
    r = 1 - (off_front - 90) / 90
    return -strength, -strength / 2 * exp(-10 * r)


def _off_front(azimuth_deg: float) -> float:
    """Angle between a camera's azimuth and the front, in [0, 180]."""
    return abs((azimuth_deg + 180) % 360 - 180)


class ViewPrompt:
    """The condition of a prompt as a function of camera angles."""

    def __init__(
        self, score: ScoreModel, prompt: str, negative: str = "", config: ViewConfig = ViewConfig()
    ) -> None:
        self.config = config
        self.texts = {view: view_text(config, prompt, view) for view in VIEWS}
        embedded = score.embed([*self.texts.values(), negative])
        self.embeddings = dict(zip(VIEWS, embedded, strict=False))
        self.negative = embedded[-1]

    def __call__(
        self, azimuth_deg: Float[Tensor, "b"], elevation_deg: Float[Tensor, "b"]
    ) -> Condition:
        angles = list(zip(azimuth_deg.tolist(), elevation_deg.tolist(), strict=True))
        positive = torch.stack([self._mix(view_weights(*angle, self.config)) for angle in angles])
        negative = self.negative.expand_as(positive)
        if self.config.perpendicular == 0:
            return Condition(positive, negative)
        weights = [perpendicular_weights(*angle, self.config) for angle in angles]
        unwanted = torch.stack([self.embeddings["front"], self.embeddings["side"]])
        unwanted = unwanted.expand(len(angles), -1, -1, -1)
        weights = torch.tensor(weights, device=positive.device)
        return Condition(positive, negative, unwanted, weights)

    def _mix(self, weights: dict[View, float]) -> Tensor:
        parts = [weight * self.embeddings[view] for view, weight in weights.items()]
        return torch.stack(parts).sum(0)
