"""Location of the shipped files: inside the installed package, or beside it in a checkout."""

from importlib.resources import files
from pathlib import Path


def asset(name: str) -> Path:
    """The folder `assets/NAME`.

    Raises:
        FileNotFoundError: The installation lacks it.
    """
    package = Path(str(files("dreamsa")))
    for folder in (package / "_assets" / name, package.parent / "assets" / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"The asset {name!r} is not installed: there is none in {package} or beside it. "
        "Reinstall dreamsa."
    )
