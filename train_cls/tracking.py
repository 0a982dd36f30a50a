"""Logs of a run for TensorBoard and Weights & Biases, through accelerate's trackers.

RUN/tracking.json names the trackers, so that a resumed run continues the same logs.
"""

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from dreamsa.files import write_json
from dreamsa.settings import to_tree
from train_cls.config import TrackerName, TrainConfig

RECORD = "tracking.json"


class Log(Protocol):
    def __call__(self, row: dict[str, Any]) -> None:
        """Log the numbers of one epoch's row of metrics."""


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise a ValueError if the package of a tracker cannot be imported."""
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise ValueError(
                f"--track {name} needs a package ({error}): pip install 'dreamsa[{name}]'."
            ) from error


def recorded_trackers(folder: Path) -> tuple[TrackerName, ...]:
    """The trackers of an earlier part of a run."""
    return tuple(_record(folder).get("trackers", ()))


@contextmanager
def tracked(
    folder: Path, names: Sequence[TrackerName], config: TrainConfig, epoch: int
) -> Iterator[Log]:
    """A function that logs rows of metrics to trackers, those of earlier parts included.

    Args:
        epoch: Finished epochs; what TensorBoard's log holds of later ones is hidden.

    Raises:
        ValueError: A package is not installed.
    """
    names = tuple(dict.fromkeys([*recorded_trackers(folder), *names]))
    check_trackers(names)
    if names:
        record = {"trackers": names, "wandb": _record(folder).get("wandb", secrets.token_hex(4))}
        write_json(folder / RECORD, record)
    started = [_start(name, folder, config, epoch) for name in names]

    def log(row: dict[str, Any]) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "epoch"}
        for tracker in started:
            tracker.log(numbers, step=row["epoch"])

    try:
        yield log
    finally:
        for tracker in started:
            tracker.finish()


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    return json.loads(path.read_text()) if path.exists() else {}


def _start(name: TrackerName, folder: Path, config: TrainConfig, epoch: int) -> Any:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", folder, purge_step=epoch + 1)
    else:
        tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", "train-cls"),
            name=folder.name,
            id=_record(folder)["wandb"],
            resume="allow",
            dir=str(folder),
            config=to_tree(config),
        )
    tracker.start()
    if name == "tensorboard" and epoch == 0:
        tracker.log({"config": f"```\n{json.dumps(to_tree(config), indent=2)}\n```"}, step=0)
    return tracker
