"""The parameter groups that rules address."""

import re

from torch import nn

from dreamsa.annealing import Group, split_params
from train_cls.config import DEFAULT_THRESHOLD, TrainConfig
from train_cls.models import Classifier


def split_groups(model: Classifier, config: TrainConfig) -> list[Group]:
    """The parameter groups "early", "late" (without the last layer) and "head", as the optimizer
    has them: several of one name where learning rates (layer decay) or weight decays differ."""
    before: str | int = config.anneal.before
    if before == DEFAULT_THRESHOLD and not hasattr(model.body, DEFAULT_THRESHOLD):
        before = _middle(model)
    elif config.anneal.before.isdigit():
        before = int(config.anneal.before)
    groups = split_params(model.body, before, head=model.head)
    if config.decay_norms and config.layer_decay == 1:
        return groups
    names = {p: name for name, p in model.body.named_parameters()}
    depths = model.depths() if config.layer_decay < 1 else dict.fromkeys(names.values(), 0)
    undecayed = set() if config.decay_norms else model.undecayed()
    top = max(depths.values())
    parts: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for group in groups:
        for p in group["params"]:
            scale = config.layer_decay ** (top - depths[names[p]])
            parts.setdefault((group["name"], scale, names[p] in undecayed), []).append(p)
    return [
        {
            "name": name,
            "params": params,
            "lr": config.lr * scale,
            "lr_scale": scale,
            "weight_decay": 0.0 if plain else config.weight_decay,
        }
        for (name, scale, plain), params in parts.items()
    ]


def _middle(model: Classifier) -> str:
    """The first parameter of the later half of a network's layers, as a pattern."""
    depths = model.depths()
    half = (max(depths.values()) + 1) / 2
    names = (name for name, _ in model.body.named_parameters() if depths[name] >= half)
    return f"^{re.escape(next(names))}$"
