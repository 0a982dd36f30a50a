"""Statistics of trials by hand."""

import pytest

from dreamsa.studies.tables import differences, paired_tests, success_by_step, summary


def test_differences_are_paired_by_seed():
    def result(seed, probability):
        scores = {"probability": probability}
        return {"seed": seed, "success": True, "steps_to_success": None, "scores": scores}

    plain = [result(1, 0.4), result(2, 0.0)]
    results = {"ascent": [result(0, 0.9), result(1, 0.5)], "plain": plain}
    assert differences(results, "probability")["plain"].mean == pytest.approx(0.1)
    assert differences({"plain": plain}, "probability") == {}
    assert summary(results)["ascent"]["probability"]["mean"] == pytest.approx(0.7)


def outcome(arm, prompt, seed, success):
    return {
        "arm": arm,
        "parent_prompt": "a",
        "prompt": prompt,
        "seed": seed,
        "success": success,
    }


def test_paired_tests_by_hand():
    """Over trials for McNemar, over pairs for the interval; unfinished trials are left out."""
    results = {
        "ascent": [outcome("ascent", p, s, True) for p in "xyz" for s in (0, 1)],
        "plain": [outcome("plain", p, s, p == "x") for p in "xyz" for s in (0, 1)],
        "noise-matched": [outcome("noise-matched", "x", 0, True)],
        "regularizers": [outcome("regularizers", "x", 0, False)],
    }
    tests = paired_tests(results)
    assert list(tests) == ["ascent against plain", "ascent against noise-matched"]
    against_plain, gap = tests["ascent against plain"]
    assert against_plain[:4] == (4, 0, 2, 0)
    assert against_plain.p == pytest.approx(2 / 2**4)
    assert against_plain.p_holm == pytest.approx(2 * 2 / 2**4)
    assert (gap.mean, gap.count) == (pytest.approx(2 / 3), 3)
    assert tests["ascent against noise-matched"][0].p == 1


def test_success_by_step_leaves_repairs_out():
    results = [
        {"steps_to_success": step, "prompt": "a duck", "parent_prompt": "a mug"}
        for step in (30, None, 10, None)
    ]
    results.append({"steps_to_success": None, "prompt": "a duck", "parent_prompt": "A duck"})
    assert success_by_step(results, 50) == [(0, 0), (10, 0.25), (30, 0.5), (50, 0.5)]
