"""Endpoints of the page for programs, which call them by name through `gradio_client`."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

from dreamsa.choices import ASCENT_SCALE
from dreamsa.config import TOYBOX
from dreamsa.web.controller import ERRORS, Controller, make_config
from dreamsa.web.jobs import sentence
from dreamsa.web.panel import EXCLUSIVE


def add_endpoints(controller: Controller) -> None:
    """Add the endpoints to the current page."""
    manager = controller.manager

    def generate(
        prompt: str,
        steps: int | None = None,
        seed: int | None = None,
        model: str = TOYBOX,
        settings: str = "",
        anyway: bool = False,
    ) -> str:
        """Queue a generation; returns the run's id."""
        config = make_config(prompt, "standard", model, steps, seed, settings=settings)
        return controller.generate(config, anyway)

    def edit(
        run: str,
        prompt: str,
        escape: str | None = None,
        steps: int | None = None,
        ascent_steps: int | None = None,
        scale: float = ASCENT_SCALE,
        eta: float | None = None,
        anyway: bool = False,
    ) -> str:
        """Queue an edit of a run; returns the new run's id."""
        numbers = {"steps": steps, "ascent_steps": ascent_steps, "scale": scale, "eta": eta}
        return controller.edit(run, prompt, escape=escape, anyway=anyway, **numbers)

    def status(run: str) -> dict:
        """State, step, phase and remaining time of a run."""
        return {**vars(manager.status(run)), "preview": None}

    def runs() -> list[str]:
        """Ids of all runs, oldest first."""
        return [run.id for run in manager.runs()]

    def stop(run: str) -> str:
        """Save and stop a run."""
        manager.stop(run)
        return run

    def resume(run: str) -> str:
        """Resume a stopped run."""
        return controller.resume(run)

    def export(run: str, format: str = "glb") -> str:
        """Write a file; returns its path, which /gradio_api/file=PATH downloads."""
        return str(controller.export(run, format))

    for quick in (generate, edit, status, runs, stop, resume):
        gr.api(_checked(quick), api_name=quick.__name__, queue=False)
    gr.api(_checked(export), api_name="export", **EXCLUSIVE)


def _checked(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Reports errors to the client as one sentence."""

    @wraps(endpoint)
    def call(*values: Any) -> Any:
        try:
            return endpoint(*values)
        except ERRORS as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    return call
