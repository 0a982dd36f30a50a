"""Captions of toybox images, and the pairs held out of the text-to-image model's training."""

from dreamsa.choices import View
from dreamsa.config import ViewConfig
from dreamsa.guidance.prompts import view_text
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

CHIRAL: frozenset[str] = frozenset({"mug"})
"""Objects whose front mirrors their back, so that mirroring an image changes its view."""

_OTHER_WORDS = "a an the of natural front side back overhead view ,"
WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(" ".join((*TOYS, *COLOURS, *COLOUR_SYNONYMS, _OTHER_WORDS)).split())
)
"""Every word of every caption. The tokenizer depends on their order."""


def article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def caption(
    name: str, colour: str | None = None, view: View | None = None, views: ViewConfig = ViewConfig()
) -> str:
    """ "an ebony gas can, side view"; without `view`, "an ebony gas can"."""
    phrase = f"{colour} {name}" if colour else name
    phrase = f"{article(phrase)} {phrase}"
    return view_text(views, phrase, view) if view else phrase
