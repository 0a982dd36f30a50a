"""Duration estimates."""

import tempfile
from pathlib import Path

import pytest
from tiny import tiny_config, tiny_score

from dreamsa import job, with_overrides
from dreamsa.runs import new_run
from dreamsa.web import pace

FACTS = {"device": "cpu", "backend": "numba"}


@pytest.fixture
def measured_run(tmp_path):
    """A run whose first step took 30 s and the others 0.5 s."""
    run = new_run(tiny_config(steps=200), None, tmp_path, FACTS)
    seconds = [(step, 30 if step == 0 else 0.5) for step in range(0, 70, 10)]
    lines = [f'{{"step": {step}, "seconds": {duration}}}' for step, duration in seconds]
    (run.path / "metrics.jsonl").write_text("\n".join(lines))
    return run


def test_a_pace_is_measured_on_the_same_workload_and_device_of_this_machine(measured_run):
    config, runs = tiny_config(steps=200), [measured_run]
    measured = pace.measured(config, "cpu", runs)
    assert measured == pace.Pace(0.5, 6, measured_run.id)
    assert pace.measured(config, "cuda:0", runs) is None
    assert pace.measured(with_overrides(config, {"camera.resolution": 32}), "cpu", runs) is None
    measured_run.update(example=True)  # made on another machine
    assert pace.measured(config, "cpu", runs) is None


def test_a_run_with_a_damaged_configuration_is_skipped(tmp_path, measured_run):
    for damage in ("", "[]", '{"prompt": 3}', None):
        run = new_run(tiny_config(), None, tmp_path, FACTS)
        path = run.path / "config.json"
        path.unlink() if damage is None else path.write_text(damage)
        measured = pace.measured(tiny_config(), "cpu", [measured_run, run])
        assert measured == pace.Pace(0.5, 6, measured_run.id)


def test_an_estimate_names_its_source(measured_run):
    measured = pace.measured(tiny_config(), "cpu", [measured_run])
    words = f"About 2 min: 200 steps of 0.50 s, measured on 6 steps of {measured_run.id}."
    assert pace.estimate(measured, 200) == words
    assert "not measured yet" in pace.estimate(None, 200)


def test_a_probe_times_a_few_steps_and_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    probe = pace.Probe(tiny_config())
    folder = probe.run.path.parent
    assert folder.parent == Path(tempfile.gettempdir())
    for _ in probe:
        pass
    probe.stop()
    assert probe.pace is not None
    assert probe.pace.steps == probe.STEPS - probe.WARMUP
    assert not folder.exists()
