"""The annealing core: when x where x what, mounted on any torch optimizer. See `annealer.Annealer`."""

from dreamsa.annealing.annealer import Annealer, Rule
from dreamsa.annealing.events import (
    Blend,
    Displace,
    Event,
    Fresh,
    Interpolate,
    Prune,
    Reinitialize,
    ResetMoments,
    Rewind,
    ShrinkAndPerturb,
    Snapshot,
)
from dreamsa.annealing.groups import kernel_split, split_params, weight_split
from dreamsa.annealing.memory import Masks, Snapshots
from dreamsa.annealing.schedules import generation_cosine, geometric_cooling, logarithmic_cooling
from dreamsa.annealing.transforms import (
    DistanceHills,
    Freeze,
    GradientAscent,
    GradientNoise,
    Group,
    LandscapeModification,
    Masked,
    Moment,
    RandomAscent,
    RandomDirection,
    StepTransform,
)
from dreamsa.annealing.window import Window

__all__ = [
    "Annealer",
    "Blend",
    "Displace",
    "DistanceHills",
    "Event",
    "Freeze",
    "Fresh",
    "GradientAscent",
    "GradientNoise",
    "Group",
    "Interpolate",
    "LandscapeModification",
    "Masked",
    "Masks",
    "Moment",
    "Prune",
    "RandomAscent",
    "RandomDirection",
    "Reinitialize",
    "ResetMoments",
    "Rewind",
    "Rule",
    "ShrinkAndPerturb",
    "Snapshot",
    "Snapshots",
    "StepTransform",
    "Window",
    "generation_cosine",
    "geometric_cooling",
    "kernel_split",
    "logarithmic_cooling",
    "split_params",
    "weight_split",
]
