"""Runs on disk: resuming, checkpoints, metrics and the paths they save."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import SMALL

from dreamsa import checkpoint
from dreamsa.settings import from_tree, to_tree, with_overrides
from train_cls import api
from train_cls import train as train_module
from train_cls.config import TrainConfig, read
from train_cls.data import load_splits
from train_cls.methods import METHODS, spans_run
from train_cls.run import best_epoch, continue_run, new_run, rows
from train_cls.train import new_training, train

QUICK = replace(SMALL, model="preresnet-tiny", generations=2)
LOSS_OF = train_module.loss_of


def last_weights(run: Path) -> torch.Tensor:
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    return torch.cat(
        [w.double().flatten() for w in checkpoint.load(newest).tensors["model"].values()]
    )


def test_the_generations_of_a_run_form_an_ensemble(tmp_path):
    config = replace(SMALL, method="distancing")
    list(api.train(config, tmp_path / "run"))
    assert len(list((tmp_path / "run" / "generations").iterdir())) == 3
    facts = api.evaluate(tmp_path / "run")
    assert {"validation", "test", "ensemble of generations"} <= facts.keys()
    assert 0 <= facts["ensemble of generations"]["mean disagreement"] <= 1
    each = {
        str(row["generation"]): row["test accuracy"]
        for row in rows(tmp_path / "run")
        if row["epoch"] % config.epochs == 0
    }
    assert facts["test accuracy of generation"] == pytest.approx(each)
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 7 and "test accuracy" in lines[0]


def test_a_run_is_never_overwritten_and_resumes_from_its_files(tmp_path):
    whole = list(api.train(SMALL, tmp_path / "whole"))
    with pytest.raises(ValueError, match="never overwritten"):
        api.train(SMALL, tmp_path / "whole")
    new_run(tmp_path / "part", SMALL)
    for result in continue_run(tmp_path / "part"):
        if result.epoch == 2:
            break
    rest = list(api.resume(tmp_path / "part"))
    assert rest[0].epoch == 3 and rest[-1].scores == whole[-1].scores
    assert [r["epoch"] for r in rows(tmp_path / "part")] == [1, 2, 3, 4, 5, 6]
    ends = [
        checkpoint.load(checkpoint.latest(tmp_path / n / "checkpoints")).tensors["model"]
        for n in ("whole", "part")
    ]
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def train_until(run: Path, epoch: int) -> None:
    for result in continue_run(run):
        if result.epoch == epoch:
            break


class Interrupting:
    """Sends this process a signal in the middle of one step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number, self.calls = step, number, 0

    def __call__(self, *arguments, **named):
        self.calls += 1
        if self.calls == self.step:
            signal.raise_signal(self.number)
        return LOSS_OF(*arguments, **named)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", [1, 4, 5, 6])  # an epoch has 5
def test_an_interrupt_saves_after_its_step_and_resumes_exactly(tmp_path, monkeypatch, step, number):
    list(api.train(QUICK, tmp_path / "whole"))
    before = signal.signal(number, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train_module, "loss_of", Interrupting(step, number))
            list(api.train(QUICK, tmp_path / "part"))
    finally:
        signal.signal(number, before)
    newest = checkpoint.latest(tmp_path / "part" / "checkpoints")
    assert newest is not None and newest.name == f"{step:08d}"
    list(api.resume(tmp_path / "part"))
    assert torch.equal(last_weights(tmp_path / "whole"), last_weights(tmp_path / "part"))
    assert [r["epoch"] for r in rows(tmp_path / "part")] == [1, 2, 3, 4]
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "part"), strict=True):
        assert one["loss"] == other["loss"] and one["accuracy"] == other["accuracy"]


def test_a_second_interrupt_saves_no_half_done_step(tmp_path, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt  # as the second one does, wherever it comes

    run = new_run(tmp_path / "run", QUICK)
    train_until(run, 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_module, "loss_of", interrupted)
        list(api.resume(run))
    assert [path.name for path in (run / "checkpoints").glob("[0-9]*")] == ["00000005"]


EXTENDED = ["seal", "seal-reinit", "imp", "ban", "distancing"]


def check_extension(tmp_path: Path, method: str) -> None:
    config = replace(QUICK, method=method, epochs=1, generations=3)
    list(api.train(config, tmp_path / "whole"))
    part = tmp_path / "part"
    list(api.train(replace(config, generations=2), part))
    before = {path: path.read_bytes() for path in (part / "generations").rglob("*.safetensors")}
    assert [result.epoch for result in api.resume(part, 3)] == [3]
    assert torch.equal(last_weights(tmp_path / "whole"), last_weights(part))
    assert {path: path.read_bytes() for path in before} == before
    for one, other in zip(rows(tmp_path / "whole"), rows(part), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert read(part / "config.json") == config
    record = json.loads((part / "extensions.json").read_text())
    assert record == [{"generations": 2, "epochs": 2}]
    assert list(api.resume(part, 3)) == [], "the same command again does nothing"


@pytest.mark.parametrize("method", EXTENDED)
def test_an_extended_run_is_a_longer_run(tmp_path, method):
    check_extension(tmp_path, method)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", sorted({*filter(lambda name: not spans_run(name), METHODS)} - {*EXTENDED})
)
def test_extended_runs_of_all_other_methods_are_longer_runs(tmp_path, method):
    check_extension(tmp_path, method)


@pytest.mark.parametrize(
    ("method", "generations", "says"),
    [
        ("long", 3, "A run of long cannot be extended: its schedule spans all generations"),
        ("seal", 1, "has 2 generations; --generations must be more, got 1"),
    ],
)
def test_what_cannot_be_extended_is_refused_and_stays(tmp_path, method, generations, says):
    run = new_run(tmp_path / "run", replace(QUICK, method=method))
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(ValueError, match=says):
        api.resume(run, generations)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path):
    list(api.train(QUICK, tmp_path / "whole"))
    new_run(tmp_path / "part", QUICK)
    (tmp_path / "part" / "metrics.jsonl").write_text((tmp_path / "whole/metrics.jsonl").read_text())
    assert [result.epoch for result in api.resume(tmp_path / "part")] == [1, 2, 3, 4]
    assert torch.equal(last_weights(tmp_path / "whole"), last_weights(tmp_path / "part"))


@pytest.mark.parametrize(
    "line", ['{"epoch": 2, "loss"', "\x00\x00", "[1]", '{"epoch": "2"}', "[" * 100_000, "\ud800"]
)
def test_a_damaged_line_of_metrics_blocks_nothing(tmp_path, line):
    new_run(tmp_path / "run", QUICK)
    train_until(tmp_path / "run", 2)
    with (tmp_path / "run" / "metrics.jsonl").open("a", errors="surrogatepass") as file:
        file.write(line)
    list(api.resume(tmp_path / "run"))
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_resumes_from_another_working_directory(tmp_path, monkeypatch):
    splits = load_splits("digits", SMALL.splits)
    arrays = {}
    for name, part in (("train", splits.train), ("test", splits.test)):
        arrays |= {f"{name}_images": part.images.numpy(), f"{name}_labels": part.labels.numpy()}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    np.savez(tmp_path / "one" / "set.npz", **arrays)
    monkeypatch.chdir(tmp_path / "one")
    config = replace(QUICK, data="set.npz", splits=replace(SMALL.splits, validation=0, per_class=0))
    new_run(Path("run"), config)
    train_until(Path("run"), 2)
    monkeypatch.chdir(tmp_path / "two")
    assert [result.epoch for result in api.resume(tmp_path / "one" / "run")] == [3, 4]
    saved = from_tree(TrainConfig, json.loads((tmp_path / "one/run/config.json").read_text()))
    assert saved.data == str(tmp_path / "one" / "set.npz")


def test_a_damaged_checkpoint_is_skipped_and_then_replaced(tmp_path):
    list(api.train(QUICK, tmp_path / "whole"))
    new_run(tmp_path / "part", QUICK)
    train_until(tmp_path / "part", 4)
    newest = checkpoint.latest(tmp_path / "part" / "checkpoints")
    assert newest is not None
    for name in ("checkpoints", "generations"):
        path = tmp_path / "part" / name / newest.name / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="Using the checkpoint before it"):
        assert [result.epoch for result in api.resume(tmp_path / "part")] == [3, 4]
    assert checkpoint.damage(newest) is None
    assert checkpoint.damage(tmp_path / "part" / "generations" / newest.name) is None
    assert torch.equal(last_weights(tmp_path / "whole"), last_weights(tmp_path / "part"))


def test_a_run_with_only_damaged_checkpoints_is_refused(tmp_path):
    new_run(tmp_path / "run", QUICK)
    train_until(tmp_path / "run", 2)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no complete checkpoint"):
        api.resume(tmp_path / "run")


def test_a_checkpoint_of_an_older_version_resumes_exactly(tmp_path):
    """It counts steps only, its groups hold the scheduled rate, and no rule schedules it."""
    config = replace(QUICK, method="seal", epochs=4)
    splits = load_splits(config.data, config.splits)
    whole, part, resumed = (new_training(config, splits.train) for _ in range(3))
    list(train(whole, splits))
    for result in train(part, splits):
        if result.epoch == 5:
            break
    part.annealer._ended = {2}
    tensors, state = checkpoint.load(part.save(tmp_path / "new"))
    state["step"] = state.pop("batches")
    state["annealer"]["ended"] = [1]
    for group in state["optimizer"]["groups"]:
        group["lr"] = 0.001
    checkpoint.save(tmp_path / "old", tensors, state)
    resumed.load(tmp_path / "old")
    assert resumed.annealer._ended == {2} and resumed.step == resumed.batches == part.batches
    rest = list(train(resumed, splits))
    assert rest[0].lr == whole.config.lr * whole.schedule(part.step + whole.setup.steps - 1)
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_resume_hints_quote_paths(tmp_path):
    run = tmp_path / "my run"
    new_run(run, QUICK)
    for function in (lambda: api.evaluate(run), lambda: new_run(run, QUICK)):
        with pytest.raises(ValueError, match=f"train-cls resume '{run}'"):
            function()
    assert read(run / "config.json") == QUICK


def test_a_run_with_other_classes_than_its_weights_is_refused(tmp_path):
    config = replace(QUICK, epochs=1, generations=1)
    list(api.train(config, tmp_path / "run"))
    changed = with_overrides(config, {"splits.only_classes": "0-4"})
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_tree(changed)))
    with pytest.raises(ValueError, match=r"classes 0, 1, .*, 8, 9, but digits has 0, 1, 2, 3, 4\."):
        api.evaluate(tmp_path / "run")
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(ValueError, match=r"fc\.weight is \(10, 64\) in it and \(5, 64\)"):
        api.evaluate(tmp_path / "run")


def test_the_best_epoch_on_validation_is_told_apart_from_the_last(tmp_path):
    assert best_epoch(tmp_path) == {}
    lines = [
        {"epoch": 1, "validation accuracy": 0.5, "test accuracy": 0.25},
        {"epoch": 2, "validation accuracy": 0.75, "test accuracy": 0.5, "loss": 1.0},
        {"epoch": 3, "validation accuracy": 0.75, "test accuracy": 1.0},
        {"epoch": 4, "loss": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lines))
    assert best_epoch(tmp_path) == {"epoch": 2, "validation accuracy": 0.75, "test accuracy": 0.5}
