"""The methods as lists of rules. A method is a function from a Setup to a Plan; the trainer knows none of their names.

Conventions: generation 1 is plain for all, windows open from step E on and repeat every E; k = round(share * E) steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
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
    Reinitialize,
    ResetMoments,
    Rewind,
    Rule,
    ShrinkAndPerturb,
    Snapshot,
    Snapshots,
    StepTransform,
    Window,
    generation_cosine,
    geometric_cooling,
    kernel_split,
    split_params,
    weight_split,
)
from dreamsa.annealing.transforms import Schedule
from train_cls.config import TrainConfig
from train_cls.models import Classifier

ALWAYS = Window(0, 10**12)
EARLY, LATE, HEAD, FORGETTING = ("early",), ("late",), ("head",), ("late", "head")
FOREVER = 10**12


@dataclass(frozen=True)
class Setup:
    """What a method may build on."""

    config: TrainConfig
    model: Classifier
    """At its initial weights."""
    classes: int
    steps: int
    """Optimizer steps per epoch."""
    fresh: Fresh
    """New initial values of all parameters, another draw for every step."""

    @property
    def period(self) -> int:
        """Steps of one generation, E."""
        return self.config.epochs * self.steps

    @property
    def total(self) -> int:
        return self.config.generations * self.period

    @property
    def climb(self) -> int:
        """Steps of one ascent, k."""
        return round(self.config.anneal.share * self.period)

    @property
    def bound(self) -> float:
        """The loss at which an ascent has run away: so many times that of guessing."""
        return self.config.anneal.bound * log(self.classes)

    def each_generation(self, *events: Event, groups: tuple[str, ...] | None = None) -> Rule:
        """Events at the start of generations 2, 3, ..."""
        return Rule(Window(self.period, 1, self.period), on_open=events, groups=groups)

    def ascent(self, transform: StepTransform | None, groups: tuple[str, ...] | None, phase: str = "ascend") -> Rule:
        """A transform over the first k steps of generations 2, 3, ..., ended early where the loss runs away."""
        return Rule(Window(self.period, self.climb, self.period), transform, groups=groups, phase=phase, bound=self.bound)

    def edges(self) -> list[Rule]:
        """All moments forgotten where an ascent begins and ends, as SEAL's code makes a new optimizer there."""
        if self.config.anneal.moments == "keep":
            return []
        reset = (ResetMoments(),)
        return [Rule(Window(self.period, self.climb, self.period), None, reset, reset, bound=self.bound)]

    def restart(self) -> Rule:
        """Moments forgotten at the start of every generation."""
        return self.each_generation(ResetMoments())


@dataclass
class Plan:
    """What the trainer does differently from plain training: rules, a schedule, and what enters the loss."""

    rules: list[Rule] = field(default_factory=list)
    schedule: Schedule | None = None
    """Factor on the learning rate; None: a cosine per generation."""
    generations: int | None = None
    """None: as many as configured."""
    snapshots: list[Snapshots] = field(default_factory=list)
    masks: list[Masks] = field(default_factory=list)
    teacher: bool = False
    """From generation 2 on, a fresh student also fits the softmax of the generation before."""
    tolerance: float = 0.0
    """Weight of the gap between the likeliest class and the next four."""
    rho: float = 0.0
    """Radius of sharpness-aware minimisation."""
    average_from: float = inf
    """Share of the run after which weights are averaged."""


def groups_of(model: nn.Module, before: str) -> list[Group]:
    """The groups that rules speak of: "early", "late" (without the last layer) and "head"."""
    return split_params(model, int(before) if before.isdigit() else before, head="fc")


def normal(at: Setup) -> Plan:
    """One plain generation."""
    return Plan(generations=1)


def long(at: Setup) -> Plan:
    """G * E plain epochs under one cosine: the baseline that knowledge evolution's critics asked for."""
    return Plan(schedule=generation_cosine(at.total, round(at.config.warmup * at.steps)))


def restarts(at: Setup) -> Plan:
    """The learning rate restarts every generation and moments are forgotten: the `normal` mode of SEAL's code."""
    return Plan([at.restart()])


def sgdr(at: Setup) -> Plan:
    """Warm restarts after E, 2E, 4E, ... epochs (SGDR, arXiv:1608.03983, T_mult = 2)."""

    def factor(step: int) -> float:
        length, start = at.period, 0
        while step >= start + length:
            start, length = start + length, 2 * length
        return generation_cosine(min(length, max(at.total - start, 1)))(step - start)

    return Plan(schedule=factor)


def swa(at: Setup) -> Plan:
    """Stochastic weight averaging (arXiv:1803.05407): a cosine down to a quarter, then constant, averaging once an epoch."""
    begin = max(round(at.config.anneal.average_from * at.total), 1)
    down = generation_cosine(begin, floor=0.25)
    return Plan(schedule=lambda step: down(step) if step < begin else 0.25, average_from=at.config.anneal.average_from)


def sam(at: Setup) -> Plan:
    """Sharpness-aware minimisation (arXiv:2010.01412): two gradients a step, so half as many generations for the same work."""
    half = max(at.config.generations // 2, 1)
    return Plan(schedule=generation_cosine(half * at.period), generations=half, rho=at.config.anneal.rho)


def _climb(at: Setup) -> GradientAscent:
    return GradientAscent(at.config.anneal.scale, at.config.anneal.decay_weights)


def seal(at: Setup) -> Plan:
    """Early layers ascend for k steps at S times the rate while the rest descends; then all descend (SEAL, eq. 2 and 3)."""
    return Plan([*at.edges(), at.ascent(_climb(at), EARLY)])


def seal_freeze(at: Setup) -> Plan:
    """The later layers hold still while the early ones ascend (SEAL, table 7)."""
    return Plan([*at.edges(), at.ascent(_climb(at), EARLY), at.ascent(Freeze(), FORGETTING)])


def seal_reinit(at: Setup) -> Plan:
    """The later layers start afresh when the early ones begin to ascend (SEAL, table 7)."""
    return Plan([*at.edges(), at.each_generation(Reinitialize(at.fresh), groups=FORGETTING), at.ascent(_climb(at), EARLY)])


def seal_reverse(at: Setup) -> Plan:
    """The later layers ascend, the early ones descend (SEAL, table 7)."""
    return Plan([*at.edges(), at.ascent(_climb(at), FORGETTING)])


def seal_zero(at: Setup) -> Plan:
    """Control, S = 0: the early layers hold still for k steps."""
    return Plan([*at.edges(), at.ascent(Freeze(), EARLY, "freeze")])


def random_direction(at: Setup) -> Plan:
    """Control: the early layers go as far in a random direction."""
    return Plan([*at.edges(), at.ascent(RandomDirection(at.config.anneal.scale, at.config.seed), EARLY, "random")])


def reset_only(at: Setup) -> Plan:
    """Control: only the moments are forgotten, at both edges of the ascent that does not take place."""
    return Plan(at.edges())


def llf(at: Setup) -> Plan:
    """Later-layer forgetting (arXiv:2202.00155): all from the threshold on starts afresh every generation."""
    return Plan([at.restart(), at.each_generation(Reinitialize(at.fresh), groups=FORGETTING)])


def rifle(at: Setup) -> Plan:
    """The last layer starts afresh every generation, never after the last (arXiv:2007.03349)."""
    return Plan([at.restart(), at.each_generation(Reinitialize(at.fresh), groups=HEAD)])


def ke_kels(at: Setup) -> Plan:
    """Knowledge evolution, split by kernels (arXiv:2103.05152): all outside the fit hypothesis starts afresh."""
    return _evolve(at, kernel_split(at.model, at.config.anneal.fit_share))


def ke_wels(at: Setup) -> Plan:
    """Knowledge evolution, split by weights."""
    return _evolve(at, weight_split(at.model, at.config.anneal.fit_share, at.config.seed))


def _evolve(at: Setup, fit: Masks) -> Plan:
    """Parameters that no split covers (batch norms) stay."""
    fit.keep.update({p: torch.ones_like(p, dtype=torch.bool) for p in at.model.parameters() if p not in fit.keep})
    return Plan([at.restart(), at.each_generation(Reinitialize(at.fresh, fit))], masks=[fit])


def imp(at: Setup) -> Plan:
    """Iterative magnitude pruning (arXiv:1803.03635): each generation drops a share of what is left and rewinds the rest to its start."""
    masks, start = _from_the_start(at)
    events = (Prune(masks, at.config.anneal.prune), Rewind(start, masks=masks), ResetMoments())
    return Plan([at.each_generation(*events), Rule(ALWAYS, Masked(masks), phase="descend")], snapshots=[start], masks=[masks])


def supermask(at: Setup) -> Plan:
    """One mask after generation 1, of the weights that grew most, over weights rewound to their start (arXiv:1905.01067)."""
    masks, start = _from_the_start(at)
    share = 1 - (1 - at.config.anneal.prune) ** (at.config.generations - 1)
    events = (Prune(masks, share, "increase", start), Rewind(start, masks=masks), ResetMoments())
    once = Rule(Window(at.period, 1), on_open=events)
    return Plan([once, Rule(ALWAYS, Masked(masks), phase="descend")], snapshots=[start], masks=[masks])


def _from_the_start(at: Setup) -> tuple[Masks, Snapshots]:
    start = Snapshots()
    start.take(p for group in groups_of(at.model, at.config.anneal.before) for p in group["params"])
    return Masks.full(at.model.parameters()), start


def ban(at: Setup) -> Plan:
    """Born-again networks (arXiv:1805.04770): a fresh student fits the softmax of the generation before."""
    return Plan([at.restart(), at.each_generation(Reinitialize(at.fresh))], teacher=True)


def tolerant_teacher(at: Setup) -> Plan:
    """Born again from teachers that are kept from being too sure (arXiv:1805.05551)."""
    plan = ban(at)
    plan.tolerance = at.config.anneal.tolerance
    return plan


def self_distillation(at: Setup) -> Plan:
    """Born again from a well-tuned teacher: set weight and temperature with anneal.distill and anneal.soften (arXiv:2206.08491)."""
    return ban(at)


def sa_gd(at: Setup) -> Plan:
    """Every step may go uphill (arXiv:2107.07558)."""
    knobs = at.config.anneal
    return Plan([Rule(ALWAYS, RandomAscent(knobs.t_initial, seed=at.config.seed), phase="descend")])


def _cooling(at: Setup) -> Schedule:
    knobs = at.config.anneal
    return geometric_cooling(knobs.temperature, knobs.cooling ** (1 / at.total))


def langevin(at: Setup) -> Plan:
    """Langevin simulated annealing (Todea, eq. 2.4), cooled geometrically."""
    return Plan([Rule(ALWAYS, GradientNoise(_cooling(at), seed=at.config.seed), phase="descend")])


def kinetic(at: Setup) -> Plan:
    """Adaptive kinetic annealing (Choi, arXiv:2009.00195; Todea, eq. 2.8): momentum with friction 1/T on a modified landscape.

    The factor T on the gradient is left out, as the temperatures that networks bear would stop them; at such temperatures friction is
    total, and what is left is Langevin annealing on the modified landscape.
    """
    noise = GradientNoise(_cooling(at), kinetic=True, seed=at.config.seed)
    return Plan([*landscape(at).rules, Rule(ALWAYS, noise, phase="descend")])


def _power(at: Setup) -> Callable[[torch.Tensor], torch.Tensor]:
    power = at.config.anneal.power
    return lambda excess: excess**power


def landscape(at: Setup) -> Plan:
    """Landscape modification under any optimizer (Todea, sec. 2.2)."""
    return Plan([Rule(ALWAYS, LandscapeModification(_power(at), at.config.anneal.eps), phase="descend")])


def distancing(at: Setup) -> Plan:
    """Hills on the checkpoints of earlier generations; their ensemble is evaluated too (004, algorithm 4)."""
    knobs, memory = at.config.anneal, Snapshots()
    hills = Rule(Window(at.period, FOREVER), DistanceHills(memory, knobs.strength, knobs.width), phase="descend")
    return Plan([at.restart(), at.each_generation(Snapshot(memory)), hills], snapshots=[memory])


def shrink_perturb(at: Setup) -> Plan:
    """Shrink all weights and add a little of fresh ones every generation (arXiv:1910.08475)."""
    knobs = at.config.anneal
    return Plan([at.restart(), at.each_generation(ShrinkAndPerturb(knobs.shrink, knobs.perturb, at.fresh))])


METHODS: dict[str, Callable[[Setup], Plan]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        normal, long, restarts, sgdr, swa, sam, seal, seal_freeze, seal_reinit, seal_reverse, seal_zero, random_direction, reset_only,
        llf, rifle, ke_kels, ke_wels, imp, supermask, ban, tolerant_teacher, self_distillation, sa_gd, langevin, kinetic, landscape,
        distancing, shrink_perturb,
    )
}  # fmt: skip


def plan_for(setup: Setup) -> Plan:
    """The plan of the configured method.

    Raises:
        ValueError: There is no such method; the nearest ones are named.
    """
    from difflib import get_close_matches

    name = setup.config.method
    if name not in METHODS:
        near = ", ".join(get_close_matches(name, METHODS, 3)) or ", ".join(METHODS)
        raise ValueError(f"There is no method {name!r}. Near it: {near}.")
    return METHODS[name](setup)
