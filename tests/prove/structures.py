"""Every JSON file of a run is replaced by a mutation of itself: entries missing, of other types,
huge, negative, NaN, nested 10,000 deep, doubled, with `../` names, of unknown versions, with a
matching manifest, so that the hash does not help. Reading may fail with one sentence only."""

import copy
import hashlib
import json
import random
import resource
import time
import warnings
from pathlib import Path

from dreamsa import checkpoint
from dreamsa.checkpoint import MANIFEST
from dreamsa.device import resolve_device
from dreamsa.runs import Run, branches, damaged_runs, list_runs
from dreamsa.train import new_training
from prove.common import Result, generate, use_tiny_model

COUNT, QUICK = 5000, 120
VALUES = (None, True, -1, 0, 1.5, 10**18, -(10**30), float("nan"), float("inf"), "", "x", "../x",
          "/etc/passwd", "a" * 10_000, "\x00\x1b[2J\n", [], {}, [[]], [None], {"a": 1})  # fmt: skip
TEXTS = ("", "null", "[]", "3", '"x"', "[" * 10_000, '{"a":' * 10_000, "{", "\ufeff{}", "NaN")


def _places(tree: object, path: tuple = ()) -> list[tuple]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)  # pyright: ignore[reportArgumentType]
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += _places(value, (*path, key))
    return found


def mutated(tree: dict, rng: random.Random) -> str:
    """The text of a mutated copy."""
    if rng.random() < 0.05:
        return rng.choice(TEXTS)
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 3))):
        places = _places(tree)
        if not places:
            break
        *path, last = rng.choice(places)
        node: object = tree
        for key in path:
            node = node[key]  # pyright: ignore[reportIndexIssue]
        if rng.random() < 0.4:
            del node[last]  # pyright: ignore[reportIndexIssue]
        else:
            node[last] = rng.choice(VALUES)  # pyright: ignore[reportIndexIssue]
    text = json.dumps(tree)
    return text[:-1] + ', "step": 1, "step": 2}' if rng.random() < 0.05 else text


def _read(run: Run, name: str) -> None:
    if name in ("run.json", "config.json", "metrics.jsonl"):
        branches(list_runs(run.path.parent))
        damaged_runs(run.path.parent)
        run.metrics()
        run.status, run.config  # noqa: B018
    else:
        new_training(run.config, resolve_device("cpu")).load(run.latest_checkpoint)


def prove(folder: Path, count: int) -> Result:
    use_tiny_model()
    generate(folder / "runs", 12)
    run = list_runs(folder / "runs")[0]
    run.update(config_sha256=None)
    newest = run.latest_checkpoint
    files = [run.path / n for n in ("run.json", "config.json", "metrics.jsonl")]
    files += [newest / MANIFEST, newest / "state.json"]
    rng, failures, slowest = random.Random(0), [], 0.0
    for name in ("run.json", "state.json"):  # load what is loaded once
        _read(run, name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest, tried = (newest / MANIFEST).read_text(), 0
    for path in files:
        good = path.read_text()
        tree = json.loads(good if path.name != "metrics.jsonl" else good.splitlines()[0])
        for _ in range(-(-count // len(files))):
            text = mutated(tree, rng)
            path.write_text(text)
            if path.name == "state.json":
                facts = json.loads(manifest)
                digest = hashlib.sha256(text.encode()).hexdigest()
                facts["files"][path.name] = {"bytes": len(text.encode()), "sha256": digest}
                (newest / MANIFEST).write_text(json.dumps(facts))
            tried, started = tried + 1, time.monotonic()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    _read(run, path.name)
            except (ValueError, OSError) as error:
                if "\n" in str(error)[:300]:
                    failures.append(f"{path.name}: several lines: {error}")
            except Exception as error:
                failures.append(f"{path.name}: {type(error).__name__}: {error}: {text[:200]}")
            slowest = max(slowest, time.monotonic() - started)
        path.write_text(good)
        (newest / MANIFEST).write_text(manifest)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if grown > 100:
        failures.append(f"memory grew by {grown:.0f} MB")
    checkpoint.load(newest)
    return Result(tried, failures, {"slowest, s": round(slowest, 2), "growth, MB": round(grown)})
