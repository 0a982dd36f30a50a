"""The shipped examples."""

import numpy as np
import pytest
from tiny import tiny_config, tiny_score
from web import ship_examples
from web.ship_examples import ship

from dreamsa import api, job, outputs
from dreamsa.outputs import load_scene, orbit_images
from dreamsa.runs import RunError, list_runs, new_run
from dreamsa.web import examples

FACTS = {"device": "cpu", "backend": "numba"}


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A rabbit and its edit, finished."""
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    write = outputs.write_outputs
    monkeypatch.setattr(job, "write_results", lambda run, scene, stage: write(run, scene, 8, 16))
    rabbit = api.generate(config=tiny_config(), runs=tmp_path / "made").wait()
    return rabbit, api.edit(
        rabbit, "a purple rabbit", steps=6, ascent_steps=2, runs=tmp_path / "made"
    ).wait()


def test_shipped_examples_fill_an_empty_gallery_and_can_be_edited(tmp_path, finished):
    names = [run.id for run in finished]
    shipped = ship(names, tmp_path / "made", tmp_path / "examples")
    assert sorted(path.name for path in shipped) == sorted(names)
    assert not list(tmp_path.rglob("examples/**/training.safetensors"))
    examples.install(tmp_path / "runs", tmp_path / "examples")
    installed = list_runs(tmp_path / "runs")
    assert sorted(run.id for run in installed) == sorted(names)
    rabbit = next(run for run in installed if run.id == names[0])
    assert rabbit.record["example"] is True
    views = [
        orbit_images(load_scene(run), run.config.camera, 2, 32).astype(int)
        for run in (finished[0], rabbit)
    ]
    assert np.abs(views[0] - views[1]).max() <= 2  # of 255: the table was rounded
    assert (
        api.edit(rabbit, "a mug", steps=4, escape="plain", runs=tmp_path / "runs").wait().status
        == "finished"
    )
    with pytest.raises(RunError, match="shipped without its optimizer's moments"):
        api.edit(rabbit, "a mug", steps=4, moments="keep", runs=tmp_path / "runs")


def test_a_folder_with_runs_gets_no_examples_and_nothing_is_overwritten(tmp_path, finished):
    ship([finished[0].id], tmp_path / "made", tmp_path / "examples")
    mine = new_run(tiny_config(), None, tmp_path / "runs", FACTS)
    examples.install(tmp_path / "runs", tmp_path / "examples")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [mine.id]
    examples.install(tmp_path / "other", tmp_path / "nothing")
    assert list_runs(tmp_path / "other") == []


def test_invalid_examples_are_refused_and_the_old_ones_stay(tmp_path, finished, monkeypatch):
    rabbit, purple = finished
    ship([rabbit.id], tmp_path / "made", tmp_path / "examples")
    with pytest.raises(RunError, match="name that run as well"):
        ship([purple.id], tmp_path / "made", tmp_path / "examples")
    monkeypatch.setattr(ship_examples, "MAX_BYTES", 1000)
    with pytest.raises(RunError, match="more than 1,000"):
        ship([rabbit.id, purple.id], tmp_path / "made", tmp_path / "examples")
    rabbit.update(status="stopped")
    with pytest.raises(RunError, match="is stopped, not finished"):
        ship([rabbit.id], tmp_path / "made", tmp_path / "examples")
    assert [path.name for path in (tmp_path / "examples").iterdir()] == [rabbit.id]
    assert not list(tmp_path.glob(".tmp-*"))
