"""Jobs that outlive the page: they queue, run one at a time per device, can be stopped, and go on without anybody looking.

A job is a run and is named by the run's id. What it has done is read from the run's folder, so that runs started at the command
line are seen as well, and a server that was killed finds everything again.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Condition, Lock, Thread
from typing import Any, Literal, Protocol

from dreamsa.api import Progress
from dreamsa.runs import Run, RunError, list_runs

MOST_WAITING = 16
"""Jobs that may wait at a time."""

State = Literal["queued", "running", "stopping", "created", "stopped", "failed", "finished"]


class Work(Protocol):
    """What is run: `dreamsa.api.Job`, or something that behaves like one."""

    run: Run

    def __iter__(self) -> Any: ...

    def stop(self) -> None: ...


class QueueFull(RunError):
    """Too many jobs wait already."""


@dataclass(frozen=True)
class Status:
    """Where a run is, as far as one can tell from here."""

    id: str
    prompt: str
    state: State
    """created: has never run, and waits for nothing."""
    step: int
    steps: int
    phase: str
    """ascend, watch, descend, or empty before the first step."""
    place: int = 0
    """How many jobs go before it; 0 unless queued."""
    seconds_per_step: float | None = None
    eta_seconds: float | None = None
    error: str = ""
    """Why it failed, in one sentence."""
    preview: Path | None = None
    """The newest preview picture."""

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running", "stopping")


@dataclass
class _Job:
    work: Work
    device: str
    progress: Progress | None = None
    stopping: bool = False

    @property
    def id(self) -> str:
        return self.work.run.id


class JobManager:
    """Runs jobs in threads of its own, one per device. All methods may be called from any thread.

    Args:
        folder: The folder that holds runs.
        most_waiting: Jobs that may wait; more are refused.
    """

    def __init__(self, folder: Path, most_waiting: int = MOST_WAITING) -> None:
        self.folder = folder
        self.most_waiting = most_waiting
        self._changed = Condition()
        self._submitting = Lock()
        self._waiting: deque[_Job] = deque()
        self._running: dict[str, _Job] = {}
        self._errors: dict[str, str] = {}
        self._threads: dict[str, Thread] = {}
        self._closed = False

    def submit(self, start: Callable[[], Work]) -> str:
        """Queue what `start` makes, such as `lambda: api.generate("a rabbit")`, and return its run's id.

        `start` is called here and now: what is wrong with its arguments is raised to the caller, and the run's folder is there
        before it waits.

        Raises:
            QueueFull: `most_waiting` jobs wait already; `start` is not called.
        """
        with self._submitting:  # starting may take a while; those who only look need not wait for it
            with self._changed:
                if self._closed:
                    raise RunError("The server is shutting down and takes no more jobs.")
                if len(self._waiting) >= self.most_waiting:
                    raise QueueFull(f"{len(self._waiting)} jobs wait already, and no more than {self.most_waiting} may. Try again later.")
            work = start()
            job = _Job(work, str(work.run.record.get("device", "cpu")))
            with self._changed:
                if self._job(job.id) is not None:
                    raise RunError(f"Run {job.id} is already running or waiting here.")
                self._errors.pop(job.id, None)
                self._waiting.append(job)
                if job.device not in self._threads:
                    self._threads[job.device] = Thread(target=self._serve, args=(job.device,), daemon=True, name=f"jobs on {job.device}")
                    self._threads[job.device].start()
                self._changed.notify_all()
        return job.id

    def stop(self, run_id: str) -> None:
        """Take a job out of the queue, or let it save and end after its present step; it can be resumed.

        Raises:
            RunError: It neither runs nor waits here.
        """
        with self._changed:
            job = self._job(run_id)
            if job is None:
                raise RunError(f"Run {self.find(run_id).id} does not run here. If another process runs it, press Ctrl-C there.")
            job.stopping = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._changed.notify_all()

    def find(self, run_id: object) -> Run:
        """The run of exactly this id, looked up among those that are there: an id is never made into a path.

        Raises:
            RunError: There is none.
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
        """Ids of the runs in our folder that run or wait here, in the order of their turns."""
        with self._changed:
            jobs = (*self._running.values(), *self._waiting)
            return [job.id for job in jobs if job.work.run.path.parent == self.folder]

    def wait(self, run_id: str, timeout: float) -> bool:
        """Wait until a job neither runs nor waits; whether that came about within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._job(run_id) is None, timeout)

    def current(self) -> str | None:
        """What somebody who comes in should see: what runs, else what waits, else the newest run."""
        active = self.active()
        if active:
            return active[0]
        return next((run.id for run in reversed(self.runs())), None)

    def status(self, run_id: object) -> Status:
        """Where a run is.

        Raises:
            RunError: There is none of that id.
        """
        run = self.find(run_id)
        record = run.record
        with self._changed:
            job = self._job(run.id)
            waits = job in self._waiting
            place = len(self._running) + list(self._waiting).index(job) if job in self._waiting else 0
            error = self._errors.get(run.id, "")
        if job is None:
            state: State = "failed" if error else run.status  # pyright: ignore[reportAssignmentType]
        else:
            state = "stopping" if job.stopping else "queued" if waits else "running"
        metrics = run.metrics() if state in ("running", "stopping") else []
        newest = metrics[-1] if metrics else {}
        step, phase = max(record["step"], newest.get("step", -1) + 1), newest.get("phase", "")
        progress = job.progress if job else None
        if progress is not None:
            step, phase = progress.step, progress.phase
        seconds = progress.seconds_per_step if progress else pace_of(metrics)
        return Status(
            id=run.id,
            prompt=record["prompt"],
            state=state,
            step=step,
            steps=record["steps"],
            phase=phase,
            place=place,
            seconds_per_step=seconds,
            eta_seconds=None if seconds is None else (record["steps"] - step) * seconds,
            error=(error or _sentence(record.get("error", ""))) if state == "failed" else "",
            preview=max((run.path / "previews").glob("[0-9]*.png"), default=None),
        )

    def idle(self, timeout: float) -> bool:
        """Wait until nothing runs or waits; whether that came about within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running and not self._waiting, timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Save and stop what runs; what waits can be resumed later."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            for job in self._running.values():
                job.stopping = True
            self._changed.notify_all()
        for thread in self._threads.values():
            thread.join(timeout)

    def _job(self, run_id: str) -> _Job | None:
        return next((job for job in (*self._running.values(), *self._waiting) if job.id == run_id), None)

    def _next(self, device: str) -> _Job | None:
        return next((job for job in self._waiting if job.device == device), None)

    def _serve(self, device: str) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next(device) is not None)
                job = self._next(device)
                if self._closed or job is None:
                    return
                self._waiting.remove(job)
                self._running[device] = job
            error = ""
            try:
                self._follow(job)
            except Exception as raised:  # the thread must live on, whatever a job died of
                error = " ".join(str(raised).split()) or type(raised).__name__
            with self._changed:
                if error:
                    self._errors[job.id] = error
                del self._running[device]
                self._changed.notify_all()

    def _follow(self, job: _Job) -> None:
        try:
            for progress in job.work:
                job.progress = progress
                if job.stopping:
                    break
        finally:
            job.work.stop()


def pace_of(metrics: Iterable[dict[str, Any]]) -> float | None:
    """Median seconds per step of the last ten logged steps; None before there are any. The first step, which loads, does not count."""
    seconds = [row["seconds"] for row in metrics if row.get("step") and row.get("seconds") is not None]
    return median(seconds[-10:]) if seconds else None


def _sentence(error: str) -> str:
    """A recorded error without the name of its type, which only programmers want to read."""
    kind, colon, text = error.partition(": ")
    return text if colon and kind.isidentifier() else error
