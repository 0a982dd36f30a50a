"""Comparisons: shared first generations, the verdict and the report."""

import re
from dataclasses import replace

import numpy as np
import pytest
from tiny_model import SMALL

from train_cls.compare import CONTROLS, compare, history, table, verdict
from train_cls.data import load_splits
from train_cls.report import write_report
from train_cls.run import last_scores, rows


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
        and "no conclusion from one seed" in page
    )
    assert len((tmp_path / "c" / "scores.csv").read_text().splitlines()) == 7
    assert page.count("<svg") == 5 and "Unfinished" not in page  # intervals and four plots
    assert re.search(r"<td>[0-4] of 4</td>", page), "how many of the four ascents forgot"
    for text in (">seconds<", ">seed 1<", "splits.per_class = 10"):
        assert text in page, text
    assert [row["epoch"] for row in history(tmp_path / "c", "seal", 1)] == [1, 2, 3, 4, 5, 6]
    assert set(table(tmp_path / "c", arms, seeds)) == set(arms)
    (tmp_path / "c" / "seal" / "seed-1" / "metrics.csv").unlink()
    assert set(table(tmp_path / "c", arms, seeds)["seal"]) == {"0"}, (
        "a run that was stopped has no say yet"
    )
    page = write_report(tmp_path / "c", arms, seeds).read_text()
    assert "Unfinished: 1 of 6 runs" in page


def test_an_arm_with_tuned_settings_trains_from_scratch(tmp_path):
    list(compare(SMALL, tmp_path / "c", ("seal", "seal@hot"), (0,), {"seal@hot": {"lr": 0.2}}))
    assert rows(tmp_path / "c" / "seal@hot" / "seed-0")[0]["epoch"] == 1
    page = write_report(tmp_path / "c", ("seal", "seal@hot"), (0,)).read_text()
    assert "<tr><td>seal@hot</td><td>0.2</td></tr>" in page, "settings in which arms differ"


def test_a_diverging_arm_does_not_end_the_comparison(tmp_path):
    arms, hot = ("seal", "restarts", "long"), {"restarts": {"lr": 1e30}}
    config = replace(SMALL, model="preresnet-tiny", generations=2)
    lines = list(compare(config, tmp_path / "c", arms, (0,), hot))
    assert len(lines) == 3 and "restarts, seed 0: Training diverged" in str(lines[1])
    assert list(compare(config, tmp_path / "c", arms, (0,), hot)) == lines  # not trained again
    assert set(table(tmp_path / "c", arms, (0,))) == {"seal", "long"}
    assert "Diverged: restarts with seed 0." in write_report(tmp_path / "c", arms, (0,)).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sael": {"lr": 0.2}}, "no arm 'sael' to tune; the arms are seal, long"),
        ({"long": {"lr": -1}}, "lr must be greater than 0"),
        ({"long": {"lrr": 1}}, "lrr"),
    ],
)
def test_wrong_settings_of_an_arm_are_refused_before_any_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        list(compare(SMALL, tmp_path / "c", ("seal", "long"), (0,), changes))
    assert not (tmp_path / "c").exists()


def named(**rows: list[float]) -> dict[str, dict[str, float]]:
    return {arm: {str(i): x for i, x in enumerate(row)} for arm, row in rows.items()}


def test_the_verdict_is_about_the_best_control_of_other_seeds():
    scores = named(
        seal=[0.9, 0.91, 0.92, 0.90], long=[0.8, 0.84, 0.88, 0.88], llf=[0.7, 0.99, 0.98, 0.97]
    )
    found = verdict(scores)
    assert found["best control"] == "long" and found["choosing seeds"] == ["0"]
    assert found["claim"].startswith(
        "seal does not differ surely from the best control, long: +4.33"
    )
    assert "3 seeds; they would show" in found["claim"]
    scores["long"] = dict(zip("0123", [0.8, 0.85, 0.865, 0.84], strict=True))
    assert "seal beats the best control, long" in verdict(scores)["claim"]
    scores["long"] = dict(zip("0123", [0.8, 0.96, 0.972, 0.951], strict=True))
    assert "loses to" in verdict(scores)["claim"]
    assert set(found["differences"]) == {"long", "llf"}
    assert found["differences"]["llf"]["p_holm"] >= found["differences"]["llf"]["p"]


def test_too_few_seeds_allow_no_conclusion():
    assert "one seed chooses" in verdict(named(seal=[0.5], long=[0.75]))["claim"]
    two = verdict(named(seal=[0.5, 0.5], long=[0.75, 0.25]))["claim"]
    assert two == "no conclusion from one seed: +25.00 points against long"
    assert verdict(named(seal=[1.0]))["claim"] == "no control was run"
    assert verdict({})["claim"] == "seal was not run"


def test_a_control_under_other_settings_is_one():
    scores = named(seal=[0.5, 0.6, 0.7])
    scores["long@0.05"] = dict(zip("012", [0.6, 0.7, 0.75], strict=True))
    assert verdict(scores)["best control"] == "long@0.05"


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_equal_arms_seldom_differ_surely(seeds):
    """The whole procedure under the null: ten equal arms, whose seeds differ more than the arms."""
    rng, arms = np.random.default_rng(seeds), ("seal", *CONTROLS)
    wrong, trials = 0, 4000
    for _ in range(trials):
        scores = rng.normal(0, 1, (len(arms), seeds)) + rng.normal(0, 2, seeds)
        claim = verdict(named(**dict(zip(arms, scores.tolist(), strict=True))))["claim"]
        wrong += " beats " in claim or " loses to " in claim
    # 5 %, and 2.9 standard deviations of this simulation
    assert 0.04 < wrong / trials <= 0.06


def test_a_comparison_resumes_from_another_working_directory(tmp_path, monkeypatch):
    splits = load_splits("digits", SMALL.splits)
    arrays = {}
    for name, part in (("train", splits.train), ("test", splits.test)):
        arrays |= {f"{name}_images": part.images.numpy(), f"{name}_labels": part.labels.numpy()}
    np.savez(tmp_path / "set.npz", **arrays)
    every = replace(SMALL.splits, validation=0, per_class=0)
    config = replace(SMALL, data="set.npz", splits=every, generations=1, epochs=1)
    config = replace(config, model="preresnet-tiny")
    monkeypatch.chdir(tmp_path)
    list(compare(config, tmp_path / "c", ("normal",), (0,)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    absolute = replace(config, data=str(tmp_path / "set.npz"))
    assert len(list(compare(absolute, tmp_path / "c", ("normal",), (0,)))) == 1
    with pytest.raises(ValueError, match="other settings: data is"):
        list(compare(config, tmp_path / "c", ("normal",), (0,)))
