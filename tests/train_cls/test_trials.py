"""Many runs: parallel processes, resuming, checks, and sweeps."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import SMALL

from dreamsa import checkpoint
from train_cls import api
from train_cls.compare import compare, plan_comparison
from train_cls.run import last_scores, rows

QUICK = replace(SMALL, model="preresnet-tiny", generations=2, epochs=1)


def test_outcomes_do_not_depend_on_the_number_of_workers(tmp_path):
    arms, seeds = ("seal", "long"), (0, 1)
    found = {}
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        outcomes = list(compare(QUICK, folder, arms, seeds, workers=workers))
        found[workers] = {tuple(one.facts.values()): one.scores for one in outcomes}
        assert all(one.seconds > 0 and one.diverged is None for one in outcomes)
    assert found[1] == found[2] and len(found[1]) == 4


def test_a_study_knows_its_epochs_and_finished_runs_are_not_run_again(tmp_path):
    arms = ("seal", "long", "normal")
    study = plan_comparison(QUICK, tmp_path, arms, (0,))
    with pytest.raises(ValueError, match=r"workers must lie in \[1, 1024\], got 0"):
        list(study.run(workers=0))
    total = {path.parent.name: count for path, count in study.epochs.items()}
    assert total == {"generation-1": 1, "seal": 1, "long": 2, "normal": 1}
    assert study.done() == 0 and not list(tmp_path.iterdir())
    outcomes = list(study.run())
    assert study.done() == 5 and outcomes[0].epochs == 1
    more = list(compare(QUICK, tmp_path, (*arms, "long@0.1"), (0,), {"long@0.1": {"lr": 0.1}}))
    assert more[:3] == outcomes, "arms may be added later"
    assert more[3].row()["arm"] == "long@0.1" and set(more[3].row()) >= {"test accuracy", "seconds"}


def test_arms_of_a_diverged_first_generation_have_diverged(tmp_path):
    config = replace(QUICK, lr=1e30)
    seal, long = compare(config, tmp_path, ("seal", "long"), (0,), {"long": {"lr": 0.05}})
    assert "diverged in epoch 1" in str(seal) and not rows(Path(seal.run))
    assert long.diverged is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seal": {"anneal.before": "layr3"}}, "Did you mean 'layer3'"),
        ({"seal": {"seed": 3}}, "seed is not tuned"),
        ({"seal": {"batch": 10_000}}, "Lower the batch"),
    ],
)
def test_every_arm_is_built_before_any_folder_is_made(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        plan_comparison(QUICK, tmp_path / "c", ("long", "seal"), (0,), changes)
    with pytest.raises(ValueError, match="Did you mean seal"):
        plan_comparison(QUICK, tmp_path / "c", ("long", "seel"), (0,))
    assert not list(tmp_path.iterdir())


def test_a_sweep_over_any_setting_resumes_and_refuses_other_settings(tmp_path):
    for name, values in (("model", ["preresnet-tiny", "nn2"]), ("splits.per_class", [5, 10])):
        outcomes = list(api.sweep(QUICK, tmp_path, name, values, (0, 1)))
        assert [one.facts[name] for one in outcomes] == [values[0]] * 2 + [values[1]] * 2
        assert list(api.sweep(QUICK, tmp_path, name, values, (0, 1))) == outcomes
    with pytest.raises(ValueError, match=r"model=nn2/seed-0 holds a run with other settings: lr"):
        api.plan_sweep(replace(QUICK, lr=0.3), tmp_path, "model", ["nn2"], (0,))
    one, other = api.summary(outcomes, "splits.per_class", [5, 10])
    assert one["seeds"] == other["seeds"] == 2 and one["low"] < one["test accuracy"] < one["high"]


def test_layers_are_swept_by_number(tmp_path):
    found = list(api.sweep(QUICK, tmp_path, "anneal.before", [5, 7], (0,)))
    assert [one.facts["anneal.before"] for one in found] == [5, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "anneal.before=5",
        "anneal.before=7",
    ]


def test_sigterm_to_all_processes_saves_their_runs(tmp_path):
    """As a batch system sends it. `test_pool` kills single processes."""
    folder = tmp_path / "c"
    words = "--arms long sgdr --seeds 1 --workers 2 --per-class 10 --epochs 5000"
    command = [sys.executable, "-m", "train_cls.cli", "compare", str(folder), *words.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    runs = [folder / arm / "seed-0" for arm in ("long", "sgdr")]
    wait_until(lambda: all(rows(run) for run in runs), process)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "The same command resumes: train-cls compare" in error
    for run in runs:
        newest = checkpoint.latest(run / "checkpoints")
        assert newest is not None and int(newest.name) >= 3 * len(rows(run))  # batches an epoch


def wait_until(condition, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.05)


def test_the_outcome_is_that_of_the_run(tmp_path):
    (one,) = compare(QUICK, tmp_path, ("long",), (0,))
    assert one.scores == last_scores(tmp_path / "long" / "seed-0")
    assert str(one).startswith("long, seed 0: test accuracy 0.")
