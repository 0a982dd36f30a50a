"""Runs through the public verbs, with a tiny score model in place of Stable Diffusion."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors import SafetensorError
from tiny import tiny_config, tiny_score

from dreamsa import api, checkpoint, job, train
from dreamsa.assets import asset
from dreamsa.checkpoint import CheckpointError
from dreamsa.choices import ESCAPES
from dreamsa.config import EditConfig, from_json, read_config, to_json
from dreamsa.guidance import stable_diffusion
from dreamsa.outputs import load_scene
from dreamsa.presets import preset
from dreamsa.runs import SCHEMA, RunError, find_run, list_runs
from dreamsa.settings import with_overrides


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A Gaussian replaces the embedded model; finished runs get no images."""
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(job, "write_results", lambda *arguments: None)
    monkeypatch.setattr(job, "write_changes", lambda run, before, after: {})


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
    running = start(tmp_path)
    for progress in running:
        if progress.step == stop:
            break
    running.stop()
    assert running.run.status == "stopped"
    assert running.run.record["step"] == stop
    resumed = api.resume(running.run.id, runs=tmp_path).wait()
    assert resumed.path == running.run.path
    assert scene_bytes(resumed) == scene_bytes(whole)
    assert [m["step"] for m in resumed.metrics()] == [m["step"] for m in whole.metrics()]


def test_an_edit_is_a_child_and_the_parent_is_untouched(tmp_path):
    parent = start(tmp_path).wait()
    before = {p: p.read_bytes() for p in parent.path.rglob("*") if p.is_file()}
    running = api.edit(parent, "a purple rabbit", steps=10, ascent_steps=4, runs=tmp_path)
    phases = [p.phase for p in running]
    child = running.run
    assert phases == ["ascend"] * 4 + ["descend"] * 6
    assert {p: p.read_bytes() for p in parent.path.rglob("*") if p.is_file()} == before
    assert child.record["parent"] == parent.id
    assert child.record["lineage"] == [{"id": parent.id, "prompt": "a rabbit"}]
    grandchild = api.edit(child, "a blue mug", steps=5, escape="plain", runs=tmp_path).wait()
    assert [step["prompt"] for step in grandchild.record["lineage"]] == [
        "a rabbit",
        "a purple rabbit",
    ]


def test_an_edit_resumes_exactly_in_mid_ascent(tmp_path):
    parent = start(tmp_path).wait()
    arguments = {"steps": 10, "ascent_steps": 6, "scale": 0.5, "runs": tmp_path}
    whole = api.edit(parent, "a purple rabbit", **arguments).wait()
    running = api.edit(parent, "a purple rabbit", **arguments)
    for progress in running:
        if progress.step == 3:
            break
    running.stop()
    assert scene_bytes(api.resume(running.run, runs=tmp_path).wait()) == scene_bytes(whole)


def test_how_far_each_group_has_moved_is_logged_and_survives_a_stop(tmp_path):
    """From where the edit began, at the edge of its phases too; the parent, not the checkpoint,
    says where that was."""
    parent = start(tmp_path).wait()
    arguments = {"steps": 10, "ascent_steps": 4, "scale": 0.5, "runs": tmp_path / "elsewhere"}
    whole = api.edit(parent, "a purple rabbit", **arguments).wait()
    rows = {row["step"]: row["displacement"] for row in whole.metrics()}
    assert sorted(rows) == [0, 3, 9]
    table = parent.config.field.grid.levels * 2**parent.config.field.grid.log2_size * 2
    assert 0 < rows[3]["grid"] <= 0.5 * 1e-2 * 4 * table**0.5
    assert all(norm > 0 for row in rows.values() for norm in row.values())
    for stop in (2, 7):
        running = api.edit(parent, "a purple rabbit", **arguments)
        for progress in running:
            if progress.step == stop:
                break
        running.stop()
        resumed = api.resume(running.run, runs=tmp_path).wait()
        assert {row["step"]: row["displacement"] for row in resumed.metrics()} == rows


def test_an_edit_goes_on_without_its_parent_once_it_has_saved(tmp_path):
    parent = start(tmp_path).wait()
    running = api.edit(parent, "a mug", steps=12, escape="plain", runs=tmp_path)
    next(iter(running))
    running.stop()
    never = api.edit(parent, "a duck", steps=12, runs=tmp_path).run
    (tmp_path / "away").mkdir()
    parent.path.rename(tmp_path / "away" / parent.id)
    assert api.resume(running.run, runs=tmp_path).wait().metrics()[-1]["displacement"] is None
    with pytest.raises(
        RunError, match=r"has no checkpoint, and its parent a-rabbit-.* is not beside it"
    ):
        api.resume(never, runs=tmp_path)


def test_every_escape_ends_in_another_scene(tmp_path):
    parent = start(tmp_path).wait()
    given = {"steps": 12, "scale": 1.0, "runs": tmp_path}
    ends = {
        name: scene_bytes(api.edit(parent, "a mug", escape=name, **given).wait())
        for name in ESCAPES
    }
    ends["keep"] = scene_bytes(api.edit(parent, "a mug", moments="keep", **given).wait())
    ends["both"] = scene_bytes(api.edit(parent, "a mug", eta=0.3, ascent_steps=2, **given).wait())
    assert len(set(ends.values())) == len(ends)


def test_a_fresh_edit_forgets_the_parent(tmp_path):
    parents = [start(tmp_path, steps=steps).wait() for steps in (3, 9)]
    ends = [
        scene_bytes(api.edit(p, "a mug", steps=4, escape="fresh", runs=tmp_path).wait())
        for p in parents
    ]
    assert ends[0] == ends[1]


def test_a_run_in_use_is_refused(tmp_path):
    running = start(tmp_path)
    next(iter(running))
    with pytest.raises(RunError, match="is in use by another process"):
        api.resume(running.run, runs=tmp_path)
    running.stop()


def test_settings_have_the_command_lines_names_and_override_preset_and_configuration(tmp_path):
    config = tiny_config(steps=5, seed=1)
    run = api.generate(config=config, steps=2, seed=7, name="my-rabbit", runs=tmp_path).run
    assert run.id == "my-rabbit"
    assert run.config == tiny_config(steps=2, seed=7)
    with pytest.raises(RunError, match="already a run or file named my-rabbit"):
        api.generate(config=config, name="my-rabbit", runs=tmp_path)
    draft = api.generation("a mug", "draft", None, {"device": "cpu", "seed": None})
    assert draft == replace(preset("toybox", "a mug"), steps=400, device="cpu")
    fine = api.generation("a mug", "fine", "some/model")
    assert (fine.steps, fine.model.model) == (2 * preset("sd", "").steps, "some/model")


def test_words_that_the_model_does_not_know_need_a_confirmation(tmp_path):
    with pytest.raises(ValueError, match=r"not know: shiny; it would make a rabbit\. .*--anyway"):
        api.generate(config=tiny_config(prompt="a shiny rabbit"), runs=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="not know: shiny"):
        api.generate(config=tiny_config(prompt="a shiny rabbit"), anyway=True, runs=tmp_path)


def test_a_run_has_the_verbs_that_apply_to_it(tmp_path, capsys):
    run = start(tmp_path, steps=2).wait(progress=True)
    assert "loading the model" in capsys.readouterr().err
    child = run.edit("a mug", steps=1, escape="plain").wait()
    assert child.record["parent"] == run.id
    assert type(child) is type(run) is type(api.list_runs(tmp_path)[0])
    with pytest.raises(RunError, match=r"has no turntable. Write it: dreamsa render"):
        _ = run.turntable


def test_missing_and_ambiguous_runs_are_refused_and_unfinished_ones_warned_of(tmp_path):
    running = start(tmp_path)
    next(iter(running))
    running.stop()
    unfinished = (
        r"is stopped, not finished; .*step 1 of 12, is used.* dreamsa resume a-rabbit.* --runs"
    )
    with pytest.warns(UserWarning, match=unfinished):
        child = api.edit(running.run, "a mug", runs=tmp_path, steps=1, escape="plain").wait()
    assert child.record["parent"] == running.run.id
    shutil.rmtree(child.path)
    with pytest.raises(RunError, match="is created and has no checkpoint yet"):
        api.edit(start(tmp_path).run, "a mug", runs=tmp_path)
    with pytest.raises(RunError, match="is not a run in"):
        api.edit("nothing", "a mug", runs=tmp_path)
    start(tmp_path)
    with pytest.raises(RunError, match="matches several runs"):
        find_run("a-rabbit", tmp_path)
    assert find_run(running.run.id[:-1], tmp_path).id == running.run.id
    done = api.resume(running.run, runs=tmp_path).wait()
    with pytest.raises(RunError, match="is finished. To change it"):
        api.resume(done, runs=tmp_path)


def test_a_damaged_parent_checkpoint_is_refused_by_name(tmp_path):
    run = start(tmp_path).wait()
    path = run.latest_checkpoint / "scene.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises((RunError, CheckpointError), match="no complete checkpoint"),
    ):
        api.edit(run, "a mug", runs=tmp_path)


def test_ten_nan_steps_in_a_row_end_the_run_and_keep_the_last_checkpoint(tmp_path, monkeypatch):
    from test_train import Broken

    monkeypatch.setattr(
        job.StableDiffusion, "load", lambda config, device: Broken(set(range(5, 100)))
    )
    failing = start(tmp_path, steps=40, save_every=2)
    with pytest.raises(RuntimeError, match="skipped 10 times in a row"):
        failing.wait()
    assert failing.run.status == "failed"
    assert "GuidanceFailed" in failing.run.record["error"]
    scene = load_scene(failing.run, "cpu")
    assert all(bool(p.isfinite().all()) for p in scene.parameters())


@pytest.mark.parametrize(
    "full",
    [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")],
)
def test_a_full_disk_ends_the_run_with_a_sentence_and_what_was_saved_goes_on(
    tmp_path, monkeypatch, full
):
    """safetensors' error is no OSError."""
    whole = start(tmp_path, save_every=4).wait()
    running, write = start(tmp_path, save_every=4), checkpoint.save_file

    def fill(tensors, path):
        if list(running.run.checkpoints.glob("[0-9]*")):
            path.write_bytes(b"half")
            raise full
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", fill)
    with pytest.raises(
        RunError,
        match=rf"failed: .*No space left on device\. Saved up to step 4; log: .* "
        rf"dreamsa resume {running.run.id} --runs",
    ):
        running.wait()
    assert running.run.status == "failed"
    assert [path.name for path in running.run.checkpoints.iterdir()] == ["00000004"]
    checkpoint.load(running.run.checkpoints / "00000004")
    monkeypatch.setattr(checkpoint, "save_file", write)
    assert scene_bytes(api.resume(running.run, runs=tmp_path).wait()) == scene_bytes(whole)


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
    ("arguments", "says"),
    [
        ({"scale": -1.0}, "edit.scale must be greater than or equal to 0, got -1"),
        ({"ascent_steps": 20, "steps": 20}, "below steps"),
        ({"eta": 2.0}, "edit.eta must be less than or equal to 1, got 2"),
        ({"eta": float("nan")}, "edit.eta must be a finite number"),
        ({"moments": "Keep"}, "edit.moments must be 'reset' or 'keep', got 'Keep'"),
        ({"escape": "Plain"}, "no escape 'Plain'. Escapes: interpolate, anneal, plain, fresh"),
        ({"escape": "auto"}, "no escape 'auto'"),
        ({"ascent_steps": 4, "moments": "keep"}, "needs a plain edit"),
        ({"escape": "fresh", "moments": "keep"}, "needs a plain edit"),
        ({"eta": 0.5, "moments": "keep"}, "needs a plain edit"),
        ({"overrides": {"edit.moments": "keep"}}, "needs a plain edit"),
        ({"overrides": {"edit.escape": "anneal"}}, "There is no setting 'edit.escape'"),
        ({"overrides": {"edit.ascent_steps": 900}}, "below steps"),
        ({"seed": -1}, "seed must be greater than or equal to 0"),
    ],
)
def test_edits_are_checked_before_a_run_is_made(tmp_path, arguments, says):
    parent = start(tmp_path).wait()
    with pytest.raises(ValueError, match=re.escape(says)):
        api.edit(parent, "a mug", runs=tmp_path, **arguments)
    assert list_runs(tmp_path) == [parent]


@pytest.mark.parametrize(
    ("arguments", "numbers", "escape"),
    [
        ({}, (0.6, 0, "reset"), "interpolate"),
        ({"moments": "keep"}, (0.0, 0, "keep"), "plain"),
        ({"ascent_steps": 4}, (0.0, 4, "reset"), "anneal"),
        ({"escape": "anneal"}, (0.0, 2, "reset"), "anneal"),
        ({"escape": "fresh"}, (1.0, 0, "reset"), "fresh"),
        ({"eta": 0.25}, (0.25, 0, "reset"), "interpolate by 0.25"),
        ({"escape": "interpolate", "ascent_steps": 3}, (0.6, 3, "reset"), "eta 0.6, then anneal"),
    ],
)
def test_an_escape_is_a_preset_of_numbers_that_explicit_ones_override(
    tmp_path, arguments, numbers, escape
):
    edit = api.edit(
        start(tmp_path).wait(), "a mug", steps=12, runs=tmp_path, **arguments
    ).run.config.edit
    assert (edit.eta, edit.ascent_steps, edit.moments) == numbers
    assert (edit.escape, edit.parent_prompt) == (escape, "a rabbit")


@pytest.mark.parametrize("at", [0, 3, 6])
def test_an_interrupt_inside_a_step_saves_no_half_done_step(tmp_path, monkeypatch, at):
    """The run continues from its last checkpoint and ends as an unbroken one, in mid-ascent too."""
    from test_train import Interrupting

    parent = start(tmp_path).wait()
    given = {
        "steps": 10,
        "ascent_steps": 5,
        "eta": 0.3,
        "overrides": {"save_every": 2},
        "runs": tmp_path,
    }
    whole = api.edit(parent, "a mug", **given).wait()
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: Interrupting({at}))
    stable_diffusion._shared.clear()
    broken = api.edit(parent, "a mug", **given)
    with pytest.raises(KeyboardInterrupt):
        broken.wait()
    assert broken.run.status == "stopped"
    steps = [int(path.name) for path in broken.run.checkpoints.glob("*")]
    before = [step for step in (2, 4, 6) if step < at]
    assert steps == [*before, at][-2:], "the step that was interrupted has changed nothing yet"
    for step in steps:
        _, state = checkpoint.load(broken.run.checkpoints / f"{step:08d}")
        assert [group["lr"] for group in state["optimizer"]["groups"]] == [1e-2, 1e-2]
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    stable_diffusion._shared.clear()
    assert scene_bytes(api.resume(broken.run, runs=tmp_path).wait()) == scene_bytes(whole)


def test_a_damaged_checkpoint_is_replaced_when_the_run_passes_it_again(tmp_path):
    whole = start(tmp_path, save_every=4).wait()
    running = start(tmp_path, save_every=4)
    for progress in running:
        if progress.step == 8:
            break
    running.stop()
    damaged = running.run.checkpoints / "00000008" / "scene.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.warns(UserWarning, match="damaged"):
        resumed = api.resume(running.run, runs=tmp_path)
        for progress in resumed:
            if progress.step == 8:
                resumed.stop()
    assert running.run.latest_checkpoint.name == "00000008"
    assert scene_bytes(api.resume(running.run, runs=tmp_path).wait()) == scene_bytes(whole)
    assert running.run.latest_checkpoint.name == "00000012"


def test_resume_updates_what_the_record_says_of_the_device(tmp_path):
    running = start(tmp_path)
    next(iter(running))
    running.stop()
    running.run.update(device="cuda:0", backend="triton", kernels="triton")
    resumed = api.resume(running.run, runs=tmp_path)
    record = resumed.run.record
    assert (record["device"], record["backend"], record["kernels"]) == ("cpu", "numba", "numba")


def test_a_configuration_and_a_preset_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="both give a whole configuration"):
        api.generate(config=tiny_config(), preset="toybox", runs=tmp_path)


def test_a_control_of_a_comparison_is_not_resumed_by_itself(tmp_path):
    parent = start(tmp_path).wait()
    config = tiny_config(edit=EditConfig(parent.id, control={"kind": "noise"}))
    control = job.start(config, parent, tmp_path, train.Method([]))
    next(iter(control))
    control.stop()
    with pytest.raises(RunError, match="is a control of a comparison. Resume it by repeating"):
        api.resume(control.run, runs=tmp_path)


def test_a_bridge_runs_away_from_its_words(tmp_path, monkeypatch):
    texts = []

    def watched(config, device):
        score = tiny_score()
        embed = score.embed
        score.embed = lambda words: texts.extend(words) or embed(words)
        return score

    monkeypatch.setattr(job.StableDiffusion, "load", watched)
    config = with_overrides(tiny_config(), {"distill.method": "bridge"})
    start(tmp_path, distill=replace(config.distill, bridge_words=", blurry")).wait()
    assert any(text.startswith("a rabbit, blurry") for text in texts)


def test_local_model_paths_are_saved_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(asset("toybox-sd"), tmp_path / "models" / "plain")
    config = with_overrides(tiny_config(), {"model.model": "models/plain"})
    running = api.generate(config=config, runs=tmp_path / "runs")
    next(iter(running))
    running.stop()
    assert running.run.config.model.model == str(tmp_path / "models" / "plain")
    monkeypatch.chdir("/")
    assert api.resume(running.run, runs=tmp_path / "runs").wait().status == "finished"


@pytest.mark.parametrize(
    "name", sorted(path.parent.name for path in asset("examples").glob("*/run.json"))
)
def test_examples_of_schema_1_open_and_can_be_edited(tmp_path, name):
    shutil.copytree(asset("examples"), tmp_path, dirs_exist_ok=True)
    run = find_run(name, tmp_path)
    assert run.record["schema"] == 1
    assert run.config.edit is None or run.config.edit.escape == "anneal"
    load_scene(run, "cpu")
    small = {"camera.resolution": 16, "render.samples": 24}
    child = api.edit(run, "a mug", steps=2, overrides=small, runs=tmp_path).wait()
    assert child.record["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("old", "numbers"),
    [
        (
            {"escape": "plain", "moments": "keep"},
            {"eta": 0.0, "ascent_steps": 0, "moments": "keep"},
        ),
        ({"escape": "anneal", "ascent_steps": 7, "eta": 0.6}, {"eta": 0.0, "ascent_steps": 7}),
        ({"escape": "interpolate", "eta": 0.4}, {"eta": 0.4, "ascent_steps": 0}),
        ({"escape": "fresh", "eta": 0.6}, {"eta": 1.0}),
        ({"escape": "auto", "eta": 0.6, "parent_prompt": "x"}, {"eta": 0.6, "parent_prompt": "x"}),
        (
            {"escape": "noise", "ascent_steps": 7, "displacement": None},
            {"eta": 0.0, "ascent_steps": 7},
        ),
    ],
)
def test_escapes_of_schema_1_become_numbers(old, numbers):
    tree = to_json(tiny_config())
    tree["render"]["hidden"] = tree["render"].pop("min_transmittance")
    tree["field"]["hidden"] = tree["field"].pop("width")
    edit = from_json({**tree, "edit": {"parent": "p", **old}}).edit
    assert {name: getattr(edit, name) for name in numbers} == numbers
    assert (edit.control is not None) == (old["escape"] == "noise")


def test_configurations_survive_json_for_every_preset():
    for name in ("toybox", "paper", "sd"):
        config = replace(preset(name, "a rabbit"), edit=EditConfig("x"))
        assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_the_paper_preset_is_the_thesis():
    config = preset("paper", "a rabbit")
    camera = config.camera
    assert (camera.elevation_deg, camera.azimuth_deg, camera.distance, camera.focal) == (
        (-10, 90),
        (0, 360),
        (1.0, 1.5),
        (0.7, 1.35),
    )
    assert (
        config.steps,
        config.distill.guidance_scale,
        camera.resolution,
        config.render.shading,
    ) == (
        20_000,
        100,
        64,
        "albedo",
    )
    assert EditConfig("x").scale == 0.01


TWO_PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from pathlib import Path
from tiny import tiny_config, tiny_score
from dreamsa import api, job
job.StableDiffusion.load = lambda config, device: tiny_score()
job.write_results = lambda *arguments: None
runs = Path(sys.argv[1])
config = tiny_config(camera=replace(tiny_config().camera, batch=2), device="cpu")
running = api.generate(config=config, runs=runs)
for progress in running:
    if progress.step == 4:
        break
running.stop()
print(api.resume(running.run, runs=runs).wait().status)
"""


def test_a_run_resumes_under_accelerate_launch(tmp_path):
    """One process holds the lock and writes; the others train along."""
    script = tmp_path / "work.py"
    script.write_text(TWO_PROCESSES.format(tests=os.path.dirname(__file__)))
    options = (
        "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options.split()]
    launch += ["--main_process_port", "29633", str(script), str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = list_runs(tmp_path / "runs")
    assert (run.status, run.record["step"]) == ("finished", 12)
