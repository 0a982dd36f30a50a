"""Names, variants and edits of arms."""

import pytest

from dreamsa.choices import ESCAPES
from dreamsa.studies.arms import ARMS, arm_of, chosen_arms


def test_every_escape_is_an_arm_and_no_two_arms_are_equal():
    ordinary = {arm.escape for arm in ARMS.values() if arm.control is None}
    assert ordinary == set(ESCAPES)
    edits = {(arm.escape, arm.moments, arm.control, arm.matched) for arm in ARMS.values()}
    assert len(edits) == len(ARMS) == 8
    assert "".join(arm.letter for arm in ARMS.values()) == "ABCDEFGH"


def test_letters_and_names_in_any_case_and_order_are_full_names():
    assert chosen_arms("e, Ascent,B") == ("plain", "ascent", "noise-matched")
    assert chosen_arms("ALL") == chosen_arms(["all"]) == tuple(ARMS)
    variants = "d@scale=1,interpolate-MATCHED@eta=0.6, B, ascent, D@scale=0.1, b"
    assert chosen_arms(variants) == (
        "plain",
        "ascent@scale=1",
        "ascent",
        "ascent@scale=0.1",
        "interpolate-matched@eta=0.6",
    )


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("X", "no arm 'X'"),
        ("I", "no arm 'I'"),
        ("", "no arm ''"),
        ("D@speed=1", "sets 'speed'"),
        ("D@scale", "name=value"),
        ("B,E", "noise-matched moves as far as ascent: add ascent"),
    ],
)
def test_unknown_arms_and_settings_are_refused(arms, message):
    with pytest.raises(ValueError, match=message):
        chosen_arms(arms)


def test_arms_are_edits_with_the_numbers_of_their_escape():
    edits = {name: arm.edit("parent", 60, 0.01) for name, arm in ARMS.items()}
    assert {name: (edit.eta, edit.ascent_steps) for name, edit in edits.items()} == {
        "plain-keep": (0, 0),
        "plain": (0, 0),
        "scratch": (1, 0),
        "ascent": (0, 60),
        "noise-matched": (0, 60),
        "interpolate-matched": (0, 0),
        "regularizers": (0, 60),
        "interpolate": (0.6, 0),
    }
    assert edits["plain-keep"].moments == "keep"
    assert {name: edit.control.kind for name, edit in edits.items() if edit.control} == {
        "noise-matched": "noise",
        "interpolate-matched": "interpolate",
        "regularizers": "regularizers",
    }


def test_a_variant_of_a_matched_arm_moves_as_far_as_its_numbers_say():
    noise, towards = arm_of("E@scale=0.15"), arm_of("F@eta=0.5")
    assert not noise.matched
    assert not towards.matched
    assert noise.edit("parent", 60, 0.01).control.displacement is None
    edit = towards.edit("parent", 60, 0.01)
    assert (edit.eta, edit.control) == (0.5, None)
    assert towards.title == "towards a random scene, eta = 0.5"


def test_what_an_edit_may_change_makes_variants():
    shape = arm_of("H@keep=shape").edit("parent", 60, 0.01)
    assert (shape.eta, shape.free.keep) == (ESCAPES["interpolate"].eta, "shape")
    region = arm_of("B@region=auto@grow=0.05").edit("parent", 60, 0.01)
    assert (region.eta, region.free.auto, region.free.grow) == (0, True, 0.05)
    assert arm_of("H").edit("parent", 60, 0.01).free is None
