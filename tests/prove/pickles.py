"""Pickles that would leave a mark, under every name that a run or a model may hold, and archives
that inflate a thousandfold: none is opened."""

import io
import json
import pickle
import resource
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamsa import api, checkpoint
from dreamsa.assets import asset
from dreamsa.config import ModelConfig
from dreamsa.guidance.stable_diffusion import StableDiffusion
from dreamsa.runs import Run, list_runs
from prove.common import Result, generate, use_tiny_model

COUNT, QUICK = 1, 1
ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".npz", ".npy", ".safetensors", ".json", ".zip")


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


def _archive() -> bytes:
    """A zip of 1 MB that holds 1 GiB of zeros."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("x.npy", "w", force_zip64=True) as entry,
    ):
        for _ in range(1024):
            entry.write(bytes(2**20))
    return file.getvalue()


def _uses(path: Path, newest: Path, run: Run, model: Path, load: Any) -> list[Callable]:
    """What reads the file."""
    if run.path in path.parents:
        return [lambda: checkpoint.load(newest), lambda: api.show(run.path), lambda: run.config]
    source = str(model if model in path.parents else path)
    return [lambda: load.__func__(StableDiffusion, ModelConfig(source))]


def prove(folder: Path, count: int) -> Result:
    load = StableDiffusion.load
    use_tiny_model()
    generate(folder / "runs", 12)
    run, mark, failures, tried = list_runs(folder / "runs")[0], folder / "mark", [], 0
    pickled, archive = pickle.dumps(_Bomb(mark)), _archive()
    newest, model = run.latest_checkpoint, folder / "model"
    shutil.copytree(asset("toybox-sd"), model)
    places = [*newest.iterdir(), *(run.path / n for n in ("run.json", "config.json"))]
    places += [path for path in model.rglob("*") if path.is_file()]
    places += [folder / f"model{ending}" for ending in ENDINGS]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in places:
        good = path.read_bytes() if path.exists() else None
        for content in (pickled, archive):
            path.write_bytes(content)
            tried, started = tried + 1, time.monotonic()
            for use in _uses(path, newest, run, model, load):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        use()
                except (ValueError, OSError):
                    pass
                except Exception as error:
                    failures.append(f"{path.name}: {type(error).__name__}: {error}")
            if mark.exists():
                failures.append(f"{path.name}: a pickle was opened")
                mark.unlink()
            if time.monotonic() - started > 20:
                failures.append(f"{path.name}: took {time.monotonic() - started:.0f} s")
        path.write_bytes(good) if good is not None else path.unlink()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if grown > 800:
        failures.append(f"memory grew by {grown:.0f} MB")
    assert json.loads((run.path / "run.json").read_text())
    return Result(tried, failures, {"growth, MB": round(grown)})
