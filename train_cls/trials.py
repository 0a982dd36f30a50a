"""Many runs in parallel processes: the trials of a comparison or a sweep. Finished ones are not run
again, and an interrupted one resumes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from dreamsa import checkpoint
from dreamsa.device import available_cores, resolve_device
from dreamsa.files import write_json
from dreamsa.pool import Stop, default_workers, each
from dreamsa.settings import to_tree, values_of
from train_cls.config import DataConfig, TrackerName, TrainConfig, read
from train_cls.data import Splits, load_splits
from train_cls.run import (
    DIVERGED,
    check,
    continue_run,
    diverged,
    is_finished,
    last_scores,
    new_run,
    rows,
)
from train_cls.tracking import check_trackers
from train_cls.train import Stopped


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    folder: Path
    config: TrainConfig
    facts: tuple[tuple[str, Any], ...]
    """Which trial it is, such as (("arm", "seal"), ("seed", 0)); empty for a first generation that
    others share, which has no outcome of its own."""
    first: "Trial | None" = None
    """The trial whose generation it starts from."""

    @property
    def has_ended(self) -> bool:
        return is_finished(self.folder) or diverged(self.folder) is not None


class Outcome(NamedTuple):
    """What came of a trial."""

    facts: dict[str, Any]
    run: str
    epochs: int
    seconds: float  # of training, without evaluation and the shared first generation
    scores: dict[str, float]  # of the last epoch; empty if it diverged
    diverged: str | None

    def row(self) -> dict[str, Any]:
        """All facts as one flat dictionary, as JSON holds it."""
        row = {**self.facts, **self.scores, "epochs": self.epochs}
        row |= {"seconds": round(self.seconds, 3), "run": self.run}
        return row | ({"diverged": self.diverged} if self.diverged else {})

    def __str__(self) -> str:
        which = ", ".join(
            f"{value}" if name == "arm" else f"{name} {value}" for name, value in self.facts.items()
        )
        numbers = [f"{k} {v:.4f}" for k, v in self.scores.items() if k.startswith("test")]
        return f"{which}: {self.diverged or ', '.join([*numbers, f'{self.seconds:.1f} s'])}"


@dataclass(frozen=True)
class Study:
    """Trials that have been checked."""

    trials: tuple[Trial, ...]
    epochs: dict[Path, int]
    """Number of epochs of each trial, by its folder."""
    record: tuple[Path, Any] | None = None
    """A JSON file that describes the study, and its content; written before the first run."""

    @classmethod
    def checked(cls, trials: Sequence[Trial], record: tuple[Path, Any] | None = None) -> "Study":
        """Build the network and rules of every distinct trial, before any folder is made.

        Raises:
            ValueError: A setting is wrong, or a folder holds a run with other settings.
        """
        for trial in trials:
            _check_folder(trial)
        epochs: dict[str, int] = {}
        for trial in trials:
            if (kind := _without_seed(trial.config)) not in epochs:
                resolve_device(trial.config.device)
                splits = _splits(trial.config.data, trial.config.splits)
                training = check(replace(trial.config, device="cpu"), splits)
                epochs[kind] = training.steps // training.setup.steps
        found = {
            trial.folder: epochs[_without_seed(trial.config)]
            - (trial.first.config.epochs if trial.first else 0)
            for trial in trials
        }
        return cls(tuple(trials), found, record)

    def run(
        self,
        workers: int | None = 1,
        threads: int | None = None,
        track: Sequence[TrackerName] = (),
    ) -> Iterator[Outcome]:
        """Run or resume all trials; yields their outcomes as they end, earlier calls' first.

        Close the iterator to stop; an interrupt stops all processes after their current steps. All
        runs are saved.

        Args:
            workers: Parallel processes; None for one per core, at most 8, or one in all on a GPU.
                The outcomes do not depend on it. A script that starts more than one needs the
                usual `if __name__ == "__main__":`.
            threads: Threads of each process; default: 1 on a CPU, all cores divided among the
                workers on a GPU. Other numbers may round sums differently.

        Raises:
            ValueError: No workers or threads, or the package of a tracker is missing.
            RuntimeError: A worker process died.
        """
        for name, count in (("workers", workers), ("threads", threads)):
            if count is not None and not 1 <= count <= 1024:
                raise ValueError(f"{name} must lie in [1, 1024], got {count}.")
        on_gpu = any(resolve_device(trial.config.device).type == "cuda" for trial in self.trials)
        workers = workers or default_workers(on_gpu)
        threads = threads or (max(available_cores() // workers, 1) if on_gpu else 1)
        check_trackers(track)
        if self.record is not None:
            path, content = self.record
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
        due = [trial for trial in self.trials if not trial.has_ended]
        for trial in self.trials:
            if trial not in due and trial.facts:
                yield outcome(trial)
        work = partial(_work, tuple(track))
        try:
            yield from each(work, due, workers, after=_first, threads=threads)
        finally:
            _splits.cache_clear()

    def done(self) -> int:
        """Epochs that have been trained, of `sum(self.epochs.values())`."""
        return sum(
            count if trial.has_ended else min(_lines(trial.folder / "metrics.jsonl"), count)
            for trial in self.trials
            for count in [self.epochs[trial.folder]]
        )


def outcome(trial: Trial) -> Outcome:
    """The outcome of a trial that has ended."""
    error, found = diverged(trial.folder), rows(trial.folder)
    seconds = sum(row["seconds"] for row in found)
    scores = {} if error else last_scores(trial.folder)
    return Outcome(dict(trial.facts), str(trial.folder), len(found), seconds, scores, error)


def _work(track: tuple[TrackerName, ...], trial: Trial, stop: Stop) -> Outcome | None:
    """Run or resume one trial; None if it was stopped, or has no outcome of its own."""
    if not (trial.folder / "config.json").exists():
        new_run(trial.folder, trial.config)
    error = None
    try:
        if not trial.has_ended and (error := trial.first and diverged(trial.first.folder)) is None:
            splits = _splits(trial.config.data, trial.config.splits)
            for _ in continue_run(trial.folder, splits, _branch(trial), track, stop):
                pass
    except FloatingPointError as diverging:  # a result too, and no end of the study
        error = str(diverging)
    except Stopped:
        if not stop():
            raise
        return None
    if error:
        write_json(trial.folder / DIVERGED, {"error": error})
    return outcome(trial) if trial.facts else None


def _branch(trial: Trial) -> Path | None:
    """The checkpoint that a trial starts from.

    Raises:
        ValueError: It is damaged.
    """
    if trial.first is None:
        return None
    newest = checkpoint.latest(trial.first.folder / "generations")
    if newest is None:
        raise ValueError(
            f"{trial.first.folder} has no complete checkpoint of its generation. Remove the folder "
            "to train it again."
        )
    return newest


def _first(trial: Trial) -> Trial | None:
    return trial.first


def _check_folder(trial: Trial) -> None:
    """Raise a ValueError if a trial's folder holds a run with other settings."""
    path = trial.folder / "config.json"
    if path.exists() and (other := difference(read(path), trial.config)):
        raise ValueError(f"{trial.folder} holds a run with other settings: {other}")


def difference(found: TrainConfig, wanted: TrainConfig) -> str:
    """The first setting in which a study on disk differs from the wanted one, and what to do; empty
    if none does."""
    before, now = (values_of(config) for config in (found, wanted))
    for name, value in now.items():
        if before[name] != value:
            text = f"{name} is {before[name]!r} in it and {value!r} here."
            return f"{text} Choose another folder."
    return ""


def _without_seed(config: TrainConfig) -> str:
    """All settings but the seeds, to tell kinds of trials apart."""
    return json.dumps(to_tree(replace(config, seed=0, splits=replace(config.splits, seed=0))))


@lru_cache(maxsize=1)
def _splits(data: str, config: DataConfig) -> Splits:
    return load_splits(data, config)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
