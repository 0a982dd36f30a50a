"""Runs and the edits made from them, as a tree."""

from collections.abc import Iterable
from typing import NamedTuple

from dreamsa.runs import Run


class Branch(NamedTuple):
    """One line of the tree."""

    run: Run
    depth: int
    """0 for a run that was not made from another one that is still there."""


def branches(runs: Iterable[Run]) -> list[Branch]:
    """All runs, newest family first, each edit right under its parent and indented by one."""
    there = {run.id: run for run in runs}
    parents = {name: run.record["parent"] for name, run in there.items()}
    children: dict[str | None, list[str]] = {}
    for name, parent in parents.items():
        children.setdefault(parent if parent in there else None, []).append(name)

    found: list[Branch] = []
    waiting = [(name, 0) for name in children.get(None, [])]
    while waiting:  # a record may have been edited by hand; a loop of parents never gets here, and depth has no limit
        name, depth = waiting.pop()
        found.append(Branch(there[name], depth))
        waiting += [(child, depth + 1) for child in reversed(children.get(name, []))]
    return found
