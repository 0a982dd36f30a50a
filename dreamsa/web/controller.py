"""Operations of the page, independent of its components."""

import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from dreamsa import api
from dreamsa.choices import BASES, Format, PresetName
from dreamsa.config import TOYBOX, RunConfig
from dreamsa.evaluation.verdict import judge_run
from dreamsa.files import read_plain, write_atomic
from dreamsa.outputs import Stage, silent
from dreamsa.presets import KNOWN_MODELS, MODEL_ALIASES, preset
from dreamsa.runs import Run, RunError, branches, damaged_runs, runs_folder
from dreamsa.settings import parse_setting, with_overrides
from dreamsa.trash import remove
from dreamsa.web import examples, images, pace
from dreamsa.web.guard import MAX_STEPS, check_budget
from dreamsa.web.jobs import JobManager, Status

ERRORS = (ValueError, RuntimeError, OSError)
"""Errors that the page shows as a sentence."""
MESHES: dict[Format, str] = {
    "glb": "GLB, 3-D model with texture",
    "obj": "OBJ with texture, zipped",
    "ply": "PLY, 3-D model with coloured vertices",
    "stl": "STL, for 3-D printing, no colour",
}
FILES = {
    "mp4": ("Turntable, mp4", "turntable.mp4"),
    "webp": ("Turntable, webp", "turntable.webp"),
    "png": ("Contact sheet, png", "contact_sheet.png"),
    "json": ("Configuration, json", "config.json"),
}
EXPORTS: dict[str, str] = {**MESHES, **{kind: label for kind, (label, _) in FILES.items()}}
"""Labels of all downloads."""
LISTING_SECONDS = 1.0
MAX_DOWNLOAD = 2**30
"""Bytes."""


class Listing(NamedTuple):
    rows: list[tuple[Status, int, str | None]]
    """(status, depth, thumbnail) of each run."""
    damaged: list[tuple[Path, str]]
    """Records that cannot be read: (path, reason)."""
    failures: list[Status]
    """Of the runs that failed since one has finished, newest first."""
    ids: dict[str, str]
    """The id of each run, which is its folder's name, by the id in its record."""


def make_config(
    prompt: str,
    preset_name: PresetName | str = "standard",
    model: str = TOYBOX,
    steps: float | None = None,
    seed: float | None = None,
    negative: str = "",
    guidance: float | None = None,
    settings: str = "",
) -> RunConfig:
    """The configuration that the create form describes.

    Raises:
        ValueError: A value is not allowed.
    """
    model = (model or TOYBOX).strip()
    complete = preset_name in BASES and model == TOYBOX  # then the preset names its model
    values: dict[str, Any] = {
        "model.model": None if complete else model,
        "negative_prompt": negative or None,
        "steps": _whole_number(steps, "steps"),
        "seed": _whole_number(seed, "seed"),
        "distill.guidance_scale": guidance,
    }
    values |= dict(parse_setting(line) for line in (settings or "").splitlines() if line.strip())
    config = preset(preset_name, prompt or "", model)  # pyright: ignore[reportArgumentType]
    return with_overrides(config, {k: value for k, value in values.items() if value is not None})


def _whole_number(value: float | None, name: str) -> int | None:
    if value is not None and value != int(value):
        raise ValueError(f"{name} must be a whole number, got {value}.")
    return None if value is None else int(value)


class Controller:
    """Starts, resumes, exports and lists runs for the page and its clients."""

    def __init__(self, manager: JobManager, exports: Path, models: Collection[str] = ()) -> None:
        self.manager = manager
        self.exports = exports
        self.models = [TOYBOX, *MODEL_ALIASES, *KNOWN_MODELS, *models]
        """Models that clients may name: a free choice would tell which paths exist."""
        self._listing: Listing | None = None
        self._listed_at = 0.0

    def generate(self, config: RunConfig, anyway: bool = False) -> str:
        """Queue a generation, `anyway` with words that the model does not know; returns the run's
        id."""
        check_budget(config, self.models)
        return self.manager.submit(
            lambda: api.generate(config=config, anyway=anyway, runs=self.manager.folder)
        )

    def edit(self, parent: str, prompt: str, **options: Any) -> str:
        """Queue an edit; returns the new run's id. `options` are those of `api.edit`."""
        run, options["runs"] = self.manager.find(parent), self.manager.folder
        for name in ("steps", "ascent_steps", "seed"):
            options[name] = _whole_number(options.get(name), name)
        if (options["steps"] or 0) > MAX_STEPS:
            raise ValueError(f"steps must be at most {MAX_STEPS}, got {options['steps']}.")
        return self.manager.submit(lambda: api.edit(run, prompt, **options))

    def resume(self, run_id: str) -> str:
        """Queue the remaining steps of a stopped run; returns its id."""
        run = self.manager.find(run_id)
        if run.id in self.manager.active():
            raise RunError(f"Run {run.id} is already running or waiting here.")
        return self.manager.submit(lambda: api.resume(run, runs=self.manager.folder))

    def remove(self, run_id: str) -> Path:
        """Move a run to the trash; returns its new path."""
        return remove(self.manager.find(run_id))

    def model(self, run: Run) -> Path | None:
        """A run's GLB in the folder of exports, which browsers may read; None if it has none."""
        source, target = run.path / "mesh.glb", self._target(run, "glb")
        changed = source.stat().st_mtime_ns if source.is_file() else 0
        if changed and not (target.is_file() and target.stat().st_mtime_ns >= changed):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, source.read_bytes())
        return target if target.is_file() else None

    def _target(self, run: Run, ending: str) -> Path:
        return self.exports / run.id / f"{run.id}.{ending}"

    def export(self, run_id: str, kind: str, stage: Stage = silent) -> Path:
        """Write a file to download into the folder of exports; returns its path.

        Raises:
            ValueError: Unknown kind or run, or no such file yet.
        """
        if kind not in EXPORTS:
            raise ValueError(f"There is no export {kind!r}. There are: {', '.join(EXPORTS)}.")
        run = self.manager.find(run_id)
        target = self._target(run, "obj.zip" if kind == "obj" else kind)
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind not in FILES:
            return api.export(run, format=kind, out=target, stage=stage, runs=self.manager.folder)  # pyright: ignore[reportArgumentType]
        source = run.path / FILES[kind][1]
        if not source.exists():
            raise RunError(
                f"Run {run.id} has no {source.name}; it is {run.status}. "
                f"If it is finished, write the file again: {run.command('render')}"
            )
        write_atomic(target, read_plain(source, MAX_DOWNLOAD))
        return target

    def probe(self, config: RunConfig) -> pace.Pace:
        """Time a few steps of a configuration in the queue; returns when they are done."""
        check_budget(config, self.models)
        probes: list[pace.Probe] = []

        def start() -> pace.Probe:
            probes.append(pace.Probe(config))
            return probes[0]

        self.manager.wait(self.manager.submit(start), timeout=3600)
        if probes[0].pace is None:
            raise RunError("The test run ended before enough steps were timed.")
        return probes[0].pace

    def listing(self) -> Listing:
        """All runs, read at most once in LISTING_SECONDS for all open pages."""
        listing = self._listing
        if listing is not None and time.monotonic() - self._listed_at <= LISTING_SECONDS:
            return listing
        rows, ids = [], {}
        for run, depth in branches(self.manager.runs()):
            with suppress(RunError):  # removed in the meantime
                rows.append((self.manager.status(run.id), depth, images.thumbnail(run)))
                ids[run.record["id"]] = run.id
        ids |= {run_id: run_id for run_id in ids.values()}
        damaged, failures = damaged_runs(self.manager.folder), self.manager.failures()
        self._listing = listing = Listing(rows, damaged, failures, ids)
        self._listed_at = time.monotonic()
        return listing

    def forget_listing(self) -> None:
        self._listing = None


def open_controller(
    runs: Path | str | None, exports: Path, models: Collection[str] = ()
) -> Controller:
    """A controller of a folder of runs; copies the shipped examples into an empty one.

    Args:
        exports: Folder that is served; nobody else may write to it.
        models: Further models that clients may name.
    """
    folder = runs_folder(runs).resolve()
    examples.install(folder)
    return Controller(JobManager(folder, judge_run), exports, models)
