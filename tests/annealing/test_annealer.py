import pytest
import torch
from analytic import GaussianMixture

from dreamsa.annealing import (
    Annealer,
    GradientAscent,
    Move,
    ResetMoments,
    Rule,
    Window,
    direction_to,
    interpolate,
    random_direction,
)
from dreamsa.distill.methods import distillation_loss, sds_weight
from dreamsa.guidance.noise import add_noise

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "fused Adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
}


def ascent(k, scale=0.1, start=0):
    reset = (ResetMoments(),)
    return Rule(Window(start, k), GradientAscent(scale), reset, reset, phase="ascend")


def parameter(*values):
    return torch.nn.Parameter(torch.tensor(values))


def sgd(x, *rules, lr=0.1):
    optimizer = torch.optim.SGD([x], lr=lr)
    Annealer(optimizer, rules)
    return optimizer


def stand(optimizer):
    """A step without a gradient from the loss."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()


def bowl(x):
    return (x * torch.tensor([1.0, 3.0])).square().sum()


def run(optimizer, x, steps, after=lambda: None):
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        bowl(x).backward()
        optimizer.step()
        after()
        path.append(bowl(x).item())
    return path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_ascent_ascends_from_its_first_step_and_the_descent_descends(name):
    """With kept momentum the first steps after a flip would still descend."""
    x = parameter(1.0, -1.0)
    optimizer = OPTIMIZERS[name]([x])
    run(optimizer, x, 2)
    start = bowl(x).item()
    Annealer(optimizer, [ascent(6, 0.1)])
    path = [start, *run(optimizer, x, 7)]
    steps = [b - a for a, b in zip(path, path[1:], strict=False)]
    assert all(s > 0 for s in steps[:6]), steps
    assert steps[6] < 0, steps


def reference_loop(steps, ascent_steps, scale, lr, x):
    """Thesis eq. 9 for plain SGD."""
    for k in range(steps):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(bowl(x), x)
        x = torch.add(x, grad, alpha=scale * lr if k < ascent_steps else -lr)
    return x.detach()


def test_equals_an_independent_loop_bit_for_bit():
    x = parameter(1.0, -0.5)
    run(sgd(x, ascent(4, 0.5), lr=0.05), x, 10)
    assert torch.equal(x.detach(), reference_loop(10, 4, 0.5, 0.05, torch.tensor([1.0, -0.5])))


def test_adam_cancels_a_factor_on_the_gradient():
    """Why the climb is scaled by the learning rate and not by the gradient."""
    moved = []
    for factor in (1.0, 0.01):
        x = parameter(1.0, 1.0)
        optimizer = torch.optim.Adam([x], lr=0.1)
        (factor * bowl(x)).backward()
        optimizer.step()
        moved.append((x - 1).abs().max().item())
    assert moved[0] == pytest.approx(moved[1], rel=1e-4)
    x = parameter(1.0, 1.0)
    optimizer = torch.optim.Adam([x], lr=0.1)
    Annealer(optimizer, [ascent(1, 0.01)])
    run(optimizer, x, 1)
    assert (x - 1).abs().max().item() == pytest.approx(0.01 * moved[0], rel=1e-3)


def test_weight_decay_keeps_shrinking_while_ascending_unless_told_otherwise():
    """A negative learning rate would have grown the weights."""
    for keep, expected in ((True, 2 * (1 - 0.1 * 0.5 * 0.5)), (False, 2.0)):
        x = parameter(2.0)
        optimizer = torch.optim.AdamW([x], lr=0.1, weight_decay=0.5)
        Annealer(optimizer, [Rule(Window(0, 1), GradientAscent(0.5, decay_weights=keep))])
        stand(optimizer)
        assert x.item() == pytest.approx(expected)


def test_the_schedulers_learning_rates_do_not_change():
    """An lr left mutated ruins CosineAnnealingLR, which multiplies the last one."""
    traces = []
    for rules in ([], [ascent(5, 0.01, start=3)]):
        x, trace = parameter(1.0, 1.0), []
        optimizer = sgd(x, *rules)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        run(optimizer, x, 15, lambda s=scheduler, t=trace: (s.step(), t.append(s.get_last_lr()[0])))
        traces.append(trace)
    assert traces[0] == traces[1]


def test_a_rule_touches_only_its_groups():
    early, late = parameter(1.0, 1.0), parameter(1.0, 1.0)
    optimizer = torch.optim.SGD(
        [{"params": [early], "name": "early"}, {"params": [late], "name": "late"}], lr=0.01
    )
    Annealer(optimizer, [Rule(Window(0, 3), GradientAscent(1.0), groups=("early",))])
    for _ in range(3):
        optimizer.zero_grad()
        (bowl(early) + bowl(late)).backward()
        optimizer.step()
    assert bowl(early) > bowl(torch.ones(2)) > bowl(late)
    with pytest.raises(ValueError, match="parameter group 'middle'"):
        Annealer(optimizer, [Rule(Window(0, 3), groups=("middle",))])


@pytest.mark.parametrize("stop", range(1, 12))
def test_resume_is_bit_identical_in_mid_ascent_too(stop):
    def make(*value):
        x = parameter(*value)
        optimizer = torch.optim.Adam([x], lr=0.1)
        return x, optimizer, Annealer(optimizer, [ascent(5, 0.1, start=2)])

    x, optimizer, _ = make(1.0, -1.0)
    run(optimizer, x, 12)
    a, first, annealer = make(1.0, -1.0)
    run(first, a, stop)
    b, second, other = make(*a.tolist())
    second.load_state_dict(first.state_dict())
    other.load_state_dict(annealer.state_dict())
    run(second, b, 12 - stop)
    assert torch.equal(x, b)


def test_gradient_accumulation_counts_updates_not_batches():
    x = parameter(1.0, 1.0)
    optimizer = torch.optim.SGD([x], lr=0.01)
    annealer = Annealer(optimizer, [ascent(2, 1.0)])
    for batch in range(8):
        (bowl(x) / 2).backward()
        if batch % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert annealer.step == 4


def test_phases_and_edges():
    x = parameter(1.0, 1.0)
    optimizer = torch.optim.SGD([x], lr=0.01)
    annealer = Annealer(optimizer, [ascent(2, start=1)])
    seen = []
    for _ in range(5):
        seen.append((annealer.phase, annealer.edge))
        run(optimizer, x, 1)
    phases = ("descend", "ascend", "ascend", "descend", "descend")
    assert seen == list(zip(phases, (False, True, False, True, False), strict=True))


def test_displacement_has_the_size_asked_for_and_is_the_same_each_time():
    ends = []
    for _ in range(2):
        x = torch.nn.Parameter(torch.zeros(10_000))
        stand(sgd(x, Rule(Window(0, 1), on_open=(Move(random_direction(5), factor=0.3),))))
        ends.append(x.detach().clone())
    assert ends[0].square().mean().sqrt().item() == pytest.approx(0.3, rel=0.05)
    assert torch.equal(*ends)


def test_a_move_has_the_norm_asked_for_in_each_group_and_the_direction_given():
    a, b, c = (torch.nn.Parameter(torch.ones(n)) for n in (3, 5, 2))
    optimizer = torch.optim.SGD(
        [{"params": [a, b], "name": "one"}, {"params": [c], "name": "other"}], lr=0.1
    )
    ends = [torch.full((n,), value) for n, value in ((3, 2.0), (5, 3.0), (2, 9.0))]
    Move(direction_to(lambda _: ends), norms={"one": 2.0})(optimizer, optimizer.param_groups, 0)
    length = (3 * 1 + 5 * 4) ** 0.5
    torch.testing.assert_close(a.detach(), torch.full((3,), 1 + 2 / length))
    torch.testing.assert_close(b.detach(), torch.full((5,), 1 + 4 / length))
    assert torch.equal(c.detach(), torch.ones(2))
    drawn = [random_direction(3)([a, b], step)[1] for step in (7, 7, 8)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_interpolation_moves_by_a_fraction(eta):
    x = torch.nn.Parameter(torch.full((3,), 2.0))
    event = interpolate(eta, lambda _: [torch.full((3,), 10.0)])
    stand(sgd(x, Rule(Window(0, 1), on_open=(event,))))
    torch.testing.assert_close(x.detach(), torch.full((3,), 2 + 8 * eta))


@pytest.mark.parametrize(
    ("window", "active"),
    [(Window(2, 3), {2, 3, 4}), (Window(1, 2, 4), {1, 2, 5, 6, 9}), (Window(0, 0), set())],
)
def test_windows(window, active):
    assert {s for s in range(10) if window.is_active(s)} == active
    after = {s + 1 for s in active}
    assert {s for s in range(10) if window.opens_at(s)} == active - after
    assert {s for s in range(10) if window.closes_at(s)} == (after - active) & {*range(10)}


def test_windows_that_overlap_themselves_are_refused():
    with pytest.raises(ValueError, match="overlap itself"):
        Window(0, 5, 3)


def settle(rules, seed, start, steps=400):
    """Score distillation in one dimension, with a weak mode at -1 and a strong one at +1."""
    alpha_bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    means, weights = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0.2, 0.8])
    score = GaussianMixture(means, weights, 0.2, alpha_bar, prior_sigma=3.0)
    z = torch.nn.Parameter(torch.tensor(start).view(1, 1, 1, 1))
    optimizer = torch.optim.Adam([z], lr=0.02)
    Annealer(optimizer, rules)
    text = score.embed(["a rabbit"])[None]
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        timesteps = torch.randint(20, 100, (1,), generator=rng)
        a, noise = alpha_bar[timesteps], torch.randn(z.shape, generator=rng)
        with torch.no_grad():
            (predicted,) = score.predict_noise(add_noise(z, noise, a), timesteps, text)
            grad = sds_weight(a) * (predicted - noise)
        optimizer.zero_grad()
        distillation_loss(z, grad).backward()
        optimizer.step()
    return z.item()


def test_ascent_then_descent_leaves_the_basin_that_plain_resuming_stays_in():
    """From the flank of a weak mode that faces the strong one."""
    assert all(settle([], seed, -0.7) < -0.5 for seed in range(8))
    assert sum(settle([ascent(100, 1.0)], seed, -0.7) > 0.5 for seed in range(8)) >= 4


def test_ascent_is_not_aimed_at_the_better_mode():
    """From the flank that faces away it climbs in the other direction and comes back."""
    assert all(settle([ascent(90, 1.0)], seed, -1.3) < -0.5 for seed in range(3))
