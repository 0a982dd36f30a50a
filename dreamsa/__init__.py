"""dreamsa: turn words into 3-D objects, and change them with more words.

    import dreamsa
    rabbit = dreamsa.generate("a rabbit", preset="draft", seed=1).wait(progress=True)
    purple = rabbit.edit("a purple rabbit").wait(progress=True)
    purple.export("glb")

Names are imported on first use, so that `import dreamsa` loads no torch. None of them is the name
of a module or package: importing a submodule would replace it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dreamsa.version import __version__ as __version__

if TYPE_CHECKING:
    from dreamsa.api import (
        Run,
        edit,
        export,
        generate,
        list_runs,
        preview_edit,
        prompts,
        render,
        resume,
        show,
    )
    from dreamsa.config import EditConfig, RunConfig
    from dreamsa.diagnostics import doctor
    from dreamsa.evaluation.scores import evaluate
    from dreamsa.job import Job, Progress
    from dreamsa.presets import preset
    from dreamsa.runs import RunError
    from dreamsa.settings import with_overrides
    from dreamsa.studies.compare import compare

_HOMES = {
    "api": (
        *("Run", "edit", "export", "generate", "list_runs", "preview_edit", "prompts"),
        *("render", "resume"),
        "show",
    ),
    "config": ("EditConfig", "RunConfig"),
    "diagnostics": ("doctor",),
    "evaluation.scores": ("evaluate",),
    "job": ("Job", "Progress"),
    "presets": ("preset",),
    "runs": ("RunError",),
    "settings": ("with_overrides",),
    "studies.compare": ("compare",),
}
"""Public names by module."""

__all__ = sorted(name for names in _HOMES.values() for name in names)  # pyright: ignore


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"dreamsa.{module}"), name)
    raise AttributeError(f"module 'dreamsa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
