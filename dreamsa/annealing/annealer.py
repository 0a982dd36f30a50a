"""Rules mounted on torch's own step hooks: the optimizer stays a plain torch optimizer."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor

from dreamsa.annealing.events import Event
from dreamsa.annealing.transforms import Group, Moment, StepTransform
from dreamsa.annealing.window import Window

log = logging.getLogger(__name__)


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
    bound: float | None = None
    """The guard: end this window at once, with a line in the log, when the observed loss is not finite or above this. None: no guard."""


@dataclass
class Annealer:
    """Applies rules inside `optimizer.step()`. Its whole state: steps taken, two losses, and which windows were cut short.

    Schedulers, GradScaler and accelerate see an ordinary optimizer: settings that a rule changes are put back after each step, and
    a step that GradScaler skips is not counted. A closure given to `step` is wrapped: gradients are changed after each of its calls.
    """

    optimizer: torch.optim.Optimizer
    rules: Sequence[Rule]
    step: int = 0
    lowest: Tensor | None = field(default=None, init=False)
    """The running minimum c of the observed losses."""
    rates: dict[Any, Any] = field(default_factory=dict, init=False)
    """Learning rate of each group, by its "name" or else its position, in the step last taken: rules included, 0 where nothing moved."""
    _previous: Tensor | None = field(default=None, init=False)
    _observed: list[Tensor] = field(default_factory=list, init=False)
    _ended: set[int] = field(default_factory=set, init=False)
    _saved: list[tuple[Group, dict[str, Any]]] = field(default_factory=list, init=False)
    _begun: int = field(default=-1, init=False)
    _rate: float = field(default=0.0, init=False)

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
        """What the coming step does: the phase of the first active rule that transforms it, or "descend"."""
        return next((rule.phase for i, rule in enumerate(self.rules) if rule.transform and self.is_active(i)), "descend")

    @property
    def edge(self) -> bool:
        """Whether a window opens or closes at the coming step: what was learnt about the scene may be stale."""
        return any(r.window.opens_at(self.step) or r.window.closes_at(self.step) for r in self.rules)

    def is_active(self, rule: int) -> bool:
        """Whether rule number `rule` is in force in the coming step."""
        return self.rules[rule].window.is_active(self.step) and (rule not in self._ended or self.rules[rule].window.opens_at(self.step))

    def observe(self, loss: Tensor) -> None:
        """Tell the loss that the coming step's gradients belong to. Several, of accumulated batches, are averaged; so are processes'.

        Needed by rules that look at the loss (landscape modification, random ascent, guards); others ignore it.
        """
        self._observed.append(loss.detach().float())

    def begin(self) -> None:
        """Run the events of the coming step now, before its forward pass. Optional: else they run right before the update, where
        an event that moves parameters is followed by a gradient from where they were before."""
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
        """Take the rules off the optimizer."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, fit for JSON; snapshots and masks are tensors and kept by whoever made them."""
        losses = [None if value is None else float(value) for value in (self._previous, self.lowest)]
        previous, lowest = (None if value is None or not abs(value) < inf else value for value in losses)
        return {"step": self.step, "previous": previous, "lowest": lowest, "ended": sorted(self._ended)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.optimizer.param_groups[0]["params"][0].device
        previous, lowest = (None if value is None else torch.tensor(value, device=device) for value in (state["previous"], state["lowest"]))
        self.step, self._previous, self.lowest, self._ended = state["step"], previous, lowest, set(state["ended"])

    def _run(self, events: Sequence[Event], rule: Rule) -> None:
        for event in events:
            event(self.optimizer, self._groups(rule), self.step)

    def _groups(self, rule: Rule) -> list[Group]:
        groups = self.optimizer.param_groups
        return list(groups) if rule.groups is None else [group for group in groups if group.get("name") in rule.groups]

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._restore()  # a step that raised left its settings behind
        self.begin()
        loss = self._take_loss()
        self._guard(loss)
        self._rate = float(optimizer.param_groups[0]["lr"])
        active = [rule for i, rule in enumerate(self.rules) if rule.transform is not None and self.is_active(i)]
        for rule in active:
            groups = self._groups(rule)
            for group in groups:
                settings = rule.transform.settings(group, self._moment(groups, loss))  # pyright: ignore[reportOptionalMemberAccess]
                known = {name: value for name, value in settings.items() if name in group}
                self._saved.append((group, {name: group[name] for name in known}))
                group.update(known)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._transform_(active, loss)
            return None
        wrapped = self._wrapped(closure, active)
        return ((args[0], wrapped, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": wrapped})

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.rates = {
            group.get("name", i): group["lr"] if any(p.grad is not None for p in group["params"]) else 0.0
            for i, group in enumerate(optimizer.param_groups)
        }
        self._restore()
        skipped = getattr(optimizer, "found_inf", None)  # a fused optimizer skips the step by itself, hooks and all
        if skipped is None or not bool(skipped):
            self.step += 1

    def _wrapped(self, closure: Callable[[], Any], active: Sequence[Rule]) -> Callable[[], Any]:
        def transformed() -> Any:
            loss = closure()
            if isinstance(loss, Tensor):
                self.observe(loss)
            self._transform_(active, self._take_loss())
            return loss

        return transformed

    @torch.no_grad()
    def _transform_(self, active: Sequence[Rule], loss: Tensor | None) -> None:
        for rule in active:
            rule.transform.apply_(self._moment(self._groups(rule), loss))  # pyright: ignore[reportOptionalMemberAccess]
        if loss is not None:
            self._previous = loss

    def _moment(self, groups: Sequence[Group], loss: Tensor | None) -> Moment:
        scale = getattr(self.optimizer, "grad_scale", None)
        return Moment(groups, self.step, self._rate, loss, self._previous, self.lowest, 1.0 if scale is None else scale)

    @torch.no_grad()
    def _take_loss(self) -> Tensor | None:
        if not self._observed:
            return None
        loss = torch.stack(self._observed).mean()
        self._observed.clear()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(loss)
            loss /= torch.distributed.get_world_size()
        finite = torch.where(loss.isfinite(), loss, torch.full_like(loss, inf))
        self.lowest = finite if self.lowest is None else torch.minimum(self.lowest, finite)
        return loss

    def _guard(self, loss: Tensor | None) -> None:
        """End guarded windows in which the loss has run away; a gradient of a loss that is not finite is dropped."""
        guarded = [i for i, rule in enumerate(self.rules) if rule.bound is not None and self.is_active(i)]
        if not guarded or loss is None:
            return
        value = float(loss)
        for i in guarded:
            bound = self.rules[i].bound
            assert bound is not None
            if not value <= bound:
                self._ended.add(i)
                self._run(self.rules[i].on_close, self.rules[i])
                log.warning("step %d: phase %r ends early, the loss is %g (bound %g)", self.step, self.rules[i].phase, value, bound)
        if not abs(value) < inf:
            for group in self.optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None

    def _restore(self) -> None:
        while self._saved:
            group, settings = self._saved.pop()
            group.update(settings)
