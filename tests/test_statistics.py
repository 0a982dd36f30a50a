"""Intervals and tests against closed forms, hand counts and scipy's own."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dreamsa.statistics import (
    PairedTest,
    bootstrap_mean,
    detectable_difference,
    holm,
    mcnemar,
    paired_difference,
    psnr,
    student_mean,
    wilson,
)


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


def test_paired_differences_agree_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, (2, 7)).tolist()
    found, reference = paired_difference(a, b), stats.ttest_rel(a, b)
    interval = reference.confidence_interval()
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.wins, found.count) == (sum(x > y for x, y in zip(a, b, strict=True)), 7)
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1
    assert paired_difference([1.0, 2.0], [0.0, 1.0]).p == 0
    single = paired_difference([1.0], [0.5])
    assert (single.mean, single.p) == (0.5, 1) and math.isnan(single.low)
    with pytest.raises(ValueError, match="at least one pair"):
        paired_difference([], [])


def test_holm_adjusts_paired_differences_for_their_number():
    rng = np.random.default_rng(1)
    draws = {f"{shift}": rng.normal(shift, 1, 8).tolist() for shift in range(4)}
    tests = {name: paired_difference(values, [0.0] * 8) for name, values in draws.items()}
    adjusted = holm(tests)
    ordered = sorted(tests, key=lambda name: tests[name].p)
    expected, highest = {}, 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1, (4 - rank) * tests[name].p))
        expected[name] = highest
    assert {name: test.p_holm for name, test in adjusted.items()} == pytest.approx(expected)


@pytest.mark.parametrize("pairs", [2, 3, 10])
def test_a_detectable_difference_is_detected_in_four_of_five_cases(pairs):
    rng = np.random.default_rng(0)
    shift = detectable_difference(2.0, pairs)
    draws = rng.normal(shift, 2.0, (20_000, pairs))
    p = stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert math.isnan(detectable_difference(1.0, 1))
