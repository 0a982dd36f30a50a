"""One bit is flipped in any file of a run. A checkpoint and config.json must be refused by name or
read as before; run.json and metrics.jsonl must be read or refused, never raise anything else, and
never keep the other runs from being listed."""

import json
import random
from pathlib import Path

import torch

from dreamsa import checkpoint
from dreamsa.checkpoint import CheckpointError
from dreamsa.runs import Run, RunError, list_runs
from prove.common import Result, generate, use_tiny_model

COUNT, QUICK = 2000, 150


def _same(one: checkpoint.Checkpoint, other: checkpoint.Checkpoint) -> bool:
    return one.state == other.state and all(
        torch.equal(value, other.tensors[group][name])
        for group, tensors in one.tensors.items()
        for name, value in tensors.items()
    )


def _problem(run: Run, path: Path, good: tuple) -> str | None:
    try:
        if path.parent != run.path:
            same = _same(checkpoint.load(path.parent), good[0])
        elif path.name == "config.json":
            same = run.config == good[1]
        elif path.name == "metrics.jsonl":
            same = isinstance(run.metrics(), list)
        else:
            same = isinstance(run.record, dict) and isinstance(run.status, str)
    except (CheckpointError, RunError) as error:
        named = path.name in str(error) or path.name in ("MANIFEST.json", "run.json")
        return None if named else f"{path.name}: the error names another file: {error}"
    except Exception as error:
        return f"{path.name}: {type(error).__name__}: {error}"
    return None if same else f"{path.name}: another content was read in silence"


def prove(folder: Path, count: int) -> Result:
    use_tiny_model()
    for _ in range(2):
        generate(folder / "runs", 12)
    run, other = list_runs(folder / "runs")
    newest = run.latest_checkpoint
    good = checkpoint.load(newest), run.config
    files = [*sorted(newest.iterdir())]
    files += [run.path / name for name in ("run.json", "config.json", "metrics.jsonl")]
    rng, failures, tried = random.Random(0), [], 0
    for path in files:
        content = path.read_bytes()
        for _ in range(-(-count // len(files))):
            bad, at = bytearray(content), rng.randrange(8 * len(content))
            bad[at // 8] ^= 1 << at % 8
            path.write_bytes(bad)
            tried += 1
            problem = _problem(run, path, good)
            if problem is None and other.id not in [one.id for one in list_runs(run.path.parent)]:
                problem = f"{path.name}: hides another run"
            if problem:
                failures.append(f"bit {at} of {problem}")
        path.write_bytes(content)
    assert json.loads((run.path / "run.json").read_text())["id"] == run.id
    return Result(tried, failures, {"files": len(files)})
