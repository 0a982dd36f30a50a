"""The benchmark of edits: its pairs, and its smoke test with a Gaussian score model."""

import json
import re
from dataclasses import replace

import pytest
from tiny_work import Budget

from dreamsa.evaluation.scores import Scores, named
from dreamsa.presets import preset
from dreamsa.studies.edit_benchmark import benchmark_edits, new_benchmark
from dreamsa.studies.plans import KINDS, PAIRS, RECIPE
from dreamsa.toybox.captions import HELD_OUT, LOOK_ALIKE

TINY = {
    "camera.resolution": 16,
    "render.samples": 24,
    "field.grid.levels": 2,
    "field.grid.log2_size": 8,
    "field.width": 8,
}


def test_there_are_enough_edits_of_each_kind_and_all_can_be_judged():
    assert sum(not pair.faulty for pair in PAIRS) >= 24
    assert all(sum(pair.kind == kind for pair in PAIRS) >= 6 for kind in KINDS)
    assert len(set(PAIRS)) == len(PAIRS)
    for pair in PAIRS:
        before, after = named(pair.source), named(pair.prompt)
        assert before.object is not None
        assert after.object is not None
        assert before.colour is None
        if pair.kind in ("colour", "part or material"):
            assert before.object == after.object
            assert after.colour is not None
        elif pair.kind == "repair":
            assert pair.source == pair.prompt
            assert before.object not in LOOK_ALIKE
        else:
            assert before.object != after.object
    held_out = {(named(p.prompt).colour, named(p.prompt).object) for p in PAIRS} & HELD_OUT
    assert {("purple", "rabbit"), ("ebony", "gas can")} <= held_out
    assert len(held_out) >= 5


def test_the_smoke_test_runs_in_pieces_to_the_same_tables(runs):
    """Pairs share parents; the same seed gives the same tables, in one call or in several."""
    complete = new_benchmark(runs / "complete", overrides=TINY, quick=True)
    *lines, report = benchmark_edits(complete, workers=1)
    assert lines[0].startswith("3 parents and 15 edits, 108 steps, without those")
    assert len(lines) == 1 + 3 + 15
    pieces, last = replace(complete, folder=runs / "pieces"), ""
    while sum(len(own) for own in pieces.results.values()) < 15:
        *_, last = benchmark_edits(pieces, workers=1, stop=Budget(23))
    for name in ("results.csv", "results.json"):
        assert (runs / "pieces" / name).read_bytes() == (runs / "complete" / name).read_bytes()
    page = (runs / "complete" / "report.html").read_text()
    assert report.endswith("report.html")
    assert last.endswith("report.html")
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("data:image/png;base64,") == 5 * (1 + 3)
    assert "ascent: no significant difference from plain" in page
    tables = json.loads((runs / "complete" / "results.json").read_text())
    assert set(tables["summary"]) == {"all", *KINDS, "paired tests"}
    assert tables["summary"]["all"]["ascent"]["success"]["trials"] == 5
    wordings = {
        name: {
            json.loads(p.read_text())["views"]["wording"]
            for p in (runs / "complete" / name).rglob("config.json")
        }
        for name in ("parents/a-rabbit", "parents/a-rabbit-faulty", "edits/a-rabbit--a-rabbit")
    }
    wording = preset("toybox", "").views.wording
    assert wordings == {
        "parents/a-rabbit": {wording},
        "parents/a-rabbit-faulty": {"{prompt}"},
        "edits/a-rabbit--a-rabbit": {wording},
    }


def test_a_rejected_parent_gets_another_seed_and_then_is_left_out(runs):
    """A red square is no rabbit."""
    benchmark = replace(
        new_benchmark(runs / "b", overrides=TINY, quick=True),
        accept=0.75,
        attempts=2,
        pairs=PAIRS[:1],
    )
    lines = list(benchmark_edits(benchmark, workers=1))
    assert len(lines) == 2
    assert "a rabbit, seed 0: not accepted" in lines[1]
    assert benchmark.rejected == ["a rabbit, seed 0"]
    seeds = [
        json.loads(path.read_text())["seed"]
        for path in sorted((runs / "b" / "parents").glob("*/*/*/*/config.json"))
    ]
    assert seeds == [0, 1000]


def test_a_faulty_parent_must_show_wrong_sides_and_other_parents_need_not(tmp_path):
    benchmark = new_benchmark(tmp_path)
    right = {"r_precision": 1.0, "probability": 1.0, "foreground": 0.2, "object_right": 1.0}
    scores = [Scores(**right, view_right=value) for value in (0.0, 0.25, 0.5, 1.0, None)]
    faulty, sound = (benchmark.parent("a duck", 0, faulty) for faulty in (True, False))
    assert [faulty.accepts(s) for s in scores] == [True, True, False, False, False]
    assert all(sound.accepts(s) for s in scores)
    assert not faulty.accepts(replace(scores[0], object_right=0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arms": "Q"}, "There is no arm 'Q'"),
        ({"seeds": 0}, "seeds must lie in"),
        ({"judge": "./nobody"}, "There is no judge at"),
        ({"overrides": {"sds.nonsense": 1}}, "sds.nonsense"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_runs(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark_edits(new_benchmark(tmp_path / "b", **arguments))
    assert not (tmp_path / "b").exists()


def test_a_folder_of_another_benchmark_is_refused(tmp_path):
    benchmark_edits(new_benchmark(tmp_path / "b"))
    with pytest.raises(ValueError, match="holds another benchmark"):
        benchmark_edits(new_benchmark(tmp_path / "b", quick=True))
    benchmark_edits(new_benchmark(tmp_path / "b", arms="B,D", seeds=5))


def test_the_full_benchmark_fits_its_time():
    """8 hours on two cores at 0.15 s a step on one core."""
    full = new_benchmark("anywhere")
    steps = (
        len(full.parents) * full.parent_steps
        + len(full.pairs) * len(full.arms) * len(full.seeds) * full.recipe.steps
    )
    assert steps * 0.15 / 2 / 3600 < 8
    assert RECIPE.ascent_steps < RECIPE.steps
