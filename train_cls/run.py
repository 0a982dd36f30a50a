"""A training run on disk: config.json, metrics.jsonl and .csv, checkpoints/, and one checkpoint per
finished generation.

RUN/config.json               written before the first step; reproduces the run
    metrics.jsonl             one line per epoch
    metrics.csv               the same for spreadsheets, written when the run finishes
    checkpoints/00001200/     the newest two, by batches consumed, for an exact resume
    generations/00002400/     all, for ensembles and comparisons
"""

import csv
import io
import json
import math
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from dreamsa import checkpoint
from dreamsa.device import Processes
from dreamsa.files import write_atomic, write_json
from dreamsa.settings import to_tree
from train_cls.config import TrainConfig, read, with_absolute_data
from train_cls.data import Splits, load_splits
from train_cls.train import EpochResult, Training, new_training, train

SAVE_SECONDS = 30.0
"""Min seconds between checkpoints, which are written after a process's first epoch, at the ends of
later ones, and when it is interrupted."""
METRICS = "metrics.jsonl"


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


def check(config: TrainConfig, splits: Splits) -> None:
    """Build everything and evaluate two images, to raise errors before a run's folder exists."""
    training = new_training(config, splits.train)
    with torch.no_grad():
        training.model.eval()(splits.test.images[:2].to(next(training.model.parameters()).device))


def continue_run(
    folder: Path,
    splits: Splits | None = None,
    branch: Path | None = None,
    tensorboard: bool = False,
) -> Iterator[EpochResult]:
    """Train a run from its newest complete checkpoint to its end.

    Close the iterator to stop after the current epoch; an interrupt stops after the current step.
    Both save.

    Args:
        branch: Checkpoint of another run's first generation to start from if this run has no
            checkpoint.

    Raises:
        ValueError: Not a run, or in use by another process.
    """
    config = read(folder / "config.json")
    processes = Processes.current()
    splits = splits or load_splits(config.data, config.splits)
    newest = checkpoint.latest(folder / "checkpoints")
    training = new_training(config, splits.train, initial=newest is None)
    if newest is not None:
        training.load(newest)
    elif branch is not None:
        training.branch(branch)
    if not processes.is_first:
        yield from train(training, splits, processes)
        return
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield from _logged(training, folder, splits, processes, tensorboard)
    except Timeout as error:
        raise ValueError(
            f"{folder} is in use by another process. Wait for it, or stop it first."
        ) from error


def _logged(
    training: Training, folder: Path, splits: Splits, processes: Processes, tensorboard: bool
) -> Iterator[EpochResult]:
    _drop_rows_after(folder, training.epoch)
    writer = _summary_writer(folder) if tensorboard else None
    saved = -math.inf
    try:
        for result in train(training, splits, processes):
            row = {**result._asdict(), **result.scores}
            row.pop("scores")
            with (folder / METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")
            if writer is not None:
                for name, value in row.items():
                    if isinstance(value, float):
                        writer.add_scalar(name, value, result.epoch)
            if training.is_generation_end:
                training.save(folder / "generations")
            if training.is_generation_end or time.monotonic() - saved > SAVE_SECONDS:
                training.save(folder / "checkpoints", keep=2)
                saved = time.monotonic()
            yield result
    except (KeyboardInterrupt, GeneratorExit):
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


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter(folder / "tensorboard")
