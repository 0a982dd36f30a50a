"""What the toybox says about its pictures, and which colour-object pairs it never shows to the text-to-image model."""

from dreamsa.guidance.prompts import View, ViewConfig
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
"""(colour, object) pairs kept out of the training of `assets/toybox-sd`, as unusual prompts are rare in the world."""

LOOK_ALIKE: frozenset[str] = frozenset(
    {"ball", "cone", "cube", "tree", "mushroom", "donut", "hat", "lamp", "apple", "table", "cactus", "boat"}
)
"""Objects whose front and back (and, for most, side) differ by their shading at most: nobody can tell their views."""

CHIRAL: frozenset[str] = frozenset({"mug"})
"""Objects whose front is the mirror image of their back: mirroring changes what view a picture shows."""

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(" ".join((*TOYS, *COLOURS, *COLOUR_SYNONYMS, "a an the of natural front side back overhead view ,")).split())
)
"""Every word of every caption."""


def article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def caption(name: str, colour: str | None = None, view: View | None = None, views: ViewConfig = ViewConfig()) -> str:
    """ "an ebony gas can, side view"; without `view` just "an ebony gas can"."""
    phrase = f"{colour} {name}" if colour else name
    phrase = f"{article(phrase)} {phrase}"
    return views.text(phrase, view) if view else phrase
