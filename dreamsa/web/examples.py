"""The shipped examples: finished runs that fill the gallery of an empty folder of runs."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from dreamsa.assets import asset
from dreamsa.files import FOLDER_MODE, TEMPORARY
from dreamsa.runs import Run


def install(runs: Path, source: Path | None = None, always: bool = False) -> list[Run]:
    """Copy the examples in `source`, by default the shipped ones, into a folder without runs.

    Args:
        always: Copy those that are missing into a folder with runs, too.

    Returns:
        The copies.
    """
    copies: list[Run] = []
    if any(runs.glob("*/run.json")) and not always:
        return copies
    try:
        source = source or asset("examples")
    except FileNotFoundError:
        return copies
    runs.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*/run.json")):
        if (runs / path.parent.name).exists():
            continue
        with TemporaryDirectory(prefix=TEMPORARY, dir=runs) as part:
            copy = shutil.copytree(path.parent, Path(part) / path.parent.name)
            copy.chmod(FOLDER_MODE)
            copies.append(Run(copy.rename(runs / copy.name)))
    return copies
