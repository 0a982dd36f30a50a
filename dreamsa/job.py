"""A run in progress: checked, created, trained step by step, saved, and finished with its
outputs."""

import json
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamsa import checkpoint
from dreamsa.config import RunConfig
from dreamsa.device import Processes, resolve_device
from dreamsa.fields.backends import resolve_backend
from dreamsa.guidance.prompts import ViewPrompt, check_prompt
from dreamsa.guidance.stable_diffusion import (
    StableDiffusion,
    absolute_paths,
    check_prompt_words,
    locate_model,
)
from dreamsa.outputs import write_outputs, write_preview
from dreamsa.rendering.kernels import resolve_kernels
from dreamsa.runs import Run, RunError, new_run, parent_of
from dreamsa.scene import Scene
from dreamsa.train import Method, StepResult, Training, displacement, new_training, train

PREVIEW_SECONDS = 5.0
LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""


class Progress(NamedTuple):
    """Progress of a run after one step."""

    run: Run
    step: int
    """Steps done."""
    steps: int
    phase: str
    """ascend or descend."""
    result: StepResult
    seconds_per_step: float
    eta_seconds: float
    preview: Path | None
    """The newest preview image."""
    scene: Scene
    """The current scene, read-only; the next step changes it."""


@dataclass
class Job:
    """A run in progress. Iterate over it for Progress, or `wait()` for the finished run. Leaving
    the loop saves the run."""

    run: Run
    _steps: Generator[Progress]

    def __iter__(self) -> Iterator[Progress]:
        return self._steps

    def wait(self) -> Run:
        """Train to the end; returns the run."""
        for _ in self._steps:
            pass
        return self.run

    def stop(self) -> None:
        """Save and stop; `resume` continues from here. Has no effect on a finished job."""
        self._steps.close()


def check(config: RunConfig) -> tuple[RunConfig, dict[str, Any]]:
    """Find every mistake that can be found before heavy work.

    Returns:
        The configuration with a normalized prompt and absolute paths, and facts for the run's
        record.

    Raises:
        ValueError: What is wrong, in one sentence.
    """
    negative = config.negative_prompt
    config = replace(
        config,
        prompt=check_prompt(config.prompt),
        negative_prompt=check_prompt(negative, "negative prompt") if negative else "",
        model=absolute_paths(config.model),
    )
    locate_model(config.model)
    check_prompt_words(config.prompt, config.model)
    device = resolve_device(config.device)
    backend, reason = resolve_backend(config.field.backend, device)
    kernels, _ = resolve_kernels(device, config.render.kernels)
    Processes.current().share(config.camera.batch, "camera.batch")
    facts = {
        "device": str(device),
        "backend": backend,
        "backend_reason": reason,
        "kernels": kernels,
    }
    return config, {**facts, "torch": torch.__version__}


def start(config: RunConfig, parent: Run | None, folder: Path, method: Method | None = None) -> Job:
    """Create a run in `folder` and return its job, which has not begun yet.

    Raises:
        ValueError: The configuration cannot run here. RunError: The folder cannot be written.
    """
    config, facts = check(config)
    processes = Processes.current()
    path = processes.broadcast(
        str(new_run(config, parent, folder, facts).path) if processes.is_first else ""
    )
    run = Run(Path(path))
    return Job(run, _work(run, config, parent, method, resuming=False))


def resume(run: Run, folder: Path, method: Method | None = None) -> Job:
    """The job of a stopped run, which continues from its newest complete checkpoint; bit-identical
    on a CPU.

    Args:
        folder: Where else to look for an edit's parent.

    Raises:
        RunError: The run is finished or in use, or an edit without a checkpoint has lost its
            parent.
    """
    if run.status == "finished":
        edit = run.command("edit", "a new prompt")
        raise RunError(f"Run {run.id} is finished. To change it, use: {edit}")
    config, facts = check(run.config)
    processes = Processes.current()
    if processes.is_first:
        with run.lock():
            run.update(**facts)
    processes.wait()  # the others read what the first has written
    parent = parent_of(run, folder)
    if config.edit and parent is None and checkpoint.latest(run.checkpoints) is None:
        raise RunError(
            f"Run {run.id} has no checkpoint, and its parent {config.edit.parent} is not beside "
            "it. "
            "Bring the parent back, or name its folder with --runs."
        )
    return Job(run, _work(run, config, parent, method, resuming=True))


def take_parent(training: Training, parent: Run) -> None:
    """Start from the parent's scene and, where the edit keeps them, its optimizer's moments."""
    tensors, state = checkpoint.load(parent.latest_checkpoint)
    training.scene.restore(tensors["scene"])
    if training.config.edit is not None and training.config.edit.moments == "keep":
        rates = [group["lr"] for group in training.optimizer.param_groups]
        checkpoint.unpack_optimizer(training.optimizer, tensors["training"], state["optimizer"])
        for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _work(
    run: Run, config: RunConfig, parent: Run | None, method: Method | None, resuming: bool
) -> Generator[Progress]:
    processes = Processes.current()
    if not processes.is_first:
        yield from _train(run, config, parent, method, resuming, processes)
        return
    with run.lock():
        run.begin()
        try:
            yield from _train(run, config, parent, method, resuming, processes)
        except (GeneratorExit, KeyboardInterrupt):
            run.update(status="stopped")
            raise
        except BaseException as error:
            with suppress(OSError):  # on a full disk the error itself is enough
                run.update(status="failed", error=f"{type(error).__name__}: {error}"[:2000])
            if isinstance(error, OSError):
                raise RunError(
                    f"Run {run.id} stopped: {error}. Its last checkpoint is complete. When the "
                    "disk can be written, "
                    f"resume it: {run.command('resume')}"
                ) from error
            raise


def _train(
    run: Run,
    config: RunConfig,
    parent: Run | None,
    method: Method | None,
    resuming: bool,
    processes: Processes,
) -> Generator[Progress]:
    device = resolve_device(config.device)
    training = new_training(config, device, method)
    if parent is not None:
        take_parent(training, parent)
    known = parent is not None or config.edit is None  # else the edit's starting point is lost
    origin: dict[Tensor, Tensor] | None = None
    if known:
        origin = {p: p.detach().clone() for p in training.scene.parameters()}
    newest = checkpoint.latest(run.checkpoints) if resuming else None
    if newest is not None:
        training.load(newest)
    score = StableDiffusion.shared(config.model, device)
    degraded = config.distill.bridge_words
    prompt = ViewPrompt(score, config.prompt, config.negative_prompt, config.views, degraded)
    recorder = _Recorder(run, training, origin, processes.is_first)
    try:
        for result in train(training, score, prompt, processes):
            yield recorder.record(result)
    except (GeneratorExit, KeyboardInterrupt):
        if not training.in_step:
            recorder.save()
        raise
    recorder.finish()


class _Recorder:
    """Writes a run's metrics, previews and checkpoints between steps, in the first process only."""

    def __init__(
        self, run: Run, training: Training, origin: Mapping[Tensor, Tensor] | None, writes: bool
    ) -> None:
        self.run, self.training, self.origin, self.writes = run, training, origin, writes
        self.begun = training.step
        self.seconds, self.shown = 0.0, time.monotonic()
        self.preview: Path | None = None
        if writes:
            run.cut_metrics(training.step)
            (run.path / "previews").mkdir(exist_ok=True)

    def record(self, result: StepResult) -> Progress:
        training, config = self.training, self.training.config
        early = training.step <= self.begun + 2  # kernels are compiled in the first step
        self.seconds = result.seconds if early else 0.95 * self.seconds + 0.05 * result.seconds
        done = training.step == config.steps
        if self.writes:
            if result.step % LOG_EVERY == 0 or done or result.skipped or training.annealer.edge:
                self._log(result)
            if time.monotonic() - self.shown > PREVIEW_SECONDS or done:
                self.preview = write_preview(self.run, training.scene, config.camera, training.step)
                self.shown = time.monotonic()
            if training.step % config.save_every == 0 and not done and not result.skipped:
                self.save()
        left = (config.steps - training.step) * self.seconds
        return Progress(
            self.run,
            training.step,
            config.steps,
            result.phase,
            result,
            self.seconds,
            left,
            self.preview,
            training.scene,
        )

    def save(self) -> None:
        if self.writes:
            self.training.save(self.run.checkpoints)
            self.run.update(step=self.training.step)

    def finish(self) -> None:
        self.save()
        if self.writes:
            write_outputs(self.run, self.training.scene, self.training.config.turntable)
            self.run.update(
                status="finished", step=self.training.step, skipped=self.training.skipped
            )

    def _log(self, result: StepResult) -> None:
        """Append a line to metrics.jsonl: the step's numbers, and each parameter group's
        displacement since step 0."""
        moved = None if self.origin is None else displacement(self.training.optimizer, self.origin)
        values = {**result._asdict(), "displacement": moved}
        finite = {
            k: None if isinstance(v, float) and not isfinite(v) else v for k, v in values.items()
        }
        with (self.run.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(finite) + "\n")
