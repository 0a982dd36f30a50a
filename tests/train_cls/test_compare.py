"""Comparisons: shared first generations, the verdict and the report."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_model import SMALL

from train_cls.compare import compare, history, last_scores, paired_difference, table, verdict
from train_cls.data import load_splits
from train_cls.report import write_report
from train_cls.run import rows


def test_a_comparison_shares_its_first_generation_resumes_and_reports(tmp_path):
    arms, seeds = ("seal", "reset-only", "long"), (0, 1)
    lines = list(compare(SMALL, tmp_path / "c", arms, seeds))
    assert len(lines) == 6
    for seed in seeds:
        seal = rows(tmp_path / "c" / "seal" / f"seed-{seed}")
        assert [row["epoch"] for row in seal] == [3, 4, 5, 6], "generation 1 was not run again"
        assert len(rows(tmp_path / "c" / "generation-1" / f"seed-{seed}")) == 2
        assert [row["epoch"] for row in rows(tmp_path / "c" / "long" / f"seed-{seed}")] == [
            1,
            2,
            3,
            4,
            5,
            6,
        ]
    before = last_scores(tmp_path / "c" / "seal" / "seed-0")
    assert len(list(compare(SMALL, tmp_path / "c", arms, seeds))) == 6
    assert last_scores(tmp_path / "c" / "seal" / "seed-0") == before
    with pytest.raises(ValueError, match="other settings"):
        list(compare(replace(SMALL, lr=0.3), tmp_path / "c", arms, seeds))
    page = write_report(tmp_path / "c", arms, seeds).read_text()
    assert (
        "<svg" in page
        and "http" not in page.replace("http://www.w3.org", "")
        and "best control" in page
    )
    assert len((tmp_path / "c" / "scores.csv").read_text().splitlines()) == 7
    assert [row["epoch"] for row in history(tmp_path / "c", "seal", 1)] == [1, 2, 3, 4, 5, 6]
    assert set(table(tmp_path / "c", arms, seeds)) == set(arms)
    (tmp_path / "c" / "seal" / "seed-1" / "metrics.csv").unlink()
    assert set(table(tmp_path / "c", arms, seeds)["seal"]) == {"0"}, (
        "a run that was stopped has no say yet"
    )


def test_an_arm_with_tuned_settings_trains_from_scratch(tmp_path):
    list(compare(SMALL, tmp_path / "c", ("seal", "seal@hot"), (0,), {"seal@hot": {"lr": 0.2}}))
    assert rows(tmp_path / "c" / "seal@hot" / "seed-0")[0]["epoch"] == 1


def test_the_verdict_is_about_the_best_control():
    scores = {
        "seal": {"0": 0.9, "1": 0.91, "2": 0.92},
        "long": {"0": 0.89, "1": 0.90, "2": 0.905},
        "llf": {"0": 0.5, "1": 0.5, "2": 0.5},
    }
    found = verdict(scores)
    assert found["best control"] == "long" and "beats" in found["claim"]
    scores["long"] = {"0": 0.95, "1": 0.96, "2": 0.99}
    assert "loses to" in verdict(scores)["claim"]
    scores["long"] = {"0": 0.95, "1": 0.86, "2": 0.925}
    assert "does not differ significantly" in verdict(scores)["claim"]
    assert verdict({"seal": {"0": 0.5}, "long": {"0": 0.75}})["claim"].endswith(
        "-25.00 points, one seed"
    )
    assert "no control" in verdict({"seal": {"0": 1.0}})["claim"]


def test_paired_differences_have_the_interval_of_their_mean():
    rng = np.random.default_rng(0)
    a = rng.normal(0.3, 1, 200)
    d = paired_difference(a, np.zeros(200))
    half = 1.96 * a.std(ddof=1) / 200**0.5
    assert d.mean == pytest.approx(a.mean()) and d.high - d.mean == pytest.approx(half, rel=0.15)
    assert np.isnan(paired_difference([1.0], [0.5]).low)


def test_a_comparison_resumes_from_another_working_directory(tmp_path, monkeypatch):
    config = replace(SMALL, data="set.npz", generations=1, epochs=1, model="preresnet-tiny")
    splits = load_splits("digits", SMALL.splits)
    monkeypatch.chdir(tmp_path)
    list(compare(config, tmp_path / "c", ("normal",), (0,), load=lambda _: splits))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    absolute = replace(config, data=str(tmp_path / "set.npz"))
    assert (
        len(list(compare(absolute, tmp_path / "c", ("normal",), (0,), load=lambda _: splits))) == 1
    )
    with pytest.raises(ValueError, match="other settings"):
        list(compare(config, tmp_path / "c", ("normal",), (0,), load=lambda _: splits))
