"""A run on disk: its folder, its record, its parent and its children. Nothing here is ever overwritten or deleted."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dreamsa import __version__, checkpoint
from dreamsa.config import RunConfig, read_config, to_json

SCHEMA = 1
RUNS_VARIABLE = "DREAMSA_RUNS"


class RunError(ValueError):
    """A run is missing, unfinished, in use, or of another schema."""


def runs_folder(folder: Path | str | None = None) -> Path:
    """Where runs are kept: the argument, $DREAMSA_RUNS, or ./runs."""
    return Path(folder or os.environ.get(RUNS_VARIABLE) or "runs").expanduser()


@dataclass(frozen=True)
class Run:
    """One run's folder. Its state is read from disk each time, so that other processes' work is seen."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def record(self) -> dict[str, Any]:
        """run.json.

        Raises:
            RunError: Damaged, or of another schema.
        """
        try:
            record = json.loads((self.path / "run.json").read_text())
            schema = record["schema"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{self.path} is not a run: its run.json cannot be read ({type(error).__name__}: {error}).") from error
        if schema != SCHEMA:
            raise RunError(
                f"Run {self.id} has schema {schema!r}; this version reads {SCHEMA}. Open it with the dreamsa that wrote it ({record.get('version')})."
            )
        return record

    @property
    def config(self) -> RunConfig:
        return read_config(self.path / "config.json")

    @property
    def prompt(self) -> str:
        return self.record["prompt"]

    @property
    def status(self) -> str:
        """created, running, stopped, failed or finished; a run whose process was killed reads as stopped."""
        status = self.record["status"]
        return "stopped" if status == "running" and not self.in_use() else status

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def latest_checkpoint(self) -> Path:
        """The newest whole checkpoint.

        Raises:
            RunError: There is none.
        """
        found = checkpoint.latest(self.checkpoints)
        if found is None:
            raise RunError(f"Run {self.id} has no checkpoint yet. Start it again with: dreamsa resume {self.id}")
        return found

    def update(self, **changes: Any) -> None:
        """Change fields of run.json, atomically."""
        checkpoint.write_json(self.path / "run.json", {**self.record, **changes})

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary per logged step; a line that is being written or was cut off is left out."""
        path = self.path / "metrics.jsonl"
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def cut_metrics(self, step: int) -> None:
        """Drop logged steps from `step` on: they will be run again. A half-written last line goes too."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] < step]
        checkpoint.write_atomic(self.path / "metrics.jsonl", "".join(kept).encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing.

        Raises:
            RunError: Another process has it, or the folder is read-only.
        """
        lock = self._filelock()
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(f"Run {self.id} is in use by another process. Wait for it, or stop it with Ctrl-C there.") from error
        except OSError as error:
            raise RunError(
                f"Run {self.id} cannot be written: {error.strerror or error} ({self.path}). Free the folder or copy it elsewhere."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def in_use(self) -> bool:
        lock = self._filelock()
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            return True
        lock.release()
        return False

    def _filelock(self) -> FileLock:
        return FileLock(self.path / ".lock", mode=0o644)


def slug(prompt: str) -> str:
    """A folder name's readable part: "a-purple-rabbit"."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "run"


def new_run(config: RunConfig, parent: Run | None, folder: Path, facts: dict[str, Any]) -> Run:
    """Create a run's folder with its record and configuration.

    Raises:
        RunError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = folder / f"{slug(config.prompt)}-{secrets.token_hex(2)}"
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
        checkpoint.write_json(path / "config.json", to_json(config))
        lineage = [*parent.record["lineage"], {"id": parent.id, "prompt": parent.prompt}] if parent else []
        record = {
            "schema": SCHEMA,
            "id": path.name,
            "prompt": config.prompt,
            "parent": parent.id if parent else None,
            "lineage": lineage,
            "status": "created",
            "step": 0,
            "steps": config.steps,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": __version__,
            **facts,
        }
        checkpoint.write_json(path / "run.json", record)
    except OSError as error:
        raise RunError(f"Cannot create a run in {folder}: {error.strerror or error}. Name another folder with --runs.") from error
    return Run(path)


def list_runs(folder: Path) -> list[Run]:
    """All readable runs, oldest first."""
    found = []
    for path in folder.glob("*/run.json") if folder.is_dir() else []:
        run = Run(path.parent)
        try:
            found.append((run.record["created"], run.id, run))
        except RunError:
            continue
    return [run for _, _, run in sorted(found, key=lambda item: item[:2])]


def find_run(name: "str | Path | Run", folder: Path) -> Run:
    """A run by id, unique beginning of an id, or path.

    Raises:
        RunError: None or several; names what is there.
    """
    if isinstance(name, Run):
        return name
    for path in (Path(name), folder / name):
        if (path / "run.json").is_file():
            run = Run(path.resolve())
            run.record  # noqa: B018  (raises if it cannot be read)
            return run
    matches = [run for run in list_runs(folder) if run.id.startswith(str(name))]
    if len(matches) == 1:
        return matches[0]
    there = ", ".join(run.id for run in (matches or list_runs(folder))[-8:]) or "none yet"
    problem = "matches several runs" if matches else f"is not a run in {folder}"
    raise RunError(f"{str(name)!r} {problem}. There: {there}.")
