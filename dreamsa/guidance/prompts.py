"""View-dependent prompts: camera angles -> text (DreamFusion, sec. 3.2)."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import exp, floor

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.choices import Role, View
from dreamsa.config import ViewConfig
from dreamsa.guidance.score_model import ScoreModel

MAX_PROMPT = 1000
"""Characters; CLIP text encoders read at most 77 tokens."""

ANGLE_STEP_DEG = 15
"""Step of the angles that a wording can name, degrees."""

Angles = tuple[int, int]
"""Azimuth in [0, 360) and elevation, in multiples of ANGLE_STEP_DEG."""

VIEW_ANGLES: dict[View, Angles] = {
    "front": (0, 0),
    "side": (90, 0),
    "back": (180, 0),
    "overhead": (0, 90),
}
"""The centre of each view."""


def view_text(config: ViewConfig, prompt: str, view: View, angles: Angles | None = None) -> str:
    """The text of one view, from its centre unless angles are given.

    Braces in the prompt are text, not fields.
    """
    azimuth, elevation = angles or VIEW_ANGLES[view]
    words = {
        "{prompt}": prompt,
        "{view}": view,
        "{azimuth}": f"{azimuth:03d}",
        "{elevation}": f"{elevation:+03d}",
    }
    return re.sub("|".join(words), lambda field: words[field[0]], config.wording)


def nearest_angles(azimuth_deg: float, elevation_deg: float) -> Angles:
    """The angles nearest to a camera's, of those that a wording can name."""
    azimuth, elevation = (
        ANGLE_STEP_DEG * floor(angle / ANGLE_STEP_DEG + 0.5)
        for angle in (azimuth_deg, elevation_deg)
    )
    return azimuth % 360, elevation


def angle_weights(azimuth_deg: float, elevation_deg: float) -> dict[Angles, float]:
    """Bilinear weights of the neighbouring angles; positive, summing to 1."""
    azimuth, elevation = azimuth_deg / ANGLE_STEP_DEG, elevation_deg / ANGLE_STEP_DEG
    first, lowest = floor(azimuth), floor(elevation)
    weights = {
        (i, j): (1 - abs(azimuth - i)) * (1 - abs(elevation - j))
        for i in (first, first + 1)
        for j in (lowest, lowest + 1)
    }
    return {
        (ANGLE_STEP_DEG * i % 360, ANGLE_STEP_DEG * j): weight
        for (i, j), weight in weights.items()
        if weight > 0
    }


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
    """The texts of a prompt as a function of camera angles, each embedded once."""

    def __init__(
        self,
        score: ScoreModel,
        prompt: str,
        negative: str = "",
        config: ViewConfig = ViewConfig(),
        degraded: str = "",
        source: str = "",
    ) -> None:
        """
        Args:
            degraded: What follows the prompt in the text of a bad render.
            source: The prompt of an edit's parent.
        """
        self.config = config
        self._prompts = {"positive": prompt, "degraded": prompt + degraded, "source": source}
        self._plain = {"negative": negative, "null": ""}
        self.has_negative = negative != ""
        self._score = score
        self._embeddings: dict[str, Tensor] = {}

    def __call__(
        self, azimuth_deg: Float[Tensor, "b"], elevation_deg: Float[Tensor, "b"]
    ) -> "Condition":
        angles = zip(azimuth_deg.tolist(), elevation_deg.tolist(), strict=True)
        return Condition(self, list(angles))

    def embed(self, role: Role, azimuth_deg: float, elevation_deg: float) -> Tensor:
        """Embedding [tokens, width] of a role's text for one camera."""
        if role in self._plain:
            return self._mix({self._plain[role]: 1.0})
        if role in ("front", "side"):
            return self._mix({view_text(self.config, self._prompts["positive"], role): 1.0})
        prompt = self._prompts[role if role in ("degraded", "source") else "positive"]
        azimuth = azimuth_deg + 180 * (role == "opposite")
        return self._mix(self._mixture(prompt, azimuth, elevation_deg))

    def _mixture(self, prompt: str, azimuth_deg: float, elevation_deg: float) -> dict[str, float]:
        """Weights of the texts that describe a camera, summing to 1."""
        config, mixture = self.config, defaultdict[str, float](float)
        if config.names_angles:
            for angles, weight in angle_weights(azimuth_deg, elevation_deg).items():
                mixture[view_text(config, prompt, view_of(*angles, config), angles)] += weight
        else:
            for view, weight in view_weights(azimuth_deg, elevation_deg, config).items():
                mixture[view_text(config, prompt, view)] += weight
        return mixture

    def _mix(self, mixture: Mapping[str, float]) -> Tensor:
        parts = [weight * self._embedding(text) for text, weight in mixture.items()]
        return torch.stack(parts).sum(0)

    def _embedding(self, text: str) -> Tensor:
        """One text at a time: in a batch, the last bits depend on the other texts."""
        if text not in self._embeddings:
            self._embeddings[text] = self._score.embed([text])[0]
        return self._embeddings[text]


class Condition:
    """The texts of one step's views."""

    def __init__(self, prompt: ViewPrompt, angles: list[tuple[float, float]]) -> None:
        """
        Args:
            angles: Azimuth and elevation of each view, degrees.
        """
        self._prompt, self._angles = prompt, angles

    def asked_as(self, role: Role) -> Role:
        """A role of the same text: without a negative prompt, null is asked as negative."""
        return "negative" if role == "null" and not self._prompt.has_negative else role

    def texts(self, roles: Sequence[Role]) -> Float[Tensor, "k b tokens width"]:
        """The embeddings of each role, per view."""
        rows = [[self._prompt.embed(role, *angles) for angles in self._angles] for role in roles]
        return torch.stack([torch.stack(row) for row in rows])

    @property
    def repulsion(self) -> Float[Tensor, "b 2"] | None:
        """Perp-Neg's weights of front and side; None if it is off."""
        config = self._prompt.config
        if config.perpendicular == 0:
            return None
        return torch.tensor([perpendicular_weights(*pair, config) for pair in self._angles])
