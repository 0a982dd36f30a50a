"""The methods as lists of rules. A method is a function from a Setup to a Plan, independent of the
trainer; several combine, as in "seal,swa".

Conventions: generation 1 is plain for all methods but those "from scratch"; windows open at step E
and repeat every E steps; an ascent lasts k = round(share * E) steps.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches

import torch

from dreamsa.annealing import (
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
    Window,
    generation_cosine,
    geometric_cooling,
    kernel_split,
    logarithmic_cooling,
    reinitialize,
    shrink_and_perturb,
    weight_split,
)
from dreamsa.annealing.transforms import Schedule
from train_cls.averaging import stochastic_average
from train_cls.groups import split_groups
from train_cls.losses import Distillation, OverconfidencePenalty, UpdateTeacher, sharpness_aware
from train_cls.plan import (
    ALWAYS,
    EARLY,
    FOREVER,
    FORGETTING,
    HEAD,
    Plan,
    Setup,
    combine,
)


def normal(setup: Setup) -> Plan:
    """One plain generation."""
    return Plan(generations=1)


def long(setup: Setup) -> Plan:
    """G * E plain epochs under one cosine: the baseline of equal length."""
    return Plan(schedule=_one_cosine(setup))


def _one_cosine(setup: Setup) -> Schedule:
    return generation_cosine(setup.total, round(setup.config.warmup * setup.steps))


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
    begin = setup.anneal.average_from * setup.total
    first = max(round(begin), 1)
    down = generation_cosine(first, floor=0.25)
    return Plan(
        schedule=lambda step: down(step) if step < first else 0.25,
        average=stochastic_average(setup.model, begin, setup.steps),
    )


def sam(setup: Setup) -> Plan:
    """Sharpness-aware minimisation (arXiv:2010.01412): two gradients per step, so half as many
    generations at equal cost."""
    half = max(setup.config.generations // 2, 1)
    return Plan(
        schedule=generation_cosine(half * setup.period),
        generations=half,
        gradients=sharpness_aware(setup.model, setup.anneal.rho),
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
            setup.forget_later_layers(),
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
    """Control: the early layers take steps of the same length in one random direction per ascent,
    and so go at least as far."""
    transform = RandomDirection(setup.anneal.scale, setup.config.seed, setup.period)
    return Plan([*setup.edges(), setup.measured(setup.ascent(transform, EARLY, "random"))])


def reset_only(setup: Setup) -> Plan:
    """Control: clears the moments at both edges of the ascent, without the ascent."""
    return Plan(setup.edges())


def llf(setup: Setup) -> Plan:
    """Later-layer forgetting (arXiv:2202.00155): reinitialises later layers every generation."""
    return Plan([setup.restart(), setup.forget_later_layers()])


def rifle(setup: Setup) -> Plan:
    """RIFLE (arXiv:2007.03349): fine-tuning under one cosine that reinitialises the last layer,
    with its moments, every generation but keeps the backbone's."""
    events = (reinitialize(setup.fresh), ResetMoments())
    return Plan([setup.each_generation(*events, groups=HEAD)], schedule=_one_cosine(setup))


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
    start.take(p for group in split_groups(setup.model, setup.config) for p in group["params"])
    return Masks.full(setup.model.parameters()), start


def ban(setup: Setup) -> Plan:
    """Born-again networks (arXiv:1805.04770): a fresh student fits the softmax of the previous
    generation in place of the labels."""
    return _students(setup, weight=1.0, soften=1.0)


def tolerant_teacher(setup: Setup) -> Plan:
    """Generations of students and labels, all penalised for overconfidence (arXiv:1805.05551)."""
    plan = self_distillation(setup)
    plan.terms.append(OverconfidencePenalty(setup.anneal.tolerance))
    return plan


def self_distillation(setup: Setup) -> Plan:
    """Self-distillation (arXiv:2206.08491): a fresh student fits the labels and the softened
    softmax of the previous generation."""
    return _students(setup, setup.anneal.distill, setup.anneal.soften)


def _students(setup: Setup, weight: float, soften: float) -> Plan:
    teacher = deepcopy(setup.model).eval().requires_grad_(False)
    return Plan(
        [
            setup.each_generation(UpdateTeacher(setup.model, teacher)),
            setup.restart(),
            setup.reinitialize(),
        ],
        terms=[Distillation(teacher, setup.period, weight, soften)],
        modules={"teacher": teacher},
    )


def sa_gd(setup: Setup) -> Plan:
    """SA-GD (arXiv:2107.07558): every step may ascend."""
    transform = RandomAscent(setup.anneal.t_initial, seed=setup.config.seed)
    return Plan([Rule(ALWAYS, transform, phase="descend")])


def _cooling(setup: Setup) -> Schedule:
    config = setup.anneal
    if config.cooling_law == "logarithmic":
        return logarithmic_cooling(config.temperature)
    return geometric_cooling(config.temperature, config.cooling ** (1 / setup.total))


def langevin(setup: Setup) -> Plan:
    """Langevin simulated annealing (Todea, eq. 2.4), with state-dependent noise (eq. 2.7) if
    anneal.state_noise is set."""
    factor, power = setup.anneal.state_noise, setup.anneal.power
    state = (lambda excess: factor * excess**power) if factor else None
    noise = GradientNoise(_cooling(setup), f=state, seed=setup.config.seed)
    return Plan([Rule(ALWAYS, noise, phase="descend")])


def kinetic(setup: Setup) -> Plan:
    """Kinetic simulated annealing (Todea, eq. 2.5): momentum is a velocity with friction and noise.
    "landscape,kinetic" is the adaptive one (Choi, arXiv:2009.00195; eq. 2.8) without its factor T
    on the gradient, which would stop training at temperatures that networks tolerate."""
    cooling, friction = _cooling(setup), setup.anneal.friction
    noise = GradientNoise(
        cooling,
        (lambda step: 1 / max(cooling(step), 1e-30)) if friction is None else friction,
        seed=setup.config.seed,
    )
    return Plan([Rule(ALWAYS, noise, phase="descend")])


def _power(setup: Setup) -> Callable[[torch.Tensor], torch.Tensor]:
    power = setup.anneal.power
    return lambda excess: excess**power


def landscape(setup: Setup) -> Plan:
    """Landscape modification under any optimizer (Todea, sec. 2.2)."""
    transform = LandscapeModification(_power(setup), setup.anneal.eps, setup.anneal.c)
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


@dataclass(frozen=True)
class Method:
    """A method and what is known of it."""

    plan: Callable[[Setup], Plan]
    uses: tuple[str, ...] = ()
    """The settings under `anneal` that it depends on."""
    control: bool = False
    """A baseline of SEAL: one of its ingredients without ascent, or another method of equal
    cost."""
    from_scratch: bool = False
    """Whether its first generation differs from the plain one that the others share."""
    spans_run: bool = False
    """Whether its steps depend on the number of generations, which therefore cannot grow."""

    @property
    def name(self) -> str:
        return self.plan.__name__.replace("_", "-")

    @property
    def summary(self) -> str:
        return " ".join((self.plan.__doc__ or "").split())


SPLIT = ("before",)
EDGES = (*SPLIT, "share", "moments", "bound", "norm_statistics")
ASCENT = (*EDGES, "scale", "decay_weights")
REINIT = (*SPLIT, "reinit")
NOISE = ("temperature", "cooling", "cooling_law")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(normal, from_scratch=True, spans_run=True),
        Method(long, control=True, from_scratch=True, spans_run=True),
        Method(restarts, control=True),
        Method(sgdr, from_scratch=True, spans_run=True),
        Method(swa, ("average_from",), control=True, from_scratch=True, spans_run=True),
        Method(sam, ("rho",), control=True, from_scratch=True, spans_run=True),
        Method(seal, ASCENT),
        Method(seal_freeze, ASCENT),
        Method(seal_reinit, (*ASCENT, "reinit")),
        Method(seal_reverse, ASCENT),
        Method(seal_zero, EDGES, control=True),
        Method(random_direction, (*EDGES, "scale"), control=True),
        Method(reset_only, EDGES, control=True),
        Method(llf, REINIT, control=True),
        Method(rifle, ("reinit",), from_scratch=True, spans_run=True),
        Method(ke_kels, ("fit_share", "reinit")),
        Method(ke_wels, ("fit_share", "reinit")),
        Method(imp, ("prune",)),
        Method(supermask, ("prune",), spans_run=True),
        Method(ban, ("reinit",)),
        Method(tolerant_teacher, ("reinit", "distill", "soften", "tolerance"), from_scratch=True),
        Method(self_distillation, ("reinit", "distill", "soften")),
        Method(sa_gd, ("t_initial",), from_scratch=True),
        Method(langevin, (*NOISE, "state_noise", "power"), from_scratch=True, spans_run=True),
        Method(kinetic, (*NOISE, "friction"), from_scratch=True, spans_run=True),
        Method(landscape, ("eps", "power", "c"), from_scratch=True),
        Method(distancing, ("strength", "width")),
        Method(shrink_perturb, ("shrink", "perturb", "reinit"), control=True),
    )
}


def methods_of(name: str) -> dict[str, Method]:
    """The methods that a name such as "seal" or "seal,swa" combines, in order.

    Raises:
        ValueError: Unknown method (suggests the nearest ones), or one is named twice.
    """
    parts = [part.strip() for part in name.split(",")]
    for part in parts:
        if part not in METHODS:
            near = ", ".join(get_close_matches(part, METHODS, 3))
            hint = f"Did you mean {near}?" if near else f"The methods are {', '.join(METHODS)}."
            raise ValueError(f"There is no method {part!r}. {hint}")
        if parts.count(part) > 1:
            raise ValueError(f"The method {part} is named twice in {name!r}; name it once.")
    return {part: METHODS[part] for part in parts}


def is_control(name: str) -> bool:
    """Whether all methods of a name are controls."""
    return all(method.control for method in methods_of(name).values())


def is_from_scratch(name: str) -> bool:
    """Whether any method of a name differs from the others in generation 1."""
    return any(method.from_scratch for method in methods_of(name).values())


def spans_run(name: str) -> bool:
    """Whether any method of a name depends on the number of generations."""
    return any(method.spans_run for method in methods_of(name).values())


def check_settings(changed: Iterable[str], *names: str) -> None:
    """Check that no changed setting is without effect.

    Args:
        changed: Dotted names of settings that were changed.
        names: The methods of a run, or of all runs of a study.

    Raises:
        ValueError: A setting of `anneal` that none of the methods depends on.
    """
    used = {one for name in names for method in methods_of(name).values() for one in method.uses}
    for setting in changed:
        section, _, field = setting.partition(".")
        if section != "anneal" or field in used or field not in ALL_SETTINGS:
            continue
        users = ", ".join(method.name for method in METHODS.values() if field in method.uses)
        raise ValueError(
            f"{setting} has no effect on {' or '.join(names)}: it is a setting of {users}. Leave "
            "it out, or choose another method."
        )


ALL_SETTINGS = frozenset(one for method in METHODS.values() for one in method.uses)


def plan_for(setup: Setup) -> Plan:
    """The plan of the configured methods.

    Raises:
        ValueError: As `methods_of` and `combine`, or ema beside a method that averages.
    """
    methods = methods_of(setup.config.method)
    plan = combine({name: method.plan(setup) for name, method in methods.items()})
    if plan.average is not None and setup.config.ema:
        raise ValueError(
            f"{setup.config.method} averages the weights itself; with ema={setup.config.ema:g} "
            "they would be averaged twice. Leave one of the two out."
        )
    return plan
