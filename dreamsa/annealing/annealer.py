"""Rules mounted on torch's own step hooks: the optimizer stays a plain torch optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dreamsa.annealing.events import Event
from dreamsa.annealing.transforms import Group, StepTransform
from dreamsa.annealing.window import Window


@dataclass(frozen=True)
class Rule:
    """When (window) x where (groups) x what (transform, events)."""

    window: Window
    transform: StepTransform | None = None
    on_open: tuple[Event, ...] = ()
    """Run before the first step of a window, in order."""
    on_close: tuple[Event, ...] = ()
    """Run before the first step after a window."""
    groups: tuple[str, ...] | None = None
    """Parameter groups by their "name" key; None for all."""
    phase: str = "anneal"
    """What progress calls the steps inside the window."""


@dataclass
class Annealer:
    """Applies rules inside `optimizer.step()`. Its whole state is the number of steps taken.

    Schedulers, GradScaler and accelerate see an ordinary optimizer: settings that a rule changes are put back after each step, and
    a step that GradScaler skips is not counted.
    """

    optimizer: torch.optim.Optimizer
    rules: Sequence[Rule]
    step: int = 0
    _saved: list[tuple[Group, dict[str, Any]]] = field(default_factory=list, init=False)
    _begun: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        names = [group.get("name") for group in self.optimizer.param_groups]
        for rule in self.rules:
            for name in rule.groups or ():
                if name not in names:
                    raise ValueError(f"A rule names the parameter group {name!r}; the optimizer has {names}.")
        self._handles = (
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        )

    @property
    def phase(self) -> str:
        """What the coming step does: the phase of the first active rule, or "descend"."""
        return next((rule.phase for rule in self.rules if rule.window.is_active(self.step)), "descend")

    @property
    def edge(self) -> bool:
        """Whether a window opens or closes at the coming step: what was learnt about the scene may be stale."""
        return any(r.window.opens_at(self.step) or r.window.closes_at(self.step) for r in self.rules)

    def begin(self) -> None:
        """Run the events of the coming step now, before its forward pass. Optional: else they run right before the update, where
        an event that moves parameters is followed by a gradient from where they were before."""
        if self._begun == self.step:
            return
        self._begun = self.step
        for rule in self.rules:
            groups = self._groups(rule)
            closing = rule.on_close if rule.window.closes_at(self.step) else ()
            opening = rule.on_open if rule.window.opens_at(self.step) else ()
            for event in (*closing, *opening):
                event(self.optimizer, groups, self.step)

    def remove(self) -> None:
        """Take the rules off the optimizer."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]

    def _groups(self, rule: Rule) -> list[Group]:
        groups = self.optimizer.param_groups
        return list(groups) if rule.groups is None else [group for group in groups if group.get("name") in rule.groups]

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.begin()
        for rule in self.rules:
            if rule.transform is not None and rule.window.is_active(self.step):
                groups = self._groups(rule)
                for group, settings in zip(groups, rule.transform(groups), strict=True):
                    known = {name: value for name, value in settings.items() if name in group}
                    self._saved.append((group, {name: group[name] for name in known}))
                    group.update(known)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        while self._saved:
            group, settings = self._saved.pop()
            group.update(settings)
        self.step += 1
