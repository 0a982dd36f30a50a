import pytest
import torch
import torch.nn.functional as F
from tiny_model import TinyModel, assert_unchanged, snapshot
from torch import nn
from torch.func import functional_call, hessian

from dreamsa.randomness import generator_for
from train_cls.evaluate.hessian import (
    HessianConfig,
    HessianSpectrum,
    hessian_product,
    hessian_spectrum,
    mini_batches,
    top_eigenvalues,
)


class Perceptron(nn.Module):
    """51 parameters, smooth, so that the Hessian has no kinks."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, images):
        return self.fc(self.hidden(images.flatten(1)).tanh())


def full_hessian(model, images, labels, weight_decay):
    """All second derivatives, by torch.func."""
    names, tensors = zip(
        *((name, parameter.detach()) for name, parameter in model.named_parameters()), strict=True
    )
    sizes = [tensor.numel() for tensor in tensors]

    def loss(flat):
        parts = [
            part.view_as(tensor) for part, tensor in zip(flat.split(sizes), tensors, strict=True)
        ]
        logits = functional_call(model, dict(zip(names, parts, strict=True)), (images,))
        return F.cross_entropy(logits, labels) + weight_decay / 2 * flat.square().sum()

    return hessian(loss)(torch.cat([tensor.flatten() for tensor in tensors]))


def by_magnitude(matrix, k):
    values = torch.linalg.eigvalsh(matrix)
    return values[values.abs().argsort(descending=True)][:k]


@pytest.fixture
def perceptron(rng):
    model = Perceptron().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return model


@pytest.fixture
def data(rng):
    return torch.randn(48, 1, 2, 2, generator=rng, dtype=torch.float64), torch.randint(
        0, 3, (48,), generator=rng
    )


def test_the_product_is_the_full_hessian_column_by_column(perceptron, data):
    matrix = full_hessian(perceptron, *data, 0.01)
    product = hessian_product(perceptron, *data, 0.01)
    columns = torch.stack(
        [product(column) for column in torch.eye(len(matrix), dtype=torch.float64)], 1
    )
    assert torch.allclose(columns, matrix, atol=1e-12)


def test_eigenvalues_are_those_of_the_full_hessian_per_batch(perceptron, data):
    images, labels = data
    config = HessianConfig(eigenvalues=5, batch=16, weight_decay=0.01, tolerance=1e-10)
    result = hessian_spectrum(perceptron, images, labels, config=config)
    batches = list(mini_batches(48, config))
    expected = torch.stack(
        [by_magnitude(full_hessian(perceptron, images[i], labels[i], 0.01), 5) for i in batches]
    )
    assert result.eigenvalues.shape == (3, 5)
    assert torch.allclose(result.eigenvalues, expected, atol=1e-8)
    assert (expected < 0).any()
    assert result.negative_fraction == pytest.approx((expected < 0).double().mean().item())
    assert result.maximum == pytest.approx(expected.max().item())
    assert result.mean_maximum == pytest.approx(expected.max(1).values.mean().item())


def test_the_penalty_adds_weight_decay_to_every_eigenvalue(perceptron, data):
    plain, penalized = (
        hessian_product(perceptron, *data, weight_decay) for weight_decay in (0.0, 0.3)
    )
    vector = torch.linspace(-1, 1, 51, dtype=torch.float64)
    assert torch.allclose(penalized(vector), plain(vector) + 0.3 * vector)


def test_a_network_with_batch_norm_is_measured_in_eval_mode_and_unchanged(images):
    torch.manual_seed(0)
    model, images, labels = TinyModel().double(), images[:8], torch.arange(8) % 4
    model.train()
    before = snapshot(model)
    result = hessian_spectrum(
        model,
        images,
        labels,
        config=HessianConfig(eigenvalues=3, batch=200, weight_decay=0, tolerance=1e-8),
    )
    assert_unchanged(model, before)
    model.eval()
    assert torch.allclose(
        result.eigenvalues[0], by_magnitude(full_hessian(model, images, labels, 0), 3), rtol=1e-6
    )


def test_the_fraction_of_negatives_is_pooled():
    result = HessianSpectrum(torch.tensor([[4.0, -3.0], [-2.0, -1.0]], dtype=torch.float64))
    assert (result.maximum, result.negative_fraction, result.mean_maximum) == (4, 0.75, 1.5)


def test_augmentation_draws_from_one_generator_per_batch(perceptron, data):
    images, labels = data
    config = HessianConfig(eigenvalues=2, batch=16, tolerance=1e-10)

    def jitter(part, rng):
        return part + torch.randn(part.shape, generator=rng, dtype=part.dtype)

    first = hessian_spectrum(perceptron, images, labels, jitter, config).eigenvalues
    assert hessian_spectrum(perceptron, images, labels, jitter, config).eigenvalues.equal(first)
    index = list(mini_batches(48, config))[1]
    moved = jitter(images[index], generator_for(0, 1, "hessian: augmentation"))
    assert torch.allclose(
        first[1], by_magnitude(full_hessian(perceptron, moved, labels[index], 5e-4), 2), atol=1e-8
    )


@pytest.mark.parametrize(
    ("size", "batches", "expected"),
    [(48, None, [20, 20]), (48, 1, [20]), (7, None, [7]), (40, 9, [20, 20])],
)
def test_incomplete_last_batches_are_omitted(size, batches, expected):
    parts = list(mini_batches(size, HessianConfig(batch=20, batches=batches)))
    assert [len(part) for part in parts] == expected
    assert len(set(torch.cat(parts).tolist())) == sum(expected)


def test_lanczos_on_a_diagonal_matrix():
    diagonal = torch.tensor([1.0, -9.0, 3.0, 8.0, 0.5, -2.0, 0.1, 0.2])
    found = top_eigenvalues(lambda vector: diagonal * vector, torch.ones(8), 3)
    assert torch.allclose(found, torch.tensor([-9.0, 8.0, 3.0], dtype=torch.float64), rtol=1e-3)


def test_single_precision_is_enough(perceptron, data):
    images, labels = data
    config = HessianConfig(eigenvalues=3, batch=48)
    double = hessian_spectrum(perceptron, images, labels, config=config).eigenvalues
    single = hessian_spectrum(perceptron.float(), images.float(), labels, config=config).eigenvalues
    assert torch.allclose(single, double, rtol=1e-3)


def test_bad_input_is_an_error(perceptron, data):
    images, labels = data
    with pytest.raises(ValueError, match="51 parameters, expected more than the 51 eigenvalues"):
        hessian_spectrum(perceptron, images, labels, config=HessianConfig(eigenvalues=51))
    with pytest.raises(ValueError, match="48 images and 47 labels"):
        hessian_spectrum(perceptron, images, labels[1:])
    with pytest.raises(ValueError, match="batches must be greater than or equal to 1"):
        HessianConfig(batches=0)
    with pytest.raises(ValueError, match="in 1 restarts"):
        steps = torch.linspace(1, 1.001, 500, dtype=torch.float64)
        top_eigenvalues(
            lambda vector: steps * vector,
            torch.ones(500, dtype=torch.float64),
            5,
            tolerance=1e-12,
            iterations=1,
        )
    perceptron.fc.weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="the model has diverged"):
        hessian_spectrum(perceptron, images, labels)
