"""Where a rule applies: named parameter groups, and the fixed splits of knowledge evolution."""

import difflib
import re
from collections.abc import Iterable
from math import ceil

import torch
from torch import Tensor, nn

from dreamsa.annealing.memory import Masks
from dreamsa.annealing.transforms import Group
from dreamsa.randomness import generator_for


def by_name(groups: Iterable[Group]) -> dict[str, list[Tensor]]:
    """Parameters by the name of their group. Groups may share a name, with other learning rates."""
    found: dict[str, list[Tensor]] = {}
    for group in groups:
        found.setdefault(group.get("name", ""), []).extend(group["params"])
    return found


def split_params(model: nn.Module, before: str | int, head: str | None = None) -> list[Group]:
    """Split parameters, in definition order, into the groups "early" and "late".

    Args:
        before: Start of "late": a module's name ("layer3"), a regular expression over parameter
            names, or SEAL's L, the number of a layer, counting convolutions and linear layers from
            1 without those on shortcuts (23 on ResNet-50 is layer3).
        head: A module whose parameters become a third group "head".

    Raises:
        ValueError: Nothing matches, or one side would be empty.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    first = _layer_name(model, before) if isinstance(before, int) else before
    starts = (i for i, (name, _) in enumerate(named) if f"{name}.".startswith(f"{first}."))
    cut = next(starts, None)
    if cut is None and isinstance(before, str):
        pattern = _pattern(before)
        cut = next((i for i, (name, _) in enumerate(named) if pattern.search(name)), None)
    if not cut:
        modules = [name for name, _ in model.named_modules() if name]
        near = difflib.get_close_matches(str(before), modules, 1)
        children = ", ".join(name for name, _ in model.named_children())
        hint = f" Did you mean {near[0]!r}?" if cut is None and near else ""
        raise ValueError(
            f"The threshold {before!r} leaves no parameters on one side. "
            f"The model's children are {children}.{hint}"
        )
    top = {name: p for name, p in named if head is not None and name.startswith(head + ".")}
    parts = {"early": named[:cut], "late": [(n, p) for n, p in named[cut:] if n not in top]}
    if head is not None:
        parts["head"] = list(top.items())
    return [{"name": name, "params": [p for _, p in part]} for name, part in parts.items()]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(
            f"The threshold {text!r} is neither a module nor a regular expression: {error}."
        ) from error


def _layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def _layer_name(model: nn.Module, number: int) -> str:
    layers = [name for name in _layers(model) if not re.search("shortcut|downsample", name)]
    if not 1 <= number <= len(layers):
        raise ValueError(
            f"The model has {len(layers)} layers; L must lie in [1, {len(layers)}], got {number}."
        )
    return layers[number - 1]


def kernel_split(model: nn.Module, fraction: float) -> Masks:
    """KELS: the fit hypothesis is the first ceil(fraction * outputs) filters on the first
    ceil(fraction * inputs) channels, but all inputs of the first and all outputs of the last layer
    (arXiv:2103.05152 and its code)."""
    _check_fraction(fraction)
    layers, masks = list(_layers(model).values()), Masks()
    for i, layer in enumerate(layers):
        outputs, inputs = layer.weight.shape[:2]
        rows = outputs if i == len(layers) - 1 else ceil(fraction * outputs)
        columns = inputs if i == 0 else ceil(fraction * inputs)
        mask = torch.zeros_like(layer.weight, dtype=torch.bool)
        mask[:rows, :columns] = True
        masks.keep[layer.weight] = mask
        if layer.bias is not None:
            masks.keep[layer.bias] = torch.arange(outputs, device=layer.weight.device) < rows
    return masks


def weight_split(model: nn.Module, fraction: float, seed: int) -> Masks:
    """WELS: each weight belongs to the fit hypothesis with probability `fraction`, drawn once."""
    _check_fraction(fraction)
    masks = Masks()
    for i, layer in enumerate(_layers(model).values()):
        weight = layer.weight
        rng = generator_for(seed, i, "weight split", weight.device)
        drawn = torch.rand(weight.shape, generator=rng, device=weight.device)
        masks.keep[weight] = drawn < fraction
    return masks


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"The fraction of the fit hypothesis must lie in (0, 1), got {fraction}.")
