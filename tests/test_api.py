"""Runs through the facade, with a tiny score model in place of Stable Diffusion."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from tiny import tiny_config, tiny_score

from dreamsa import api, checkpoint
from dreamsa.checkpoint import CheckpointError
from dreamsa.config import ESCAPES, EditConfig, from_json, preset, read_config, to_json
from dreamsa.runs import RunError, find_run, list_runs


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The embedded model's place is taken by a Gaussian; previews are small."""
    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(api, "write_outputs", lambda run, scene, frames=8, resolution=16: [])


def start(tmp_path, **changes):
    return api.generate(config=tiny_config(**changes), runs=tmp_path)


def scene_bytes(run):
    return (run.latest_checkpoint / "scene.safetensors").read_bytes()


def test_a_run_leaves_a_record_that_reruns_it(tmp_path):
    first = start(tmp_path).wait()
    assert first.status == "finished"
    assert first.record["step"] == first.record["steps"] == 12
    assert first.record["backend"] == "numba"
    assert [m["step"] for m in first.metrics()] == [0, 10, 11]
    with (first.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "pha')  # a process was killed while it wrote
    assert [m["step"] for m in first.metrics()] == [0, 10, 11]
    second = api.generate(config=read_config(first.path / "config.json"), runs=tmp_path).wait()
    assert first.path != second.path
    assert scene_bytes(first) == scene_bytes(second)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_stopping_saves_and_resuming_ends_in_the_same_scene(tmp_path, stop):
    whole = start(tmp_path).wait()
    job = start(tmp_path)
    for progress in job:
        if progress.step == stop:
            break
    job.stop()
    assert job.run.status == "stopped"
    assert job.run.record["step"] == stop
    resumed = api.resume(job.run.id, runs=tmp_path).wait()
    assert resumed.path == job.run.path
    assert scene_bytes(resumed) == scene_bytes(whole)
    assert [m["step"] for m in resumed.metrics()] == [m["step"] for m in whole.metrics()]


def test_an_edit_is_a_child_and_the_parent_is_untouched(tmp_path):
    parent = start(tmp_path).wait()
    before = {p: p.read_bytes() for p in parent.path.rglob("*") if p.is_file()}
    job = api.edit(parent, "a purple rabbit", steps=10, ascent_steps=4, runs=tmp_path)
    phases = [p.phase for p in job]
    child = job.run
    assert phases == ["ascend"] * 4 + ["descend"] * 6
    assert {p: p.read_bytes() for p in parent.path.rglob("*") if p.is_file()} == before
    assert child.record["parent"] == parent.id
    assert child.record["lineage"] == [{"id": parent.id, "prompt": "a rabbit"}]
    grandchild = api.edit(child, "a blue mug", steps=5, escape="plain", runs=tmp_path).wait()
    assert [step["prompt"] for step in grandchild.record["lineage"]] == ["a rabbit", "a purple rabbit"]


def test_an_edit_resumes_exactly_in_mid_ascent(tmp_path):
    parent = start(tmp_path).wait()
    arguments = {"steps": 10, "ascent_steps": 6, "scale": 0.5, "runs": tmp_path}
    whole = api.edit(parent, "a purple rabbit", **arguments).wait()
    job = api.edit(parent, "a purple rabbit", **arguments)
    for progress in job:
        if progress.step == 3:
            break
    job.stop()
    assert scene_bytes(api.resume(job.run, runs=tmp_path).wait()) == scene_bytes(whole)


def test_how_far_each_group_has_moved_is_logged_and_survives_a_stop(tmp_path):
    """From where the edit began, at the edge of its phases too; the parent, not the checkpoint, says where that was."""
    parent = start(tmp_path).wait()
    arguments = {"steps": 10, "ascent_steps": 4, "scale": 0.5, "runs": tmp_path / "elsewhere"}
    whole = api.edit(parent, "a purple rabbit", **arguments).wait()
    rows = {row["step"]: row["displacement"] for row in whole.metrics()}
    assert sorted(rows) == [0, 3, 9]
    table = parent.config.field.grid.levels * 2**parent.config.field.grid.log2_size * 2
    assert 0 < rows[3]["grid"] <= 0.5 * 1e-2 * 4 * table**0.5
    assert all(norm > 0 for row in rows.values() for norm in row.values())
    for stop in (2, 7):
        job = api.edit(parent, "a purple rabbit", **arguments)
        for progress in job:
            if progress.step == stop:
                break
        job.stop()
        resumed = api.resume(job.run, runs=tmp_path).wait()
        assert {row["step"]: row["displacement"] for row in resumed.metrics()} == rows


def test_an_edit_goes_on_without_its_parent_once_it_has_saved(tmp_path):
    parent = start(tmp_path).wait()
    job = api.edit(parent, "a mug", steps=12, escape="plain", runs=tmp_path)
    next(iter(job))
    job.stop()
    never = api.edit(parent, "a duck", steps=12, runs=tmp_path).run
    parent.path.rename(tmp_path / "gone")
    assert api.resume(job.run, runs=tmp_path).wait().metrics()[-1]["displacement"] is None
    with pytest.raises(RunError, match=r"has no checkpoint, and its parent a-rabbit-.* is not beside it"):
        api.resume(never, runs=tmp_path)


def test_every_escape_is_a_different_way(tmp_path):
    parent = start(tmp_path).wait()
    ends = {
        escape: scene_bytes(api.edit(parent, "a purple rabbit", steps=12, ascent_steps=4, escape=escape, scale=1.0, runs=tmp_path).wait())
        for escape in ESCAPES
    }
    ends["keep"] = scene_bytes(api.edit(parent, "a purple rabbit", steps=12, escape="plain", moments="keep", runs=tmp_path).wait())
    assert len(set(ends.values())) == len(ends)


def test_a_fresh_edit_forgets_the_parent(tmp_path):
    parents = [start(tmp_path, steps=steps).wait() for steps in (3, 9)]
    ends = [scene_bytes(api.edit(p, "a mug", steps=4, escape="fresh", runs=tmp_path).wait()) for p in parents]
    assert ends[0] == ends[1]


def test_a_run_in_use_is_refused(tmp_path):
    job = start(tmp_path)
    next(iter(job))
    with pytest.raises(RunError, match="is in use by another process"):
        api.resume(job.run, runs=tmp_path)
    job.stop()


def test_unfinished_missing_and_ambiguous_runs_are_refused(tmp_path):
    job = start(tmp_path)
    next(iter(job))
    job.stop()
    with pytest.raises(RunError, match=r"is stopped, not finished. Finish it first: dreamsa resume a-rabbit"):
        api.edit(job.run, "a mug", runs=tmp_path)
    with pytest.raises(RunError, match="is not a run in"):
        api.edit("nothing", "a mug", runs=tmp_path)
    start(tmp_path)
    with pytest.raises(RunError, match="matches several runs"):
        find_run("a-rabbit", tmp_path)
    assert find_run(job.run.id[:-1], tmp_path).id == job.run.id
    done = api.resume(job.run, runs=tmp_path).wait()
    with pytest.raises(RunError, match="is finished. To change it"):
        api.resume(done, runs=tmp_path)


def test_another_schema_and_a_damaged_record_are_told_apart(tmp_path):
    run = start(tmp_path).wait()
    record = run.record
    (run.path / "run.json").write_text(json.dumps({**record, "schema": 99}))
    with pytest.raises(RunError, match="schema 99; this version reads 1"):
        find_run(run.id, tmp_path)
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        find_run(run.id, tmp_path)
    assert list_runs(tmp_path) == []


def test_a_damaged_parent_checkpoint_is_refused_by_name(tmp_path):
    run = start(tmp_path).wait()
    path = run.latest_checkpoint / "scene.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises((RunError, CheckpointError), match="no checkpoint"):
        api.edit(run, "a mug", runs=tmp_path)


def test_ten_nan_steps_in_a_row_end_the_run_and_keep_the_last_checkpoint(tmp_path, monkeypatch):
    from test_train import Broken

    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: Broken(set(range(5, 100))))
    job = start(tmp_path, steps=40, save_every=2)
    with pytest.raises(RuntimeError, match="not finite 10 steps in a row"):
        job.wait()
    assert job.run.status == "failed"
    assert "GuidanceFailed" in job.run.record["error"]
    scene = api.load_scene(job.run, "cpu")
    assert all(bool(p.isfinite().all()) for p in scene.parameters())


@pytest.mark.parametrize("full", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")])
def test_a_full_disk_ends_the_run_with_a_sentence_and_what_was_saved_goes_on(tmp_path, monkeypatch, full):
    """safetensors' error is no OSError."""
    whole = start(tmp_path, save_every=4).wait()
    job, write = start(tmp_path, save_every=4), checkpoint.save_file

    def fill(tensors, path):
        if list(job.run.checkpoints.glob("[0-9]*")):
            path.write_bytes(b"half")
            raise full
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", fill)
    with pytest.raises(RunError, match=rf"{job.run.id} broke off: .*No space left on device\. .* dreamsa resume {job.run.id}$"):
        job.wait()
    assert job.run.status == "failed"
    assert [path.name for path in job.run.checkpoints.iterdir()] == ["00000004"]
    checkpoint.load(job.run.checkpoints / "00000004")
    monkeypatch.setattr(checkpoint, "save_file", write)
    assert scene_bytes(api.resume(job.run, runs=tmp_path).wait()) == scene_bytes(whole)


def test_a_read_only_folder_is_one_sentence(tmp_path):
    if os.geteuid() == 0:
        target = tmp_path / "file"
        target.write_text("")  # root may write anywhere, but not below a file
    else:
        target = tmp_path / "closed"
        target.mkdir(mode=0o555)
    with pytest.raises(RunError, match=r"Cannot create a run in .*--runs"):
        start(target / "runs")


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"steps": 0}, "steps must lie in"), ({"sds.guidance_scale": -3}, "guidance_scale"), ({"camera.resolution": 4}, "resolution"),
     ({"sds.nonsense": 1}, "no key 'nonsense'"), ({"edit.scale": 1}, "no setting 'edit.scale'"), ({"seed": -1}, "seed")],
)  # fmt: skip
def test_settings_are_checked_before_any_work(changes, says):
    with pytest.raises(ValueError, match=says):
        api.with_overrides(tiny_config(), changes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scale": -1.0}, "edit.scale"),
        ({"ascent_steps": 20, "steps": 20}, "below steps"),
        ({"eta": 2.0}, "edit.eta"),
        ({"ascent_steps": 4, "moments": "keep"}, "kept by the escape plain alone; anneal forgets them"),
        ({"escape": "fresh", "moments": "keep"}, "kept by the escape plain alone; fresh forgets them"),
    ],
)
def test_edits_are_checked_before_a_run_is_made(tmp_path, arguments, says):
    parent = start(tmp_path).wait()
    with pytest.raises(ValueError, match=says):
        api.edit(parent, "a mug", runs=tmp_path, **arguments)
    assert list_runs(tmp_path) == [parent]


@pytest.mark.parametrize(
    ("arguments", "escape", "moments"),
    [({}, "interpolate", "reset"), ({"moments": "keep"}, "plain", "keep"), ({"ascent_steps": 4}, "anneal", "reset")],
)
def test_what_is_said_of_an_edit_decides_how_it_escapes(tmp_path, arguments, escape, moments):
    edit = api.edit(start(tmp_path).wait(), "a mug", steps=12, runs=tmp_path, **arguments).run.config.edit
    assert (edit.escape, edit.moments, edit.parent_prompt) == (escape, moments, "a rabbit")


def test_configurations_survive_json_for_every_preset():
    for name in ("toybox", "paper", "sd"):
        config = replace(preset(name, "a rabbit"), edit=EditConfig("x"))
        assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_the_paper_preset_is_the_thesis():
    config = preset("paper", "a rabbit")
    camera = config.camera
    assert (camera.elevation_deg, camera.azimuth_deg, camera.distance, camera.focal) == ((-10, 90), (0, 360), (1.0, 1.5), (0.7, 1.35))
    assert (config.steps, config.sds.guidance_scale, camera.resolution, config.render.shading) == (20_000, 100, 64, "albedo")
    assert EditConfig("x").scale == 0.01


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU"):
            api.device_for("cuda")
    with pytest.raises(ValueError, match="no device 'gpu'"):
        api.device_for("gpu")
