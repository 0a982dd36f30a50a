"""Removing runs: into a folder from which they can be brought back."""

import shutil
from collections.abc import Collection
from pathlib import Path

from dreamsa.runs import Run, RunError, list_runs

FOLDER = ".trash"


def remove(run: Run, anyway: bool = False) -> Path:
    """Move a run into the trash folder beside it; returns its new path.

    Args:
        anyway: Remove it although other runs were made from it.

    Raises:
        RunError: It is in use, others were made from it, or it cannot be moved.
    """
    check(run, anyway)
    folder = run.path.parent
    target = folder / FOLDER / run.id
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{run.id}-{number}")
    try:
        with run.lock():
            pass
        target.parent.mkdir(exist_ok=True)
        shutil.move(run.path, target)
    except OSError as error:
        raise RunError(f"Run {run.id} cannot be moved to {target}: {error}.") from error
    return target


def check(run: Run, anyway: bool = False, others: Collection[str] = ()) -> None:
    """Raise RunError if a run cannot be removed, together with `others`; see `remove`."""
    folder = run.path.parent
    names = {run.id, run.record["id"]}
    children = [
        other.id
        for other in list_runs(folder)
        if other.record["parent"] in names and other.id not in others
    ]
    if children and not anyway:
        raise RunError(
            f"Run {run.id} is the parent of {', '.join(children)}, which could then no longer be "
            "compared with it. Remove these first, or add --anyway."
        )
    if run.status == "running":
        raise RunError(f"Run {run.id} is running. Stop it first, with Ctrl-C or on the page.")
