"""The benchmark of distillation: rows, objects, statistics by hand, and its smoke test."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from tiny_work import Budget

from dreamsa.evaluation import fidelity
from dreamsa.evaluation.surface import SurfaceMatch
from dreamsa.evaluation.views import fixed_views
from dreamsa.guidance.score_model import GuidanceFailed
from dreamsa.studies import distillation
from dreamsa.studies.distillation import benchmark_distillation, new_benchmark, run_trial
from dreamsa.studies.distillation_tables import (
    MEASURES,
    clustered_mean,
    difference,
    markdown,
    method_mean,
    spreads,
    summary,
)
from dreamsa.studies.methods import METHODS, chosen_methods, method_of
from dreamsa.studies.plans import result_of
from dreamsa.studies.subjects import COLOURED, NATURAL, Subject, chosen_colours, chosen_objects
from dreamsa.toybox.shapes import COLOURS, TOYS

TINY = {
    "camera.resolution": 16,
    "render.samples": 24,
    "render.occupancy": 8,
    "field.grid.levels": 2,
    "field.grid.log2_size": 8,
    "field.width": 8,
}
FEW = {"methods": "sds,pairs", "objects": "cube", "colours": "none", "quick": True}


def test_there_is_one_object_per_colour_and_four_are_held_out():
    assert {subject.colour for subject in COLOURED} == set(COLOURS)
    assert len({subject.name for subject in COLOURED}) == len(COLOURED) == 12
    assert [subject.name for subject in NATURAL] == list(TOYS)
    assert sum(subject.held_out for subject in COLOURED) == 4
    assert not any(subject.held_out for subject in NATURAL)


def test_objects_and_colours_are_chosen_by_name():
    assert chosen_objects("rabbit, gas can") == (Subject("rabbit"), Subject("gas can"))
    assert chosen_colours("ebony gas can") == (Subject("gas can", "ebony"),)
    assert chosen_objects("none") == chosen_colours("none") == ()
    assert len(chosen_objects("all")) == 23
    assert Subject("gas can", "ebony").prompt == "an ebony gas can"


def test_every_method_has_a_valid_configuration():
    trials = new_benchmark("anywhere", objects="cube", colours="none", seeds=1).trials
    configs = {trial.method: trial.config for trial in trials}
    assert list(configs) == list(METHODS)
    assert configs["sds"].steps == 1200
    for name, config in configs.items():
        assert config.steps == round(1200 * METHODS[name].steps)


def test_a_variant_changes_settings_of_its_method():
    variant = method_of("pairs@distill.guidance_scale=50")
    assert variant.overrides == {**METHODS["pairs"].overrides, "distill.guidance_scale": 50}
    assert variant.steps == METHODS["pairs"].steps
    assert chosen_methods("pairs,sds") == ("sds", "pairs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": "magic"}, "There is no method 'magic'"),
        ({"methods": "sds@x"}, "name=value"),
        ({"methods": "sds@distill.nonsense=1"}, "distill.nonsense"),
        ({"objects": "castle"}, "no object 'castle'"),
        ({"colours": "puce rabbit"}, "no colour 'puce'"),
        ({"objects": "none", "colours": "none"}, "nothing to generate"),
        ({"seeds": 0}, "seeds must lie in"),
        ({"steps": 0}, "steps must lie in"),
        ({"judge": "./nobody"}, "There is no judge at"),
        ({"overrides": {"distill.nonsense": 1}}, "distill.nonsense"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_runs(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark_distillation(new_benchmark(tmp_path / "b", **arguments))
    assert not (tmp_path / "b").exists()


def test_a_folder_of_another_benchmark_is_refused(tmp_path, monkeypatch):
    few = {"objects": "cube", "colours": "none"}
    benchmark_distillation(new_benchmark(tmp_path, "sds", **few))
    benchmark_distillation(new_benchmark(tmp_path, seeds=5, objects="cube,ball", colours="none"))
    with pytest.raises(ValueError, match="holds another benchmark: its steps is 1200"):
        benchmark_distillation(new_benchmark(tmp_path, steps=100, **few))
    changed = replace(METHODS["pairs"], overrides={"camera.batch": 4})
    monkeypatch.setitem(METHODS, "pairs", changed)
    method_of.cache_clear()
    with pytest.raises(ValueError, match="holds another method: its overrides"):
        benchmark_distillation(new_benchmark(tmp_path, "pairs", **few))
    method_of.cache_clear()


@pytest.fixture
def quick(monkeypatch):
    """In place of the slow measures, which a test of the command runs."""
    match = SurfaceMatch(0.02, 0.5, 0.5, 0.5)
    monkeypatch.setattr(fidelity, "match_surface", lambda grid, name: match)
    monkeypatch.setattr(fidelity, "normal_error", lambda scene, solid, cameras: 30.0)
    monkeypatch.setattr(fidelity, "comparable_views", fixed_views)


def without_seconds(path):
    rows = list(csv.DictReader(path.open()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_the_smoke_test_runs_in_pieces_to_the_same_tables(runs, quick):
    complete = new_benchmark(runs / "complete", overrides=TINY, **FEW)
    *lines, report = benchmark_distillation(complete, workers=1)
    assert lines[0] == "2 trials; 2 of them, 9 steps, are to be done"
    assert len(lines) == 1 + 2
    pieces, calls = replace(complete, folder=runs / "pieces"), 0
    while pieces.due:
        list(benchmark_distillation(pieces, workers=1, stop=Budget(4)))
        calls += 1
    assert calls > 2
    rows = without_seconds(runs / "complete" / "results.csv")
    assert without_seconds(runs / "pieces" / "results.csv") == rows
    assert len(list((runs / "pieces").glob("trials/*/*/*/*/run.json"))) == 2

    assert [row["method"] for row in rows] == ["sds", "pairs"]
    needed = {*MEASURES, "iou_min", "colour_variant", "lab_l", "held_out"} - {"colour_spread"}
    assert needed <= {*rows[0], "seconds"}
    assert [row["unet_calls"] for row in rows] == ["12"] * 2  # 6 x 1 x 2 and 3 x 2 x 2
    assert [row["steps"] for row in rows] == ["6", "3"]
    page = (runs / "complete" / "report.html").read_text()
    assert report.endswith("report.html")
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("data:image/png;base64,") == 1 + 2  # the true object, and both trials
    tables = json.loads((runs / "complete" / "results.json").read_text())
    assert set(tables["summary"]) == {"sds", "pairs"}
    assert tables["summary"]["pairs"]["minus sds"]["unet_calls"]["mean"] == 0
    assert (runs / "complete" / "table.md").read_text().count("\n") == 4


def test_a_failed_guidance_is_a_miss_without_measures(runs, quick, monkeypatch):
    def fail(**arguments):
        raise GuidanceFailed("not finite")

    benchmark = new_benchmark(runs / "b", overrides=TINY, **FEW)
    run_trial(benchmark.trial("sds", *benchmark.subjects[:1], 0))
    monkeypatch.setattr(distillation.api, "generate", fail)
    lines = list(benchmark_distillation(benchmark, workers=1))
    assert sum("failed, not finite" in line for line in lines) == 1
    assert len(without_seconds(runs / "b" / "results.csv")) == 2
    found = summary(benchmark.results)["pairs"]
    assert (found["failures"], found["means"]["failed"]["mean"]) == (1, 1)
    assert "iou" not in found["means"]
    assert "not finite" in (runs / "b" / "report.html").read_text()


def test_the_command_measures_a_real_run_and_continues_after_a_stop(tmp_path):
    arguments = f"benchmark distillation {tmp_path} --quick --methods sds --objects cube"
    command = [sys.executable, "-m", "dreamsa.cli", *arguments.split(), "--colours", "none"]
    command += [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    command += ["--workers", "1"]
    stopped = subprocess.run([*command, "--hours", "1e-7"], capture_output=True, text=True)
    assert (stopped.returncode, "Continue with the same command" in stopped.stderr) == (3, True)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "report.html")
    (row,) = csv.DictReader((tmp_path / "results.csv").open())
    assert 0 <= float(row["iou"]) <= 1
    result = result_of(tmp_path / "trials" / "sds" / "a-cube" / "seed-0")
    assert set(result["fidelity"]) == set(fidelity.Fidelity._fields)


def outcome(method, name, seed, iou, lab=(50.0, 0.0, 0.0), colour=None, success=True):
    found = {"iou": iou, "lab_l": lab[0], "lab_a": lab[1], "lab_b": lab[2]}
    return {
        "method": method,
        "object": name,
        "colour": colour,
        "seed": seed,
        "success": success,
        "failed": None,
        "scores": {"object_right": 1.0, "psnr": None},
        "fidelity": found,
    }


def test_means_are_over_objects_not_over_trials():
    own = [outcome("sds", "duck", seed, 0.9) for seed in range(3)]
    own += [outcome("sds", "car", 0, 0.5), outcome("sds", "car", 0, 0.5, colour="red")]
    mean = method_mean(own, "iou")
    assert (mean.mean, mean.count) == (pytest.approx(0.7), 2)
    assert method_mean(own, "success").mean == 1
    assert method_mean(own, "psnr") is None
    assert clustered_mean({}) is None


def test_differences_are_paired_by_object_colour_and_seed():
    results = {
        "sds": [outcome("sds", "duck", 0, 0.5), outcome("sds", "car", 0, 0.9)],
        "pairs": [
            outcome("pairs", "duck", 0, 0.7),
            outcome("pairs", "duck", 1, 0.1),
            outcome("pairs", "car", 0, 0.9, colour="red"),
        ],
    }
    gap = difference(results, "pairs", "iou")
    assert (gap.mean, gap.count) == (pytest.approx(0.2), 1)
    assert difference({"pairs": results["pairs"]}, "pairs", "iou") is None


def test_the_colour_spread_is_over_seeds_of_one_object():
    own = [
        outcome("sds", "duck", 0, 0.9, (50.0, 3.0, 0.0)),
        outcome("sds", "duck", 1, 0.9, (50.0, -3.0, 0.0)),
        outcome("sds", "car", 0, 0.9),
    ]
    assert spreads(own) == {("duck", None): pytest.approx(18**0.5)}
    assert method_mean(own, "colour_spread").mean == pytest.approx(18**0.5)


def test_the_markdown_table_has_a_line_per_method():
    text = markdown({"sds": [outcome("sds", "duck", 0, 0.9), outcome("sds", "car", 0, 0.8)]})
    header, line, row = text.splitlines()
    assert header.count("|") == line.count("|") == row.count("|")
    assert "| 0.850 [0.215, 1.485] |" in row
