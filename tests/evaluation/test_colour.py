import pytest
import torch

from dreamsa.evaluation.colour import (
    colour_error,
    colour_spread,
    mean_lab,
    nearest_colour,
)

WHITE, GREY = torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
ALL, NONE = torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1, 2, 2, dtype=torch.bool)


def test_equal_colours_differ_by_nothing_and_black_from_white_by_100():
    assert colour_error(GREY, GREY, ALL) == 0
    assert colour_error(WHITE, 0 * WHITE, ALL) == pytest.approx(100, abs=1e-2)
    assert colour_error(WHITE, GREY, NONE) is None


def test_pixels_outside_the_mask_do_not_count():
    half = ALL.clone()
    half[0, :, 1] = False
    mixed = GREY.clone()
    mixed[..., 1] = 0
    assert colour_error(mixed, GREY, half) == 0
    assert mean_lab(mixed, half) == mean_lab(GREY, ALL)


def test_the_nearest_valid_colour_has_a_margin():
    assert nearest_colour([9.0, 4.0, 6.5]) == (4.0, 1, 2.5)
    assert nearest_colour([9.0]) == (9.0, 0, None)
    assert nearest_colour([None, None]) == (None, 0, None)


def test_white_has_lightness_100_and_no_chroma():
    assert mean_lab(WHITE, ALL) == pytest.approx((100, 0, 0), abs=0.02)
    assert mean_lab(WHITE, NONE) is None


def test_the_spread_is_the_root_of_the_summed_variances():
    assert colour_spread([(50.0, 0.0, 0.0)]) is None
    assert colour_spread([(50.0, 3.0, 0.0), (50.0, -3.0, 0.0)]) == pytest.approx(18**0.5)
