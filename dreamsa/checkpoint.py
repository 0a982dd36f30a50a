"""Checkpoints that cannot lie: safetensors and JSON, written atomically, each with a SHA-256 manifest. No pickle.

A checkpoint is a folder of `NAME.safetensors` files (one per group of tensors), `state.json` and `MANIFEST.json`. It is written
under a temporary name, flushed to disk and renamed, so that under its final name it is always complete; a kill at any
moment leaves the checkpoint before it. safetensors itself does not notice a flipped bit; the manifest does.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
MANIFEST = "MANIFEST.json"
TEMPORARY = ".tmp-"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another format."""


class Checkpoint(NamedTuple):
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that under its name there is always either the old content or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """JSON, atomically; NaN and infinity are refused, because JSON has none."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def save(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write a checkpoint folder, all or nothing.

    Raises:
        FileExistsError: `folder` is there already; nothing is ever overwritten.
        OSError: The disk is full or read-only; nothing is left behind.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; a checkpoint is never overwritten.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
    try:
        for name, group in tensors.items():
            plain = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in group.items()}
            save_file(plain, part / f"{name}.safetensors")
        (part / "state.json").write_text(json.dumps(state, indent=2, allow_nan=False) + "\n")
        files = sorted(path for path in part.iterdir())
        manifest = {
            "format": FORMAT,
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files},
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for path in (*files, part / MANIFEST):
            os.chmod(path, 0o644)
            _sync(path)
        os.chmod(part, 0o755)
        _sync(part)
        os.rename(part, folder)
        _sync(folder.parent)
    except SafetensorError as error:  # how safetensors says that the disk is full
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(f"{folder} cannot be written: {error}") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def load(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint after checking every byte of it.

    Raises:
        CheckpointError: Which file is missing or damaged, or which format was found.
    """
    manifest = _read_manifest(folder)
    for name, facts in manifest.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing. Use an earlier checkpoint.")
        if path.stat().st_size != facts["bytes"] or _sha256(path) != facts["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}. Use an earlier checkpoint.")
    if "state.json" not in manifest:
        raise CheckpointError(f"{folder} is incomplete: its manifest names no state.json. Use an earlier checkpoint.")
    try:
        state = json.loads((folder / "state.json").read_text())
        tensors = {
            name.removesuffix(".safetensors"): load_file(folder / name, device=str(device))
            for name in manifest
            if name.endswith(".safetensors")
        }
    except (ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}. Use an earlier checkpoint.") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder}/state.json should hold an object, found {type(state).__name__}.")
    return Checkpoint(tensors, state)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that is whole (names sort by step); damaged ones are passed over with a warning."""
    for path in sorted(folder.glob("[0-9]*"), reverse=True) if folder.is_dir() else []:
        try:
            for name, facts in _read_manifest(path).items():
                if not (path / name).is_file() or _sha256(path / name) != facts["sha256"]:
                    raise CheckpointError(f"{path / name} is damaged or missing.")
            return path
        except CheckpointError as error:
            warnings.warn(f"{error} Going back to the checkpoint before it.", stacklevel=2)
    return None


def prune(folder: Path, keep: int = 2) -> None:
    """Remove all but the newest `keep` checkpoints, and what a killed process left half-written."""
    for path in sorted(folder.glob("[0-9]*"))[:-keep]:
        shutil.rmtree(path)
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and JSON."""
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in packed["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{index}.{name}"] = value
    return tensors, {"scalars": scalars, "groups": packed["param_groups"]}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Undo `pack_optimizer`, into an optimizer over the same parameters."""
    entries: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *state["scalars"].items()):
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": state["groups"]})


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{folder} has checkpoint format {manifest['format']!r}, this version reads {FORMAT}. "
                "Open it with the version of dreamsa that wrote it."
            )
        files = manifest["files"]
        if not all(
            Path(name).name == name and isinstance(facts["bytes"], int) and isinstance(facts["sha256"], str)
            for name, facts in files.items()
        ):
            raise CheckpointError(f"{folder / MANIFEST} names files outside its folder or lacks their size and hash.")
        return files
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {error}.") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
