"""Comparisons of tiny edits."""

import csv
import json
import re

import matplotlib
import pytest
from tiny import tiny_config
from tiny_work import Budget

from dreamsa import api
from dreamsa.guidance.score_model import GuidanceFailed
from dreamsa.runs import RunError
from dreamsa.studies import trials
from dreamsa.studies.arms import ARMS
from dreamsa.studies.compare import compare
from dreamsa.studies.plans import result_of
from dreamsa.studies.trials import newest_run

LENGTH = {"steps": 12, "ascent_steps": 3, "evaluate_every": 4, "workers": 1}


def test_all_arms_are_compared_in_one_report(runs, rabbit):
    before = {p: p.read_bytes() for p in rabbit.path.rglob("*") if p.is_file()}
    backend, style = matplotlib.get_backend(), dict(matplotlib.rcParams)
    out = runs / "c"
    *lines, report = compare(rabbit, "a purple rabbit", seeds=1, scale=0.5, out=out, **LENGTH)
    order = ["ascent", "noise-matched", "interpolate-matched"]  # matched arms follow their model
    order += [arm for arm in ARMS if arm not in order]
    assert [line.partition(",")[0] for line in lines] == order
    assert {p: p.read_bytes() for p in rabbit.path.rglob("*") if p.is_file()} == before
    assert (matplotlib.get_backend(), dict(matplotlib.rcParams)) == (backend, style)
    found = {arm: newest_run(out / arm / "seed-0") for arm in ARMS}
    assert {run.record["step"] for run in found.values()} == {12}
    assert {run.record["parent"] for run in found.values()} == {rabbit.id}
    results = {arm: result_of(out / arm / "seed-0") for arm in ARMS}
    moved = results["ascent"]["displacement"]
    assert moved["grid"] > 0
    for arm in ("noise-matched", "interpolate-matched"):
        assert found[arm].config.edit.control.displacement == moved
        assert results[arm]["displacement"] == moved
    assert results["plain"]["displacement"] is None
    assert results["plain-keep"]["displacement"] is None
    assert [row["step"] for row in results["ascent"]["curve"]] == [0, 3, 4, 8, 12]
    assert [row["step"] for row in results["ascent"]["moved"]] == [1, 3, 11, 12]
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert sorted(row["arm"] for row in rows) == sorted(ARMS)
    page = (out / "report.html").read_text()
    assert report == str(out / "report.html")
    assert page.count("data:image/png;base64,") == 9  # the parent and eight arms
    assert page.count("<svg") == 3
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched
    assert "ascent: one seed only, against noise-matched" in page


def test_a_stopped_comparison_resumes_to_the_same_tables(runs, rabbit):
    """Stopped in ascents, in descents and between trials; finished trials do not run again."""

    def tables(folder):
        return [(folder / name).read_bytes() for name in ("results.csv", "results.json")]

    arguments = {"arms": "B,D,E,G", "seeds": 1, **LENGTH}
    list(compare(rabbit, "a mug", out=runs / "complete", **arguments))
    calls = 0
    while len(list((runs / "pieces").glob("*/*/result.json"))) < 4:
        list(compare(rabbit, "a mug", out=runs / "pieces", stop=Budget(8), **arguments))
        calls += 1
    assert 4 <= calls < 25
    assert tables(runs / "pieces") == tables(runs / "complete")
    assert len(list((runs / "pieces").glob("*/seed-*/*/run.json"))) == 4


def test_arms_and_seeds_can_be_added_to_a_comparison(runs, rabbit):
    list(compare(rabbit, "a mug", arms="B", seeds=1, out=runs / "c", **LENGTH))
    path = runs / "c" / "plain" / "seed-0" / "result.json"
    first = path.read_bytes()
    lines = list(compare(rabbit, "a mug", arms=["plain", "D"], seeds=2, out=runs / "c", **LENGTH))
    assert len(lines) == 4
    assert path.read_bytes() == first
    message = "holds another comparison: its prompt is 'a mug', not 'a duck'. Choose another folder"
    with pytest.raises(ValueError, match=message):
        compare(rabbit, "a duck", out=runs / "c", **LENGTH)
    with pytest.raises(ValueError, match="its scale is 0.01, not 0.5"):
        compare(rabbit, "a mug", scale=0.5, out=runs / "c", **LENGTH)


def test_a_folder_of_an_earlier_version_is_refused(runs, rabbit):
    list(compare(rabbit, "a mug", arms="B", seeds=1, out=runs / "c", **LENGTH))
    path = runs / "c" / "comparison.json"
    plan = json.loads(path.read_text())
    del plan["schema"]
    path.write_text(json.dumps(plan))
    with pytest.raises(ValueError, match="another version of dreamsa, whose arms have other names"):
        compare(rabbit, "a mug", arms="B", seeds=1, out=runs / "c", **LENGTH)


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ("A rabbit", {}, "The new prompt is the parent's own, 'a rabbit'"),
        ("", {}, "prompt is empty"),
        ("a castle", {}, "'a castle'"),
        ("a mug", {"arms": "B,X"}, r"There is no arm 'X'. Arms: plain-keep or A, plain or B"),
        ("a mug", {"arms": "B,E"}, "noise-matched moves as far as ascent: add ascent"),
        ("a mug", {"judge": "./nobody"}, "There is no judge at './nobody'"),
        ("a mug", {"seeds": 0}, "seeds must lie in"),
        ("a mug", {"seeds": 10**12}, "seeds must lie in"),
        ("a mug", {"ascent_steps": 12}, "ascent_steps must be below steps = 12"),
        ("a mug", {"overrides": {"nonsense": 1}}, "no setting 'nonsense'"),
        ("a mug", {"arms": "D@scale=1000"}, "edit.scale must be .* 100"),
        ("a mug", {"arms": "D@ascent_steps=12"}, "below steps = 12"),
        ("a mug", {"arms": "B@distill.guidance=1"}, "distill.guidance"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_runs(runs, rabbit, prompt, arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(rabbit, prompt, out=runs / "c", **{**LENGTH, **arguments})
    assert not (runs / "c").exists()


def test_an_unfinished_parent_is_refused(runs):
    work = api.generate(config=tiny_config(), runs=runs)
    next(iter(work))
    work.stop()
    with pytest.raises(RunError, match="is stopped, not finished. Finish it first"):
        compare(work.run, "a mug", **LENGTH, runs=runs)


def test_a_relative_judge_is_absolute_in_the_plan(runs, rabbit, monkeypatch):
    from dreamsa.assets import asset

    monkeypatch.chdir(asset("toybox-clip").parent)
    list(
        compare(rabbit, "a mug", arms="B", seeds=1, judge="./toybox-clip", out=runs / "c", **LENGTH)
    )
    plan = json.loads((runs / "c" / "comparison.json").read_text())
    assert plan["judge"] == str(asset("toybox-clip").resolve())


def test_failed_guidance_is_a_miss_and_the_other_trials_run(runs, rabbit, monkeypatch):
    start = trials.job.start

    def broken(config, *arguments):
        if config.edit.ascent_steps:
            raise GuidanceFailed("not finite")
        return start(config, *arguments)

    monkeypatch.setattr(trials.job, "start", broken)
    *lines, _ = compare(rabbit, "a mug", arms="B,D,E", seeds=1, out=runs / "c", **LENGTH)
    assert ["failed" in line for line in lines] == [True, True, False]
    result = result_of(runs / "c" / "noise-matched" / "seed-0")
    assert "noise-matched has no displacement to copy" in result["failed"]
    tables = json.loads((runs / "c" / "results.json").read_text())
    assert tables["summary"]["ascent"]["success"]["trials"] == 1


def test_the_package_offers_compare():
    import dreamsa

    assert dreamsa.compare is compare


@pytest.mark.slow
def test_variants_of_arms_are_compared_with_them(runs, rabbit):
    names = {
        "B": "plain",
        "D": "ascent",
        "d@scale=2@ascent_steps=2": "ascent@scale=2@ascent_steps=2",
        "F": "interpolate-matched",
        "F@eta=0.5": "interpolate-matched@eta=0.5",
        "plain@optimizer.lr=0.05": "plain@optimizer.lr=0.05",
    }
    arms, out = ",".join(names), runs / "c"
    list(compare(rabbit, "a purple rabbit", arms=arms, seeds=1, scale=0.5, out=out, **LENGTH))
    configs = {arm: newest_run(out / name / "seed-0").config for arm, name in names.items()}
    edits = {arm: config.edit for arm, config in configs.items()}
    assert (edits["D"].scale, edits["D"].ascent_steps) == (0.5, 3)
    variant = edits["d@scale=2@ascent_steps=2"]
    assert (variant.scale, variant.ascent_steps) == (2.0, 2)
    assert edits["F"].control.displacement is not None
    assert (edits["F@eta=0.5"].control, edits["F@eta=0.5"].eta) == (None, 0.5)
    assert configs["B"].optimizer.lr == 0.01
    assert configs["plain@optimizer.lr=0.05"].optimizer.lr == 0.05
    assert "towards a random scene, eta = 0.5" in (out / "report.html").read_text()


def test_the_parents_own_prompt_with_a_setting_is_a_repair(runs, rabbit):
    wording = "{prompt}, seen from the {view}"
    arguments = {"arms": "B,H", "seeds": 1, "overrides": {"views.wording": wording}, **LENGTH}
    list(compare(rabbit, "A rabbit", out=runs / "c", **arguments))
    folders = [runs / "c" / arm / "seed-0" for arm in ("plain", "interpolate")]
    results = [result_of(folder) for folder in folders]
    assert not any(result["success"] for result in results)  # a red square has no side
    assert all(result["steps_to_success"] is None for result in results)
    assert newest_run(folders[1]).config.views.wording == wording
