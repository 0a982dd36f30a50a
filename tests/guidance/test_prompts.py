import pytest
import torch

from dreamsa.choices import PRESETS, VIEWS
from dreamsa.config import ViewConfig
from dreamsa.guidance.prompts import (
    ViewPrompt,
    check_prompt,
    perpendicular_weights,
    view_of,
    view_text,
    view_weights,
)
from dreamsa.guidance.score_model import ScoreModel
from dreamsa.presets import preset
from dreamsa.randomness import generator_for
from dreamsa.rendering.cameras import sample_cameras


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
    assert spy.texts == [*(f"a rabbit, {view} view" for view in VIEWS), "blurry"]
    condition = prompt(*angles((0, 0), (90, 0), (180, 0), (0, 80)))
    assert condition.positive[:, 0, 0].tolist() == [1, 2, 3, 4]
    assert condition.negative[:, 0, 0].tolist() == [5, 5, 5, 5]
    assert condition.unwanted is None


@pytest.mark.parametrize(
    "changed",
    [
        {"overhead_deg": 5.0},
        {"front_deg": 5.0},
        {"wording": "{view} of {prompt}"},
        {"interpolate": True},
        {"perpendicular": 2.0},
    ],
)
def test_each_setting_changes_the_condition(changed):
    """stable-dreamfusion ignores its angle flags."""

    def condition_of(config):
        spy = Spy()
        condition = ViewPrompt(spy, "a rabbit", config=config)(*angles((30, 10)))
        return spy.texts, condition.positive.tolist(), condition.unwanted is None

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
    prompt = "{view} {0} ${HOME} %s"
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
