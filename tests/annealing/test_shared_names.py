"""Groups that share a name, for other rates and decays, are one group to every rule."""

import pytest
import torch

from dreamsa.annealing import (
    Annealer,
    GradientAscent,
    GradientNoise,
    Move,
    Rule,
    Window,
    by_name,
    random_direction,
)


def parameters(*values: float) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.full((4,), value)) for value in values]


def groups(rates: tuple[float, float, float]) -> list[dict]:
    ones = parameters(1.0, 2.0, 3.0)
    names = ("early", "early", "late")
    return [{"name": n, "params": [p], "lr": r} for n, p, r in zip(names, ones, rates, strict=True)]


def step(optimizer: torch.optim.Optimizer, gradient: float = 1.0) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, gradient)
    optimizer.step()


def test_a_rule_reaches_all_groups_of_its_name_at_their_own_rates():
    optimizer = torch.optim.SGD(groups((0.1, 0.2, 0.4)))
    annealer = Annealer(optimizer, [Rule(Window(0, 1), GradientAscent(0.5), groups=("early",))])
    step(optimizer)
    values = [float(p[0].detach()) for g in optimizer.param_groups for p in g["params"]]
    assert values == pytest.approx([1 + 0.05, 2 + 0.1, 3 - 0.4])
    assert annealer.rates == pytest.approx({"early": 0.1, "late": 0.4})  # the highest of a name
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.4]


def test_a_displacement_has_its_norm_over_all_groups_of_a_name():
    optimizer = torch.optim.SGD(groups((0.1, 0.2, 0.4)))
    before = {
        n: torch.cat(ps).detach().clone() for n, ps in by_name(optimizer.param_groups).items()
    }
    Move(random_direction(0), norms={"early": 2.0})(optimizer, optimizer.param_groups, 0)
    after = {n: torch.cat(ps).detach() for n, ps in by_name(optimizer.param_groups).items()}
    assert float((after["early"] - before["early"]).norm()) == pytest.approx(2.0)
    assert torch.equal(after["late"], before["late"])


def test_noise_of_two_groups_of_a_name_is_that_of_one_group():
    def noise(split: bool) -> torch.Tensor:
        ones = parameters(0.0, 0.0)
        parts = [[p] for p in ones] if split else [ones]
        optimizer = torch.optim.SGD([{"name": "all", "params": part, "lr": 0.1} for part in parts])
        Annealer(optimizer, [Rule(Window(0, 1), GradientNoise(lambda _: 1.0))])
        step(optimizer, gradient=0.0)
        return torch.stack([p.detach() for p in ones])

    assert torch.equal(noise(True), noise(False)) and not torch.equal(*noise(True))


def test_the_base_rate_leaves_out_the_factor_of_the_first_layer():
    seen = []

    class Watch(GradientAscent):
        def apply_(self, at):
            seen.append(at.lr)

    optimizer = torch.optim.SGD([{**g, "lr_scale": 0.5} for g in groups((0.1, 0.2, 0.4))])
    Annealer(optimizer, [Rule(Window(0, 1), Watch(1.0))])
    step(optimizer)
    assert seen == [0.2]
