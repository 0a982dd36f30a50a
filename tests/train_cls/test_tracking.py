"""Trackers of runs."""

import json
from dataclasses import replace

import pytest
from tiny_model import SMALL

from train_cls import api
from train_cls.run import continue_run, rows
from train_cls.tracking import check_trackers, tracked

QUICK = replace(SMALL, model="preresnet-tiny", generations=2)


def test_a_missing_package_is_named_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ValueError, match=r"--track wandb needs .* pip install 'dreamsa\[wandb\]'"):
        api.train(QUICK, tmp_path / "run", ["wandb"])
    assert not list(tmp_path.iterdir())


class Recorder:
    """Stands for one of accelerate's trackers."""

    def __init__(self):
        self.rows, self.finished = [], False

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


def test_a_resumed_run_continues_the_same_log(tmp_path, monkeypatch):
    started = []

    def start(name, folder, config, epoch):
        started.append((name, json.loads((folder / "tracking.json").read_text())["wandb"], epoch))
        recorders.append(Recorder())
        return recorders[-1]

    recorders: list[Recorder] = []
    monkeypatch.setattr("train_cls.tracking._start", start)
    monkeypatch.setattr("train_cls.tracking.import_module", lambda name: None)
    for result in api.train(QUICK, tmp_path / "run", ["wandb"]):
        if result.epoch == 2:
            break
    list(continue_run(tmp_path / "run"))
    assert [epoch for _, _, epoch in started] == [0, 2]
    assert started[0][1] == started[1][1], "one id for both parts"
    steps = [step for one in recorders for step, _ in one.rows]
    assert steps == [1, 2, 3, 4] and all(one.finished for one in recorders)
    logged = recorders[-1].rows[-1][1]
    assert logged["test accuracy"] == rows(tmp_path / "run")[-1]["test accuracy"]
    assert "phase" not in logged, "trackers get numbers only"


def test_tensorboard_holds_every_epoch_once(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracked(tmp_path, ["tensorboard"], QUICK, 0) as log:
        for epoch in (1, 2, 3):
            log({"epoch": epoch, "loss": 1.0 / epoch, "phase": "descend"})
    with tracked(tmp_path, [], QUICK, 2) as log:
        log({"epoch": 3, "loss": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 0.5),
    ]


def test_no_tracker_needs_no_package():
    check_trackers(())
