"""View-dependent text: camera angles -> prompt (DreamFusion, sec. 3.2: "front view", "side view", "back view", "overhead view")."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.guidance.score_model import Condition, ScoreModel

View = Literal["front", "side", "back", "overhead"]
VIEWS: tuple[View, ...] = get_args(View)

MAX_PROMPT = 1000
"""Characters; CLIP text towers hear 77 tokens at most."""


@dataclass(frozen=True)
class ViewConfig:
    """Which text goes with which angle."""

    overhead_deg: float = 60.0
    """Elevation above which a view is "overhead" (DreamFusion's threshold)."""
    front_deg: float = 45.0
    """The front sector is azimuth 0 plus or minus this; the back sector lies opposite, equally wide."""
    wording: str = "{prompt}, {view} view"
    """Must contain {prompt}; {view} becomes front, side, back or overhead."""
    interpolate: bool = False
    """Blend neighbouring views' embeddings by angle instead of switching between them."""
    perpendicular: float = 0.0
    """Strength of Perp-Neg against the other views (arXiv:2304.04968; 2 is its authors' value); 0 is off."""

    def __post_init__(self) -> None:
        if not -90 < self.overhead_deg <= 90:
            raise ValueError(f"views.overhead_deg must lie in (-90, 90], got {self.overhead_deg}.")
        if not 0 < self.front_deg < 90:
            raise ValueError(f"views.front_deg must lie in (0, 90), got {self.front_deg}. At 90 no angle is left for the side views.")
        if "{prompt}" not in self.wording:
            raise ValueError(f"views.wording must contain {{prompt}}, got {self.wording!r}.")
        if not 0 <= self.perpendicular <= 100:
            raise ValueError(f"views.perpendicular must lie in [0, 100], got {self.perpendicular}.")

    def text(self, prompt: str, view: View) -> str:
        """The exact text for one view. Braces in the prompt are text, not fields."""
        return self.wording.replace("{view}", view).replace("{prompt}", prompt)


def check_prompt(prompt: object, what: str = "prompt") -> str:
    """The prompt in NFC, without surrounding space.

    Raises:
        ValueError: Empty, too long, or not text (control characters, lone surrogates).
    """
    import unicodedata

    if not isinstance(prompt, str):
        raise ValueError(f"The {what} must be text, got {type(prompt).__name__}.")
    if len(prompt) > MAX_PROMPT:
        raise ValueError(
            f"The {what} has {len(prompt):,} characters; at most {MAX_PROMPT:,} are allowed. Describe the object in a sentence."
        )
    bad = sorted({c for c in prompt if unicodedata.category(c) in ("Cc", "Cs", "Cn") and c not in "\t\n"})
    if bad:
        raise ValueError(f"The {what} holds {bad[0]!a}, which is not text. Type the {what} as plain words.")
    prompt = " ".join(unicodedata.normalize("NFC", prompt).split())
    if not prompt:
        raise ValueError(f'The {what} is empty. Name an object, e.g. "a rabbit".')
    return prompt


def same_prompt(one: str, other: str) -> bool:
    """Whether two prompts are the same words, whatever their case."""
    return one.casefold() == other.casefold()


def view_of(azimuth_deg: float, elevation_deg: float, config: ViewConfig = ViewConfig()) -> View:
    """The view that a camera has of the object; azimuth 0 is the centre of the front, whatever its multiple of 360."""
    if elevation_deg > config.overhead_deg:
        return "overhead"
    off_front = _off_front(azimuth_deg)
    if off_front <= config.front_deg:
        return "front"
    return "back" if off_front >= 180 - config.front_deg else "side"


def view_weights(azimuth_deg: float, elevation_deg: float, config: ViewConfig) -> dict[View, float]:
    """How much of each view's text an angle gets; positive, summing to 1. One view alone unless `interpolate`."""
    if not config.interpolate:
        return {view_of(azimuth_deg, elevation_deg, config): 1.0}
    off_front = _off_front(azimuth_deg)
    near, far = ("front", "side") if off_front < 90 else ("side", "back")
    share = off_front % 90 / 90 if off_front < 180 else 1.0
    overhead = min(max((elevation_deg - config.overhead_deg) / 30 + 0.5, 0.0), 1.0)
    weights = {near: (1 - share) * (1 - overhead), far: share * (1 - overhead), "overhead": overhead}
    return {view: weight for view, weight in weights.items() if weight > 0}  # pyright: ignore[reportReturnType]


def perpendicular_weights(azimuth_deg: float, elevation_deg: float, config: ViewConfig) -> dict[View, float]:
    """Perp-Neg's weights for the unwanted views, at most 0; decays 2 for front and 10 for side as its authors have them."""
    from math import exp

    strength, none = config.perpendicular, {"front": 0.0, "side": 0.0}
    if elevation_deg > config.overhead_deg or strength == 0:
        return none  # pyright: ignore[reportReturnType]
    off_front = _off_front(azimuth_deg)
    if off_front < 90:
        r = 1 - off_front / 90
        return {"front": -strength * exp(-2 * r), "side": -strength * exp(10 * (r - 1))}
    r = 1 - (off_front - 90) / 90
    return {"front": -strength, "side": -strength / 2 * exp(-10 * r)}


def _off_front(azimuth_deg: float) -> float:
    """Degrees between a camera and the object's front, in [0, 180]."""
    return abs((azimuth_deg + 180) % 360 - 180)


class ViewPrompt:
    """A prompt made ready: angles -> Condition. Every text is embedded once, and the text encoder may then be forgotten."""

    def __init__(self, score: ScoreModel, prompt: str, negative: str = "", config: ViewConfig = ViewConfig()) -> None:
        self.config = config
        self.texts = {view: config.text(prompt, view) for view in VIEWS}
        embedded = score.embed([*self.texts.values(), negative])
        self.embeddings = dict(zip(VIEWS, embedded, strict=False))
        self.negative = embedded[-1]

    def __call__(self, azimuth_deg: Float[Tensor, "b"], elevation_deg: Float[Tensor, "b"]) -> Condition:
        """Conditions for cameras at these angles."""
        angles = list(zip(azimuth_deg.tolist(), elevation_deg.tolist(), strict=True))
        positive = torch.stack([self._mix(view_weights(*angle, self.config)) for angle in angles])
        negative = self.negative.expand_as(positive)
        if self.config.perpendicular == 0:
            return Condition(positive, negative)
        weights = [perpendicular_weights(*angle, self.config) for angle in angles]
        unwanted = torch.stack([self.embeddings["front"], self.embeddings["side"]]).expand(len(angles), -1, -1, -1)
        values = torch.tensor([[w["front"], w["side"]] for w in weights], device=positive.device)
        return Condition(positive, negative, unwanted, values)

    def _mix(self, weights: dict[View, float]) -> Tensor:
        return torch.stack([weight * self.embeddings[view] for view, weight in weights.items()]).sum(0)
