"""How long something will take, from what was measured; never from a guess."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import mkdtemp
from typing import Any

from dreamsa.config import RunConfig, read_config, to_json
from dreamsa.runs import Run

FEWEST_STEPS = 5
"""Measured steps below which nothing is claimed."""


@dataclass(frozen=True)
class Pace:
    """What was measured."""

    seconds_per_step: float
    """Median."""
    steps: int
    """How many steps it was measured on."""
    source: str
    """A run's id, or "a probe"."""


@lru_cache(maxsize=1000)
def _config(path: Path, changed: int) -> RunConfig:
    return read_config(path)


def config_of(run: Run) -> RunConfig:
    """A run's configuration, which is written once and read often."""
    path = run.path / "config.json"
    return _config(path, path.stat().st_mtime_ns)


def workload(config: RunConfig, device: str) -> tuple[Any, ...]:
    """Everything that decides how long a step takes; runs with equal workloads may be compared."""
    tree = to_json(config)
    return device, str(tree["model"]), str(tree["field"]), str(tree["render"]), tree["camera"]["batch"], tree["camera"]["resolution"]


def measured(config: RunConfig, device: str, runs: Iterable[Run]) -> Pace | None:
    """The pace of the newest of `runs`, oldest first, that did the same work on the same device of this machine.

    Runs that were shipped with the program, or were measured on too few steps, are passed over.
    """
    wanted = workload(config, device)
    for run in reversed(list(runs)):
        record = run.record
        if record.get("example") or record.get("device") != device:
            continue
        try:
            same = workload(config_of(run), device) == wanted
        except ValueError:
            continue
        seconds = [row["seconds"] for row in run.metrics() if row.get("step")] if same else []
        if len(seconds) >= FEWEST_STEPS:
            return Pace(median(seconds), len(seconds), run.id)
    return None


def estimate(pace: Pace | None, steps: int) -> str:
    """One honest line."""
    if pace is None:
        return "Time: not measured yet on this machine with these settings. Press Probe to time a few steps."
    return f"About {duration(steps * pace.seconds_per_step)}: {steps} steps of {pace.seconds_per_step:.2f} s, measured on {pace.steps} steps of {pace.source}."


def duration(seconds: float) -> str:
    """3 s, 4 min, 2.5 h."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Probe:
    """A few steps of a configuration in a folder of its own, timed; a job's work, so that nothing else runs meanwhile."""

    STEPS = 12
    LEFT_OUT = 3
    """First steps, in which kernels are compiled and memory is asked for."""

    def __init__(self, config: RunConfig) -> None:
        from dreamsa import api

        self._folder = Path(mkdtemp(prefix="dreamsa-probe-"))
        try:
            self._job = api.generate(config=replace(config, steps=max(config.steps, self.STEPS + 1), edit=None), runs=self._folder)
        except BaseException:
            rmtree(self._folder, ignore_errors=True)
            raise
        self.run = self._job.run
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        for progress in self._job:
            self.seconds.append(progress.result.seconds)
            yield progress
            if progress.step >= self.STEPS:
                return

    def stop(self) -> None:
        self._job.stop()
        rmtree(self._folder, ignore_errors=True)

    @property
    def pace(self) -> Pace | None:
        """None if it did not get far enough."""
        counted = self.seconds[self.LEFT_OUT :]
        return Pace(median(counted), len(counted), "a probe") if len(counted) >= FEWEST_STEPS else None
