import pytest
import torch

from train_cls.evaluate.ensemble import average_probabilities, disagreement, ensemble_scores
from train_cls.evaluate.metrics import scores


def test_the_ensemble_averages_probabilities_and_not_logits():
    members = [torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.3, 0.7]]).log() + 5]
    assert torch.allclose(
        average_probabilities(members).exp(), torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    )


def test_equal_members_are_an_ensemble_of_one(rng):
    logits, labels = torch.randn(50, 4, generator=rng), torch.randint(0, 4, (50,), generator=rng)
    result = ensemble_scores([logits, logits, logits], labels)
    assert result.ensemble == pytest.approx(scores(logits, labels))
    assert result.members[1] == scores(logits, labels)
    assert result.mean_disagreement == 0


def test_disagreement_by_hand():
    """Members 0 and 1 differ on a quarter, 0 and 2 everywhere, 1 and 2 on three quarters."""
    members = [
        torch.eye(2)[torch.tensor(classes)]
        for classes in ([0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0])
    ]
    assert disagreement(members).tolist() == [[0, 0.25, 1], [0.25, 0, 0.75], [1, 0.75, 0]]
    assert ensemble_scores(members, torch.tensor([0, 0, 1, 1])).mean_disagreement == pytest.approx(
        (0.25 + 1 + 0.75) / 3
    )


def test_the_mean_is_never_less_likely_than_the_members_on_average(rng):
    """Jensen's inequality."""
    members, labels = (
        list(torch.randn(5, 30, 3, generator=rng)),
        torch.randint(0, 3, (30,), generator=rng),
    )
    result = ensemble_scores(members, labels)
    assert result.ensemble["nll"] <= sum(member["nll"] for member in result.members) / 5


def test_one_member_has_no_disagreement():
    assert ensemble_scores([torch.eye(3)], torch.arange(3)).mean_disagreement == 0


@pytest.mark.parametrize("members", [[], [torch.zeros(3, 2), torch.zeros(4, 2)]])
def test_members_of_different_images_are_an_error(members):
    with pytest.raises(ValueError, match="at least one member and one shape"):
        ensemble_scores(members, torch.zeros(3, dtype=torch.int64))
