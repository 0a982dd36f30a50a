"""Comparisons of tiny edits with a Gaussian in place of Stable Diffusion, and the real judge."""

import csv
import json
import re

import pytest
import tiny_work
from tiny import tiny_config, tiny_score
from tiny_work import Budget

from dreamsa import api
from dreamsa.config import ESCAPES
from dreamsa.evaluate import trials
from dreamsa.evaluate.compare import compare
from dreamsa.evaluate.tables import differences, summary
from dreamsa.evaluate.trials import ARMS, chosen_arms, each, newest_run, result_of, steps_to_success
from dreamsa.guidance.score_model import GuidanceFailed
from dreamsa.runs import RunError

LENGTH = {"steps": 12, "ascent_steps": 3, "look_every": 4, "workers": 1}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(api, "write_outputs", lambda run, scene, frames=8, resolution=16: [])
    return tmp_path


@pytest.fixture
def rabbit(runs):
    return api.generate(config=tiny_config(), runs=runs).wait()


def test_every_escape_is_an_arm_and_every_arm_another_way():
    assert {arm.escape for arm in ARMS.values()} == set(ESCAPES)
    assert len({(arm.escape, arm.moments, arm.matched) for arm in ARMS.values()}) == len(ARMS) == 9


def test_all_arms_are_compared_in_one_report(runs, rabbit):
    before = {p: p.read_bytes() for p in rabbit.path.rglob("*") if p.is_file()}
    *lines, report = compare(rabbit, "a purple rabbit", seeds=1, scale=0.5, out=runs / "c", **LENGTH)
    assert [line[0] for line in lines] == list("DEFABCGHI")  # those that copy another one follow it
    assert {p: p.read_bytes() for p in rabbit.path.rglob("*") if p.is_file()} == before
    found = {arm: newest_run(runs / "c" / arm / "seed-0") for arm in ARMS}
    assert {run.record["step"] for run in found.values()} == {12}
    assert {run.record["parent"] for run in found.values()} == {rabbit.id}
    results = {arm: result_of(runs / "c" / arm / "seed-0") for arm in ARMS}
    moved = results["D"]["displacement"]
    assert moved["grid"] > 0
    for arm in "EF":
        assert found[arm].config.edit.displacement == moved
    assert results["B"]["displacement"] is None
    assert [row["step"] for row in results["D"]["curve"]] == [0, 3, 4, 8, 12]
    assert [row["step"] for row in results["D"]["moved"]] == [1, 3, 11, 12]
    rows = list(csv.DictReader((runs / "c" / "results.csv").open()))
    assert sorted(row["arm"] for row in rows) == sorted(ARMS)
    page = (runs / "c" / "report.html").read_text()
    assert report == str(runs / "c" / "report.html")
    assert page.count("data:image/png;base64,") == 10  # the parent and nine arms
    assert page.count("<svg") == 3
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched
    assert "D was tried once beside E" in page


def test_a_stopped_comparison_goes_on_to_the_same_tables(runs, rabbit):
    """Stopped in ascents, in descents and between trials; the same call goes on, and finished trials are not run again."""

    def tables(folder):
        return [(folder / name).read_bytes() for name in ("results.csv", "results.json")]

    arguments = {"arms": "B,D,E", "seeds": 1, **LENGTH}
    list(compare(rabbit, "a mug", out=runs / "whole", **arguments))
    pieces = 0
    while len(list((runs / "pieces").glob("*/*/result.json"))) < 3:
        list(compare(rabbit, "a mug", out=runs / "pieces", stop=Budget(8), **arguments))
        pieces += 1
    assert 3 <= pieces < 20
    assert tables(runs / "pieces") == tables(runs / "whole")
    assert len(list((runs / "pieces").glob("*/seed-*/*/run.json"))) == 3


def test_more_arms_and_seeds_are_added_to_a_comparison(runs, rabbit):
    list(compare(rabbit, "a mug", arms="B", seeds=1, out=runs / "c", **LENGTH))
    first = (runs / "c" / "B" / "seed-0" / "result.json").read_bytes()
    lines = list(compare(rabbit, "a mug", arms=["B", "D"], seeds=2, out=runs / "c", **LENGTH))
    assert len(lines) == 4
    assert (runs / "c" / "B" / "seed-0" / "result.json").read_bytes() == first
    with pytest.raises(ValueError, match=r"holds another comparison: its prompt is 'a mug', not 'a duck'. Choose another folder"):
        compare(rabbit, "a duck", out=runs / "c", **LENGTH)
    with pytest.raises(ValueError, match="its scale is 0.01, not 0.5"):
        compare(rabbit, "a mug", scale=0.5, out=runs / "c", **LENGTH)


@pytest.mark.parametrize(
    ("prompt", "arguments", "says"),
    [
        ("A rabbit", {}, "The new prompt is the parent's own, 'a rabbit'"),
        ("", {}, "prompt is empty"),
        ("a castle", {}, "no words for 'a castle'"),
        ("a mug", {"arms": "B,X"}, r"There is no arm 'X'. There are: A \(plain resume"),
        ("a mug", {"arms": "B,E"}, "Arm E moves as far as arm D does: add D"),
        ("a mug", {"judge": "./nobody"}, "There is no judge at './nobody'"),
        ("a mug", {"seeds": 0}, "seeds must lie in"),
        ("a mug", {"ascent_steps": 12}, "ascent_steps must be below steps = 12"),
        ("a mug", {"overrides": {"nonsense": 1}}, "no key 'nonsense'"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_run(runs, rabbit, prompt, arguments, says):
    with pytest.raises(ValueError, match=says):
        compare(rabbit, prompt, out=runs / "c", **{**LENGTH, **arguments})
    assert not (runs / "c").exists()


def test_an_unfinished_parent_is_refused(runs):
    job = api.generate(config=tiny_config(), runs=runs)
    next(iter(job))
    job.stop()
    with pytest.raises(RunError, match="is stopped, not finished. Finish it first"):
        compare(job.run, "a mug", **LENGTH, runs=runs)


def test_a_trial_whose_guidance_breaks_down_is_a_miss_and_the_others_go_on(runs, rabbit, monkeypatch):
    edit = api.edit

    def broken(parent, prompt, *, escape, **rest):
        if escape == "anneal":
            raise GuidanceFailed("not finite")
        return edit(parent, prompt, escape=escape, **rest)

    monkeypatch.setattr(trials.api, "edit", broken)
    *lines, _ = compare(rabbit, "a mug", arms="B,D,E", seeds=1, out=runs / "c", **LENGTH)
    assert ["failed" in line for line in lines] == [True, True, False]
    results = {arm: result_of(runs / "c" / arm / "seed-0") for arm in "BDE"}
    assert "no displacement for E to copy" in results["E"]["failed"]
    assert json.loads((runs / "c" / "results.json").read_text())["summary"]["D"]["success"]["trials"] == 1


def test_steps_to_success_is_the_first_step_from_which_it_stays():
    def curve(*shares):
        return [{"step": 10 * i, "object_right": share, "colour_right": 1.0, "retrieved": 0.0} for i, share in enumerate(shares)]

    assert steps_to_success(curve(0, 1, 0, 0.75, 1)) == 30
    assert steps_to_success(curve(1, 1, 1)) == 10
    assert steps_to_success(curve(1, 1, 1), after=10) == 20
    assert steps_to_success(curve(0, 1, 0.5)) is None
    assert steps_to_success([{"step": 5, "retrieved": 1.0}]) == 5


def test_differences_are_paired_by_seed():
    def result(seed, probability):
        return {"seed": seed, "success": True, "steps_to_success": None, "scores": {"probability": probability}}

    results = {"D": [result(0, 0.9), result(1, 0.5)], "B": [result(1, 0.4), result(2, 0.0)]}
    assert differences(results, "probability")["B"].mean == pytest.approx(0.1)
    assert differences({"B": results["B"]}, "probability") == {}
    assert summary(results)["D"]["probability"]["mean"] == pytest.approx(0.7)


def test_the_package_offers_both_by_name():
    import dreamsa

    assert dreamsa.compare is compare
    assert dreamsa.evaluate_run.__module__ == "dreamsa.evaluate.scores"


def test_arms_are_named_in_any_order():
    assert chosen_arms("e, d,B") == ("B", "D", "E")
    assert chosen_arms("all") == tuple(ARMS)
    assert chosen_arms("d@scale=1,F@eta=0.6, B, D@scale=0.1") == ("B", "D@scale=1", "D@scale=0.1", "F@eta=0.6")


def test_variants_of_arms_are_compared_beside_them(runs, rabbit):
    arms = "B,D,D@scale=2@ascent_steps=2,F,F@eta=0.5,B@optimizer.lr=0.05"
    list(compare(rabbit, "a purple rabbit", arms=arms, seeds=1, scale=0.5, out=runs / "c", **LENGTH))
    edits = {name: newest_run(runs / "c" / name / "seed-0").config for name in arms.split(",")}
    assert {name: (c.edit.scale, c.edit.ascent_steps) for name, c in edits.items() if name[0] == "D"} == {
        "D": (0.5, 3),
        "D@scale=2@ascent_steps=2": (2.0, 2),
    }
    assert (edits["F"].edit.displacement is None, edits["F@eta=0.5"].edit.displacement, edits["F@eta=0.5"].edit.eta) == (False, None, 0.5)
    assert (edits["B"].optimizer.lr, edits["B@optimizer.lr=0.05"].optimizer.lr) == (0.01, 0.05)
    assert "Perturb-and-Revise), eta = 0.5" in (runs / "c" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ("X", "no arm 'X'"),
        ("D@speed=1", "sets 'speed'"),
        ("D@scale=1000", r"scale must lie in \[0, 100\]"),
        ("D@ascent_steps=12", "below steps = 12"),
        ("B@sds.guidance=1", "guidance"),
        ("D@scale", "name=value"),
    ],
)
def test_what_is_no_variant_is_refused_before_anything_runs(runs, rabbit, arms, said):
    with pytest.raises(ValueError, match=said):
        compare(rabbit, "a mug", arms=arms, seeds=1, out=runs / "c", **LENGTH)
    assert not (runs / "c").exists()


def test_an_error_in_one_process_ends_the_others_and_is_raised():
    """What runs is told to stop, and no more is begun; that all goes well is tested on the command line."""
    got = []
    with pytest.raises(ValueError, match="zero was given"):
        got.extend(each(tiny_work.square, [99, 0, 99, 5], 2, lambda: False))
    assert got == []


def test_after_a_stop_nothing_is_begun():
    assert list(each(tiny_work.square, [3, 5], 1, Budget(99))) == [9, 25]
    assert list(each(tiny_work.square, [3, 5], 1, Budget(1))) == []


def test_the_parents_own_prompt_is_a_repair_where_something_is_set(runs, rabbit):
    arguments = {"arms": "B,I", "seeds": 1, "overrides": {"views.wording": "{prompt}, seen from the {view}"}, "out": runs / "c", **LENGTH}
    list(compare(rabbit, "A rabbit", **arguments))
    results = [json.loads((runs / "c" / arm / "seed-0" / "result.json").read_text()) for arm in "BI"]
    assert not any(result["success"] for result in results)  # a red square has no side
    assert all(result["steps_to_success"] is None for result in results)
    run = newest_run(runs / "c" / "I" / "seed-0")
    assert run.record["decision"].startswith("interpolated at once")
    assert run.config.views.wording == "{prompt}, seen from the {view}"
