import pytest
import torch
from hypothesis import given
from hypothesis.strategies import floats

from dreamsa.choices import PRESETS, VIEWS
from dreamsa.config import TOYBOX_WORDING, ViewConfig
from dreamsa.guidance.prompts import (
    ANGLE_STEP_DEG,
    ViewPrompt,
    angle_weights,
    check_prompt,
    nearest_angles,
    perpendicular_weights,
    view_of,
    view_text,
    view_weights,
)
from dreamsa.guidance.score_model import ScoreModel
from dreamsa.presets import preset
from dreamsa.randomness import generator_for
from dreamsa.rendering.cameras import sample_cameras

ANGLES = ViewConfig(wording=TOYBOX_WORDING)
AZIMUTHS, ELEVATIONS = floats(-360, 720), floats(-90, 90)


class Spy(ScoreModel):
    """A score model that records its texts and embeds each as its index, from 1."""

    def __init__(self):
        self.texts = []

    def embed(self, texts):
        first = len(self.texts) + 1
        self.texts += texts
        return torch.stack([torch.full((2, 3), float(first + i)) for i in range(len(texts))])


def angles(*pairs):
    azimuth, elevation = zip(*pairs, strict=True)
    return torch.tensor(azimuth, dtype=torch.float32), torch.tensor(elevation, dtype=torch.float32)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "view"),
    [(0, 0, "front"), (44, 0, "front"), (-44, 0, "front"), (316, 10, "front"), (360, 0, "front"),
     (90, 0, "side"), (270, 0, "side"), (180, 0, "back"), (-180, 0, "back"), (136, 0, "back"),
     (0, 61, "overhead"), (180, 90, "overhead"), (0, 60, "front")],
)  # fmt: skip
def test_sectors_are_centred_on_the_front_axis(azimuth, elevation, view):
    assert view_of(azimuth, elevation) == view


def test_every_view_is_reached_by_the_default_cameras():
    """threestudio's default cameras stay below its overhead prompt."""
    for name in PRESETS:
        config = preset(name, "a rabbit")
        views = set()
        for i in range(200):
            cameras = sample_cameras(config.camera, generator_for(0, i, "cameras"))
            angles = zip(cameras.azimuth_deg, cameras.elevation_deg, strict=True)
            views |= {view_of(float(a), float(e), config.views) for a, e in angles}
        assert views == set(VIEWS), name


def test_each_view_has_its_own_text():
    spy = Spy()
    prompt = ViewPrompt(spy, "a rabbit", "blurry")
    condition = prompt(*angles((0, 0), (90, 0), (180, 0), (0, 80)))
    positive, negative = condition.texts(["positive", "negative"])
    assert spy.texts == [*(f"a rabbit, {view} view" for view in VIEWS), "blurry"]
    assert positive[:, 0, 0].tolist() == [1, 2, 3, 4]
    assert negative[:, 0, 0].tolist() == [5, 5, 5, 5]
    assert condition.repulsion is None


def test_a_text_names_the_angles_or_else_the_centre_of_its_view():
    texts = [view_text(ANGLES, "a car", view) for view in VIEWS]
    assert texts == [
        "a car, front view, azimuth 000, elevation +00",
        "a car, side view, azimuth 090, elevation +00",
        "a car, back view, azimuth 180, elevation +00",
        "a car, overhead view, azimuth 000, elevation +90",
    ]
    text = view_text(ANGLES, "a car", "front", (345, -15))
    assert text == "a car, front view, azimuth 345, elevation -15"


@pytest.mark.parametrize(
    ("azimuth", "elevation", "named"),
    [(0, 0, (0, 0)), (7.4, 7.4, (0, 0)), (7.6, -7.6, (15, -15)), (352.4, -7, (345, 0)),
     (352.6, 82, (0, 75)), (-20, 90, (345, 90)), (360, 83, (0, 90)), (725, 50, (0, 45))],
)  # fmt: skip
def test_the_nearest_angles_are_multiples_of_fifteen(azimuth, elevation, named):
    assert nearest_angles(azimuth, elevation) == named


@given(AZIMUTHS, ELEVATIONS)
def test_angle_weights_are_a_mixture_with_the_camera_as_its_mean(azimuth, elevation):
    weights = angle_weights(azimuth, elevation)
    assert len(weights) <= 4
    assert min(weights.values()) > 0
    assert sum(weights.values()) == pytest.approx(1)
    for a, e in weights:
        assert 0 <= a < 360
        assert a % ANGLE_STEP_DEG == e % ANGLE_STEP_DEG == 0
    off = sum(w * ((a - azimuth + 180) % 360 - 180) for (a, _), w in weights.items())
    assert off == pytest.approx(0, abs=1e-9)
    assert sum(w * e for (_, e), w in weights.items()) == pytest.approx(elevation, abs=1e-9)


@given(AZIMUTHS, ELEVATIONS, floats(-0.01, 0.01))
def test_angle_weights_are_continuous(azimuth, elevation, by):
    here, beside = angle_weights(azimuth, elevation), angle_weights(azimuth + by, elevation - by)
    change = [abs(here.get(key, 0) - beside.get(key, 0)) for key in here | beside]
    assert sum(change) <= 4 * abs(by) / ANGLE_STEP_DEG + 1e-9


@pytest.mark.parametrize("azimuth", range(0, 360, ANGLE_STEP_DEG))
@pytest.mark.parametrize("elevation", [-90, -15, 0, 75, 90])
def test_angle_weights_are_pure_at_angles_with_a_name(azimuth, elevation):
    for turn in (-360, 0, 360):
        assert angle_weights(azimuth + turn, elevation) == {(azimuth, elevation): 1.0}


def test_angles_mix_the_embeddings_of_their_neighbours_and_each_text_is_embedded_once():
    spy = Spy()
    prompt = ViewPrompt(spy, "a car", config=ANGLES)

    def positive(*pairs):
        return prompt(*angles(*pairs)).texts(["positive"])[0, :, 0, 0].tolist()

    assert positive((352.5, 7.5)) == [2.5]  # the mean of 1, 2, 3 and 4
    assert spy.texts == [
        f"a car, front view, azimuth {azimuth}, elevation {elevation}"
        for azimuth in ("345", "000")
        for elevation in ("+00", "+15")
    ]
    assert positive((352.5, 7.5), (0, 0), (360, 3.75)) == [2.5, 3, 3.25]
    assert len(spy.texts) == 4
    assert positive((52.5, 60), (52.5, 75)) == [5.5, 7.5]
    assert spy.texts[4:] == [
        "a car, front view, azimuth 045, elevation +60",
        "a car, side view, azimuth 060, elevation +60",
        "a car, overhead view, azimuth 045, elevation +75",
        "a car, overhead view, azimuth 060, elevation +75",
    ]


@pytest.mark.parametrize(
    "config",
    [
        ViewConfig(wording="{prompt}, azimuth {azimuth}"),
        ViewConfig(wording="{prompt}, elevation {elevation}"),
        ViewConfig(wording="{prompt}", interpolate=True),
    ],
)
def test_views_that_share_a_text_add_their_weights(config):
    class Ones(Spy):
        def embed(self, texts):
            return torch.ones_like(super().embed(texts))

    cameras = angles((5, 5), (40, 50), (300, 20))
    positive = ViewPrompt(Ones(), "a car", config=config)(*cameras).texts(["positive"])
    torch.testing.assert_close(positive, torch.ones_like(positive))


@pytest.mark.parametrize(
    "changed",
    [
        {"overhead_deg": 5.0},
        {"front_deg": 5.0},
        {"wording": "{view} of {prompt}"},
        {"wording": TOYBOX_WORDING},
        {"interpolate": True},
        {"perpendicular": 2.0},
    ],
)
def test_each_setting_changes_the_condition(changed):
    """stable-dreamfusion ignores its angle flags."""

    def condition_of(config):
        spy = Spy()
        condition = ViewPrompt(spy, "a rabbit", config=config)(*angles((30, 10)))
        return condition.texts(["positive"]).tolist(), spy.texts, condition.repulsion is None

    assert condition_of(ViewConfig()) != condition_of(ViewConfig(**changed))


@pytest.mark.parametrize("azimuth", range(-180, 361, 15))
@pytest.mark.parametrize("elevation", [-10, 30, 55, 70, 90])
def test_interpolation_weights_are_a_mixture(azimuth, elevation):
    weights = view_weights(azimuth, elevation, ViewConfig(interpolate=True))
    assert sum(weights.values()) == pytest.approx(1)
    assert min(weights.values()) > 0


def test_interpolation_is_pure_at_the_axes_and_continuous():
    config = ViewConfig(interpolate=True)
    assert view_weights(0, 0, config) == {"front": 1.0}
    assert view_weights(90, 0, config) == {"side": 1.0}
    assert view_weights(180, 0, config) == {"back": 1.0}
    assert view_weights(0, 90, config) == {"overhead": 1.0}
    assert view_weights(45, 0, config) == {"front": 0.5, "side": 0.5}


def test_perpendicular_weights_only_repel_and_most_from_behind():
    config = ViewConfig(perpendicular=2.0)
    for azimuth in range(0, 360, 10):
        assert all(w <= 0 for w in perpendicular_weights(azimuth, 0, config))
    assert perpendicular_weights(180, 0, config)[0] == -2.0
    assert perpendicular_weights(0, 80, config) == (0.0, 0.0)


def test_braces_in_a_prompt_are_text():
    prompt = "{view} {azimuth} {prompt} {0} ${HOME} %s"
    assert view_text(ViewConfig(), prompt, "side") == f"{prompt}, side view"


@pytest.mark.parametrize(
    ("bad", "says"),
    [("", "empty"), ("  \n ", "empty"), ("x" * 1_000_000, "1,000,000 characters"),
     ("a\x00b", "not text"), ("\ud800", "not text"), (b"x", "must be text")],
)  # fmt: skip
def test_prompts_that_are_not_text_are_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        check_prompt(bad)


def test_prompts_are_normalised():
    assert check_prompt("  a\n rabbit ") == "a rabbit"
    assert check_prompt("cafe\u0301") == "caf\u00e9"


@pytest.mark.parametrize(
    "bad",
    [{"front_deg": 90.0}, {"overhead_deg": 91.0}, {"wording": "no field"}, {"perpendicular": -1.0}],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="views"):
        ViewConfig(**bad)
