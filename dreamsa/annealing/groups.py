"""Where: named parameter groups, and the fixed splits of knowledge evolution."""

import difflib
import re
from math import ceil

import torch
from torch import nn

from dreamsa.annealing.memory import Masks
from dreamsa.annealing.transforms import Group
from dreamsa.randomness import generator_for


def split_params(model: nn.Module, before: str | int, head: str | None = None) -> list[Group]:
    """Two named parameter groups in definition order: "early", all before the threshold, and "late", the rest.

    Args:
        before: The threshold: a module's name ("layer3"), a regular expression over parameters' names, or the paper's L: the number of
            the first late layer, counting convolutions and linear layers from 1 without those on shortcuts (23 on ResNet-50 is layer3).
        head: A module's name whose parameters become a third group "head".

    Raises:
        ValueError: Nothing matches, or one side would be empty.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    names = [name for name, _ in named]
    first = _layer_name(model, before) if isinstance(before, int) else before
    cut = next((i for i, name in enumerate(names) if name == first or name.startswith(first + ".")), None)
    if cut is None and isinstance(before, str):
        cut = next((i for i, name in enumerate(names) if _pattern(before).search(name)), None)
    if not cut:
        modules = [name for name, _ in model.named_modules() if name]
        near = difflib.get_close_matches(str(before), modules, 1)
        children = ", ".join(name for name, _ in model.named_children())
        hint = f" Did you mean {near[0]!r}?" if cut is None and near else ""
        raise ValueError(f"No parameters lie on both sides of the threshold {before!r}. The model's parts are {children}.{hint}")
    in_head = [head is not None and name.startswith(head + ".") for name in names]
    groups: list[Group] = [
        {"name": "early", "params": [p for _, p in named[:cut]]},
        {"name": "late", "params": [p for (_, p), top in zip(named[cut:], in_head[cut:], strict=True) if not top]},
    ]
    if head is not None:
        groups.append({"name": "head", "params": [p for (_, p), top in zip(named, in_head, strict=True) if top]})
    return groups


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"The threshold {text!r} is neither a part of the model nor a regular expression: {error}.") from error


def _layer_name(model: nn.Module, number: int) -> str:
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and not re.search("shortcut|downsample", n)]
    if not 1 <= number <= len(layers):
        raise ValueError(f"The model has {len(layers)} layers; L must lie in [1, {len(layers)}], got {number}.")
    return layers[number - 1]


def kernel_split(model: nn.Module, share: float) -> Masks:
    """KELS: the first ceil(share * outputs) filters, on the first ceil(share * inputs) channels, are the fit hypothesis; of the first
    convolution all channels, of the last layer all outputs (arXiv:2103.05152 and its code)."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    masks = Masks()
    for i, layer in enumerate(layers):
        outputs, inputs = layer.weight.shape[:2]
        rows = outputs if i == len(layers) - 1 else ceil(_share(share) * outputs)
        columns = inputs if i == 0 else ceil(share * inputs)
        mask = torch.zeros_like(layer.weight, dtype=torch.bool)
        mask[:rows, :columns] = True
        masks.keep[layer.weight] = mask
        if layer.bias is not None:
            masks.keep[layer.bias] = torch.arange(outputs, device=layer.weight.device) < rows
    return masks


def weight_split(model: nn.Module, share: float, seed: int) -> Masks:
    """WELS: each weight belongs to the fit hypothesis with probability `share`, drawn once."""
    masks = Masks()
    for i, layer in enumerate(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
        rng = generator_for(seed, i, "weight split", layer.weight.device)
        masks.keep[layer.weight] = torch.rand(layer.weight.shape, generator=rng, device=layer.weight.device) < _share(share)
    return masks


def _share(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"The share of the fit hypothesis must lie in (0, 1), got {share}.")
    return share
