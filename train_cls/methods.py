"""The methods as lists of rules. A method is a function from a Setup to a Plan, independent of the
trainer.

Conventions: generation 1 is plain for all methods; windows open at step E and repeat every E steps;
an ascent lasts k = round(share * E) steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import inf, log

import torch
from torch import nn

from dreamsa.annealing import (
    DistanceHills,
    Event,
    Freeze,
    Fresh,
    GradientAscent,
    GradientNoise,
    Group,
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
    StepTransform,
    Window,
    generation_cosine,
    geometric_cooling,
    kernel_split,
    reinitialize,
    shrink_and_perturb,
    split_params,
    weight_split,
)
from dreamsa.annealing.transforms import Schedule
from train_cls.config import AnnealConfig, TrainConfig
from train_cls.forgetting import Forgetting
from train_cls.models import Classifier

FOREVER = 10**12
ALWAYS = Window(0, FOREVER)
EARLY, HEAD, FORGETTING = ("early",), ("head",), ("late", "head")


@dataclass(frozen=True)
class Setup:
    """Inputs of a method."""

    config: TrainConfig
    model: Classifier
    """At its initial weights."""
    classes: int
    steps: int
    """Optimizer steps per epoch."""
    fresh: Fresh
    """Draws new initial values of all parameters, different at every step."""
    forgetting: Forgetting
    """Measures every ascent."""

    @property
    def anneal(self) -> AnnealConfig:
        return self.config.anneal

    @property
    def period(self) -> int:
        """Steps of one generation, E."""
        return self.config.epochs * self.steps

    @property
    def total(self) -> int:
        return self.config.generations * self.period

    @property
    def ascent_window(self) -> Window:
        """The first k steps of generations 2, 3, ..."""
        return Window(self.period, round(self.anneal.share * self.period), self.period)

    @property
    def bound(self) -> float:
        """Loss above which an ascent ends: `anneal.bound` times that of a uniform guess."""
        return self.anneal.bound * log(self.classes)

    def each_generation(self, *events: Event, groups: tuple[str, ...] | None = None) -> Rule:
        """Events at the start of generations 2, 3, ..."""
        return Rule(Window(self.period, 1, self.period), on_open=events, groups=groups)

    def ascent(
        self, transform: StepTransform | None, groups: tuple[str, ...] | None, phase: str = "ascend"
    ) -> Rule:
        """A transform during ascents, which end early if the loss exceeds `bound`."""
        return Rule(self.ascent_window, transform, groups=groups, phase=phase, bound=self.bound)

    def measured(self, rule: Rule) -> Rule:
        """A rule whose windows are measured, see `Forgetting`."""
        begin, end = self.forgetting.begin, self.forgetting.end
        return replace(rule, on_open=(*rule.on_open, begin), on_close=(*rule.on_close, end))

    def edges(self) -> list[Rule]:
        """Clear all moments at both edges of an ascent, where SEAL's code makes a new optimizer."""
        if self.anneal.moments == "keep":
            return []
        reset = (ResetMoments(),)
        return [Rule(self.ascent_window, None, reset, reset, bound=self.bound)]

    def reinitialize(self, groups: tuple[str, ...] | None = None, fit: Masks | None = None) -> Rule:
        """Reinitialise at the start of every generation; with `fit`, only outside it."""
        return self.each_generation(reinitialize(self.fresh, fit), groups=groups)

    def restart(self) -> Rule:
        """Clear the moments at the start of every generation."""
        return self.each_generation(ResetMoments())


@dataclass
class Plan:
    """Differences from plain training: rules, a learning-rate schedule, and terms of the loss."""

    rules: list[Rule] = field(default_factory=list)
    schedule: Schedule | None = None
    """Factor on the learning rate; None for a cosine per generation."""
    generations: int | None = None
    """Number of generations; None for the configured one."""
    snapshots: list[Snapshots] = field(default_factory=list)
    masks: list[Masks] = field(default_factory=list)
    teacher: bool = False
    """From generation 2 on, a fresh student also fits the softmax of the previous generation."""
    tolerance: float = 0.0
    """Weight of the gap between the most likely class and the next four."""
    rho: float = 0.0
    """Radius of sharpness-aware minimisation."""
    average_from: float = inf
    """Fraction of the run after which weights are averaged."""


def split_groups(model: nn.Module, before: str) -> list[Group]:
    """The parameter groups "early", "late" (without the last layer) and "head"."""
    return split_params(model, int(before) if before.isdigit() else before, head="fc")


def normal(setup: Setup) -> Plan:
    """One plain generation."""
    return Plan(generations=1)


def long(setup: Setup) -> Plan:
    """G * E plain epochs under one cosine: the baseline of equal length."""
    return Plan(schedule=generation_cosine(setup.total, round(setup.config.warmup * setup.steps)))


def restarts(setup: Setup) -> Plan:
    """Learning rate and moments restart every generation: the `normal` mode of SEAL's code."""
    return Plan([setup.restart()])


def sgdr(setup: Setup) -> Plan:
    """Warm restarts after E, 2E, 4E, ... epochs (SGDR, arXiv:1608.03983, T_mult = 2)."""

    def factor(step: int) -> float:
        length, start = setup.period, 0
        while step >= start + length:
            start, length = start + length, 2 * length
        return generation_cosine(min(length, max(setup.total - start, 1)))(step - start)

    return Plan(schedule=factor)


def swa(setup: Setup) -> Plan:
    """Stochastic weight averaging (arXiv:1803.05407): a cosine down to a quarter, then constant,
    averaging once per epoch."""
    begin = max(round(setup.anneal.average_from * setup.total), 1)
    down = generation_cosine(begin, floor=0.25)
    return Plan(
        schedule=lambda step: down(step) if step < begin else 0.25,
        average_from=setup.anneal.average_from,
    )


def sam(setup: Setup) -> Plan:
    """Sharpness-aware minimisation (arXiv:2010.01412): two gradients per step, so half as many
    generations at equal cost."""
    half = max(setup.config.generations // 2, 1)
    return Plan(
        schedule=generation_cosine(half * setup.period),
        generations=half,
        rho=setup.anneal.rho,
    )


def _gradient_ascent(setup: Setup) -> GradientAscent:
    return GradientAscent(setup.anneal.scale, setup.anneal.decay_weights)


def seal(setup: Setup) -> Plan:
    """Early layers ascend for k steps at S times the rate while the rest descends; then all descend
    (SEAL, eq. 2 and 3)."""
    return Plan([*setup.edges(), setup.measured(setup.ascent(_gradient_ascent(setup), EARLY))])


def seal_freeze(setup: Setup) -> Plan:
    """SEAL with later layers frozen while the early ones ascend (table 7)."""
    return Plan(
        [
            *setup.edges(),
            setup.measured(setup.ascent(_gradient_ascent(setup), EARLY)),
            setup.ascent(Freeze(), FORGETTING),
        ]
    )


def seal_reinit(setup: Setup) -> Plan:
    """SEAL with later layers reinitialised when the early ones begin to ascend (table 7)."""
    return Plan(
        [
            *setup.edges(),
            setup.reinitialize(FORGETTING),
            setup.measured(setup.ascent(_gradient_ascent(setup), EARLY)),
        ]
    )


def seal_reverse(setup: Setup) -> Plan:
    """SEAL with later layers ascending and early ones descending (table 7)."""
    ascent = setup.ascent(_gradient_ascent(setup), FORGETTING)
    return Plan([*setup.edges(), setup.measured(ascent)])


def seal_zero(setup: Setup) -> Plan:
    """Control, S = 0: the early layers are frozen for k steps."""
    return Plan([*setup.edges(), setup.measured(setup.ascent(Freeze(), EARLY, "freeze"))])


def random_direction(setup: Setup) -> Plan:
    """Control: the early layers take steps of the same length in random directions."""
    transform = RandomDirection(setup.anneal.scale, setup.config.seed)
    return Plan([*setup.edges(), setup.measured(setup.ascent(transform, EARLY, "random"))])


def reset_only(setup: Setup) -> Plan:
    """Control: clears the moments at both edges of the ascent, without the ascent."""
    return Plan(setup.edges())


def llf(setup: Setup) -> Plan:
    """Later-layer forgetting (arXiv:2202.00155): reinitialises later layers every generation."""
    return Plan([setup.restart(), setup.reinitialize(FORGETTING)])


def rifle(setup: Setup) -> Plan:
    """RIFLE (arXiv:2007.03349): reinitialises the last layer every generation."""
    return Plan([setup.restart(), setup.reinitialize(HEAD)])


def ke_kels(setup: Setup) -> Plan:
    """Knowledge evolution, split by kernels (arXiv:2103.05152): reinitialises all outside the fit
    hypothesis."""
    return _evolve(setup, kernel_split(setup.model, setup.anneal.fit_share))


def ke_wels(setup: Setup) -> Plan:
    """Knowledge evolution, split by weights."""
    return _evolve(setup, weight_split(setup.model, setup.anneal.fit_share, setup.config.seed))


def _evolve(setup: Setup, fit: Masks) -> Plan:
    """Reinitialise outside `fit`; parameters that no split covers (batch norms) stay."""
    for p in setup.model.parameters():
        fit.keep.setdefault(p, torch.ones_like(p, dtype=torch.bool))
    return Plan([setup.restart(), setup.reinitialize(fit=fit)], masks=[fit])


def imp(setup: Setup) -> Plan:
    """Iterative magnitude pruning (arXiv:1803.03635): each generation prunes a fraction of the
    remaining weights and rewinds the rest to their initial values."""
    masks, start = _initial_weights(setup)
    events = (Prune(masks, setup.anneal.prune), Rewind(start, masks=masks), ResetMoments())
    return Plan(
        [setup.each_generation(*events), Rule(ALWAYS, Masked(masks), phase="descend")],
        snapshots=[start],
        masks=[masks],
    )


def supermask(setup: Setup) -> Plan:
    """Supermask (arXiv:1905.01067): after generation 1, keeps the weights that grew most, rewound
    to their initial values."""
    masks, start = _initial_weights(setup)
    fraction = 1 - (1 - setup.anneal.prune) ** (setup.config.generations - 1)
    events = (Prune(masks, fraction, "increase", start), Rewind(start, masks=masks), ResetMoments())
    once = Rule(Window(setup.period, 1), on_open=events)
    return Plan(
        [once, Rule(ALWAYS, Masked(masks), phase="descend")], snapshots=[start], masks=[masks]
    )


def _initial_weights(setup: Setup) -> tuple[Masks, Snapshots]:
    start = Snapshots()
    start.take(
        p for group in split_groups(setup.model, setup.anneal.before) for p in group["params"]
    )
    return Masks.full(setup.model.parameters()), start


def ban(setup: Setup) -> Plan:
    """Born-again networks (arXiv:1805.04770): a fresh student fits the softmax of the previous
    generation."""
    return Plan([setup.restart(), setup.reinitialize()], teacher=True)


def tolerant_teacher(setup: Setup) -> Plan:
    """Born-again networks with teachers penalised for overconfidence (arXiv:1805.05551)."""
    plan = ban(setup)
    plan.tolerance = setup.anneal.tolerance
    return plan


def self_distillation(setup: Setup) -> Plan:
    """Born-again networks with a tuned teacher (arXiv:2206.08491): set anneal.distill and
    anneal.soften."""
    return ban(setup)


def sa_gd(setup: Setup) -> Plan:
    """SA-GD (arXiv:2107.07558): every step may ascend."""
    transform = RandomAscent(setup.anneal.t_initial, seed=setup.config.seed)
    return Plan([Rule(ALWAYS, transform, phase="descend")])


def _cooling(setup: Setup) -> Schedule:
    config = setup.anneal
    return geometric_cooling(config.temperature, config.cooling ** (1 / setup.total))


def langevin(setup: Setup) -> Plan:
    """Langevin simulated annealing (Todea, eq. 2.4) with geometric cooling."""
    noise = GradientNoise(_cooling(setup), seed=setup.config.seed)
    return Plan([Rule(ALWAYS, noise, phase="descend")])


def kinetic(setup: Setup) -> Plan:
    """Adaptive kinetic annealing (Choi, arXiv:2009.00195; Todea, eq. 2.8): momentum with friction
    1/T on a modified landscape.

    Omits the factor T on the gradient, which would stop training at the low temperatures that
    networks tolerate. At such temperatures friction is total, which leaves Langevin annealing on
    the modified landscape.
    """
    noise = GradientNoise(_cooling(setup), kinetic=True, seed=setup.config.seed)
    return Plan([*landscape(setup).rules, Rule(ALWAYS, noise, phase="descend")])


def _power(setup: Setup) -> Callable[[torch.Tensor], torch.Tensor]:
    power = setup.anneal.power
    return lambda excess: excess**power


def landscape(setup: Setup) -> Plan:
    """Landscape modification under any optimizer (Todea, sec. 2.2)."""
    transform = LandscapeModification(_power(setup), setup.anneal.eps)
    return Plan([Rule(ALWAYS, transform, phase="descend")])


def distancing(setup: Setup) -> Plan:
    """Repulsive hills at the weights of earlier generations; their ensemble is evaluated too."""
    config, memory = setup.anneal, Snapshots()
    hills = Rule(
        Window(setup.period, FOREVER),
        DistanceHills(memory, config.strength, config.width),
        phase="descend",
    )
    return Plan(
        [setup.restart(), setup.each_generation(Snapshot(memory)), hills], snapshots=[memory]
    )


def shrink_perturb(setup: Setup) -> Plan:
    """Shrink and perturb (arXiv:1910.08475): every generation, w = shrink * w + perturb * fresh."""
    config = setup.anneal
    event = shrink_and_perturb(config.shrink, config.perturb, setup.fresh)
    return Plan([setup.restart(), setup.each_generation(event)])


METHODS: dict[str, Callable[[Setup], Plan]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        normal, long, restarts, sgdr, swa, sam, seal, seal_freeze, seal_reinit, seal_reverse,
        seal_zero, random_direction, reset_only, llf, rifle, ke_kels, ke_wels, imp, supermask, ban,
        tolerant_teacher, self_distillation, sa_gd, langevin, kinetic, landscape, distancing,
        shrink_perturb,
    )
}  # fmt: skip


def plan_for(setup: Setup) -> Plan:
    """The plan of the configured method.

    Raises:
        ValueError: Unknown method; suggests the nearest ones.
    """
    name = setup.config.method
    if name not in METHODS:
        near = ", ".join(get_close_matches(name, METHODS, 3))
        hint = f"Did you mean {near}?" if near else f"The methods are {', '.join(METHODS)}."
        raise ValueError(f"There is no method {name!r}. {hint}")
    return METHODS[name](setup)
