import math

import pytest
import torch
from tiny_model import assert_unchanged, snapshot

from train_cls.evaluate.metrics import (
    accuracy,
    embed,
    evaluating,
    expected_calibration_error,
    negative_log_likelihood,
    predict,
    scores,
    top_accuracy,
)


def logits_of(probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_predictions_do_not_depend_on_the_batch(model, images):
    expected = predict(model, images, batch=len(images))
    assert torch.allclose(predict(model, images, batch=7), expected, atol=1e-6)


def test_predictions_are_those_of_eval_mode(model, images):
    model.train()
    logits = predict(model, images)
    with torch.no_grad():
        assert logits.equal(model.eval()(images))


def test_the_last_layer_of_the_features_is_the_prediction(model, images):
    with torch.no_grad():
        assert model.fc(embed(model, images)).equal(predict(model, images))


def test_bytes_and_their_fractions_predict_alike(model, images):
    assert torch.allclose(predict(model, images), predict(model, images.float() / 255), atol=1e-4)


@pytest.mark.parametrize("evaluate", [predict, embed])
def test_evaluation_leaves_the_model_unchanged(model, images, evaluate):
    model.train()
    model.layer1.eval()
    before = snapshot(model)
    assert not evaluate(model, images).requires_grad
    assert_unchanged(model, before)


def test_modes_are_restored_after_an_error(model):
    model.train()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.bn1.training
        raise RuntimeError
    assert all(module.training for module in model.modules())


def test_no_images_is_an_error(model, images):
    with pytest.raises(ValueError, match="Found no images"):
        predict(model, images[:0])
    with pytest.raises(ValueError, match="batch must be at least 1"):
        predict(model, images, batch=0)


def test_accuracy_and_likelihood_of_a_case_by_hand():
    logits, labels = (
        logits_of([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]]),
        torch.tensor([0, 1, 0]),
    )
    assert accuracy(logits, labels) == pytest.approx(2 / 3)
    assert negative_log_likelihood(logits, labels) == pytest.approx(
        -(math.log(0.5) + math.log(0.8) + math.log(0.2)) / 3
    )


def test_a_uniform_guess_has_likelihood_log_k():
    assert negative_log_likelihood(torch.zeros(10, 7), torch.arange(10) % 7) == pytest.approx(
        math.log(7)
    )


def test_calibration_error_of_a_case_by_hand():
    """(0.4, 0.6] has 0.55 correct, 0.6 wrong; (0.8, 1] has 0.9 correct, 0.95 correct, 1.0 wrong."""
    confidence = torch.tensor([0.55, 0.6, 0.9, 0.95, 1.0 - 1e-12], dtype=torch.float64)
    logits = torch.stack([confidence, 1 - confidence], 1).log()
    expected = (abs(0.55 + 0.6 - 1) + abs(0.9 + 0.95 + 1 - 2)) / 5
    assert expected_calibration_error(
        logits, torch.tensor([0, 1, 0, 0, 1]), bins=5
    ) == pytest.approx(expected)


def test_a_calibrated_model_has_no_calibration_error(rng):
    """Labels are drawn from the predicted probabilities."""
    probabilities = torch.randn(200_000, 5, generator=rng).mul(2).softmax(1)
    labels = probabilities.multinomial(1, generator=rng)[:, 0]
    assert expected_calibration_error(probabilities.log(), labels) < 0.005
    assert expected_calibration_error(probabilities.log() * 3, labels) > 0.1


def test_a_confident_and_wrong_model_has_calibration_error_one():
    logits = torch.tensor([[100.0, 0.0]]).repeat(8, 1)
    assert scores(logits, torch.ones(8, dtype=torch.int64)) == pytest.approx(
        {"accuracy": 0, "nll": 100, "ece": 1}
    )


def test_a_diverged_model_has_no_likelihood():
    result = scores(torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.int64))
    assert math.isnan(result["nll"]) and math.isnan(result["ece"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "3 rows of logits and 2 labels"),
        ([0, 1, 5], "labels from 0 to 5, expected 0 to 3"),
        ([0, -1, 1], "from -1"),
    ],
)
def test_labels_that_do_not_fit_are_an_error(labels, message):
    with pytest.raises(ValueError, match=message):
        scores(torch.zeros(3, 4), torch.tensor(labels))


def test_top_accuracy_counts_labels_among_the_largest_logits():
    logits = torch.arange(8.0).expand(8, 8).clone()
    labels = torch.arange(8)
    assert [top_accuracy(logits, labels, k) for k in (1, 3, 8)] == [1 / 8, 3 / 8, 1.0]
    assert scores(logits, labels)["top-5 accuracy"] == 5 / 8
    assert "top-5 accuracy" not in scores(logits[:, :5], labels % 5)
    logits[7, 0] = math.nan
    assert top_accuracy(logits, labels, 1) == 0
    with pytest.raises(ValueError, match="top must be at least 1"):
        top_accuracy(logits, labels, 0)
