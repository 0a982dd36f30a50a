"""Values that settings and options may take, each list written once. Imports nothing, so that
`dreamsa --help` is quick."""

from typing import Literal, NamedTuple, get_args

BaseName = Literal["toybox", "paper", "sd"]
BASES: tuple[BaseName, ...] = get_args(BaseName)
"""Complete configurations."""
LengthName = Literal["draft", "standard", "fine"]
LENGTHS: dict[LengthName, float] = {"draft": 1 / 3, "standard": 1.0, "fine": 2.0}
"""Multiples of the usual number of steps, for any model."""
PresetName = Literal["draft", "standard", "fine", "toybox", "paper", "sd"]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)

Moments = Literal["reset", "keep"]
"""Whether an edit clears the optimizer's moments or keeps the parent's."""

Keep = Literal["shape", "colour"]
"""What an edit keeps of its parent, bit for bit: the density or the colours."""
AUTO_REGION = "auto"
"""The region in which the score model's predictions for the two prompts differ."""

BackendName = Literal["auto", "torch", "numba", "triton", "tcnn"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

Channel = Literal["rgb", "depth", "normal"]
Format = Literal["glb", "obj", "ply", "stl"]
FORMATS: tuple[Format, ...] = get_args(Format)
ColourMode = Literal["texture", "vertex"]

Role = Literal["positive", "negative", "null", "opposite", "degraded", "front", "side", "source"]
"""What a noise prediction is conditioned on: the prompt from this view, the negative prompt, no
text, the prompt from the opposite view, that of a bad render, those from the front and the side,
the prompt of an edit's parent."""

MethodName = Literal["sds", "rescaled", "csd", "nfsd", "ism", "sdi", "consistent", "bridge", "dds"]
"""Methods of score distillation: functions of `dreamsa.distill.methods`."""
Schedule = Literal["uniform", "linear", "hifa", "dreamtime"]
"""How timesteps are chosen over a run."""

View = Literal["front", "side", "back", "overhead"]
VIEWS: tuple[View, ...] = get_args(View)

Stage = Literal["all", "pictures", "text", "autoencoder", "diffusion", "judge"]
"""Stages of the recipe of the embedded models."""


class Escape(NamedTuple):
    """A named way for an edit to leave its parent's local minimum: a preset of an edit's
    numbers."""

    sentence: str
    eta: float = 0.0
    """Fraction of the way towards a random scene before the first step: 0 stays, 1 starts from
    scratch."""
    ascends: bool = False
    """Whether a fifth of the steps ascends, unless the number of steps is given."""


EscapeName = Literal["interpolate", "anneal", "plain", "fresh"]
ESCAPES: dict[EscapeName, Escape] = {
    "interpolate": Escape("move part of the way towards a random scene, then descend", eta=0.6),
    "anneal": Escape("ascend on the new prompt first, then descend", ascends=True),
    "plain": Escape("descend only"),
    "fresh": Escape("start from a random scene", eta=1.0),
}
BOLDNESS: dict[str, EscapeName] = {
    "Careful": "plain",
    "Balanced": "interpolate",
    "Start over": "fresh",
}
"""How bold an edit is, in plain words, and the escape that is so."""
DEFAULT_ESCAPE: EscapeName = "interpolate"
"""The most successful escape over colours, objects and repairs (docs/edits.md)."""
ASCENT_SCALE = 0.01
"""Default S, the factor on the learning rate while ascending (thesis, eq. 9)."""

TURNTABLE_FRAMES, TURNTABLE_RESOLUTION = 60, 256
"""Of `dreamsa render`."""
MESH_RESOLUTION, MESH_FACES, TEXTURE_SIZE = 128, 20_000, 1024
"""Of `dreamsa export`: cells along the longest side, maximum number of faces, texels per side."""
