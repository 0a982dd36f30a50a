"""The job manager, with stand-ins for runs where turns matter and real tiny runs where what is saved matters."""

import json
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from tiny import tiny_config, tiny_score

from dreamsa import api
from dreamsa.runs import Run, RunError, new_run
from dreamsa.web.jobs import JobManager, QueueFull, pace_of

SOON = 60.0
"""Seconds that nothing here takes, unless something is stuck."""


@dataclass
class Pretended:
    """Work that takes a step whenever it is let."""

    run: Run
    steps: int = 3
    may: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    error: Exception | None = None
    done: int = 0

    def __iter__(self):
        self.run.update(status="running")
        for step in range(self.steps):
            self.may.acquire()
            if self.error:
                raise self.error
            self.done = step + 1
            yield SimpleNamespace(step=self.done, phase="descend", seconds_per_step=0.5)
        self.run.update(status="finished", step=self.steps)

    def stop(self):
        if self.run.record["status"] == "running":
            self.run.update(status="stopped", step=self.done)


@pytest.fixture
def manager(tmp_path):
    made = JobManager(tmp_path / "runs")
    yield made
    made.close(timeout=5)


@pytest.fixture
def tiny_runs(monkeypatch):
    """Real runs of a few milliseconds a step."""
    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(api, "write_outputs", lambda run, scene, frames=8, resolution=16: [])


def pretend(manager, device="cpu", steps=3, error=None) -> Pretended:
    run = new_run(tiny_config(steps=steps), None, manager.folder, {"device": device, "backend": "numba"})
    work = Pretended(run, steps, error=error)
    manager.submit(lambda: work)
    return work


def until(condition) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.01)


def test_one_runs_while_the_others_wait_in_the_order_of_their_coming(manager):
    works = [pretend(manager) for _ in range(3)]
    ids = [work.run.id for work in works]
    until(lambda: manager.status(ids[0]).state == "running")
    assert [manager.status(name).state for name in ids] == ["running", "queued", "queued"]
    assert [manager.status(name).place for name in ids] == [0, 1, 2]
    assert manager.active() == ids
    assert manager.current() == ids[0]
    for work in works:
        work.may.release(work.steps)
        assert manager.wait(work.run.id, SOON)
        assert manager.status(work.run.id).state == "finished"
    assert manager.idle(SOON)
    assert manager.active() == []


def test_each_device_has_its_own_turn(manager):
    here, there = pretend(manager, "cpu"), pretend(manager, "cuda:1")
    until(lambda: {manager.status(work.run.id).state for work in (here, there)} == {"running"})
    for work in (here, there):
        work.may.release(work.steps)
    assert manager.idle(SOON)


def test_the_seventeenth_that_would_wait_is_refused_before_it_is_made(manager):
    works = [pretend(manager)]
    until(lambda: manager.status(works[0].run.id).state == "running")
    works += [pretend(manager) for _ in range(16)]
    made = []
    with pytest.raises(QueueFull, match="16 jobs wait already, and no more than 16 may"):
        manager.submit(lambda: made.append("made"))
    assert made == []
    assert len(manager.runs()) == 17
    for work in works:
        work.may.release(work.steps)
    assert manager.idle(SOON)


def test_progress_is_seen_while_it_runs(manager):
    work = pretend(manager, steps=4)
    work.may.release(2)
    until(lambda: manager.status(work.run.id).step == 2)
    status = manager.status(work.run.id)
    assert (status.steps, status.phase, status.eta_seconds) == (4, "descend", 1.0)
    work.may.release(2)


def test_a_waiting_job_that_is_stopped_never_runs_and_may_be_started_later(manager):
    first, second = pretend(manager), pretend(manager)
    until(lambda: manager.status(first.run.id).state == "running")
    manager.stop(second.run.id)
    assert manager.status(second.run.id).state == "created"
    first.may.release(3)
    assert manager.idle(SOON)
    assert second.done == 0
    manager.submit(lambda: second)
    second.may.release(3)
    assert manager.wait(second.run.id, SOON)
    assert manager.status(second.run.id).state == "finished"


def test_a_failure_keeps_its_sentence_and_the_next_job_runs(manager):
    bad, good = pretend(manager, error=RuntimeError("The guidance returned\nnothing.")), pretend(manager)
    bad.may.release()
    good.may.release(3)
    assert manager.idle(SOON)
    assert manager.status(bad.run.id).state == "failed"
    assert manager.status(bad.run.id).error == "The guidance returned nothing."
    assert manager.status(good.run.id).state == "finished"


def test_a_job_that_runs_is_not_queued_twice(manager):
    work = pretend(manager)
    with pytest.raises(RunError, match="already running or waiting"):
        manager.submit(lambda: work)
    work.may.release(3)


def test_stop_saves_continue_ends_in_the_same_scene_and_a_new_server_finds_it_all(manager, tmp_path, tiny_runs):
    whole = api.generate(config=tiny_config(steps=40), runs=tmp_path / "whole").wait()
    name = manager.submit(lambda: api.generate(config=tiny_config(steps=40), runs=manager.folder))
    until(lambda: manager.status(name).step >= 3 or manager.status(name).state == "finished")
    manager.stop(name)
    assert manager.wait(name, SOON)
    stopped = manager.status(name)
    assert stopped.state == "stopped"
    assert 3 <= stopped.step < 40
    restarted = JobManager(manager.folder)
    assert restarted.current() == name
    assert restarted.status(name) == stopped
    restarted.submit(lambda: api.resume(restarted.find(name)))
    assert restarted.wait(name, SOON)
    assert restarted.status(name).state == "finished"
    ends = [(run.latest_checkpoint / "scene.safetensors").read_bytes() for run in (whole, restarted.find(name))]
    assert ends[0] == ends[1]
    restarted.close()


def test_what_is_wrong_with_the_arguments_is_said_at_once_and_leaves_nothing(manager):
    with pytest.raises(ValueError, match="prompt is empty"):
        manager.submit(lambda: api.generate(config=tiny_config(prompt=" "), runs=manager.folder))
    assert manager.runs() == []
    assert manager.active() == []


def test_close_saves_what_runs_and_refuses_more(manager, tiny_runs):
    name = manager.submit(lambda: api.generate(config=tiny_config(steps=5000), runs=manager.folder))
    until(lambda: manager.status(name).step >= 1)
    manager.close(SOON)
    assert manager.status(name).state == "stopped"
    with pytest.raises(RunError, match="shutting down"):
        manager.submit(lambda: None)


def test_runs_of_other_processes_are_seen_with_their_progress(manager, tiny_runs):
    done = api.generate(config=tiny_config(), runs=manager.folder).wait()
    assert manager.status(done.id).state == "finished"
    run = new_run(tiny_config(steps=100), None, manager.folder, {"device": "cpu", "backend": "numba"})
    run.update(status="running")
    with (run.path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps({"step": step, "phase": "ascend", "seconds": 0.25}) + "\n" for step in (0, 10, 20))
    with run.lock():
        status = manager.status(run.id)
        assert (status.state, status.step, status.phase) == ("running", 21, "ascend")
        assert status.eta_seconds == pytest.approx(79 * 0.25)
        with pytest.raises(RunError, match="does not run here. If another process runs it, press Ctrl-C there"):
            manager.stop(run.id)
    assert manager.status(run.id).state == "stopped"  # its process is gone


@pytest.mark.parametrize(
    "wish", ["../secret", "..", ".", "", "/etc", "runs", "a-rabbit", "\0", "a/../a", "a" * 5000, None, 3, ["x"], "${HOME}"], ids=ascii
)
def test_an_id_is_looked_up_and_never_made_into_a_path(manager, tmp_path, wish):
    new_run(tiny_config(), None, manager.folder, {"device": "cpu"})
    secret = new_run(tiny_config(), None, tmp_path, {"device": "cpu"})
    secret.path.rename(tmp_path / "secret")
    for ask in (manager.find, manager.status, manager.stop):
        with pytest.raises(RunError, match="There is no run|does not run here|cannot be read"):
            ask(wish)


def test_the_first_step_which_loads_says_nothing_about_the_pace():
    assert pace_of([{"step": 0, "seconds": 30.0}]) is None
    assert pace_of([{"step": 0, "seconds": 30.0}, {"step": 10, "seconds": 0.1}, {"step": 20, "seconds": 0.3}]) == pytest.approx(0.2)
