"""What the page can do, without any of its components."""

import time
from pathlib import Path
from typing import Any

from dreamsa import api
from dreamsa.checkpoint import write_atomic
from dreamsa.config import RunConfig, parse_setting, preset
from dreamsa.guidance.stable_diffusion import TOYBOX
from dreamsa.runs import RunError, runs_folder
from dreamsa.web import examples, pace, pictures
from dreamsa.web.jobs import JobManager, Status
from dreamsa.web.tree import branches

EXPORTS = {
    "glb": "GLB, 3-D model with texture",
    "obj": "OBJ with texture, zipped",
    "ply": "PLY, 3-D model with coloured vertices",
    "stl": "STL, for 3-D printing, no colour",
    "mp4": "Turntable, mp4",
    "webp": "Turntable, webp",
    "png": "Contact sheet, png",
    "json": "Configuration, json",
}
FILES = {"mp4": "turntable.mp4", "webp": "turntable.webp", "png": "contact_sheet.png", "json": "config.json"}


def make_config(
    prompt: str,
    name: str = "auto",
    model: str = TOYBOX,
    steps: float | None = None,
    seed: float | None = None,
    negative: str = "",
    guidance: float | None = None,
    settings: str = "",
) -> RunConfig:
    """The form as a configuration.

    Raises:
        ValueError: Something in it is wrong.
    """
    model = (model or TOYBOX).strip()
    if name == "auto":
        name = "toybox" if model == TOYBOX else "sd"
    given: dict[str, Any] = {"model.model": model if model != TOYBOX or name == "toybox" else None, "negative_prompt": negative or None}
    given |= {"steps": whole(steps, "steps"), "seed": whole(seed, "seed"), "sds.guidance_scale": guidance}
    lines = dict(parse_setting(line) for line in (settings or "").splitlines() if line.strip())
    return api.with_overrides(preset(name, prompt or ""), {key: value for key, value in {**given, **lines}.items() if value is not None})  # pyright: ignore[reportArgumentType]


def whole(value: float | None, name: str) -> int | None:
    """A number of a form; None where it is empty.

    Raises:
        ValueError: It is not a whole number.
    """
    if value is not None and value != int(value):
        raise ValueError(f"{name} must be a whole number, got {value}.")
    return None if value is None else int(value)


class Desk:
    """The forms' and the client's way to the jobs."""

    def __init__(self, manager: JobManager, exports: Path) -> None:
        self.manager = manager
        self.exports = exports
        self._listed: tuple[float, list[tuple[Status, int, str | None, bool]]] = (0.0, [])

    def generate(self, config: RunConfig) -> str:
        """Queue a generation; returns its id."""
        return self.manager.submit(lambda: api.generate(config=config, runs=self.manager.folder))

    def edit(self, parent: str, prompt: str, **how: Any) -> str:
        """Queue an edit; returns its id."""
        found = self.manager.find(parent)
        return self.manager.submit(lambda: api.edit(found, prompt, runs=self.manager.folder, **how))

    def resume(self, run_id: str) -> str:
        """Queue the rest of a stopped run."""
        found = self.manager.find(run_id)
        if found.id in self.manager.active():
            raise RunError(f"Run {found.id} is already running or waiting here.")
        return self.manager.submit(lambda: api.resume(found, runs=self.manager.folder))

    def export(self, run_id: str, kind: str) -> Path:
        """A file to download, in the folder of exports.

        Raises:
            ValueError: No such kind, no such run, or nothing to export yet.
        """
        if kind not in EXPORTS:
            raise ValueError(f"There is no export {kind!r}. There are: {', '.join(EXPORTS)}.")
        run = self.manager.find(run_id)
        target = self.exports / run.id / f"{run.id}.{'obj.zip' if kind == 'obj' else kind}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind not in FILES:
            return api.export(run, format=kind, out=target, runs=self.manager.folder)  # pyright: ignore[reportArgumentType]
        made = run.path / FILES[kind]
        if not made.is_file():
            raise RunError(f"Run {run.id} has no {FILES[kind]}; it is {run.status}. `dreamsa render {run.id}` writes its pictures anew.")
        write_atomic(target, made.read_bytes())
        return target

    def measured(self, config: RunConfig) -> pace.Pace | None:
        device = str(api.device_for(config.device))
        return pace.measured(config, device, self.manager.runs())

    def probe(self, config: RunConfig) -> pace.Pace:
        """Time a few steps, when it is their turn."""
        made: list[pace.Probe] = []

        def start() -> pace.Probe:
            made.append(pace.Probe(config))
            return made[0]

        self.manager.wait(self.manager.submit(start), timeout=3600)
        if made[0].pace is None:
            raise RunError("The probe ended before it could time anything.")
        return made[0].pace

    def listing(self) -> list[tuple[Status, int, str | None, bool]]:
        """The tree of runs: (status, depth, thumbnail, whether it can be edited). Made at most once a second for all who look."""
        made, rows = self._listed
        if time.monotonic() - made > 1.0:
            rows = []
            for run, depth in branches(self.manager.runs()):
                try:
                    status = self.manager.status(run.id)
                except RunError:  # it was moved away this moment
                    continue
                rows.append((status, depth, pictures.thumbnail(run), status.state == "finished"))
            self._listed = (time.monotonic(), rows)
        return rows

    def forget_listing(self) -> None:
        """After something was started or stopped."""
        self._listed = (0.0, [])


def open_desk(runs: Path | str | None = None) -> Desk:
    """A desk over a folder of runs, with the shipped examples in it if it was empty."""
    folder = runs_folder(runs).resolve()
    examples.install(folder)
    return Desk(JobManager(folder), folder / "exports")
