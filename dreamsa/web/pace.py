"""Duration estimates, from measured steps only, for page and command line."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from dreamsa import api
from dreamsa.config import RunConfig
from dreamsa.job import Job, Progress
from dreamsa.runs import Run, list_runs

RECENT = 5
"""Maximum number of runs that an expectation is made of."""
MIN_STEPS = 5
"""Minimum number of measured steps for an estimate."""


class Pace(NamedTuple):
    """Measured speed of a workload."""

    seconds_per_step: float
    """Median."""
    steps: int
    """Number of steps measured."""
    source: str
    """A run's id, or "a test run"."""
    seconds_around: float = 0.0
    """Before the first and after the last step: loading, pictures and mesh; 0 if not recorded."""

    def seconds(self, steps: int) -> float:
        """Of a run of `steps` steps."""
        return steps * self.seconds_per_step + self.seconds_around


@lru_cache(maxsize=1000)
def _config(run: Run, changed: int) -> RunConfig:
    return run.config


def config_of(run: Run) -> RunConfig:
    """A run's configuration, cached: it is written once and read often."""
    return _config(run, (run.path / "config.json").stat().st_mtime_ns)


def measured(config: RunConfig, device: str, runs: Iterable[Run]) -> Pace | None:
    """The pace of the newest of `runs` (oldest first) with the same workload and device."""
    return next(recent(config, device, runs), None)


def recent(config: RunConfig, device: str, runs: Iterable[Run]) -> Iterator[Pace]:
    """The paces of `runs` (oldest first) with the same workload and device, newest first.

    Skips the shipped examples, made on another machine, and runs with too few logged steps.
    """

    def workload(config: RunConfig) -> tuple[Any, ...]:
        camera = config.camera
        return config.model, config.field, config.render, camera.batch, camera.resolution

    for run in reversed(list(runs)):
        record, same = run.record, False
        if record.get("device") == device and not record.get("example"):
            with suppress(ValueError, OSError):
                same = workload(config_of(run)) == workload(config)
        rows = run.metrics() if same else []
        seconds = [row["seconds"] for row in rows if row["step"] and row.get("seconds")]
        if pace := _pace(seconds, run.id):
            around = record.get("seconds") or {}
            yield pace._replace(seconds_around=float(sum(around.values())))


def expectation(config: RunConfig, device: str, folder: Path) -> str:
    """One line: how long a configuration will take here, loading and pictures included."""
    return estimate(list(islice(recent(config, device, list_runs(folder)), RECENT)), config.steps)


def estimate(paces: Pace | Sequence[Pace] | None, steps: int) -> str:
    """One line: the expected duration of `steps` steps, newest pace first, and its source."""
    paces = [paces] if isinstance(paces, Pace) else list(paces or [])
    if not paces:
        return "Time: not measured yet on this machine with these settings."
    totals = sorted(pace.seconds(steps) for pace in paces)
    low, high = duration(totals[0]), duration(totals[-1])
    total = f"About {low}" if low == high else f"{low} to {high}"
    newest = paces[0]
    source = f"measured on {newest.steps} steps of {newest.source}"
    if len(paces) > 1:
        source = f"measured on the last {len(paces)} such runs"
    return f"{total}: {steps} steps of {newest.seconds_per_step:.2f} s, {source}."


def duration(seconds: float) -> str:
    """Text such as 3 s, 4 min, 2.5 h."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Probe(Job):
    """A job that times a few steps of a configuration in a temporary folder."""

    STEPS = 12
    WARMUP = 3
    """First steps, which compile kernels and allocate memory; not counted."""

    def __init__(self, config: RunConfig) -> None:
        self._folder = TemporaryDirectory(prefix="dreamsa-probe-", ignore_cleanup_errors=True)
        config = replace(config, steps=max(config.steps, self.STEPS + 1), edit=None)
        try:
            super().__init__(**vars(api.generate(config=config, runs=self._folder.name)))
        except BaseException:
            self._folder.cleanup()
            raise
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[Progress]:
        for progress in self._steps:
            self.seconds.append(progress.result.seconds)
            yield progress
            if progress.step >= self.STEPS:
                return

    def stop(self) -> None:
        super().stop()
        self._folder.cleanup()

    @property
    def pace(self) -> Pace | None:
        """None if too few steps were timed."""
        return _pace(self.seconds[self.WARMUP :], "a test run")


def _pace(seconds: list[float], source: str) -> Pace | None:
    enough = len(seconds) >= MIN_STEPS
    return Pace(median(seconds), len(seconds), source) if enough else None
