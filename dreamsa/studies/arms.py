"""The arms of comparisons: ordinary edits, rows of `choices.ESCAPES`, and their controls."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from dreamsa.api import free_config
from dreamsa.choices import ESCAPES, EscapeName, Moments
from dreamsa.config import ControlConfig, EditConfig
from dreamsa.settings import parse_setting

MODEL_ARM = "ascent"
"""The arm whose displacement the matched arms copy."""
FREE = ("keep", "region", "grow", "outside")
"""What an edit may change, as arguments of `dreamsa.edit`."""
NUMBERS = ("ascent_steps", "scale", "eta", *FREE)
"""Settings of an edit that a variant of an arm may change, besides those of the configuration."""


@dataclass(frozen=True)
class Arm:
    """A kind of edit. The arms of a comparison share parent, seeds and number of UNet calls."""

    name: str
    letter: str
    """Short name in commands."""
    title: str
    colour: str
    """Of its curves."""
    escape: EscapeName = "plain"
    """Supplies eta and whether the edit ascends."""
    moments: Moments = "reset"
    control: Literal["noise", "interpolate", "regularizers"] | None = None
    """What a control does in place of its escape."""
    matched: bool = False
    """Displaces each parameter group as far as MODEL_ARM has, with the same seed."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """A variant's values of NUMBERS."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """A variant's settings of the configuration."""

    def edit(
        self,
        parent: str,
        ascent_steps: int,
        scale: float,
        displacement: dict[str, float] | None = None,
    ) -> EditConfig:
        """The edit of a run.

        Args:
            ascent_steps, scale: Of arms that ascend.
            displacement: Norm per parameter group, for matched arms.

        Raises:
            ValueError: A number is out of range.
        """
        escape = ESCAPES[self.escape]
        numbers: dict[str, Any] = {
            "eta": 0.0 if self.control else escape.eta,
            "ascent_steps": ascent_steps if escape.ascends else 0,
            "scale": scale,
            **self.numbers,
        }
        free = {name: numbers.pop(name) for name in FREE if name in numbers}
        kept = free_config(**{"keep": None, "region": (), "grow": 0.0, "outside": False, **free})
        control = ControlConfig(self.control, displacement) if self.control else None  # pyright: ignore[reportArgumentType]
        return EditConfig(parent, moments=self.moments, control=control, free=kept, **numbers)


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("plain-keep", "A", "descend, moments kept", "#8c8c94", moments="keep"),
        Arm("plain", "B", "descend, moments reset", "#1b1b1f"),
        Arm("scratch", "C", "start from a random scene", "#c9a227", "fresh"),
        Arm("ascent", "D", "ascend, then descend", "#2f5fd0", "anneal"),
        Arm(
            "noise-matched",
            "E",
            "random displacement as far as ascent",
            "#d1495b",
            "anneal",
            control="noise",
            matched=True,
        ),
        Arm(
            "interpolate-matched",
            "F",
            "towards a random scene as far as ascent",
            "#2a9d6f",
            "interpolate",
            control="interpolate",
            matched=True,
        ),
        Arm(
            "regularizers",
            "G",
            "ascend the opacity regularizer only",
            "#9b5fc0",
            "anneal",
            control="regularizers",
        ),
        Arm(
            "interpolate",
            "H",
            "a fraction eta of the way towards a random scene (Perturb-and-Revise)",
            "#e07b00",
            "interpolate",
        ),
    )
}


@lru_cache
def arm_of(name: str) -> Arm:
    """An arm by its name or letter, in any case, or a variant of one.

    A variant is "ascent@scale=1@ascent_steps=20", "B@distill.guidance_scale=50", "H@keep=shape" or
    "H@region=auto@grow=0.05". A variant of a
    matched arm that sets one of NUMBERS is not matched: it moves as far as that says.

    Raises:
        ValueError: An unknown arm or setting.
    """
    first, *settings = name.split("@")
    word = first.strip().lower()
    base = next((arm for arm in ARMS.values() if word in (arm.name, arm.letter.lower())), None)
    if base is None:
        known = ", ".join(f"{arm.name} or {arm.letter}" for arm in ARMS.values())
        raise ValueError(
            f"There is no arm {first!r}. Arms: {known}; or all. "
            "A variant is ARM@setting=value, e.g. ascent@scale=1."
        )
    if not settings:
        return base
    values = dict(map(parse_setting, settings))
    unknown = [key for key in values if key not in NUMBERS and "." not in key]
    if unknown:
        raise ValueError(
            f"Arm {name!r} sets {unknown[0]!r}; "
            f"a variant sets {', '.join(NUMBERS)}, or a setting of the configuration: section.name."
        )
    numbers = {key: value for key, value in values.items() if key in NUMBERS}
    title = base.title
    if base.matched and numbers:
        title = title.replace(" as far as ascent", "")
        base = replace(base, matched=False, control="noise" if base.control == "noise" else None)
    return replace(
        base,
        name="@".join([base.name, *(setting.strip() for setting in settings)]),
        title=", ".join([title, *(f"{key} = {value}" for key, value in values.items())]),
        numbers=numbers,
        overrides={key: value for key, value in values.items() if key not in NUMBERS},
    )


def base_of(name: str) -> Arm:
    """The row of ARMS that an arm or a variant belongs to."""
    return arm_of(name.partition("@")[0])


def chosen_arms(names: str | Sequence[str]) -> tuple[str, ...]:
    """Full names of arms, in the order of ARMS; variants of one arm in the given order.

    Args:
        names: "all", "plain,D,D@scale=1", or a list.

    Raises:
        ValueError: An unknown arm, none, or a matched one without MODEL_ARM.
    """
    given = names.split(",") if isinstance(names, str) else list(names)
    if [name.strip().lower() for name in given] == ["all"]:
        return tuple(ARMS)
    chosen = dict.fromkeys(arm_of(name.strip()).name for name in given or [""])
    matched = [name for name in chosen if arm_of(name).matched]
    if matched and MODEL_ARM not in chosen:
        raise ValueError(f"Arm {matched[0]} moves as far as {MODEL_ARM}: add {MODEL_ARM}.")
    return tuple(name for arm in ARMS.values() for name in chosen if base_of(name) == arm)
