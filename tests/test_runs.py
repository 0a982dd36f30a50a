import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from tiny import tiny_config

from dreamsa import checkpoint, runs
from dreamsa.config import EditConfig
from dreamsa.runs import (
    Record,
    Run,
    RunError,
    branches,
    damaged_runs,
    find_run,
    list_runs,
    new_run,
    parent_of,
)

FACTS = {"device": "cpu", "backend": "numba"}


def make(folder, prompt="a rabbit", parent=None):
    config = replace(tiny_config(), prompt=prompt, edit=EditConfig(parent.id) if parent else None)
    return new_run(config, parent, folder, FACTS)


def checkpointed(run):
    checkpoint.save(run.checkpoints / "00000001", {}, {})
    return run


def without(record, key):
    return {name: value for name, value in record.items() if name != key}


DAMAGE = [
    *(
        (f"without {key}", lambda record, key=key: json.dumps(without(record, key)))
        for key in Record.__annotations__
    ),
    ("steps as text", lambda record: json.dumps({**record, "steps": "12"})),
    ("lineage of numbers", lambda record: json.dumps({**record, "lineage": [1]})),
    ("null prompt", lambda record: json.dumps({**record, "prompt": None})),
    ("a list", lambda record: "[]"),
    ("empty", lambda record: ""),
    ("half", lambda record: json.dumps(record)[:40]),
    ("deep", lambda record: "[" * 100_000),
    ("schema 99", lambda record: json.dumps({**record, "schema": 99})),
]


@pytest.mark.parametrize(
    "damage", [change for _, change in DAMAGE], ids=[name for name, _ in DAMAGE]
)
def test_a_damaged_record_is_listed_with_its_path_and_hides_no_other(tmp_path, damage):
    good, bad = make(tmp_path), make(tmp_path)
    path = bad.path / "run.json"
    path.write_text(damage(bad.record))
    assert list_runs(tmp_path) == [good]
    assert [branch.run for branch in branches(list_runs(tmp_path))] == [good]
    ((found, why),) = damaged_runs(tmp_path)
    assert found == path
    assert str(path) in why or bad.id in why
    with pytest.raises(RunError):
        find_run(bad.id, tmp_path)


def test_another_schema_names_the_version_that_wrote_it(tmp_path):
    run = make(tmp_path)
    (run.path / "run.json").write_text(json.dumps({**run.record, "schema": 99, "version": "9.9"}))
    with pytest.raises(
        RunError, match=r"schema 99; this version reads 1 to 3. Open it with the dreamsa .*9\.9"
    ):
        find_run(run.id, tmp_path)


def test_a_renamed_folder_is_one_identity(tmp_path):
    """What is listed works, and an edit still finds its parent."""
    parent = checkpointed(make(tmp_path))
    child = make(tmp_path, "a mug", parent)
    old, renamed = parent.id, tmp_path / "my rabbit"
    parent.path.rename(renamed)
    listed = [branch.run.id for branch in branches(list_runs(tmp_path))]
    assert listed == ["my rabbit", child.id]
    assert all(find_run(name, tmp_path).id == name for name in listed)
    assert find_run(old, tmp_path).id == "my rabbit"
    found = parent_of(child, tmp_path)
    assert found is not None
    assert found.path == renamed


def test_edits_stand_below_their_parent_whatever_the_clocks_say(tmp_path):
    parent = make(tmp_path)
    child = make(tmp_path, "a mug", parent)
    grandchild = make(tmp_path, "a car", child)
    parent.update(created="2099-01-01T00:00:00+00:00")
    assert [(b.run, b.depth) for b in branches(list_runs(tmp_path))] == [
        (parent, 0),
        (child, 1),
        (grandchild, 2),
    ]


def test_an_edit_whose_parent_is_gone_stands_by_itself(tmp_path):
    rabbit, gone = make(tmp_path), make(tmp_path, "a duck")
    purple = make(tmp_path, "a purple rabbit", rabbit)
    dark = make(tmp_path, "a dark rabbit", purple)
    orphan = make(tmp_path, "a red duck", gone)
    mug = make(tmp_path, "a mug")
    shutil.rmtree(gone.path)
    found = branches(list_runs(tmp_path))
    assert {b.run for b in found if b.depth == 0} == {rabbit, mug, orphan}
    start = found.index((rabbit, 0))
    assert found[start : start + 3] == [(rabbit, 0), (purple, 1), (dark, 2)]


def test_a_loop_of_parents_ends(tmp_path):
    one, two = make(tmp_path), make(tmp_path)
    one.update(parent=two.id)
    two.update(parent=one.id)
    own = make(tmp_path)
    own.update(parent=own.id)
    assert [b.run for b in branches(list_runs(tmp_path))] == [own]


def _poll(path, stop, counted):
    run = Run(path)
    while not stop.is_set():
        run.status  # noqa: B018
        counted.value += 1


def test_polling_the_status_refuses_nobody_the_lock(tmp_path):
    run = make(tmp_path)
    run.begin()
    context = multiprocessing.get_context("spawn")
    stop, counted = context.Event(), context.Value("i", 0)
    poller = context.Process(target=_poll, args=(run.path, stop, counted))
    poller.start()
    try:
        deadline = time.monotonic() + 60
        while not counted.value and time.monotonic() < deadline:
            time.sleep(0.05)
        for _ in range(300):
            with run.lock():
                pass
        assert counted.value > 0
    finally:
        stop.set()
        poller.join()


def test_a_run_whose_process_has_died_is_stopped(tmp_path):
    run = make(tmp_path)
    script = (
        "import sys; from pathlib import Path; from dreamsa.runs import Run; run = "
        "Run(Path(sys.argv[1]))\n"
        "run.begin(); print(run.status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "running"
    assert run.status == "stopped"
    run.begin()
    assert run.status == "running"
    process = run.record["process"]
    run.update(process={**process, "started": "1"})
    assert run.status == "stopped", "another process has got the number"
    run.update(process={**process, "host": "elsewhere", "pid": 2**22 + 1})
    assert run.status == "running", "a process of another machine cannot be checked"
    for odd in (
        None,
        3,
        {},
        {"pid": "x", "host": process["host"], "started": None},
        {**process, "pid": 10**30},
    ):
        run.update(process=odd)
        assert run.status == "stopped"


def test_commands_quote_and_name_the_folder(tmp_path, monkeypatch):
    folder = tmp_path / "my runs"
    run = make(folder)
    assert (
        run.command("edit", "a new prompt")
        == f"dreamsa edit {run.id} 'a new prompt' --runs '{folder}'"
    )
    monkeypatch.setenv("DREAMSA_RUNS", str(folder))
    assert run.command("resume") == f"dreamsa resume {run.id}"


def test_a_folder_that_cannot_be_filled_is_not_left_behind(tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "write_json", full)
    with pytest.raises(RunError, match="No space left on device. Name another folder with --runs"):
        make(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_group_can_share_a_run(tmp_path):
    """The lock's file has the permissions that the umask allows."""
    script = (
        "import sys; from pathlib import Path; from dreamsa.runs import Run\n"
        "with Run(Path(sys.argv[1])).lock(): pass"
    )
    run = make(tmp_path)
    subprocess.run([sys.executable, "-c", script, str(run.path)], umask=0o002, check=True)
    assert os.stat(run.path / ".lock").st_mode & 0o777 == 0o664
