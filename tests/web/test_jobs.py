"""The job manager: stand-ins for jobs test the queue, tiny runs test what is saved."""

import json
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from tiny import tiny_config, tiny_score

from dreamsa import api, job
from dreamsa.runs import Run, RunError, new_run
from dreamsa.web.jobs import JobManager, pace_of

SOON = 60.0
"""Seconds after which a test is stuck."""


@dataclass
class FakeJob:
    """A job that takes a step for each release of `may`."""

    run: Run
    steps: int = 3
    may: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    error: Exception | None = None
    done: int = 0
    stages: job.Stages = field(default_factory=job.Stages)

    def __iter__(self):
        self.run.begin()
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
    """Real runs with steps of a few milliseconds."""
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(job, "write_results", lambda *arguments: None)


def submit_fake(manager, device="cpu", steps=3, error=None) -> FakeJob:
    run = new_run(
        tiny_config(steps=steps), None, manager.folder, {"device": device, "backend": "numba"}
    )
    work = FakeJob(run, steps, error=error)
    manager.submit(lambda: work)
    return work


def until(condition) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.01)


def test_one_job_runs_while_the_others_wait_in_the_order_of_submission(manager):
    works = [submit_fake(manager) for _ in range(3)]
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
    until(lambda: manager.active() == [])


def test_a_new_page_shows_the_newest_finished_run_and_later_failures_are_listed(manager):
    good, bad = submit_fake(manager), submit_fake(manager, error=ValueError("no good"))
    bad.run.update(created="2999-01-01T00:00:00+00:00")
    for work in (good, bad):
        work.may.release(work.steps)
    until(lambda: manager.active() == [])
    assert manager.current() == good.run.id
    assert [(one.id, one.error) for one in manager.failures()] == [(bad.run.id, "no good")]


def test_each_ended_run_is_judged_before_the_next_and_a_judge_that_fails_harms_no_run(tmp_path):
    seen = []

    def judge(run):
        seen.append((run.id, run.status))
        raise ValueError("blind")

    manager = JobManager(tmp_path / "runs", judge)
    work = submit_fake(manager)
    work.may.release(work.steps)
    with pytest.warns(UserWarning, match="blind"):
        until(lambda: manager.active() == [])
    assert seen == [(work.run.id, "finished")]
    assert manager.status(work.run.id).state == "finished"
    manager.close(timeout=5)


def test_each_device_runs_a_job_of_its_own(manager):
    here, there = submit_fake(manager, "cpu"), submit_fake(manager, "cuda:1")
    until(lambda: {manager.status(work.run.id).state for work in (here, there)} == {"running"})
    for work in (here, there):
        work.may.release(work.steps)
    until(lambda: manager.active() == [])


def test_the_seventeenth_waiting_job_is_refused_before_it_is_created(manager):
    works = [submit_fake(manager)]
    until(lambda: manager.status(works[0].run.id).state == "running")
    works += [submit_fake(manager) for _ in range(16)]
    started = []
    with pytest.raises(RunError, match="16 jobs wait already; no more may"):
        manager.submit(lambda: started.append(1))
    assert started == []
    assert len(manager.runs()) == 17
    for work in works:
        work.may.release(work.steps)
    until(lambda: manager.active() == [])


def test_progress_shows_while_a_job_runs(manager):
    work = submit_fake(manager, steps=4)
    work.may.release(2)
    until(lambda: manager.status(work.run.id).step == 2)
    status = manager.status(work.run.id)
    assert (status.steps, status.phase, status.eta_seconds) == (4, "descend", 1.0)
    work.may.release(2)


def test_a_stopped_waiting_job_never_runs_and_can_be_started_later(manager):
    first, second = submit_fake(manager), submit_fake(manager)
    until(lambda: manager.status(first.run.id).state == "running")
    manager.stop(second.run.id)
    assert manager.status(second.run.id).state == "created"
    first.may.release(3)
    until(lambda: manager.active() == [])
    assert second.done == 0
    manager.submit(lambda: second)
    second.may.release(3)
    assert manager.wait(second.run.id, SOON)
    assert manager.status(second.run.id).state == "finished"


def test_a_failed_job_keeps_its_sentence_and_the_next_job_runs(manager):
    bad, good = (
        submit_fake(manager, error=RuntimeError("The guidance returned\nnothing.")),
        submit_fake(manager),
    )
    bad.may.release()
    good.may.release(3)
    until(lambda: manager.active() == [])
    assert manager.status(bad.run.id).state == "failed"
    assert manager.status(bad.run.id).error == "The guidance returned nothing."
    assert manager.status(good.run.id).state == "finished"


def test_a_running_job_is_not_queued_twice(manager):
    work = submit_fake(manager)
    with pytest.raises(RunError, match="already running or waiting"):
        manager.submit(lambda: work)
    work.may.release(3)


def test_a_stopped_job_resumed_by_a_new_server_ends_in_the_same_scene(manager, tmp_path, tiny_runs):
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
    ends = [
        (run.latest_checkpoint / "scene.safetensors").read_bytes()
        for run in (whole, restarted.find(name))
    ]
    assert ends[0] == ends[1]
    restarted.close()


def test_invalid_arguments_raise_immediately_and_leave_nothing(manager):
    with pytest.raises(ValueError, match="prompt is empty"):
        manager.submit(lambda: api.generate(config=tiny_config(prompt=" "), runs=manager.folder))
    assert manager.runs() == []
    assert manager.active() == []


def test_close_saves_running_jobs_and_refuses_more(manager, tiny_runs):
    name = manager.submit(lambda: api.generate(config=tiny_config(steps=5000), runs=manager.folder))
    until(lambda: manager.status(name).step >= 1)
    manager.close(SOON)
    assert manager.status(name).state == "stopped"
    with pytest.raises(RunError, match="shutting down"):
        manager.submit(lambda: None)


def test_runs_of_other_processes_show_with_their_progress(manager, tiny_runs):
    done = api.generate(config=tiny_config(), runs=manager.folder).wait()
    assert manager.status(done.id).state == "finished"
    run = new_run(
        tiny_config(steps=100), None, manager.folder, {"device": "cpu", "backend": "numba"}
    )
    run.begin()
    with (run.path / "metrics.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"step": step, "phase": "ascend", "seconds": 0.25}) + "\n"
            for step in (0, 10, 20)
        )
    with run.lock():
        status = manager.status(run.id)
        assert (status.state, status.step, status.phase) == ("running", 21, "ascend")
        assert status.eta_seconds == pytest.approx(79 * 0.25)
        with pytest.raises(
            RunError, match="does not run here. If another process runs it, press Ctrl-C there"
        ):
            manager.stop(run.id)
    run.update(
        process={**run.record["process"], "started": "0"}
    )  # another process, which has ended
    assert manager.status(run.id).state == "stopped"


def test_a_job_waits_for_the_device_in_the_record_after_its_start(manager):
    first = submit_fake(manager, "cuda:0")
    until(lambda: manager.status(first.run.id).state == "running")
    run = new_run(tiny_config(), None, manager.folder, {"device": "cuda", "backend": "numba"})

    def start():
        run.update(device="cuda:0")  # as resume does
        return FakeJob(run)

    manager.submit(start)
    assert manager.status(run.id).state == "queued"
    manager.stop(run.id)
    first.may.release(3)


@pytest.mark.parametrize(
    "wish",
    [
        "../secret",
        "..",
        ".",
        "",
        "/etc",
        "runs",
        "a-rabbit",
        "\0",
        "a/../a",
        "a" * 5000,
        None,
        3,
        ["x"],
        "${HOME}",
    ],
    ids=ascii,
)
def test_an_id_is_looked_up_and_never_interpreted_as_a_path(manager, tmp_path, wish):
    new_run(tiny_config(), None, manager.folder, {"device": "cpu"})
    secret = new_run(tiny_config(), None, tmp_path, {"device": "cpu"})
    secret.path.rename(tmp_path / "secret")
    for ask in (manager.find, manager.status, manager.stop):
        with pytest.raises(RunError, match="There is no run|does not run here|cannot be read"):
            ask(wish)


def test_the_pace_excludes_the_first_step_which_loads():
    assert pace_of([{"step": 0, "seconds": 30.0}]) is None
    assert pace_of(
        [{"step": 0, "seconds": 30.0}, {"step": 10, "seconds": 0.1}, {"step": 20, "seconds": 0.3}]
    ) == pytest.approx(0.2)
