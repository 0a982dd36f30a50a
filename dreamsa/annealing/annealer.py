"""Rules on torch's step hooks: the optimizer stays a plain torch optimizer."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dreamsa.annealing.events import Event
from dreamsa.annealing.transforms import Group, StepContext, StepTransform
from dreamsa.annealing.window import Window

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """When (window), where (groups) and what (transform, events)."""

    window: Window
    transform: StepTransform | None = None
    on_open: tuple[Event, ...] = ()
    """Before the first step of a window."""
    on_close: tuple[Event, ...] = ()
    """Before the first step after a window."""
    groups: tuple[str, ...] | None = None
    """Names of parameter groups (their "name" key); None for all."""
    phase: str | None = "anneal"
    """Name of the steps in progress reports; None leaves the name to other rules."""
    bound: float | None = None
    """Guard: end the window if the observed loss exceeds this or is not finite."""


@dataclass
class Annealer:
    """Applies rules inside `optimizer.step()`.

    Schedulers, GradScaler and accelerate see an ordinary optimizer: settings that a rule changes
    are restored after each step, and a step that GradScaler skips is not counted. A closure passed
    to `step` is wrapped: gradients are changed after each of its calls.
    """

    optimizer: Optimizer
    rules: Sequence[Rule]
    step: int = 0
    lowest: Tensor | None = field(default=None, init=False)
    """Running minimum c of the observed losses."""
    rates: dict[Any, Any] = field(default_factory=dict, init=False)
    """Learning rate of each group (by name, else position) in the last step; 0 without gradients,
    the highest of groups of one name."""

    def __post_init__(self) -> None:
        names = [group.get("name") for group in self.optimizer.param_groups]
        for name in (name for rule in self.rules for name in rule.groups or ()):
            if name not in names:
                raise ValueError(
                    f"A rule names the parameter group {name!r}; the optimizer has {names}."
                )
        self._previous: Tensor | None = None
        self._observed: list[Tensor] = []
        self._ended: set[int] = set()
        self._saved: list[tuple[Group, dict[str, Any]]] = []
        self._begun, self._rate = -1, 0.0
        self._handles = (
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        )

    @property
    def phase(self) -> str:
        """Phase of the coming step: the first of the active transforms', else "descend"."""
        active = (r.phase for i, r in enumerate(self.rules) if r.transform and self.is_active(i))
        return next((phase for phase in active if phase is not None), "descend")

    @property
    def edge(self) -> bool:
        """Whether a phase begins or ends at the coming step: cached parameters may be stale."""
        edges = (r.window for r in self.rules if r.phase is not None)
        return any(w.opens_at(self.step) or w.closes_at(self.step) for w in edges)

    def is_active(self, rule: int) -> bool:
        """Whether rule number `rule` applies in the coming step."""
        window, step = self.rules[rule].window, self.step
        return window.is_active(step) and (rule not in self._ended or window.opens_at(step))

    def observe(self, loss: Tensor) -> None:
        """Record the loss of the coming step; averaged over accumulated batches and processes.

        Required by rules that depend on the loss: landscape modification, random ascent, guards.
        """
        self._observed.append(loss.detach().float())

    def begin(self) -> None:
        """Run the events of the coming step before its forward pass.

        Optional: otherwise they run right before the update, and an event that moves parameters is
        followed by a gradient from their previous values.
        """
        if self._begun == self.step:
            return
        self._begun = self.step
        for i, rule in enumerate(self.rules):
            if rule.window.closes_at(self.step) and i not in self._ended:
                self._run(rule.on_close, rule)
            if rule.window.opens_at(self.step):
                self._ended.discard(i)
                self._run(rule.on_open, rule)

    def remove(self) -> None:
        """Remove the rules from the optimizer."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON. Snapshots and masks are saved by their owners."""
        losses = {"previous": self._previous, "lowest": self.lowest}
        numbers = {name: nan if x is None else float(x) for name, x in losses.items()}
        return {
            "step": self.step,
            **{name: x if isfinite(x) else None for name, x in numbers.items()},
            "ended": sorted(self._ended),
            "begun": self._begun == self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.optimizer.param_groups[0]["params"][0].device
        self._previous, self.lowest = (
            None if state[name] is None else torch.tensor(state[name], device=device)
            for name in ("previous", "lowest")
        )
        self.step, self._ended = state["step"], set(state["ended"])
        # a skipped step's events are not run again
        self._begun = self.step if state.get("begun") else -1

    def _run(self, events: Sequence[Event], rule: Rule) -> None:
        for event in events:
            event(self.optimizer, self._groups(rule), self.step)

    def _groups(self, rule: Rule) -> list[Group]:
        groups, names = self.optimizer.param_groups, rule.groups
        return [group for group in groups if names is None or group.get("name") in names]

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._restore()  # a step that raised left its settings behind
        self.begin()
        loss = self._take_loss()
        self._guard(loss)
        self._rate = _base_rate(optimizer)
        active = [
            (self._groups(rule), rule.transform, rule.phase)
            for i, rule in enumerate(self.rules)
            if rule.transform is not None and self.is_active(i)
        ]
        for groups, transform, phase in active:
            for group in groups:
                settings = transform.settings(group, self._context(groups, loss))
                known = {name: value for name, value in settings.items() if name in group}
                self._saved.append((group, {name: group[name] for name in known}))
                group.update(known)
            if phase is None:  # a schedule
                self._rate = _base_rate(optimizer)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._transform_(active, loss)
            return None

        def transformed() -> Any:
            value = closure()
            if isinstance(value, Tensor):
                self.observe(value)
            self._transform_(active, self._take_loss())
            return value

        if len(args) > 1:
            return (args[0], transformed, *args[2:]), kwargs
        return args, {**kwargs, "closure": transformed}

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.rates = {}
        for i, group in enumerate(optimizer.param_groups):
            name, moved = group.get("name", i), any(p.grad is not None for p in group["params"])
            self.rates[name] = max(self.rates.get(name, 0.0), group["lr"] if moved else 0.0)
        self._restore()
        if not getattr(optimizer, "found_inf", None):  # a fused optimizer skips steps by itself
            self.step += 1

    @torch.no_grad()
    def _transform_(
        self, active: Sequence[tuple[list[Group], StepTransform, Any]], loss: Tensor | None
    ) -> None:
        for groups, transform, _ in active:
            transform.apply_(self._context(groups, loss))
        if loss is not None:
            self._previous = loss

    def _context(self, groups: Sequence[Group], loss: Tensor | None) -> StepContext:
        scale = getattr(self.optimizer, "grad_scale", None)
        scale = 1.0 if scale is None else scale
        return StepContext(groups, self.step, self._rate, loss, self._previous, self.lowest, scale)

    @torch.no_grad()
    def _take_loss(self) -> Tensor | None:
        if not self._observed:
            return None
        loss = torch.stack(self._observed).mean()
        self._observed.clear()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(loss)
            loss /= torch.distributed.get_world_size()
        finite = torch.where(loss.isfinite(), loss, inf)
        self.lowest = finite if self.lowest is None else torch.minimum(self.lowest, finite)
        return loss

    def _guard(self, loss: Tensor | None) -> None:
        """End guarded windows whose loss exceeds the bound; drop gradients that are not finite."""
        guarded = [
            (i, rule, rule.bound)
            for i, rule in enumerate(self.rules)
            if rule.bound is not None and self.is_active(i)
        ]
        if not guarded or loss is None:
            return
        value, phases = float(loss), dict[str | None, float]()
        for i, rule, bound in guarded:
            if not value <= bound:
                self._ended.add(i)
                self._run(rule.on_close, rule)
                if rule.transform is not None:  # else it is the edges of another rule's window
                    phases[rule.phase] = bound
        for phase, bound in phases.items():
            message = "step %d: phase %r ends early, the loss is %g (bound %g)"
            log.warning(message, self.step, phase, value, bound)
        if not isfinite(value):
            self.optimizer.zero_grad()

    def _restore(self) -> None:
        while self._saved:
            group, settings = self._saved.pop()
            group.update(settings)


def _base_rate(optimizer: Optimizer) -> float:
    """The first group's learning rate, without its factor by layer."""
    first = optimizer.param_groups[0]
    return float(first["lr"]) / first.get("lr_scale", 1.0)
