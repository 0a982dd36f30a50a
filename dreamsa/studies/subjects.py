"""The objects of a benchmark: names of the toybox, in their natural colours or another."""

from collections.abc import Sequence
from typing import NamedTuple

from dreamsa.toybox.captions import HELD_OUT, caption
from dreamsa.toybox.shapes import COLOURS, TOYS


class Subject(NamedTuple):
    """An object to generate, whose true shape and colours are known."""

    name: str
    colour: str | None = None
    """None for its natural colours."""

    @property
    def prompt(self) -> str:
        return caption(self.name, self.colour)

    @property
    def held_out(self) -> bool:
        """Whether the embedded model has never seen it in this colour."""
        return (self.colour, self.name) in HELD_OUT


_PAIRS = (
    # the first four are held out of the embedded model's training
    ("purple", "rabbit"),
    ("ebony", "gas can"),
    ("blue", "duck"),
    ("orange", "mug"),
    ("yellow", "car"),
    ("green", "chair"),
    ("pink", "house"),
    ("cyan", "mushroom"),
    ("brown", "snowman"),
    ("white", "donut"),
    ("grey", "teapot"),
    ("red", "rocket"),
)
COLOURED = tuple(Subject(name, colour) for colour, name in _PAIRS)
"""One object per colour."""
NATURAL = tuple(map(Subject, TOYS))
"""Every object in its natural colours."""


def chosen_objects(names: str | None) -> tuple[Subject, ...]:
    """Objects in their natural colours.

    Args:
        names: None or "all" for NATURAL, "none", or names with commas.

    Raises:
        ValueError: The toybox has no such object.
    """
    if names is None or names.strip().lower() == "all":
        return NATURAL
    if names.strip().lower() == "none":
        return ()
    return tuple(Subject(_known(name, TOYS, "object")) for name in names.split(","))


def chosen_colours(pairs: str | None) -> tuple[Subject, ...]:
    """Objects in other colours.

    Args:
        pairs: None for COLOURED, "none", or such as "purple rabbit, ebony gas can".

    Raises:
        ValueError: The toybox has no such object or colour.
    """
    if pairs is None:
        return COLOURED
    if pairs.strip().lower() == "none":
        return ()
    chosen = []
    for pair in pairs.split(","):
        colour, _, name = pair.strip().partition(" ")
        chosen.append(Subject(_known(name, TOYS, "object"), _known(colour, COLOURS, "colour")))
    return tuple(chosen)


def _known(name: str, names: Sequence[str] | dict, kind: str) -> str:
    name = " ".join(name.split())
    if name not in names:
        raise ValueError(f"The toybox has no {kind} {name!r}. It has: {', '.join(names)}.")
    return name
