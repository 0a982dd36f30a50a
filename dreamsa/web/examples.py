"""The shipped examples: finished runs that fill the gallery of an empty folder of runs."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from dreamsa.assets import asset
from dreamsa.files import FOLDER_MODE, TEMPORARY


def install(runs: Path, source: Path | None = None) -> None:
    """Copy the examples in `source`, by default the shipped ones, into a folder without runs."""
    if any(runs.glob("*/run.json")):
        return
    try:
        source = source or asset("examples")
    except FileNotFoundError:
        return
    runs.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*/run.json"):
        with TemporaryDirectory(prefix=TEMPORARY, dir=runs) as part:
            copy = shutil.copytree(path.parent, Path(part) / path.parent.name)
            copy.chmod(FOLDER_MODE)
            copy.rename(runs / copy.name)
