"""What a method is: a function from a Setup to a Plan, and how plans combine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import log

import torch
from torch import Tensor, nn

from dreamsa.annealing import (
    Event,
    Fresh,
    Masks,
    ResetMoments,
    Rule,
    Snapshots,
    StepTransform,
    Window,
    reinitialize,
)
from dreamsa.annealing.transforms import Schedule
from train_cls.averaging import Average
from train_cls.config import AnnealConfig, TrainConfig
from train_cls.forgetting import Forgetting
from train_cls.models import Classifier

FOREVER = 10**12
ALWAYS = Window(0, FOREVER)
EARLY, HEAD, FORGETTING = ("early",), ("head",), ("late", "head")

LossTerm = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(loss, logits, images, step) -> loss."""
Backward = Callable[[bool], None]
"""Compute the gradients of a step: the first time (True), or again at other weights (False)."""


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

    def forget_later_layers(self) -> Rule:
        """Reinitialise the later layers. With `reinit=torch`, as in the published code of LLF and
        SEAL, their biases and batch norms stay."""
        kept = None if self.anneal.reinit == "model" else norms_and_biases(self.model)
        return self.reinitialize(FORGETTING, kept)

    def restart(self) -> Rule:
        """Clear the moments at the start of every generation."""
        return self.each_generation(ResetMoments())


@dataclass
class Plan:
    """Differences from plain training."""

    rules: list[Rule] = field(default_factory=list)
    schedule: Schedule | None = None
    """Factor on the learning rate; None for the configured one."""
    generations: int | None = None
    """Number of generations; None for the configured one."""
    terms: list[LossTerm] = field(default_factory=list)
    """Applied in order to the loss of every batch."""
    gradients: Callable[[Backward], None] | None = None
    """How a step takes its gradients; None for once."""
    average: Average | None = None
    """Averaged weights, evaluated besides the last ones."""
    snapshots: list[Snapshots] = field(default_factory=list)
    masks: list[Masks] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Further networks to save, by name."""


EXCLUSIVE = {
    "schedule": "sets the learning rate",
    "generations": "sets the number of generations",
    "gradients": "changes how gradients are taken",
    "average": "averages the weights",
}
"""Fields of a plan that one method alone may set, and what that does."""


def combine(plans: Mapping[str, Plan]) -> Plan:
    """The plan of several methods together: their rules and terms in order.

    Args:
        plans: By name of the method.

    Raises:
        ValueError: Two methods set what one alone can set, or one sets the learning rate for
            another number of generations.
    """
    whole, by = Plan(), dict[str, str]()
    for name, plan in plans.items():
        for one, what in EXCLUSIVE.items():
            value = getattr(plan, one)
            if value is None:
                continue
            if one in by:
                raise ValueError(
                    f"{by[one]} and {name} cannot be combined: each {what}. Leave one out."
                )
            by[one] = name
            setattr(whole, one, value)
        whole.rules += plan.rules
        whole.terms += plan.terms
        whole.snapshots += plan.snapshots
        whole.masks += plan.masks
        whole.modules |= plan.modules
    if by.get("schedule") and by.get("generations", by["schedule"]) != by["schedule"]:
        raise ValueError(
            f"{by['schedule']} and {by['generations']} cannot be combined: one sets the learning "
            "rate for the whole run, the other shortens the run. Leave one out."
        )
    return whole


def norms_and_biases(model: nn.Module) -> Masks:
    """Masks that keep all vectors, and nothing else."""
    masks: dict[Tensor, Tensor] = {
        p: torch.full_like(p, p.ndim < 2, dtype=torch.bool, requires_grad=False)
        for p in model.parameters()
    }
    return Masks(masks)
