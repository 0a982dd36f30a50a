"""The methods of the family as rules: references, closed forms and traps."""

import json
from math import atan, cos, log, pi, sin

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from dreamsa.annealing import (
    Annealer,
    DistanceHills,
    Freeze,
    GradientAscent,
    GradientNoise,
    LandscapeModification,
    Masked,
    Masks,
    Prune,
    RandomAscent,
    RandomDirection,
    ResetMoments,
    Rewind,
    Rule,
    Snapshot,
    Snapshots,
    StepContext,
    StepTransform,
    Window,
    generation_cosine,
    geometric_cooling,
    kernel_split,
    logarithmic_cooling,
    reinitialize,
    shrink_and_perturb,
    split_params,
    weight_split,
)

ALWAYS = Window(0, 10**9)
RESET = (ResetMoments(),)


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
            self.layer1 = nn.Conv2d(4, 4, 3, padding=1)
            self.layer2 = nn.Linear(4, 8)
            self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.layer1(self.conv1(x).relu()).relu().mean((2, 3))
        return self.fc(self.layer2(x).relu())


def loss_of(net, step):
    rng = torch.Generator().manual_seed(step)
    x, y = torch.randn(16, 1, 6, 6, generator=rng), torch.randint(3, (16,), generator=rng)
    return nn.functional.cross_entropy(net(x), y, label_smoothing=0.1)


def annealed(parameters, *rules, lr=0.1, **kwargs):
    return Annealer(SGD(parameters, lr=lr, **kwargs), rules)


def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(net, annealer, first, last, scheduler=None):
    for step in range(first, last):
        annealer.begin()
        loss = loss_of(net, step)
        annealer.observe(loss)
        update(annealer.optimizer, loss)
        if scheduler is not None:
            scheduler.step()


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def seal_rule(scale, length, period):
    window = Window(period, length, period)
    return Rule(window, GradientAscent(scale), RESET, RESET, groups=("early",), phase="ascend")


def reference_seal(net, generations, period, length, lr, scale, momentum, decay):
    """Early layers climb in the first `length` steps of generations 2, 3, ..."""
    early = {id(p) for name, p in net.named_parameters() if name.startswith(("conv1", "layer1"))}
    parameters = list(net.parameters())
    buffers = {}
    for step in range(generations * period):
        generation, at = divmod(step, period)
        climbing = generation > 0 and at < length
        if generation > 0 and at in (0, length):
            buffers = {}
        rate = lr * 0.5 * (1 + cos(pi * at / period))
        grads = torch.autograd.grad(loss_of(net, step), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                up = climbing and id(p) in early
                g = (-g if up else g).add(p, alpha=decay)
                v = buffers[id(p)] = (
                    g.clone() if id(p) not in buffers else buffers[id(p)].mul(momentum).add(g)
                )
                p.add_(v, alpha=-(rate * scale if up else rate))


@pytest.mark.parametrize("foreach", [False, True])
def test_seal_equals_an_independent_loop_bit_for_bit_over_three_generations(foreach):
    slow, fast = Net(), Net()
    reference_seal(slow, 3, period=12, length=3, lr=0.1, scale=0.01, momentum=0.9, decay=5e-4)
    # SEAL's code makes a new optimizer, for all parameters, at both edges
    rules = Rule(Window(12, 3, 12), None, RESET, RESET), seal_rule(0.01, 3, 12)
    options = {"momentum": 0.9, "weight_decay": 5e-4, "foreach": foreach}
    annealer = annealed(split_params(fast, "layer2"), *rules, **options)
    train(fast, annealer, 0, 36, LambdaLR(annealer.optimizer, generation_cosine(12)))
    assert torch.equal(flat(slow), flat(fast))


@pytest.mark.parametrize("stop", [1, 11, 12, 13, 14, 15, 20, 25])
def test_exact_resume_with_every_kind_of_state(stop):
    """Running minimum, earlier loss, snapshots, scheduler and moments; bit for bit."""

    def make(net):
        snapshots = Snapshots()
        rules = [
            seal_rule(0.01, 3, 12),
            Rule(ALWAYS, LandscapeModification()),
            Rule(ALWAYS, RandomAscent(seed=3)),
            Rule(ALWAYS, GradientNoise(geometric_cooling(1e-4, 0.99))),
            Rule(Window(5, 1, 5), on_open=(Snapshot(snapshots),)),
            Rule(Window(6, 10**9), DistanceHills(snapshots, 0.1, 0.5)),
        ]
        annealer = annealed(split_params(net, "layer2"), *rules, momentum=0.9)
        return annealer, LambdaLR(annealer.optimizer, generation_cosine(12)), snapshots

    whole, first, second = Net(), Net(), Net(seed=5)
    annealer, scheduler, _ = make(whole)
    train(whole, annealer, 0, 30, scheduler)
    annealer, scheduler, snapshots = make(first)
    train(first, annealer, 0, stop, scheduler)
    second.load_state_dict(first.state_dict())
    other, other_scheduler, other_snapshots = make(second)
    other.optimizer.load_state_dict(annealer.optimizer.state_dict())
    other_scheduler.load_state_dict(scheduler.state_dict())
    other.load_state_dict(json.loads(json.dumps(annealer.state_dict())))
    parameters = [p for g in other.optimizer.param_groups for p in g["params"]]
    other_snapshots.restore(parameters, snapshots.tensors())
    train(second, other, stop, 30, other_scheduler)
    assert torch.equal(flat(whole), flat(second))


OPTIMIZERS = "SGD Adam AdamW NAdam RAdam Adagrad Adadelta Adamax ASGD RMSprop Rprop"


@pytest.mark.parametrize("name", OPTIMIZERS.split())
def test_every_torch_optimizer_climbs_and_comes_back(name):
    x = nn.Parameter(torch.tensor([1.0, -1.0]))
    optimizer = getattr(torch.optim, name)([x], lr=0.01)
    Annealer(optimizer, [Rule(Window(2, 3), GradientAscent(1.0), RESET, RESET)])
    values = []
    for _ in range(8):
        values.append(x.square().sum().item())
        update(optimizer, x.square().sum())
    assert values[1] < values[0] and values[5] > values[2] and values[7] < values[5]


def test_lbfgs_climbs_through_its_closure():
    x = nn.Parameter(torch.tensor([1.0, -1.0]))
    optimizer = torch.optim.LBFGS([x], lr=0.05, max_iter=3)
    annealer = Annealer(optimizer, [Rule(Window(0, 1), GradientAscent(1.0))])

    def closure():
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert x.square().sum() > 2 and annealer.lowest is not None
    before = x.square().sum().item()
    optimizer.step(closure)
    assert x.square().sum() < before


def test_a_closure_gives_the_same_step_as_none():
    ends = []
    for closed in (False, True):
        net = Net()
        rules = Rule(ALWAYS, LandscapeModification()), seal_rule(0.5, 2, 3)
        annealer = annealed(split_params(net, "layer2"), *rules, momentum=0.9)
        optimizer = annealer.optimizer
        Annealer(optimizer, []).remove()
        for step in range(6):

            def closure(net=net, optimizer=optimizer, step=step):
                optimizer.zero_grad()
                loss = loss_of(net, step)
                loss.backward()
                return loss

            if closed:
                optimizer.step(closure)
            else:
                annealer.observe(closure())
                optimizer.step()
        ends.append(flat(net))
    assert torch.equal(*ends)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_changes_nothing_and_a_skipped_step_is_not_counted(fused):
    """Added terms (noise) meet scaled gradients in a fused optimizer."""
    ends, counted = [], []
    for scaled in (False, True):
        net = Net()
        optimizer = torch.optim.Adam(split_params(net, "layer2"), lr=1e-3, fused=fused)
        noise = Rule(ALWAYS, GradientNoise(lambda step: 1e-6))
        annealer = Annealer(optimizer, [Rule(Window(2, 3), GradientAscent(0.5)), noise])
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
        for step in range(8):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, step)).backward()
            if step == 4 and scaled:
                next(net.parameters()).grad.fill_(float("inf"))
            if step == 4 and not scaled:
                continue
            scaler.step(optimizer)
            scaler.update()
        ends.append(flat(net))
        counted.append(annealer.step)
    assert counted == [7, 7]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


def test_accelerate_prepares_an_annealed_optimizer():
    from accelerate import Accelerator

    ends = []
    for prepared in (False, True):
        net = Net()
        optimizer = torch.optim.AdamW(split_params(net, "layer2"), lr=1e-2)
        Annealer(optimizer, [seal_rule(0.1, 2, 3)])
        accelerator = Accelerator(cpu=True)
        run, backward = net, torch.Tensor.backward
        if prepared:
            run, optimizer = accelerator.prepare(net, optimizer)
            backward = accelerator.backward
        for step in range(9):
            optimizer.zero_grad()
            backward(loss_of(run, step))
            optimizer.step()
        ends.append(flat(net))
    assert torch.equal(*ends)


def test_accumulated_losses_are_averaged():
    x = nn.Parameter(torch.ones(1))
    annealer = annealed([x])
    x.grad = torch.zeros(1)
    annealer.observe(torch.tensor(1.0))
    annealer.observe(torch.tensor(4.0))
    annealer.optimizer.step()
    assert annealer.lowest.item() == 2.5


# Landscape modification


def energy(x):
    return torch.sin(x) + torch.sin(10 * x / 3)


CLOSED_FORMS = {
    "f(x) = x": (lambda u: u, lambda u, c, e: log((u - c) + e)),
    "f(x) = x^2": (lambda u: u**2, lambda u, c, e: atan((u - c) / e**0.5) / e**0.5),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("at", [0.3, 1.9, 3.2, 5.145735, 6.5])
def test_landscape_modification_is_the_gradient_of_its_closed_form(name, at):
    """dH/dx by central differences of H, where U > c; and grad U / eps where U <= c."""
    f, closed_form = CLOSED_FORMS[name]
    c, eps, h = -0.8, 0.5, 1e-6
    x = nn.Parameter(torch.tensor([at], dtype=torch.float64))
    annealer = annealed([x], Rule(ALWAYS, LandscapeModification(f, eps)), lr=1.0)
    annealer.lowest = torch.tensor(c)
    loss = energy(x).sum()
    loss.backward()
    plain = x.grad.clone()
    annealer.observe(loss)
    annealer.optimizer.step()
    modified = at - x.item()

    def u(v):
        return sin(v) + sin(10 * v / 3)

    if u(at) > c:
        expected = (closed_form(u(at + h), c, eps) - closed_form(u(at - h), c, eps)) / (2 * h)
    else:
        expected = plain.item() / eps
    assert modified == pytest.approx(expected, rel=2e-4)


def test_landscape_modification_needs_the_loss():
    x = nn.Parameter(torch.ones(1))
    annealer = annealed([x], Rule(ALWAYS, LandscapeModification()))
    x.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match="observe"):
        annealer.optimizer.step()


# Noise


def test_langevin_noise_has_the_variance_of_its_equation():
    x = nn.Parameter(torch.zeros(20_000))
    update(
        annealed([x], Rule(ALWAYS, GradientNoise(lambda _: 0.5)), lr=0.01).optimizer, 0 * x.sum()
    )
    assert x.var().item() == pytest.approx(2 * 0.5 * 0.01, rel=0.03)


@pytest.mark.parametrize("friction", [None, 1.0, lambda step: 1 / 0.3])
def test_noise_settles_at_its_temperature(friction):
    """On U = x^2 / 2 the variance at rest is the temperature, whatever the friction."""
    x, kinetic = nn.Parameter(torch.zeros(4000)), friction is not None
    rule = Rule(ALWAYS, GradientNoise(lambda step: 0.3, friction))
    optimizer = annealed([x], rule, lr=0.01, momentum=0.5 if kinetic else 0.0).optimizer
    for _ in range(900):
        update(optimizer, x.square().sum() / 2)
    assert x.var().item() == pytest.approx(0.3, rel=0.12)
    assert optimizer.param_groups[0]["momentum"] == (0.5 if kinetic else 0.0)


def test_cooling_schedules():
    assert logarithmic_cooling(2.0)(0) == pytest.approx(2 / log(2))
    assert logarithmic_cooling(2.0)(98) == pytest.approx(2 / log(100))
    assert geometric_cooling(2.0, 0.5)(3) == 0.25


# Random ascent


def test_random_ascent_is_likelier_after_a_big_change_and_never_above_its_cap():
    def fraction(loss):
        context = {"lr": 0.1, "loss": torch.tensor(loss), "previous": torch.tensor(1.0)}
        steps = (StepContext([], step, **context) for step in range(2000))
        return sum(map(RandomAscent().ascends, steps)) / 2000

    still, moved, wild = map(fraction, (1.0, 1.5, 9.0))
    assert still == 0 < moved < wild == pytest.approx(0.33, abs=0.03)


# Distancing


def red(x):
    """U'(x) = (x - 2/3)(x - 1.2)(x - 2): a local minimum at 2/3 and a deeper one beyond."""
    return x**4 / 4 - 58 / 45 * x**3 + 68 / 30 * x**2 - 1.6 * x


def test_a_hill_removes_the_minimum_at_two_thirds():
    ends = []
    for strength in (0.0, 0.5):
        x = nn.Parameter(torch.tensor([2 / 3]))
        snapshots = Snapshots()
        snapshots.take([x])
        rule = Rule(ALWAYS, DistanceHills(snapshots, strength, 0.6))
        annealer = annealed([x], rule, lr=0.05)
        with torch.no_grad():
            x += 1e-3
        for _ in range(2000):
            update(annealer.optimizer, red(x).sum())
        ends.append(x.item())
    assert ends[0] == pytest.approx(2 / 3, abs=1e-3)
    assert ends[1] > 1.8


def test_a_hills_slope_is_the_derivative_of_its_height():
    net, snapshots = Net(), Snapshots()
    snapshots.take(net.parameters())
    snapshots.take([p + 0.02 for p in net.parameters()])
    snapshots.values[1] = dict(zip(net.parameters(), snapshots.values[1].values(), strict=True))
    with torch.no_grad():
        for p in net.parameters():
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    height = torch.zeros(())
    for one in snapshots.values:
        sigma2 = 0.3**2 * sum(v.square().sum() for v in one.values())
        height = height + 2.0 / 2 * torch.exp(
            -sum((p - one[p]).square().sum() for p in net.parameters()) / (2 * sigma2)
        )
    expected = torch.autograd.grad(height, list(net.parameters()))
    before = flat(net)
    annealer = annealed(net.parameters(), Rule(ALWAYS, DistanceHills(snapshots, 2.0, 0.3)), lr=1.0)
    update(annealer.optimizer, 0 * sum(p.sum() for p in net.parameters()))
    expected = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(before - flat(net), expected, rtol=1e-3, atol=1e-6)


def test_landscape_modification_with_a_constant_c():
    """Below c the landscape is that of U, scaled by 1 / eps."""
    x = nn.Parameter(torch.tensor(2.0))
    annealer = annealed([x], Rule(ALWAYS, LandscapeModification(eps=0.5, c=1.0)), lr=1.0)
    for loss, gradient in ((0.4, 2.0), (1.0, 2.0), (2.5, 1 / (1.5 + 0.5))):
        before = x.item()
        annealer.observe(torch.tensor(loss))
        update(annealer.optimizer, x)
        assert before - x.item() == pytest.approx(gradient), loss


# Controls


def test_a_random_direction_is_as_long_as_the_gradient():
    moved = []
    for transform in (GradientAscent(0.1), RandomDirection(0.1)):
        net = Net()
        before = flat(net)
        train(net, annealed(net.parameters(), Rule(ALWAYS, transform), lr=1.0), 0, 1)
        moved.append(flat(net) - before)
    assert moved[0].norm().item() == pytest.approx(moved[1].norm().item(), rel=1e-5)
    assert abs(torch.cosine_similarity(*moved, dim=0).item()) < 0.3


def test_a_kept_random_direction_goes_straight_and_changes_with_the_period():
    x = nn.Parameter(torch.zeros(1000))
    rule = Rule(ALWAYS, RandomDirection(1.0, period=10))
    optimizer, ends = annealed([x], rule, lr=1.0).optimizer, [x.detach().clone()]
    for step in range(20):
        update(optimizer, x.sum())
        if step % 10 == 9:
            ends.append(x.detach().clone())
    first, second = ends[1] - ends[0], ends[2] - ends[1]
    length = 10 * 1000**0.5  # ten steps, each as long as a gradient of ones
    assert first.norm().item() == pytest.approx(length, rel=1e-5)
    assert second.norm().item() == pytest.approx(length, rel=1e-5)
    assert abs(torch.cosine_similarity(first, second, dim=0).item()) < 0.2


def test_freezing_equals_climbing_at_scale_zero():
    ends = []
    for transform in (GradientAscent(0.0), Freeze()):
        net = Net()
        rule = Rule(Window(4, 3, 8), transform, RESET, RESET, groups=("early",))
        groups = split_params(net, "layer2")
        annealer = annealed(groups, rule, momentum=0.9, weight_decay=1e-3)
        train(net, annealer, 0, 4)
        before = [p.detach().clone() for p in groups[0]["params"]]
        train(net, annealer, 4, 7)
        assert all(map(torch.equal, before, groups[0]["params"]))
        train(net, annealer, 7, 20)
        ends.append(flat(net))
    assert torch.equal(*ends)


# Forgetting


def groups_of(net):
    return split_params(net, "layer2", head="fc")


def fresh_from(build):
    return lambda step: [p.detach() for group in groups_of(build(step)) for p in group["params"]]


def test_later_layer_forgetting_touches_no_early_tensor():
    net, event = Net(), reinitialize(fresh_from(lambda step: Net(seed=100 + step)))
    rule = Rule(Window(3, 1, 3), on_open=(event,), groups=("late", "head"))
    train(net, annealed(groups_of(net), rule, lr=0.0), 0, 4)
    old, new = Net(), Net(seed=103)
    for name, p in net.named_parameters():
        expected = old if name.startswith(("conv1", "layer1")) else new
        assert torch.equal(p, dict(expected.named_parameters())[name]), name


def test_shrink_and_perturb_is_its_formula():
    net, event = Net(), shrink_and_perturb(0.4, 0.1, fresh_from(lambda step: Net(seed=9)))
    train(net, annealed(groups_of(net), Rule(Window(0, 1), on_open=(event,)), lr=0.0), 0, 1)
    torch.testing.assert_close(flat(net), 0.4 * flat(Net()) + 0.1 * flat(Net(seed=9)))


@pytest.mark.parametrize("kind", ["kernels", "weights"])
def test_knowledge_evolution_keeps_the_same_fit_hypothesis_over_generations(kind):
    net = Net()
    fit = kernel_split(net, 0.5) if kind == "kernels" else weight_split(net, 0.5, seed=4)
    drawn = {p: m.clone() for p, m in fit.keep.items()}
    event = reinitialize(fresh_from(lambda step: Net(seed=step)), fit)
    annealer = annealed(groups_of(net), Rule(Window(5, 1, 5), on_open=(event,)))
    for generation in range(1, 4):
        train(net, annealer, (generation - 1) * 5, generation * 5)
        before = {p: p.detach().clone() for p in net.parameters()}
        annealer.begin()
        new = dict(zip(net.parameters(), Net(seed=generation * 5).parameters(), strict=True))
        for p in net.parameters():
            keep = drawn.get(p, torch.zeros_like(p, dtype=torch.bool))
            assert torch.equal(p.detach(), torch.where(keep, before[p], new[p].detach()))
    assert all(torch.equal(fit.keep[p], m) for p, m in drawn.items())
    if kind == "weights":
        assert torch.equal(weight_split(net, 0.5, seed=4).keep[net.fc.weight], drawn[net.fc.weight])


def test_kernel_split_by_position():
    net = Net()
    keep = kernel_split(net, 0.6).keep
    assert keep[net.conv1.weight][:3].all() and not keep[net.conv1.weight][3:].any()
    assert keep[net.layer1.weight][:3, :3].all() and keep[net.layer1.weight].sum() == 9 * 9
    assert keep[net.fc.weight][:, :5].all() and keep[net.fc.weight].sum() == 15  # all classes
    assert keep[net.layer1.bias].tolist() == [True, True, True, False]


def test_iterative_magnitude_pruning_keeps_its_sparsity_and_rewinds():
    net = Net()
    masks, start = Masks.full(net.parameters()), Snapshots()
    start.take(net.parameters())
    events = (Prune(masks, 0.2), Rewind(start, masks=masks), ResetMoments())
    rules = Rule(Window(6, 1, 6), on_open=events), Rule(ALWAYS, Masked(masks))
    annealer = annealed(net.parameters(), *rules, momentum=0.9, weight_decay=1e-3)
    for generation in range(1, 4):
        train(net, annealer, (generation - 1) * 6, generation * 6)
        trained = {p: p.detach().clone() for p in masks.keep}
        annealer.begin()
        kept = torch.cat([mask.flatten() for mask in masks.keep.values()]).float().mean().item()
        assert kept == pytest.approx(0.8**generation, abs=0.01)
        gone = torch.cat([trained[p][~m].abs() for p, m in masks.keep.items()])
        stays = torch.cat([trained[p][m].abs() for p, m in masks.keep.items()])
        assert gone.max() <= stays.min()  # over all layers together
        for p, mask in masks.keep.items():
            assert torch.equal(p.detach(), start.values[0][p] * mask)
    train(net, annealer, 18, 23)
    assert all(not p[~mask].any() and p[mask].any() for p, mask in masks.keep.items())
    other = Masks.full(net.parameters())
    other.restore(masks.tensors())
    assert all(torch.equal(other.keep[p], m) for p, m in masks.keep.items())


def test_pruning_by_increase_keeps_what_has_grown():
    w = nn.Parameter(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    start = Snapshots()
    start.take([w])
    with torch.no_grad():
        w += torch.tensor([[3.0, -1.0, 1.0, -2.0]])
    masks = Masks.full([w])
    Prune(masks, 0.5, "increase", start)(None, [{"params": [w]}], 0)
    assert masks.keep[w].tolist() == [[True, False, True, False]]
    with pytest.raises(ValueError, match="pass snapshots"):
        Prune(masks, 0.5, "increase")


# Guard, split, schedule


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 50.0])
def test_the_guard_ends_a_window_that_runs_away(bad, caplog):
    x = nn.Parameter(torch.tensor([1.0]))
    window, ascent = Window(0, 5, 8), GradientAscent(1.0)
    rule = Rule(window, ascent, on_close=RESET, phase="ascend", bound=10.0)
    annealer = annealed([x], rule, momentum=0.9)
    optimizer = annealer.optimizer
    phases = []
    for step in range(10):
        phases.append(annealer.phase)
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        if step == 2 and bad != 50.0:
            x.grad.fill_(bad)
        annealer.observe(torch.tensor(bad) if step == 2 else loss)
        optimizer.step()
        if step == 2:
            assert json.loads(json.dumps(annealer.state_dict()))["ended"] == [0]
    assert phases == ["ascend"] * 3 + ["descend"] * 5 + ["ascend"] * 2
    assert x.isfinite().all() and "ends early" in caplog.text


def test_parameters_are_split_at_a_module_a_number_or_a_pattern():
    net = Net()
    for before in ("layer2", 3, r"^layer2\."):
        early, late = split_params(net, before)
        assert len(early["params"]) == 4 and late["params"][0] is net.layer2.weight
    assert [g["name"] for g in groups_of(net)] == ["early", "late", "head"]
    for wrong in ("layer9", 9, "conv1"):
        with pytest.raises(ValueError):
            split_params(net, wrong)


def test_the_cosine_restarts_every_generation():
    factor = generation_cosine(10, warmup=2)
    assert [factor(s) for s in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert factor(6) == pytest.approx(0.5)
    assert [factor(s) for s in range(10)] == [factor(s) for s in range(10, 20)]
    with pytest.raises(ValueError):
        generation_cosine(5, 5)


class Halve(StepTransform):
    def apply_(self, at):
        torch._foreach_mul_(at.gradients, 0.5)


def test_a_users_own_rule():
    x = nn.Parameter(torch.ones(1))
    update(annealed([x], Rule(Window(0, 1), Halve()), lr=1.0).optimizer, x.sum())
    assert x.item() == 0.5


def test_state_dependent_noise_grows_with_the_excess_and_relative_modification_keeps_the_minimum():
    """Todea, eq. 2.7: temperature T + f((U - c)+); eq. 2.8: at the minimum nothing changes."""

    def applied(transform, loss):
        p = torch.nn.Parameter(torch.zeros(4))
        p.grad = torch.ones(4)
        groups = [{"lr": 0.1, "params": [p]}]
        at = StepContext(groups, 0, 0.1, torch.tensor(loss), None, torch.tensor(1.0))
        with torch.no_grad():
            transform.apply_(at)
        return p.grad

    noise = [applied(GradientNoise(lambda step, t=t: t), 1.0) - 1 for t in (1.0, 4.0)]
    state = applied(GradientNoise(lambda step: 1.0, f=lambda excess: excess), 4.0) - 1
    torch.testing.assert_close(noise[1], 2 * noise[0])
    torch.testing.assert_close(state, noise[1])  # the excess of 3 makes the temperature 4
    modified = LandscapeModification(eps=0.5, relative=True)
    torch.testing.assert_close(applied(modified, 1.0), torch.ones(4))
    torch.testing.assert_close(applied(modified, 2.0), torch.full((4,), 0.5 / 1.5))
