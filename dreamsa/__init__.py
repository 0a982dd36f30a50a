"""dreamsa: turn words into 3-D objects, and change them with more words.

    import dreamsa
    rabbit = dreamsa.generate("a rabbit").wait()
    purple = dreamsa.edit(rabbit, "a purple rabbit").wait()

Names are resolved on first use, so that `import dreamsa` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dreamsa.api import Job, Progress, doctor, edit, export, generate, prompts, render, resume, runs, show
    from dreamsa.config import EditConfig, RunConfig, preset
    from dreamsa.evaluate.compare import compare
    from dreamsa.evaluate.scores import evaluate_run
    from dreamsa.runs import Run

__all__ = [
    "EditConfig",
    "Job",
    "Progress",
    "Run",
    "RunConfig",
    "compare",
    "doctor",
    "edit",
    "evaluate_run",
    "export",
    "generate",
    "preset",
    "prompts",
    "render",
    "resume",
    "runs",
    "show",
]

_HOMES = {
    "Run": "runs",
    "RunConfig": "config",
    "EditConfig": "config",
    "preset": "config",
    "compare": "evaluate.compare",
    "evaluate_run": "evaluate.scores",
}
"""The module of each public name; `api` where none is given."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"dreamsa.{_HOMES.get(name, 'api')}"), name)
    raise AttributeError(f"module 'dreamsa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
