"""A training run on disk: config.json, metrics.jsonl and .csv, checkpoints/, and one checkpoint per finished generation.

RUN/config.json               written before the first step; reruns the run
    metrics.jsonl             one line per epoch
    metrics.csv               the same, for spreadsheets; written when the run has come to its end
    checkpoints/00001200/     the newest two, for an exact resume
    generations/00002400/     kept: ensembles and comparisons start here
"""

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from dreamsa import checkpoint
from dreamsa.processes import Processes
from train_cls.config import TrainConfig, read, to_dict
from train_cls.data import Splits, load_splits
from train_cls.train import EpochResult, Training, new_training, train

SAVE_SECONDS = 30.0
"""A checkpoint is written after the first epoch that ends so long after the last one."""


def new_run(folder: Path, config: TrainConfig) -> Path:
    """Make the folder of a run.

    Raises:
        ValueError: There is something at `folder` already: a run is never overwritten.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; a run is never overwritten. Choose another folder, or: train-cls resume {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(folder / "config.json", to_dict(config))
    return folder


def check(config: TrainConfig, splits: Splits) -> None:
    """Build everything once, so that what cannot work is said before a folder is made."""
    training = new_training(config, splits.train)
    with torch.no_grad():
        training.model.eval()(splits.test.images[:2].to(next(training.model.parameters()).device))


def continue_run(
    folder: Path, splits: Splits | None = None, branch: Path | None = None, tensorboard: bool = False
) -> Iterator[EpochResult]:
    """Train a run from where it stands to its end; close the iterator to stop after the current epoch.

    Args:
        branch: A checkpoint of another run's first generation to begin from, if this one has not begun.

    Raises:
        ValueError: Not a run, or in use by another process.
    """
    config = read(folder / "config.json")
    processes = Processes.current()
    splits = splits or load_splits(config.data, config.splits)
    training = new_training(config, splits.train)
    resume(training, folder, branch)
    if processes.rank > 0:
        yield from train(training, splits, processes)
        return
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield from _logged(training, folder, splits, processes, tensorboard)
    except Timeout as error:
        raise ValueError(f"{folder} is in use by another process. Wait for it, or stop it first.") from error


def resume(training: Training, folder: Path, branch: Path | None = None) -> None:
    """Take up the newest whole checkpoint of a run, else another run's."""
    newest = checkpoint.latest(folder / "checkpoints")
    if newest is not None:
        training.load(newest)
    elif branch is not None:
        training.branch(branch)


def _logged(training: Training, folder: Path, splits: Splits, processes: Processes, tensorboard: bool) -> Iterator[EpochResult]:
    metrics = folder / "metrics.jsonl"
    _forget_after(metrics, training.step // training.setup.steps)
    writer = _summary_writer(folder) if tensorboard else None
    saved = time.monotonic()
    for result in train(training, splits, processes):
        row = {**result._asdict(), **result.scores}
        row.pop("scores")
        with metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if writer is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    writer.add_scalar(name, value, result.epoch)
        at_edge = training.step % training.setup.period == 0
        if at_edge:
            _save(training, folder / "generations")
        if at_edge or training.step >= training.steps or time.monotonic() - saved > SAVE_SECONDS:
            _save(training, folder / "checkpoints")
            checkpoint.prune(folder / "checkpoints")
            saved = time.monotonic()
        yield result
    write_csv(folder)


def _save(training: Training, folder: Path) -> None:
    target = folder / f"{training.step:08d}"
    if not target.exists():
        training.save(target)


def _forget_after(metrics: Path, epoch: int) -> None:
    """Drop lines of epochs that will be run again."""
    if metrics.exists():
        kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["epoch"] <= epoch]
        checkpoint.write_atomic(metrics, "".join(f"{line}\n" for line in kept).encode())


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, one dictionary per epoch."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end; one that was stopped has scores too, of an earlier generation."""
    return (folder / "metrics.csv").exists()


def write_csv(folder: Path) -> None:
    """metrics.jsonl as metrics.csv; scores of epochs that were not evaluated stay empty."""
    found = rows(folder)
    names = list(dict.fromkeys(name for row in found for name in row))
    with (folder / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(found)


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter(folder / "tensorboard")
