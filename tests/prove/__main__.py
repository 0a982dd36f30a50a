"""Run every proof that has no result yet, and write docs/reliability.md from the results.

python -m prove [--quick] [--out FOLDER] [NAME ...]
"""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REPO = Path(__file__).resolve().parents[2]
PROOFS = ("bans", "pickles", "syscalls", "flips", "structures", "steps", "disks", "signalled",
          "traversal", "clients", "soak", "kills")  # fmt: skip
MINUTES = 15
"""Of one proof, before it counts as failed."""


def run_here(name: str, quick: bool, path: Path) -> None:
    """Run one proof in this process and write its result."""
    proof = importlib.import_module(f"prove.{name}")
    count, started = proof.QUICK if quick else proof.COUNT, time.monotonic()
    with TemporaryDirectory(prefix="prove-") as folder:
        result = proof.prove(Path(folder), count)
    facts = {
        **result._asdict(),
        "facts": dict(result.facts),
        "count": count,
        "seconds": round(time.monotonic() - started),
    }
    path.write_text(json.dumps(facts | {"what": " ".join((proof.__doc__ or "").split())}, indent=1))


def run_apart(name: str, quick: bool, path: Path) -> dict[str, Any]:
    """Run one proof in a process of its own; one that dies or hangs has failed."""
    command = [sys.executable, "-m", "prove", "--here", str(path), name]
    try:
        done = subprocess.run(
            command + (["--quick"] if quick else []),
            timeout=60 * MINUTES, text=True, capture_output=True,
        )  # fmt: skip
        problem = f"exit {done.returncode}: {done.stderr[-500:]}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"not done after {MINUTES} minutes"
    if not path.exists():
        return {"tried": 0, "failures": [problem], "facts": {}, "seconds": 0, "what": name}
    return json.loads(path.read_text())


def report(results: dict[str, dict[str, Any]], quick: bool) -> str:
    """docs/reliability.md."""
    import platform

    import torch

    lines = [
        "# What was tried",
        "",
        "Written by `make prove`" + (" --quick, a short form." if quick else ".")
        + f" {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {sum(r['seconds'] for r in results.values()) // 60} minutes.",
        "",
        "| proof | tried | failed | seconds |",
        "|---|---:|---:|---:|",
    ]  # fmt: skip
    for name, one in results.items():
        lines.append(f"| {name} | {one['tried']} | {len(one['failures'])} | {one['seconds']} |")
    for name, one in results.items():
        facts = "; ".join(f"{key}: {value}" for key, value in one["facts"].items())
        lines += ["", f"## {name}", "", one["what"], *(["", facts] if facts else [])]
        lines += ["", *(f"- {failure}" for failure in one["failures"][:20])] * bool(one["failures"])
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    quick = "--quick" in arguments
    arguments = [argument for argument in arguments if argument != "--quick"]
    if "--here" in arguments:
        _, path, name = arguments
        run_here(name, quick, Path(path))
        return 0
    out = REPO / "runs" / ("prove-quick" if quick else "prove")
    if "--out" in arguments:
        at = arguments.index("--out")
        out = Path(arguments[at + 1])
        del arguments[at : at + 2]
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in arguments or PROOFS:
        path = out / f"{name}.json"
        known = json.loads(path.read_text()) if path.exists() else None
        if known is None or known["failures"]:  # a failed one is tried again
            path.unlink(missing_ok=True)
            print(f"{name} ...", flush=True)
            known = run_apart(name, quick, path)
        results[name] = known
        print(f"{name}: {known['tried']} tried, {len(known['failures'])} failed", flush=True)
        for failure in known["failures"][:5]:
            print(f"    {failure}"[:300], flush=True)
    target = out / "reliability.md" if quick or arguments else REPO / "docs" / "reliability.md"
    target.write_text(report(results, quick))
    print(target)
    return int(any(one["failures"] for one in results.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
