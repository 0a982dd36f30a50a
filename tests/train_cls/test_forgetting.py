"""What ascents do is measured, reported and survives a resume."""

import logging
import signal
from dataclasses import replace

import pytest
import torch
from tiny_model import SMALL

from dreamsa.settings import with_overrides
from train_cls import report
from train_cls.compare import compare
from train_cls.data import load_splits
from train_cls.evaluate.metrics import predict
from train_cls.forgetting import ACCURACY, DISTANCE
from train_cls.run import rows
from train_cls.train import new_training, train

TINY = replace(SMALL, model="preresnet-tiny", method="seal")


@pytest.fixture(scope="module")
def splits():
    return load_splits("digits", SMALL.splits)


def weights(training, group):
    (found,) = [g["params"] for g in training.optimizer.param_groups if g["name"] == group]
    return torch.cat([p.detach().flatten() for p in found]).double()


def test_the_end_of_an_ascent_is_measured(splits):
    config = with_overrides(TINY, {"anneal.scale": 0.5, "anneal.share": 0.5, "epochs": 2})
    training, seen = new_training(config, splits.train), {}
    for result in train(training, splits):
        seen[result.epoch] = (
            result.scores,
            weights(training, "early"),
            (predict(training.model, splits.train.images).argmax(1) == splits.train.labels)
            .double()
            .mean()
            .item(),
        )
    # half of a generation of two epochs: the ascent ends with epochs 3 and 5, and the events run
    # before the first step of the epochs that follow
    assert [epoch for epoch, (scores, *_) in seen.items() if ACCURACY in scores] == [4, 6]
    for end in (4, 6):
        scores = seen[end][0]
        before, after = seen[end - 2][1], seen[end - 1][1]
        assert scores[ACCURACY] == pytest.approx(seen[end - 1][2])
        moved = (after - before).norm() / before.norm()
        assert scores[DISTANCE] == pytest.approx(float(moved), rel=1e-4)


def test_stronger_ascents_move_further_and_forget_and_frozen_layers_stay(splits):
    def measured(method, scale):
        changes = {"anneal.scale": scale, "method": method, "anneal.share": 0.5}
        results = list(train(new_training(with_overrides(TINY, changes), splits.train), splits))
        return [r.scores for r in results if ACCURACY in r.scores][-1]

    weak, strong, frozen = measured("seal", 0.01), measured("seal", 1.0), measured("seal-zero", 1.0)
    assert frozen[DISTANCE] == 0 < weak[DISTANCE] < strong[DISTANCE]
    assert strong[ACCURACY] < 0.3 < weak[ACCURACY]


@pytest.mark.parametrize("stop", [11, 12, 14, 15, 16])
def test_a_measurement_survives_a_resume(splits, tmp_path, stop):
    """In mid-ascent, at its edge, and before its epoch reports it."""
    config = with_overrides(TINY, {"anneal.share": 0.5})

    whole = list(train(new_training(config, splits.train), splits))
    first = new_training(config, splits.train)
    observe, done = first.annealer.observe, []

    def interrupted(loss):
        observe(loss)
        if first.batches == stop - 1:
            signal.raise_signal(signal.SIGINT)

    first.annealer.observe = interrupted
    with pytest.raises(KeyboardInterrupt):
        done.extend(train(first, splits))
    assert first.batches == stop
    second = new_training(config, splits.train)
    second.load(first.save(tmp_path))
    found = {r.epoch: r.scores.get(ACCURACY) for r in (*done, *train(second, splits))}
    assert found == {r.epoch: r.scores.get(ACCURACY) for r in whole}


def test_one_loss_that_is_not_finite_ends_the_ascent_and_not_the_run(splits, monkeypatch, caplog):
    from train_cls import train as module

    calls, loss_of = [], module.loss_of

    def broken(training, images, labels):
        loss, logits = loss_of(training, images, labels)
        calls.append(training.annealer.phase)
        return (loss * float("nan") if len(calls) == 12 else loss), logits

    monkeypatch.setattr(module, "loss_of", broken)
    config = with_overrides(TINY, {"anneal.share": 0.5})
    with caplog.at_level(logging.WARNING):
        results = list(train(new_training(config, splits.train), splits))
    assert len(results) == 6 and all(r.loss == r.loss for r in results)
    assert calls[10:13] == ["ascend", "ascend", "descend"]
    messages = [record.message for record in caplog.records if "ends early" in record.message]
    assert len(messages) == 1 and "'ascend'" in messages[0]


def test_a_run_whose_weights_are_not_finite_diverged(splits, monkeypatch):
    training = new_training(TINY, splits.train)
    with torch.no_grad():
        next(training.model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="diverged in epoch 1"):
        list(train(training, splits))


def test_the_report_says_which_arms_did_not_forget(tmp_path, monkeypatch):
    config = with_overrides(TINY, {"generations": 2, "anneal.share": 0.5})
    list(compare(config, tmp_path, ("seal", "long"), (0,)))
    assert [ACCURACY in row for row in rows(tmp_path / "seal" / "seed-0")] == [False, True]
    monkeypatch.setattr(report, "FORGOTTEN", 0.01)  # two epochs teach little that can be forgotten
    page = report.write_report(tmp_path, ("seal", "long"), (0,)).read_text()
    assert "What the ascents did" in page and "Did not forget: seal." in page
