"""What the judge says of a finished run, in a sentence."""

import json

import pytest
from tiny import tiny_config, tiny_score

from dreamsa import api, job
from dreamsa.config import EditConfig
from dreamsa.evaluation import verdict
from dreamsa.runs import new_run

FACTS = {"device": "cpu", "backend": "numba"}


@pytest.fixture
def seen(tmp_path):
    """A run of which the judge has seen these views."""

    def make(prompt, views, success, **changes):
        run = new_run(tiny_config(prompt=prompt, **changes), None, tmp_path, FACTS)
        angles = {f"{45 * i} deg": name for i, name in enumerate(views)}
        facts = {"views": angles, "success": success}
        (run.path / "evaluation.json").write_text(json.dumps(facts))
        return run

    return make


def test_a_success_is_one_sentence_and_any_colour_will_do_unless_one_is_asked_for(seen):
    views = ["white rabbit"] * 5 + ["grey rabbit"] * 2 + ["blue duck"]
    assert verdict.verdict(seen("a rabbit", views, True)) == "Judge sees a rabbit in 7 of 8 views."
    views = ["orange mug"] * 8
    assert verdict.verdict(seen("an orange mug", views, True)) == (
        "Judge sees an orange mug in 8 of 8 views."
    )


def test_another_object_is_named_with_a_command_that_may_help(seen, tmp_path):
    run = seen("a teapot", ["red gas can"] * 8, False, steps=100, seed=3)
    assert verdict.verdict(run) == (
        "Judge sees a gas can in 8 of 8 views, not a teapot. Try more steps or another seed: "
        f"dreamsa generate 'a teapot' --steps 200 --seed 4 --runs {tmp_path}"
    )
    run = seen("a blue mug", ["red mug"] * 8, False, edit=EditConfig("a-mug"))
    words = verdict.verdict(run)
    assert words.startswith("Judge sees a red mug in 8 of 8 views, not a blue mug.")
    assert "dreamsa edit a-mug 'a blue mug' --steps 24 --seed 1" in words


def test_a_missing_or_damaged_evaluation_says_nothing(seen):
    run = seen("a mug", [], True)
    assert verdict.verdict(run) == ""
    for content in ("", "[]", '{"views": 3}'):
        (run.path / "evaluation.json").write_text(content)
        assert verdict.verdict(run) == ""


def test_a_finished_run_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    run = api.generate(config=tiny_config(steps=1, turntable=0), runs=tmp_path).wait()
    words = verdict.judge_run(run)
    assert words.startswith("Judge sees a")
    assert words == verdict.verdict(run)
