"""Tasks in parallel processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_work
import torch
from tiny_work import Budget

from dreamsa.pool import _ready, each

HERE = str(Path(__file__).parent)


def test_an_error_in_one_process_stops_the_others_and_is_raised():
    results = []
    with pytest.raises(ValueError, match="zero was given"):
        results.extend(each(tiny_work.square, [99, 0, 99, 5], 2, lambda: False))
    assert results == []


def test_no_task_starts_after_a_stop():
    assert list(each(tiny_work.square, [3, 5], 1, Budget(99))) == [9, 25]
    assert list(each(tiny_work.square, [3, 5], 1, Budget(1))) == []


def test_a_task_is_ready_when_the_one_it_is_after_has_ended():
    after = {"b": "a", "d": "c"}.get
    assert _ready(["a", "b", "d", "e"], ["c"], after) == ["a", "e"]
    assert _ready(["b", "d"], ["c"], after) == ["b"]


def test_threads_are_set_for_the_tasks_only():
    before = torch.get_num_threads()
    found = list(each(lambda task, stop: torch.get_num_threads(), [0], 1, threads=before + 1))
    assert found == [before + 1] and torch.get_num_threads() == before


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("victim", ["parent", pytest.param("worker", marks=pytest.mark.slow)])
def test_workers_save_and_exit_when_their_parent_or_one_of_them_dies(tmp_path, victim):
    script = tmp_path / "script.py"
    script.write_text(
        "from dreamsa.pool import each\nimport tiny_work\nif __name__ == '__main__':\n"
        f"    list(each(tiny_work.until_stopped, [{str(tmp_path)!r}] * 2, 2))\n"
    )
    path = os.pathsep.join([HERE, str(Path(HERE).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, script],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    pids = [int(found.stem) for found in tmp_path.glob("*.pid")]
    os.kill(process.pid if victim == "parent" else pids[0], signal.SIGKILL)
    saved = {f"{pid}.saved" for pid in (pids if victim == "parent" else pids[1:])}
    wait_until(lambda: {found.name for found in tmp_path.glob("*.saved")} == saved)
    _, error = process.communicate(timeout=60)
    if victim == "worker":
        assert process.returncode == 1 and "A worker process died" in error
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
