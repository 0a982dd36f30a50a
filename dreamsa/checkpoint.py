"""Checkpoints: a folder of safetensors and JSON with a SHA-256 manifest, written atomically.

A killed writer leaves the previous checkpoint complete. safetensors itself does not detect a
flipped bit; the manifest does.
"""

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamsa.files import FOLDER_MODE, own_prefix, read_plain, remove_unfinished, sync

FORMAT = 1
MANIFEST = "MANIFEST.json"
NAME = "[0-9]" * 8
"""Glob pattern of a checkpoint's folder: its step in eight digits."""


EARLIER = "Use an earlier checkpoint."
T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another format."""


class Checkpoint(NamedTuple):
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


Groups = Mapping[str, Mapping[str, Tensor]]
"""File name without its ending -> name -> tensor."""


def save(folder: Path, tensors: Groups, state: Mapping[str, Any]) -> None:
    """Write a checkpoint folder atomically.

    Raises:
        FileExistsError: `folder` exists; a checkpoint is never overwritten.
        OSError: The disk is full or read-only; nothing is left behind.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; a checkpoint is never overwritten.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=own_prefix(), dir=folder.parent))
    try:
        for name, group in tensors.items():
            plain = {key: v.detach().to("cpu", copy=True).contiguous() for key, v in group.items()}
            save_file(plain, part / f"{name}.safetensors")
        (part / "state.json").write_text(json.dumps(state, indent=2, allow_nan=False) + "\n")
        files = sorted(part.iterdir())
        facts = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
        manifest = json.dumps({"format": FORMAT, "files": facts}, indent=2)
        (part / MANIFEST).write_text(manifest + "\n")
        for path in (*files, part / MANIFEST):
            sync(path)
        part.chmod(FOLDER_MODE)
        sync(part)
        part.rename(folder)
        sync(folder.parent)
    except SafetensorError as error:  # how safetensors reports a full disk
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(f"{folder} cannot be written: {error}") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def save_step(
    folder: Path, step: int, tensors: Groups, state: Mapping[str, Any], keep: int | None = 2
) -> Path:
    """Write `folder/00000500` for step 500, unless it exists and is complete, and prune.

    A damaged checkpoint of the same step is moved aside and replaced.

    Args:
        keep: Number of complete checkpoints to keep; None keeps all.

    Raises:
        OSError: The disk is full or read-only, or returns other bytes than were written.
    """
    target = folder / f"{step:08d}"
    if target.exists() and damage(target) is not None:
        names = (target.with_name(f"damaged-{target.name}-{i}") for i in count())
        target.rename(next(path for path in names if not path.exists()))
    if not target.exists():
        save(target, tensors, state)
        if problem := damage(target):
            raise OSError(f"{problem} It has just been written: check the disk.")
    if keep is None:
        remove_unfinished(folder)
    else:
        prune(folder, keep)
    return target


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint after checking every byte of it.

    Raises:
        CheckpointError: Which file is missing or damaged, or which format was found.
    """
    manifest = _read_manifest(folder)
    _verify(folder, manifest)
    if "state.json" not in manifest:
        raise CheckpointError(f"{folder} is incomplete: state.json is missing. {EARLIER}")
    try:
        state = json.loads(read_plain(folder / "state.json"))
        tensors = {
            name.removesuffix(".safetensors"): load_file(folder / name)
            for name in manifest
            if name.endswith(".safetensors")
        }
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}. {EARLIER}") from error
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise CheckpointError(f"{folder}/state.json must hold an object, found {kind}.")
    return Checkpoint(tensors, state)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as a sentence; None if every file has its size and hash."""
    try:
        _verify(folder, _read_manifest(folder))
    except CheckpointError as error:
        return str(error)
    return None


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`; damaged ones are skipped with a warning."""

    def verified(path: Path) -> Path:
        _verify(path, _read_manifest(path))
        return path

    return newest(folder, verified)


def newest(folder: Path, use: Callable[[Path], T]) -> T | None:
    """What `use` returns for the newest checkpoint that it does not refuse.

    Checkpoints for which it raises CheckpointError are skipped with a warning; those that a writer
    removes meanwhile, silently.
    """
    tried: set[Path] = set()
    while waiting := [path for path in _newest_first(folder) if path not in tried]:
        path = waiting[0]
        tried.add(path)
        try:
            return use(path)
        except CheckpointError as error:
            if path.exists():
                warnings.warn(f"{error} Using the checkpoint before it.", stacklevel=3)
    return None


def prune(folder: Path, keep: int = 2) -> None:
    """Remove all but the newest `keep` complete checkpoints, and unfinished ones.

    Damaged checkpoints do not count, so that `keep` usable ones remain.
    """
    complete = 0
    for path in _newest_first(folder):
        if complete >= keep:
            shutil.rmtree(path)
        elif damage(path) is None:
            complete += 1
    remove_unfinished(folder)


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob(NAME) if not p.is_symlink()), reverse=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and JSON."""
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in packed["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{index}.{name}"] = value
    return tensors, {"scalars": scalars, "groups": packed["param_groups"]}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Undo `pack_optimizer`, into an optimizer over the same parameters.

    Raises:
        CheckpointError: The state is of another optimizer, or not finite; nothing is changed.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    try:
        groups = state["groups"]
        for key, value in (*tensors.items(), *state["scalars"].items()):
            index, _, name = key.partition(".")
            shape = parameters[int(index)].shape
            if isinstance(value, Tensor) and not (
                value.shape in (shape, ()) and bool(value.isfinite().all())
            ):
                raise ValueError(f"{key} has shape {tuple(value.shape)}, or is not finite")
            entries.setdefault(int(index), {})[name] = value
        wanted = optimizer.state_dict()["param_groups"]
        if [_outline(group) for group in groups] != [_outline(group) for group in wanted]:
            raise ValueError("it has other parameter groups")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"The optimizer's state does not fit: {reason}. {EARLIER}") from error
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _outline(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """A parameter group without its numbers."""
    kinds = {name: str if isinstance(value, str) else None for name, value in group.items()}
    return kinds, group["params"], group.get("name")


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads(read_plain(folder / MANIFEST))
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{folder} has checkpoint format {manifest['format']!r}, this version reads "
                f"{FORMAT}. Open it with the version of dreamsa that wrote it."
            )
        files = manifest["files"]
        if not all(
            Path(name).name == name
            and isinstance(facts["bytes"], int)
            and isinstance(facts["sha256"], str)
            for name, facts in files.items()
        ):
            raise CheckpointError(
                f"{folder / MANIFEST} names files outside its folder or lacks their size and hash."
            )
        return files
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}.") from error
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {error}.") from error


def _verify(folder: Path, manifest: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare every file with the manifest."""
    for name, facts in manifest.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing. {EARLIER}")
        try:
            same = path.stat().st_size == facts["bytes"] and _sha256(path) == facts["sha256"]
        except OSError as error:  # removed meanwhile, or unreadable
            raise CheckpointError(f"{path} cannot be read: {error}. {EARLIER}") from error
        if not same:
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}. {EARLIER}"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
