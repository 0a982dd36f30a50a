"""A run in progress: checked, created, trained step by step, saved, and finished with its
outputs."""

import json
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from traceback import format_exception
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamsa import checkpoint
from dreamsa.config import TOYBOX, RunConfig
from dreamsa.device import Processes, resolve_device, use_threads
from dreamsa.editing import check_fits, check_free
from dreamsa.fields.backends import resolve_backend
from dreamsa.guidance.hub import require_model
from dreamsa.guidance.prompts import ViewPrompt, check_prompt
from dreamsa.guidance.score_model import GuidanceFailed
from dreamsa.guidance.stable_diffusion import (
    ModelNotFound,
    StableDiffusion,
    absolute_paths,
    weights_digest,
)
from dreamsa.guidance.vocabulary import check_prompt_words, unknown_words
from dreamsa.media import write_png
from dreamsa.outputs import load_scene, write_changes, write_outputs, write_preview, write_results
from dreamsa.progress import with_bar
from dreamsa.regions import find_region
from dreamsa.rendering.kernels import resolve_kernels
from dreamsa.runs import Run, RunError, new_run, parent_of, slug
from dreamsa.scene import Scene
from dreamsa.train import Method, StepResult, Training, displacement, new_training, train
from dreamsa.version import __version__

PREVIEW_SECONDS = 5.0
LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""
EXACT = ("device", "backend", "kernels", "torch", "weights")
"""Facts of a record that decide whether a resumed run is the unbroken one, bit for bit."""


class Stages:
    """What a job does before its first and after its last step, such as "loading the model"."""

    def __init__(self) -> None:
        self.now = ""
        """Empty while it takes steps."""
        self.listener: Callable[[str], None] = lambda text: None

    def __call__(self, text: str) -> None:
        self.now = text
        self.listener(text)


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
    stages: Stages = field(default_factory=Stages)

    def __iter__(self) -> Iterator[Progress]:
        return self._steps

    def wait(self, progress: bool = False) -> Run:
        """Train to the end; returns the run.

        Args:
            progress: Show a progress bar on stderr.
        """
        for _ in with_bar(self) if progress else self:
            pass
        return self.run

    def stop(self) -> None:
        """Save and stop; `resume` continues from here. Has no effect on a finished job."""
        self._steps.close()


def check(config: RunConfig, anyway: bool = False) -> tuple[RunConfig, dict[str, Any]]:
    """Find every mistake that can be found before heavy work.

    Args:
        anyway: Accept words that the model does not know, with a warning.

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
    require_model(config.model)
    if not anyway:
        check_prompt_words(config.prompt, config.model)
    elif problem := unknown_words(config.prompt, config.model):
        warnings.warn(problem, stacklevel=3)
    device = resolve_device(config.device)
    backend, reason = resolve_backend(config.field.backend, device)
    kernels, _ = resolve_kernels(device, config.render.kernels)
    Processes.current().share(config.camera.batch, "camera.batch")
    facts = {
        "device": str(device),
        "backend": backend,
        "backend_reason": reason,
        "kernels": kernels,
        "threads": torch.get_num_threads(),
        "weights": weights_digest(config.model),
    }
    return config, {**facts, "torch": torch.__version__}


def start(
    config: RunConfig,
    parent: Run | None,
    folder: Path,
    method: Method | None = None,
    *,
    name: str | None = None,
    anyway: bool = False,
) -> Job:
    """Create a run in `folder` and return its job, which has not begun yet.

    Args:
        name: The run's id; by default made of its prompt.
        anyway: Accept words that the model does not know.

    Raises:
        ValueError: The configuration cannot run here. RunError: The folder cannot be written, or
            there is a run of this name.
    """
    config, facts = check(config, anyway)
    if parent is not None:
        check_edit(config, parent)
    if config.model.model != TOYBOX:  # a model that cannot be loaded leaves no run behind
        StableDiffusion.shared(config.model, config.device)
    processes = Processes.current()
    path = processes.broadcast(
        str(new_run(config, parent, folder, facts, name).path) if processes.is_first else ""
    )
    run = Run(Path(path))
    return _job(run, config, parent, method, resuming=False)


def resume(run: Run, folder: Path, method: Method | None = None) -> Job:
    """The job of a stopped run, which continues from its newest complete checkpoint; bit-identical
    on a CPU.

    Args:
        folder: Where else to look for an edit's parent.

    Raises:
        RunError: The run is finished or in use, or an edit without a checkpoint has lost its
            parent.
    """
    if run.status == "finished" and _is_complete(run):
        edit = run.command("edit", "a new prompt")
        raise RunError(f"Run {run.id} is finished. To change it, use: {edit}")
    config, facts = check(run.config, anyway=True)
    processes = Processes.current()
    if processes.is_first:
        with run.lock():
            _warn_of_changes(run, facts)
            facts["threads"] = run.record.get("threads", facts["threads"])
            run.update(**facts)
    processes.wait()  # the others read what the first has written
    parent = parent_of(run, folder)
    if config.edit and parent is None and checkpoint.latest(run.checkpoints) is None:
        raise RunError(
            f"Run {run.id} has no checkpoint, and its parent {config.edit.parent} is not beside "
            "it. "
            "Bring the parent back, or name its folder with --runs."
        )
    return _job(run, config, parent, method, resuming=True)


def _job(
    run: Run, config: RunConfig, parent: Run | None, method: Method | None, resuming: bool
) -> Job:
    stages = Stages()
    return Job(run, _work(run, config, parent, method, resuming, stages), stages)


def _is_complete(run: Run) -> bool:
    """Whether a finished run's last checkpoint is complete."""
    try:
        return bool(run.latest_checkpoint)
    except RunError:
        return False


def _warn_of_changes(run: Run, facts: dict[str, Any]) -> None:
    """Say what keeps a resumed run from being the unbroken one, bit for bit."""
    record = run.record
    changes = [
        f"{name} {record[name]} -> {facts[name]}"
        for name in EXACT
        if record.get(name) not in (None, facts[name])
    ]
    if changes:
        message = f"Run {run.id} resumes, but not bit for bit as unbroken: {', '.join(changes)}."
        warnings.warn(message, stacklevel=4)


def check_edit(config: RunConfig, parent: Run) -> None:
    """Find the mistakes in an edit that only its parent shows.

    Raises:
        ValueError: What is wrong, in one sentence.
    """
    check_fits(config, parent.config)
    if config.edit is not None and config.edit.free is not None:
        check_free(config.edit.free, load_scene(parent, config.device))


def preview(config: RunConfig, parent: Run, folder: Path) -> tuple[RunConfig, Path | None]:
    """Check an edit; write an image of its region, if any, to FOLDER/regions."""
    config, _ = check(config)
    check_edit(config, parent)
    if config.edit is None or config.edit.free is None or not config.edit.free.has_region:
        return config, None
    device = resolve_device(config.device)
    training = new_training(config, device)
    take_parent(training, parent)
    score = StableDiffusion.shared(config.model, device) if config.edit.free.auto else None
    path = folder / "regions" / f"{parent.id}-{slug(config.prompt)}.png"
    path.parent.mkdir(exist_ok=True)
    write_png(find_region(training.scene, score, config), path)
    return config, path


def take_parent(training: Training, parent: Run) -> None:
    """Start from the parent's scene and, where the edit keeps them, its optimizer's moments."""
    tensors, state = checkpoint.load(parent.latest_checkpoint)
    config, layers = training.config, parent.config.layers
    if layers or config.layers:
        device = training.scene.occupancy.density.device
        scene = Scene(config.field, parent.config.render, config.seed, device, layers)
        scene.restore(tensors["scene"])
        training.scene.begin_from(scene, config.seed)
    else:
        training.scene.restore(tensors["scene"])
    if training.config.edit is not None and training.config.edit.moments == "keep":
        rates = [group["lr"] for group in training.optimizer.param_groups]
        checkpoint.unpack_optimizer(training.optimizer, tensors["training"], state["optimizer"])
        for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _work(
    run: Run,
    config: RunConfig,
    parent: Run | None,
    method: Method | None,
    resuming: bool,
    stages: Stages,
) -> Generator[Progress]:
    processes = Processes.current()
    if not processes.is_first:
        yield from _train(run, config, parent, method, resuming, processes, stages)
        return
    with run.lock():
        run.begin()
        run.log(f"{'resume' if resuming else 'begin'}, dreamsa {__version__}, {_facts(run)}")
        try:
            yield from _train(run, config, parent, method, resuming, processes, stages)
        except (GeneratorExit, KeyboardInterrupt):
            run.update(status="stopped")
            run.log(f"stopped at step {run.record['step']}, saved")
            raise
        except Exception as error:
            failure = _failed(run, error)
            if failure is error:
                raise
            raise failure from error
        run.log("finished")


def _facts(run: Run) -> str:
    record = run.record
    return ", ".join(f"{name} {record[name]}" for name in EXACT if name in record)


def _failed(run: Run, error: Exception) -> Exception:
    """Record a failure, and return an error that names the run, the step, what is saved and the
    command that resumes it; the log has the traceback."""
    words = " ".join(str(error).split())
    with suppress(OSError, ValueError):  # on a full disk the error itself is enough
        run.update(status="failed", error=f"{type(error).__name__}: {words}"[:2000])
    run.log(f"failed\n{''.join(format_exception(error)).rstrip()}")
    saved = max((path.name for path in run.checkpoints.glob(checkpoint.NAME)), default=None)
    kept = f"Saved up to step {int(saved)}" if saved else "Nothing was saved"
    report = f"{kept}; log: {run.path / 'log.txt'}. Resume it: {run.command('resume')}"
    if isinstance(error, GuidanceFailed | ModelNotFound | RunError | checkpoint.CheckpointError):
        error.add_note(report)
        return error
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return RunError(f"Run {run.id} failed: {kind}{words or type(error).__name__}. {report}")


def _train(
    run: Run,
    config: RunConfig,
    parent: Run | None,
    method: Method | None,
    resuming: bool,
    processes: Processes,
    stages: Stages,
) -> Generator[Progress]:
    began, device = time.monotonic(), resolve_device(config.device)
    stages("preparing the scene")
    threads = run.record.get("threads")
    if isinstance(threads, int) and 0 < threads <= 1024:
        use_threads(threads)
    training = _fresh(config, device, method, parent)
    found = _restore(run, training) if resuming else None
    fresh = _fresh(config, device, method, parent) if resuming else training
    training = training if found else fresh  # a checkpoint that does not fit may leave traces
    known = parent is not None or config.edit is None  # else the edit's starting point is lost
    pairs = zip(training.scene.parameters(), fresh.scene.parameters(), strict=True)
    origin: dict[Tensor, Tensor] | None = None
    if known:
        origin = {p: start.detach().clone() for p, start in pairs}
    stages("loading the model")
    score = StableDiffusion.shared(config.model, device)
    degraded = config.distill.bridge_words
    source = config.edit.parent_prompt if config.edit else ""
    prompt = ViewPrompt(
        score, config.prompt, config.negative_prompt, config.views, degraded, source
    )
    if found is None and config.edit and config.edit.free and config.edit.free.has_region:
        image = find_region(training.scene, score, config)
        if processes.is_first:
            write_png(image, run.path / "region.png")
    recorder = _Recorder(run, training, origin, parent, processes.is_first)
    if found is None and config.layers:
        recorder.save()  # from here on the parent may be deleted
    recorder.loading = time.monotonic() - began
    stages("first step")
    try:
        for result in train(training, score, prompt, processes):
            stages.now = ""
            yield recorder.record(result)
    except (GeneratorExit, KeyboardInterrupt):
        if not training.in_step:
            recorder.save()
            recorder.picture()
        raise
    except Exception:
        with suppress(Exception):  # the error itself matters more
            if not training.in_step and training.is_finite():
                recorder.save()
        raise
    recorder.finish(stages)


def _fresh(
    config: RunConfig, device: torch.device, method: Method | None, parent: Run | None
) -> Training:
    training = new_training(config, device, method)
    if parent is not None:
        take_parent(training, parent)
    return training


def _restore(run: Run, training: Training) -> Path | None:
    """Load the newest checkpoint that fits and return it; None, and a warning if there are others,
    without one."""

    def load(path: Path) -> Path:
        training.load(path)
        return path

    found = checkpoint.newest(run.checkpoints, load)
    run.log(f"from checkpoint {found.name}" if found else "from step 0")
    if found is None and any(run.checkpoints.glob(checkpoint.NAME)):
        warnings.warn(
            f"No checkpoint of run {run.id} is complete: it starts again from step 0, and ends in "
            "the same scene.",
            stacklevel=2,
        )
    return found


class _Recorder:
    """Writes a run's metrics, previews and checkpoints between steps, in the first process only."""

    def __init__(
        self,
        run: Run,
        training: Training,
        origin: Mapping[Tensor, Tensor] | None,
        parent: Run | None,
        writes: bool,
    ) -> None:
        self.run, self.training, self.origin, self.parent = run, training, origin, parent
        self.writes = writes
        self.begun = training.step
        self.seconds, self.shown = 0.0, time.monotonic()
        self.preview: Path | None = None
        self.loading = 0.0
        """Seconds before the first step."""
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
            self.run.log(f"saved step {self.training.step}")

    def picture(self) -> None:
        """Write the contact sheet of a run that is stopped, where it has pictures at all."""
        if self.writes and self.training.config.turntable and self.training.step:
            write_outputs(self.run, self.training.scene, 0)

    def finish(self, stages: Stages) -> None:
        stages("saving")
        self.save()
        if self.writes:
            self._compare()
            began = time.monotonic()
            write_results(self.run, self.training.scene, stages)
            seconds = {"loading": self.loading, "results": time.monotonic() - began}
            self.run.update(
                status="finished",
                step=self.training.step,
                skipped=self.training.skipped,
                seconds={name: round(value, 1) for name, value in seconds.items()},
            )

    def _compare(self) -> None:
        """Record what an edit has kept, unless its parent is gone and it does not stand on it, or
        it has no pictures at all."""
        if not self.training.config.turntable:
            return
        before = self.training.scene.beneath()
        if before is None and self.parent is not None:
            with suppress(ValueError):  # the parent has been deleted meanwhile
                before = load_scene(self.parent, self.training.config.device)
        if before is not None:
            changes = write_changes(self.run, before, self.training.scene)
            self.run.update(preservation=changes)

    def _log(self, result: StepResult) -> None:
        """Append a line to metrics.jsonl: the step's numbers, and each parameter group's
        displacement since step 0."""
        moved = None if self.origin is None else displacement(self.training.optimizer, self.origin)
        values = {**result._asdict(), "displacement": moved}
        finite = {
            k: None if isinstance(v, float) and not isfinite(v) else v for k, v in values.items()
        }
        if result.skipped:
            self.run.log(f"step {result.step} skipped: the gradient was not finite")
        with (self.run.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(finite) + "\n")
