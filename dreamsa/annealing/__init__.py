"""The annealing core: rules of when (window), where (groups) and what, on any torch optimizer."""

# ruff: noqa: F401
from dreamsa.annealing.annealer import Annealer, Rule
from dreamsa.annealing.events import (
    Event,
    Fresh,
    Move,
    Prune,
    ResetMoments,
    Rewind,
    Snapshot,
    direction_to,
    interpolate,
    random_direction,
    reinitialize,
    shrink_and_perturb,
)
from dreamsa.annealing.groups import by_name, kernel_split, split_params, weight_split
from dreamsa.annealing.memory import Masks, Snapshots
from dreamsa.annealing.schedules import (
    generation_cosine,
    geometric_cooling,
    logarithmic_cooling,
    step_decay,
)
from dreamsa.annealing.transforms import (
    DistanceHills,
    Freeze,
    GradientAscent,
    GradientNoise,
    Group,
    LandscapeModification,
    Masked,
    RandomAscent,
    RandomDirection,
    ScaleRate,
    StepContext,
    StepTransform,
)
from dreamsa.annealing.window import Window
