"""A run on disk: its folder, record, status and lock, its parent and its children.

A run's folder and configuration are written once; only its record, metrics and newest files change.
"""

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from filelock import FileLock, Timeout
from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from dreamsa import checkpoint
from dreamsa.config import RunConfig, from_json, to_json
from dreamsa.files import (
    FILE_MODE,
    is_alive,
    read_plain,
    remove_unfinished,
    write_atomic,
    write_json,
)
from dreamsa.settings import first_problem
from dreamsa.text import printable
from dreamsa.version import __version__

SCHEMA = 3
READABLE_SCHEMAS = (1, 2, 3)
"""Schema 1 named the escape of an edit; `config.from_json` translates it."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
"""Names that the user may give a run."""
RUNS_VARIABLE = "DREAMSA_RUNS"
DEFAULT_FOLDER = "runs"


class RunError(ValueError):
    """A run is missing, damaged, unfinished, in use, or of another schema."""


class Ancestor(TypedDict):
    id: str
    prompt: str


RunStatus = Literal["created", "running", "stopped", "failed", "finished"]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


Number = Annotated[float, Field(allow_inf_nan=False)] | None


@with_config(extra="allow")
class Metrics(TypedDict):
    """What readers use of a line of metrics.jsonl; None is a number that was not finite."""

    step: Count
    seconds: NotRequired[Number]
    grad_norm: NotRequired[Number]
    grad_dot_latents: NotRequired[Number]
    phase: NotRequired[str]


class Record(TypedDict):
    """Required entries of run.json; there are more."""

    schema: int
    id: str
    prompt: str
    parent: str | None
    lineage: list[Ancestor]
    status: RunStatus
    step: Count
    steps: Count
    created: str
    version: str
    device: str
    backend: str


@dataclass(frozen=True, eq=False)
class Run:
    """One run's folder. Its state is read from disk at every access, so that changes by other
    processes show."""

    path: Path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def record(self) -> dict[str, Any]:
        """run.json.

        Raises:
            RunError: Unreadable, of another schema, an entry is missing or of the wrong type, or
                the folder holds symbolic links.
        """
        path = self.path / "run.json"
        try:
            self._refuse_links()
            record = json.loads(read_plain(path))
        except RunError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error
        schema = record.get("schema") if isinstance(record, dict) else None
        if isinstance(schema, int) and schema not in READABLE_SCHEMAS:
            raise RunError(
                f"Run {self.id} has schema {schema}; this version reads {READABLE_SCHEMAS[0]} "
                f"to {SCHEMA}. "
                f"Open it with the dreamsa that wrote it ({record.get('version')})."
            )
        try:
            _record_type().validate_python(record, strict=True)
        except ValidationError as error:
            raise RunError(f"{path} is damaged: {first_problem(error)}.") from error
        return record

    def _refuse_links(self) -> None:
        """Raise RunError if the folder holds symbolic links, which could lead anywhere."""
        links = sorted(entry.name for entry in os.scandir(self.path) if entry.is_symlink())
        if links:
            raise RunError(
                f"Run {self.id} holds symbolic links ({', '.join(links)}), which are not followed. "
                f"Put files and folders in their place in {self.path}."
            )

    @property
    def config(self) -> RunConfig:
        """config.json.

        Raises:
            RunError: Unreadable, or not the file that the run was created with.
        """
        path, known = self.path / "config.json", self.record.get("config_sha256")
        try:
            content = read_plain(path)
            config = from_json(json.loads(content))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"Cannot read the configuration {path}: {error}") from error
        if known not in (None, hashlib.sha256(content).hexdigest()):
            raise RunError(
                f"{path} is not the file that run {self.id} was created with: its SHA-256 differs. "
                f"Restore it, or start a new run with --config {shlex.quote(str(path))}."
            )
        return config

    @property
    def prompt(self) -> str:
        return self.record["prompt"]

    @property
    def status(self) -> str:
        """created, running, stopped, failed or finished; a run whose process has died is stopped.

        The lock is not touched, so that a reader never keeps a writer out. A process on another
        machine cannot be checked and counts as running.
        """
        record = self.record
        if record["status"] == "running" and not _is_alive(record.get("process")):
            return "stopped"
        return record["status"]

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def newest_preview(self) -> Path | None:
        return max((self.path / "previews").glob("[0-9]*.png"), default=None)

    @property
    def latest_checkpoint(self) -> Path:
        """The newest complete checkpoint.

        Raises:
            RunError: There is none, or the last one of a finished run is damaged.
        """
        found = checkpoint.latest(self.checkpoints)
        if found is None or (self.status == "finished" and int(found.name) < self.record["steps"]):
            problem = "complete checkpoint" if found is None else "complete last checkpoint"
            raise RunError(
                f"Run {self.id} has no {problem}. Train what is missing: {self.command('resume')}"
            )
        return found

    def require_finished(self) -> None:
        """Raise RunError, with the command that finishes the run, unless it is finished."""
        status = self.status
        if status != "finished":
            raise RunError(
                f"Run {self.id} is {status}, not finished. Finish it first: "
                f"{self.command('resume')}"
            )

    def require_scene(self) -> None:
        """Warn unless the run is finished.

        Raises:
            RunError: It has no checkpoint yet.
        """
        status, record = self.status, self.record
        if status == "finished":
            return
        reason = f" ({record['error']})" if status == "failed" and record.get("error") else ""
        if checkpoint.latest(self.checkpoints) is None:
            raise RunError(
                f"Run {self.id} is {status}{reason} and has no checkpoint yet. Train it first: "
                f"{self.command('resume')}"
            )
        warnings.warn(
            f"Run {self.id} is {status}{reason}, not finished; its newest checkpoint, of step "
            f"{record['step']} of {record['steps']}, is used. To finish it: "
            f"{self.command('resume')}",
            stacklevel=3,
        )

    def command(self, verb: str, *arguments: str) -> str:
        """A shell command about this run, quoted, with --runs where its folder is not the default
        one."""
        return shell_command(self.path.parent, verb, self.id, *arguments)

    def update(self, **changes: Any) -> None:
        """Change entries of run.json, atomically."""
        write_json(self.path / "run.json", {**self.record, **changes})

    def begin(self, **changes: Any) -> None:
        """Mark the run as running in this process, and remove what dead writers left unfinished."""
        remove_unfinished(self.path)
        self.update(status="running", process=_this_process(), **changes)

    def log(self, text: str) -> None:
        """Append a line to log.txt. A log that cannot be written stops nothing."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError), (self.path / "log.txt").open("a", errors="replace") as file:
            file.write(f"{now} {text}\n")

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary per logged step; lines that are damaged, and a file that cannot be read,
        are left out, so that they never block a run."""
        rows = []
        with suppress(OSError):
            for line in read_plain(self.path / "metrics.jsonl", 2**28).split(b"\n"):
                with suppress(ValueError):
                    rows.append(_metrics_type().validate_json(line, strict=True))
        return rows

    def cut_metrics(self, step: int) -> None:
        """Drop the logged steps from `step` on, which will run again, and an incomplete last
        line."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] < step]
        write_atomic(self.path / "metrics.jsonl", "".join(kept).encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing.

        Raises:
            RunError: Another process holds it, the folder is read-only or holds symbolic links.
        """
        lock = FileLock(self.path / ".lock", mode=FILE_MODE)
        try:
            self._refuse_links()
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"Run {self.id} is in use by another process. Wait for it, or stop it with "
                "Ctrl-C there."
            ) from error
        except OSError as error:
            raise RunError(
                f"Run {self.id} cannot be written: {error.strerror or error} ({self.path}). "
                "Make the folder writable or copy it elsewhere."
            ) from error
        try:
            yield
        finally:
            lock.release()


def runs_folder(folder: Path | str | None = None) -> Path:
    """The folder that holds runs: the argument, $DREAMSA_RUNS, or ./runs."""
    return Path(folder or os.environ.get(RUNS_VARIABLE) or DEFAULT_FOLDER).expanduser()


def shell_command(folder: Path, *words: str) -> str:
    """A shell command of dreamsa, quoted, with --runs where `folder` is not the default one."""
    default = folder.resolve() == runs_folder().resolve()
    where = [] if default else ["--runs", str(folder)]
    return printable(shlex.join(["dreamsa", *words, *where]))


def slug(prompt: str) -> str:
    """The readable part of a folder's name: "a-purple-rabbit"."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "run"


def new_run(
    config: RunConfig,
    parent: Run | None,
    folder: Path,
    facts: dict[str, Any],
    name: str | None = None,
) -> Run:
    """Create a run's folder with its record and configuration.

    Args:
        facts: Further entries of the record: device, backend, versions.
        name: The run's id; by default made of its prompt and a random ending.

    Raises:
        RunError: The folder cannot be written, or the name is taken or not one for a folder.
    """
    if name is not None and not NAME.fullmatch(name):
        raise RunError(
            f"{name!r} cannot name a run: use letters, digits, '.', '_' and '-', at most 100, and "
            "begin with a letter or digit."
        )
    lineage = (
        [*parent.record["lineage"], {"id": parent.id, "prompt": parent.prompt}] if parent else []
    )
    path = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = _new_folder(folder, config.prompt, name)
        write_json(path / "config.json", to_json(config))
        digest = hashlib.sha256((path / "config.json").read_bytes()).hexdigest()
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
            "config_sha256": digest,
            **facts,
        }
        write_json(path / "run.json", record)
    except OSError as error:
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
        raise RunError(
            f"Cannot create a run in {folder}: {error.strerror or error}. Name another folder "
            "with --runs."
        ) from error
    return Run(path)


def _new_folder(folder: Path, prompt: str, name: str | None) -> Path:
    while True:
        path = folder / (name or f"{slug(prompt)}-{secrets.token_hex(2)}")
        with suppress(FileExistsError):
            path.mkdir()
            return path
        if name:
            raise RunError(f"There is already a run or file named {name} in {folder}.")


def list_runs(folder: Path) -> list[Run]:
    """All readable runs, oldest first."""
    found = []
    for run in _folders(folder):
        with suppress(RunError):
            found.append((run.record["created"], run.id, run))
    return [run for _, _, run in sorted(found, key=lambda item: item[:2])]


def damaged_runs(folder: Path) -> list[tuple[Path, str]]:
    """Records that cannot be read: (path of run.json, what is wrong)."""
    found = []
    for run in _folders(folder):
        try:
            run.record  # noqa: B018
        except RunError as error:
            found.append((run.path / "run.json", str(error)))
    return sorted(found)


def _folders(folder: Path) -> list[Run]:
    return [Run(path.parent) for path in folder.glob("*/run.json")] if folder.is_dir() else []


def find_run(name: "str | Path | Run", folder: Path) -> Run:
    """A run by its id, a unique beginning of it, its path, or the id that it had before its folder
    was renamed.

    Raises:
        RunError: None or several match; names those that exist.
    """
    if isinstance(name, Run):
        return name
    for path in (Path(name), folder / name):
        if (path / "run.json").is_file():
            run = Run(path.resolve())
            run.record  # noqa: B018  (raises if it cannot be read)
            return run
    known = list_runs(folder)
    matches = [run for run in known if run.record["id"] == str(name)]
    matches = matches or [run for run in known if run.id.startswith(str(name))]
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(run.id for run in (matches or known)[-8:]) or "none yet"
    problem = "matches several runs" if matches else f"is not a run in {folder}"
    raise RunError(f"{str(name)!r} {problem}. Runs: {names}.")


def parent_of(run: Run, folder: Path) -> Run | None:
    """The run that an edit was made from, beside it or in `folder`; None for a generation, or if it
    is gone or damaged."""
    edit = run.config.edit
    if edit is None:
        return None
    for home in (run.path.parent, folder):
        named = Run((home / edit.parent).resolve())
        renamed = (other for other in list_runs(home) if other.record["id"] == edit.parent)
        found = named if (named.path / "run.json").is_file() else next(renamed, None)
        if found is not None and checkpoint.latest(found.checkpoints) is not None:
            return found
    return None


class Branch(NamedTuple):
    """One line of the tree of runs."""

    run: Run
    depth: int
    """Number of ancestors that are in the tree."""


def branches(runs: Iterable[Run]) -> list[Branch]:
    """All runs, newest family first, each edit below its parent."""
    records = {run: run.record for run in runs}
    by_id = {record["id"]: run for run, record in records.items()} | {
        run.id: run for run in records
    }
    children: dict[Run | None, list[Run]] = {}
    for run, record in records.items():
        parent = by_id.get(record["parent"])
        children.setdefault(None if parent == run else parent, []).append(run)
    found: list[Branch] = []
    waiting = [(run, 0) for run in children.get(None, [])]
    while waiting:  # iterative: a record edited by hand may form a loop, which is never entered
        run, depth = waiting.pop()
        found.append(Branch(run, depth))
        waiting += [(child, depth + 1) for child in reversed(children.get(run, []))]
    return found


@lru_cache
def _record_type() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


@lru_cache
def _metrics_type() -> TypeAdapter[Metrics]:
    return TypeAdapter(Metrics)


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "started": _start_time(pid)}


def _start_time(pid: int) -> str | None:
    """When a process started, which tells it from a later one of the same number; None where /proc
    is missing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_alive(process: Any) -> bool:
    """Whether the process that a record names still runs; on another machine it is assumed to."""
    try:
        pid, host, started = process["pid"], process["host"], process["started"]
        if host != socket.gethostname():
            return True
        if not is_alive(pid):
            return False
    except (TypeError, KeyError):
        return False
    return started is None or _start_time(pid) in (started, None)
