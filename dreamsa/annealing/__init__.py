"""The annealing core: when x where x what, mounted on any torch optimizer. See `annealer.Annealer`."""

from dreamsa.annealing.annealer import Annealer, Rule
from dreamsa.annealing.events import Displace, Event, Interpolate, ResetMoments
from dreamsa.annealing.transforms import Freeze, GradientAscent, StepTransform
from dreamsa.annealing.window import Window

__all__ = [
    "Annealer",
    "Displace",
    "Event",
    "Freeze",
    "GradientAscent",
    "Interpolate",
    "ResetMoments",
    "Rule",
    "StepTransform",
    "Window",
]
