"""Intervals and tests against closed forms, hand counts and scipy's own."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dreamsa.statistics import PairedTest, bootstrap_mean, holm, mcnemar, psnr, student_mean, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 9), (24, 24)])
def test_wilson_interval_by_its_formula(successes, trials):
    z, p = stats.norm.ppf(0.975), successes / trials
    centre = p + z**2 / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    expected = np.array([centre - half, centre + half]) / (1 + z**2 / trials)
    assert wilson(successes, trials)[2:] == pytest.approx(tuple(expected))


def test_the_interval_without_trials_is_everything():
    assert wilson(0, 0)[2:] == (0.0, 1.0)


def test_mcnemar_counts_discordant_trials_only():
    """8 to 1: two-sided binomial p = 2 (1 + 9) / 2^9."""
    pairs = [(True, False)] * 8 + [(False, True)] + [(True, True)] * 30 + [(False, False)] * 5
    test = mcnemar(pairs)
    assert test[:4] == (8, 1, 30, 5)
    assert test.p == pytest.approx(2 * 10 / 2**9)
    assert mcnemar([(True, True)] * 9).p == 1


def test_holm_by_hand():
    values = {"B": 0.01, "E": 0.04, "F": 0.03}
    tests = {name: PairedTest(0, 0, 0, 0, p, p) for name, p in values.items()}
    adjusted = {name: test.p_holm for name, test in holm(tests).items()}
    assert adjusted == pytest.approx({"B": 0.03, "E": 0.06, "F": 0.06})


def test_bootstrap_intervals_have_their_nominal_coverage():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.normal(1.0, 1.0, 30).tolist(), seed=i) for i in range(100)]
    assert 88 <= sum(d.low <= 1.0 <= d.high for d in intervals) <= 100
    assert bootstrap_mean([2.0, 2.0]) == (2.0, 2.0, 2.0, 2)
    assert math.isnan(bootstrap_mean([2.0]).low)


def test_student_interval_by_scipys_own_test():
    values = [0.1, 0.4, 0.2]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    mean = student_mean(values)
    assert (mean.low, mean.high) == pytest.approx((expected.low, expected.high))
    assert mean.mean == pytest.approx(0.7 / 3)
    assert math.isnan(student_mean([0.1]).high)


def test_psnr_by_hand():
    grey = torch.full((2, 3, 4, 4), 0.5)
    other = grey.clone()
    other[0] += 0.1
    assert psnr(grey, other).tolist() == pytest.approx([20, 100], abs=1e-4)
