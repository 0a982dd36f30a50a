"""Captions of toybox images, and the pairs held out of the text-to-image model's training."""

from dreamsa.choices import View
from dreamsa.config import TOYBOX_WORDING, ViewConfig
from dreamsa.guidance.prompts import ANGLE_STEP_DEG, Angles, view_of, view_text
from dreamsa.toybox.shapes import COLOUR_SYNONYMS, COLOURS, TOYS

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("purple", "rabbit"),
        ("ebony", "gas can"),
        ("blue", "duck"),
        ("pink", "car"),
        ("cyan", "chair"),
        ("orange", "mug"),
        ("yellow", "mushroom"),
        ("green", "snowman"),
        ("red", "teapot"),
        ("brown", "rocket"),
    }
)
"""(colour, object) pairs held out of the training of `assets/toybox-sd`."""

LOOK_ALIKE: frozenset[str] = frozenset(
    {"ball", "cone", "cube", "tree", "mushroom", "donut"}
    | {"hat", "lamp", "apple", "table", "cactus", "boat"}
)
"""Objects whose views are ambiguous: front, back and mostly side differ by shading at most."""

CHIRAL: frozenset[str] = frozenset({"apple", "boat", "cactus", "donut", "gas can", "house", "mug"})
"""Objects that are not mirrored: a mirrored image shows no view of an object whose left and right
halves differ. (The boat's are equal.)"""

AZIMUTH_WORDS = {f"{angle:03d}": angle for angle in range(0, 360, ANGLE_STEP_DEG)}
"""Degrees by word; one token each, as all words of the toybox."""
ELEVATION_WORDS = {f"{angle:+03d}": angle for angle in range(-90, 91, ANGLE_STEP_DEG)}

_OTHER_WORDS = "a an the of natural front side back overhead view ,"
_ANGLE_WORDS = "azimuth elevation 0 1 2 3 4 5 6 7 8 9 + -"
WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(" ".join((*TOYS, *COLOURS, *COLOUR_SYNONYMS, _OTHER_WORDS, _ANGLE_WORDS)).split())
)
"""Every word of every caption but the angles. The tokenizer depends on their order."""

_WITH_ANGLES = ViewConfig(wording=TOYBOX_WORDING)


def article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def caption(
    name: str, colour: str | None = None, view: View | None = None, angles: Angles | None = None
) -> str:
    """The caption of an image: "an ebony gas can, side view, azimuth 105, elevation +15".

    Angles imply the view. Without them, "an ebony gas can, side view"; without a view either, "an
    ebony gas can".
    """
    phrase = f"{colour} {name}" if colour else name
    phrase = f"{article(phrase)} {phrase}"
    if angles:
        return view_text(_WITH_ANGLES, phrase, view or view_of(*angles), angles)
    return view_text(ViewConfig(), phrase, view) if view else phrase
