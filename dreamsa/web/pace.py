"""Duration estimates, from measured steps only."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from dreamsa import api
from dreamsa.config import RunConfig
from dreamsa.job import Job, Progress
from dreamsa.runs import Run

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


@lru_cache(maxsize=1000)
def _config(run: Run, changed: int) -> RunConfig:
    return run.config


def config_of(run: Run) -> RunConfig:
    """A run's configuration, cached: it is written once and read often."""
    return _config(run, (run.path / "config.json").stat().st_mtime_ns)


def measured(config: RunConfig, device: str, runs: Iterable[Run]) -> Pace | None:
    """The pace of the newest of `runs` (oldest first) with the same workload and device.

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
            return pace
    return None


def estimate(pace: Pace | None, steps: int) -> str:
    """One line for the page: the expected duration of `steps` steps and its source."""
    if pace is None:
        return (
            "Time: not measured yet on this machine with these settings. "
            "Measure speed, under Create, times a few steps."
        )
    total = duration(steps * pace.seconds_per_step)
    return (
        f"About {total}: {steps} steps of {pace.seconds_per_step:.2f} s, "
        f"measured on {pace.steps} steps of {pace.source}."
    )


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
