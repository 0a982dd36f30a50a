"""Jobs that outlive the page: they queue, run one at a time per device, and can be stopped.

A job has the id of its run. Progress is read from the run's folder, so that runs of the command
line show as well and a restarted server finds all of them.
"""

import json
import re
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import median
from threading import Condition, Lock, Thread
from typing import Any, Literal

from dreamsa.files import read_plain, write_json
from dreamsa.job import Job, Progress, resume
from dreamsa.runs import Run, RunError, list_runs

MAX_WAITING = 16
QUEUE = ".queue.json"
"""File of a folder of runs: the ids of running and waiting jobs."""

BUSY = ("queued", "running", "stopping")
"""States of a run that a job is about to change."""
State = Literal["queued", "running", "stopping", "created", "stopped", "failed", "finished"]


@dataclass(frozen=True)
class Status:
    id: str
    prompt: str
    state: State
    """created: never started and not in the queue."""
    step: int
    steps: int
    phase: str
    """ascend, descend, or empty before the first step."""
    stage: str = ""
    """What a running job does between its steps, such as "loading the model"."""
    place: int = 0
    """Number of jobs ahead of it; 0 unless queued."""
    seconds_per_step: float | None = None
    eta_seconds: float | None = None
    error: str = ""
    """Reason of a failure, one sentence."""
    preview: Path | None = None
    """Newest preview."""
    has_scene: bool = False
    """Whether there is a checkpoint to edit and export."""

    @property
    def editable(self) -> bool:
        return self.has_scene and self.state not in BUSY


@dataclass
class _Job:
    work: Job
    device: str
    progress: Progress | None = None
    stopping: bool = False

    @property
    def id(self) -> str:
        return self.work.run.id


class JobManager:
    """Runs the jobs of a folder of runs in threads of its own, one per device. Thread-safe."""

    def __init__(self, folder: Path, after: Callable[[Run], object] = lambda run: None) -> None:
        """
        Args:
            after: Called with each run that has ended, before the next one begins. Its errors do
                not concern the run.
        """
        self.folder, self.after = folder, after
        self._changed = Condition()
        self._submitting = Lock()
        self._waiting: deque[_Job] = deque()
        self._running: dict[str, _Job] = {}
        self._errors: dict[str, str] = {}
        self._restoring: list[str] = []
        """Ids of an earlier server's queue that are still to be queued."""
        self._threads: dict[str, Thread] = {}
        self._closed = False

    def submit(self, start: Callable[[], Job]) -> str:
        """Queue the job that `start` returns, e.g. `lambda: api.generate("a rabbit")`.

        `start` is called immediately, so that its errors reach the caller and the run's folder
        exists while it waits. Returns the run's id.

        Raises:
            RunError: MAX_WAITING jobs wait already; `start` is not called.
        """
        with self._submitting:  # starting may take a while; readers must not wait for it
            with self._changed:
                if self._closed:
                    raise RunError("The server is shutting down and takes no more jobs.")
                if len(self._waiting) >= MAX_WAITING and not self._restoring:
                    raise RunError(
                        f"{MAX_WAITING} jobs wait already; no more may. Try again later."
                    )
            work = start()
            job = _Job(work, str(work.run.record.get("device", "cpu")))
            with self._changed:
                if self._job(job.id) is not None:
                    raise RunError(f"Run {job.id} is already running or waiting here.")
                self._errors.pop(job.id, None)
                self._waiting.append(job)
                if job.device not in self._threads:
                    thread = Thread(target=self._serve, args=(job.device,), daemon=True)
                    self._threads[job.device] = thread
                    thread.start()
                self._announce()
        return job.id

    def stop(self, run_id: str) -> None:
        """Remove a job from the queue, or save and stop it after its current step.

        Raises:
            RunError: It neither runs nor waits here.
        """
        with self._changed:
            job = self._job(run_id)
            if job is None:
                raise RunError(
                    f"Run {self.find(run_id).id} does not run here. "
                    "If another process runs it, press Ctrl-C there."
                )
            job.stopping = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._announce()

    def find(self, run_id: object) -> Run:
        """The run with exactly this id, which is looked up and never interpreted as a path.

        Raises:
            RunError: There is none, or its record is damaged.
        """
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        if not isinstance(run_id, str) or run_id not in names:
            raise RunError(f"There is no run {str(run_id)[:100]!r}. Choose one from the gallery.")
        run = Run(self.folder / run_id)
        run.record  # noqa: B018  (raises if it cannot be read)
        return run

    def runs(self) -> list[Run]:
        """All readable runs, oldest first."""
        return list_runs(self.folder)

    def active(self) -> list[str]:
        """Ids of the folder's runs that run or wait here, in the order of execution."""
        with self._changed:
            jobs = self._jobs()
        return [job.id for job in jobs if job.work.run.path.parent == self.folder]

    def active_statuses(self) -> Iterator[Status]:
        """State and progress of the active runs, in the order of execution."""
        for run_id in self.active():
            with suppress(RunError):
                yield self.status(run_id)

    def wait(self, run_id: str, timeout: float) -> bool:
        """Wait until a job has ended; returns False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._job(run_id) is None, timeout)

    def current(self) -> str | None:
        """The run that a new page shows: the first running or waiting one, else the newest finished
        one, else the newest."""
        if active := self.active():
            return active[0]
        runs = self.runs()[::-1]
        return next((run.id for run in [*filter(_is_finished, runs), *runs]), None)

    def failures(self) -> list[Status]:
        """The runs that failed after the newest finished one, newest first."""
        newest = takewhile(lambda run: not _is_finished(run), reversed(self.runs()))
        return [status for status in map(self._status, newest) if status.state == "failed"]

    def status(self, run_id: object) -> Status:
        """State and progress of a run.

        Raises:
            RunError: There is none of that id, or its record is damaged.
        """
        return self._status(self.find(run_id))

    def _status(self, run: Run) -> Status:
        record = run.record
        with self._changed:
            job = self._job(run.id)
            waits = job in self._waiting
            place = len(self._running) + self._waiting.index(job) if waits else 0
            error = self._errors.get(run.id, "")
        if job is None:
            state: State = "failed" if error else run.status  # pyright: ignore[reportAssignmentType]
        else:
            state = "stopping" if job.stopping else "queued" if waits else "running"
        if job and job.progress:
            step, phase = job.progress.step, job.progress.phase
            seconds = job.progress.seconds_per_step
        else:
            metrics = run.metrics() if state in ("running", "stopping") else []
            newest = metrics[-1] if metrics else {}
            step = max(record["step"], newest.get("step", -1) + 1)
            phase, seconds = newest.get("phase", ""), pace_of(metrics)
        # a recorded error begins with its type
        error = error or re.sub(r"^\w+: ", "", str(record.get("error", "")))
        return Status(
            run.id,
            record["prompt"],
            state,
            step,
            record["steps"],
            phase,
            job.work.stages.now if job and state in ("running", "stopping") else "",
            place,
            seconds,
            eta_seconds=None if seconds is None else (record["steps"] - step) * seconds,
            error=error if state == "failed" else "",
            preview=run.newest_preview,
            has_scene=any(run.checkpoints.glob("[0-9]*/MANIFEST.json")),
        )

    def restore(self) -> None:
        """Queue the jobs again that ran or waited when an earlier server was killed."""
        with suppress(OSError, ValueError):
            known = json.loads(read_plain(self.folder / QUEUE))
            ids = known if isinstance(known, list) else []
            self._restoring = [one for one in ids if isinstance(one, str)]
            for run_id in [*self._restoring]:
                with suppress(ValueError, RuntimeError, OSError):
                    run = self.find(run_id)
                    self.submit(lambda run=run: resume(run, self.folder))
                self._restoring.remove(run_id)

    def close(self, timeout: float = 30.0) -> bool:
        """Save and stop the running jobs; those waiting can be resumed later.

        Returns:
            Whether all have stopped after `timeout` seconds.
        """
        with self._changed:
            self._closed = True
            self._waiting.clear()
            for job in self._running.values():
                job.stopping = True
            self._announce()
        deadline = time.monotonic() + timeout
        for thread in self._threads.values():
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads.values())

    def _announce(self) -> None:
        """After a change of the queue: write its file, from which `restore` reads, and wake all."""
        jobs = [] if self._closed else self._jobs()
        ids = [job.id for job in jobs if job.work.run.path.parent == self.folder]
        ids += [] if self._closed else [one for one in self._restoring if one not in ids]
        with suppress(OSError):  # a full disk must not end the jobs
            write_json(self.folder / QUEUE, ids)
        self._changed.notify_all()

    def _jobs(self) -> list[_Job]:
        return [*self._running.values(), *self._waiting]

    def _job(self, run_id: str) -> _Job | None:
        return next((job for job in self._jobs() if job.id == run_id), None)

    def _serve(self, device: str) -> None:
        def waiting() -> _Job | bool | None:
            return self._closed or next((j for j in self._waiting if j.device == device), None)

        while True:
            with self._changed:
                job = self._changed.wait_for(waiting)
                if not isinstance(job, _Job):  # closed
                    return
                self._waiting.remove(job)
                self._running[device] = job
            error = ""
            try:
                try:
                    for progress in job.work:
                        job.progress = progress
                        if job.stopping:
                            break
                finally:
                    job.work.stop()
                job.work.stages("asking the judge")
                self._finish(job.work.run)
            except Exception as raised:  # whatever ends a job, the thread serves the next one
                error = sentence(raised)
            with self._changed:
                if error:
                    self._errors[job.id] = error
                del self._running[device]
                self._announce()

    def _finish(self, run: Run) -> None:
        try:
            if run.path.is_dir():  # a test run leaves nothing
                self.after(run)
        except Exception as error:  # the run itself is done
            warnings.warn(f"Run {run.id}: {sentence(error)}", stacklevel=2)


def _is_finished(run: Run) -> bool:
    return run.record["status"] == "finished"


def pace_of(metrics: Iterable[dict[str, Any]]) -> float | None:
    """Median seconds per step of the last ten logged steps, without step 0, which loads."""
    seconds = [
        row["seconds"] for row in metrics if row.get("step") and row.get("seconds") is not None
    ]
    return median(seconds[-10:]) if seconds else None


def sentence(error: BaseException) -> str:
    """An error's message on one line, or else its type."""
    return " ".join(str(error).split()) or type(error).__name__
