"""A training run on disk: config.json, metrics.jsonl and .csv, checkpoints/, and one checkpoint per
finished generation.

RUN/config.json               written before the first step; reproduces the run
    data.json                 its classes and what identifies its images
    extensions.json           its earlier numbers of generations, if it was extended
    tracking.json             its trackers, if any; see `tracking`
    diverged.json             why it diverged, as one of a comparison or sweep
    metrics.jsonl             one line per epoch
    metrics.csv               the same for spreadsheets, written when the run finishes
    checkpoints/00001200/     the newest two, by batches consumed, for an exact resume
    generations/00002400/     all, for ensembles and comparisons
"""

import csv
import io
import json
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from dreamsa import checkpoint
from dreamsa.device import Processes
from dreamsa.files import write_atomic, write_json
from dreamsa.settings import from_tree, to_tree, with_overrides
from train_cls.config import TrackerName, TrainConfig, read, with_absolute_data
from train_cls.data import DataLost, Splits, load_splits
from train_cls.data.record import DataRecord, changed_images, check_classes, record, surveys
from train_cls.methods import spans_run
from train_cls.tracking import Log, tracked
from train_cls.train import EpochResult, Stopped, Training, new_training, train

log = logging.getLogger(__name__)

SAVE_SECONDS = 30.0
"""Min seconds between checkpoints, which are written after a process's first epoch, at the ends of
later ones, and when it is interrupted."""
METRICS, DATA = "metrics.jsonl", "data.json"
DIVERGED, EXTENSIONS = "diverged.json", "extensions.json"


def new_run(folder: Path, config: TrainConfig) -> Path:
    """Create the folder of a run.

    Raises:
        ValueError: `folder` is not empty; a run is never overwritten.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty; a run is never overwritten. Choose another folder, or "
            f"resume: {resume_command(folder)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", to_tree(with_absolute_data(config)))
    return folder


def resume_command(folder: Path) -> str:
    """The shell command that resumes a run."""
    return f"train-cls resume {shlex.quote(str(folder))}"


def check(config: TrainConfig, splits: Splits) -> Training:
    """Build everything and evaluate two images, to raise errors before a run's folder exists."""
    training = new_training(config, splits.train)
    with torch.no_grad():
        training.model.eval()(splits.test.images[:2].to(next(training.model.parameters()).device))
    return training


def data_record(folder: Path) -> DataRecord | None:
    """What a run was trained on; None before it has begun, or if an older version has.

    Raises:
        ValueError: data.json is damaged.
    """
    path = folder / DATA
    if not path.exists():
        return None
    try:
        return from_tree(DataRecord, json.loads(path.read_text(errors="replace")))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}, which tells whether the data are still the same, is damaged ({error}). "
            "Remove it if you know that they are."
        ) from error


def load_data(folder: Path, config: TrainConfig, splits: Splits | None = None) -> Splits:
    """The data of a run, or these `splits`, after a check that their classes are still the same.

    Raises:
        ValueError: As load_splits; other classes than those of the run; data.json is damaged.
    """
    known = data_record(folder)
    splits = splits or load_splits(config.data, config.splits, surveys(known) if known else {})
    if known:
        check_classes(known, splits, str(folder), config.data)
    return splits


def evaluation_data(folder: Path, config: TrainConfig) -> Splits:
    """As load_data; logs a warning if the images are not those of the run.

    Raises:
        ValueError: As load_data.
    """
    splits, known = load_data(folder, config), data_record(folder)
    if known and (change := changed_images(known, splits)):
        log.warning(
            f"{config.data} has changed since {folder} was trained: {change}. Scores are of the "
            "data as they are now."
        )
    return splits


def _training_data(folder: Path, config: TrainConfig, splits: Splits | None) -> Splits:
    """As load_data; the first time, data.json records them, later it must agree."""
    splits, known = load_data(folder, config, splits), data_record(folder)
    if known is None:
        if Processes.current().is_first:
            write_json(folder / DATA, to_tree(record(splits)))
    elif change := changed_images(known, splits):
        raise ValueError(
            f"{config.data} has changed since {folder} was started: {change}. A run resumes on its "
            "own data only: restore them, or train a new run."
        )
    return splits


def extend(folder: Path, generations: int) -> None:
    """Give a run more generations, which `continue_run` then trains exactly as if it had had them
    from the beginning. Does nothing if it has as many; RUN/extensions.json keeps the earlier
    numbers.

    Raises:
        ValueError: Fewer generations, a method that they would change, or a run in use.
    """
    config = read(folder / "config.json")
    if generations == config.generations:
        return
    if generations < config.generations:
        raise ValueError(
            f"{folder} has {config.generations} generations; --generations must be more, got "
            f"{generations}."
        )
    if spans_run(config.method):
        raise ValueError(
            f"A run of {config.method} cannot be extended: its schedule spans all generations. "
            f"Train another with --generations {generations}."
        )
    extended = with_overrides(config, {"generations": generations})
    with _locked(folder):
        path = folder / EXTENSIONS
        earlier = json.loads(path.read_text()) if path.exists() else []
        record = {"generations": config.generations, "epochs": len(rows(folder))}
        if record not in earlier:
            write_json(path, [*earlier, record])
        (folder / "metrics.csv").unlink(missing_ok=True)  # a copy, which marks a finished run
        write_json(folder / "config.json", to_tree(extended))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise ValueError(
            f"{folder} is in use by another process. Wait for it, or stop it first."
        ) from error


def continue_run(
    folder: Path,
    splits: Splits | None = None,
    branch: Path | None = None,
    track: Sequence[TrackerName] = (),
    stop: Callable[[], bool] = lambda: False,
    started: Callable[[Training], None] = lambda training: None,
) -> Iterator[EpochResult]:
    """Train a run from its newest complete checkpoint to its end.

    Close the iterator to stop after the current epoch; an interrupt, a true `stop()` and images
    that cannot be read any more stop after the current step. All save.

    Args:
        branch: Checkpoint of another run's first generation to start from if this run has no
            checkpoint.
        track: Trackers, besides those that the run has had before.
        stop: Called before every step.
        started: Gets the state before the first step; its `batches` tell the progress.

    Raises:
        ValueError: Not a run, in use by another process, its data have changed, or the package of a
            tracker is missing.
        Stopped: Interrupted, and saved.
    """
    config = read(folder / "config.json")
    processes = Processes.current()
    splits = _training_data(folder, config, splits)
    newest = checkpoint.latest(folder / "checkpoints")
    training = new_training(config, splits.train, initial=newest is None)
    if newest is not None:
        training.load(newest)
    elif branch is not None:
        training.branch(branch)
    started(training)
    results = train(training, splits, processes, stop)
    if not processes.is_first:
        yield from results
        return
    with _locked(folder), tracked(folder, track, config, training.epoch) as log:
        yield from _logged(results, training, folder, log)


def _logged(
    results: Iterator[EpochResult], training: Training, folder: Path, log: Log
) -> Iterator[EpochResult]:
    _drop_rows_after(folder, training.epoch)
    saved = -math.inf
    try:
        for result in results:
            row = {**result._asdict(), **result.scores}
            row.pop("scores")
            with (folder / METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")
            log(row)
            if training.is_generation_end:
                training.save(folder / "generations")
            if training.is_generation_end or time.monotonic() - saved > SAVE_SECONDS:
                training.save(folder / "checkpoints", keep=2)
                saved = time.monotonic()
            yield result
    except (Stopped, GeneratorExit, DataLost):  # not a second interrupt, perhaps within a step
        if training.batches:
            training.save(folder / "checkpoints", keep=2)
        raise
    write_csv(folder)


def _drop_rows_after(folder: Path, epoch: int) -> None:
    """Drop the rows of epochs that will be trained again, and damaged ones."""
    kept = "".join(f"{json.dumps(row)}\n" for row in rows(folder) if row["epoch"] <= epoch)
    if (folder / METRICS).exists():
        write_atomic(folder / METRICS, kept.encode())


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, one row per epoch; lines that are no such rows are left out."""
    path, found = folder / METRICS, []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and type(row.get("epoch")) is int:
                found.append(row)
    return found


def is_finished(folder: Path) -> bool:
    """Whether a run has finished; a stopped run also has scores, of an earlier generation."""
    return (folder / "metrics.csv").exists()


def write_csv(folder: Path) -> None:
    """Write metrics.csv from metrics.jsonl; scores of epochs without evaluation stay empty."""
    found = rows(folder)
    names = list(dict.fromkeys(name for row in found for name in row))
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, names)
    table.writeheader()
    table.writerows(found)
    write_atomic(folder / "metrics.csv", text.getvalue().encode())


def scores_of(row: dict[str, Any]) -> dict[str, float]:
    """The scores in a row of metrics: of the averaged weights if the method averages, else of the
    last ones."""
    scores = {
        name: value for name, value in row.items() if name.startswith(("test ", "validation "))
    }
    averaged = {
        name.replace("average ", ""): value for name, value in scores.items() if " average " in name
    }
    return {
        **{name: value for name, value in scores.items() if " average " not in name},
        **averaged,
    }


def last_scores(run: Path) -> dict[str, float]:
    """Scores at the end of a run."""
    return scores_of(
        [row for row in rows(run) if any(name.startswith("test ") for name in row)][-1]
    )


def best_epoch(run: Path) -> dict[str, float]:
    """The epoch with the highest validation accuracy (the first of several) and its scores; empty
    without validation images."""
    judged = [row for row in rows(run) if "validation accuracy" in row]
    if not judged:
        return {}
    best = max(judged, key=lambda row: row["validation accuracy"])
    return {"epoch": best["epoch"], **scores_of(best)}


def diverged(run: Path) -> str | None:
    """Why a run of a comparison or sweep has diverged; None if it has not."""
    path = run / DIVERGED
    return json.loads(path.read_text())["error"] if path.exists() else None


def generations(run: Path) -> list[dict[str, torch.Tensor]]:
    """Weights at the end of every generation of a run, in order."""
    return [
        checkpoint.load(path).tensors["model"]
        for path in sorted((run / "generations").glob(checkpoint.NAME))
    ]
