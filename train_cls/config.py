"""Everything that a run of the trainer depends on, as one frozen value; JSON in and out."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from train_cls.data import DataConfig

OptimizerName = Literal["sgd", "adam", "adamw", "adagrad", "rmsprop"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class AnnealConfig:
    """The knobs of the methods; each method reads its own and leaves the rest alone."""

    scale: float = 0.01
    """S: what the learning rate of ascending layers is multiplied by."""
    share: float = 0.25
    """Share of a generation in which they ascend (k = E/4)."""
    before: str = "layer3"
    """The threshold: early layers are those before this module, or before layer number L if it is a number."""
    moments: Literal["reset", "keep"] = "reset"
    """Whether the optimizer's moments are forgotten at both edges of an ascent."""
    decay_weights: bool = True
    """Whether weight decay goes on shrinking ascending layers (the paper) or is off for them (its code)."""
    norm_statistics: Literal["update", "freeze"] = "update"
    """What early batch norms' running statistics do while their layers ascend."""
    reinit: Literal["model", "torch"] = "model"
    """Fresh values: the model's own initialisation, or torch's `reset_parameters` as in published code."""
    bound: float = 20.0
    """An ascent ends early when the loss is above this many times ln(classes), or not finite."""
    fit_share: float = 0.8
    """Knowledge evolution: share of each layer in the fit hypothesis."""
    prune: float = 0.2
    """Pruning: share of the remaining weights that goes each generation."""
    temperature: float = 1e-6
    """Langevin and kinetic annealing: where the cooling starts."""
    cooling: float = 0.01
    """What is left of that temperature at the end of the run."""
    eps: float = 1.0
    """Landscape modification: eps of grad U / (f((U - c)+) + eps)."""
    power: float = 1.0
    """Landscape modification: f(x) = x^power."""
    t_initial: float = 15.0
    """SA-GD's temperature."""
    strength: float = 1.0
    """Distancing: height of a hill."""
    width: float = 0.1
    """Distancing: sigma of a hill in units of the norm at its checkpoint."""
    shrink: float = 0.4
    perturb: float = 0.1
    """Shrink and perturb: w = shrink * w + perturb * fresh."""
    distill: float = 0.5
    """Distillation: weight of the teacher's loss."""
    soften: float = 1.0
    """Distillation: temperature of both softmaxes."""
    tolerance: float = 0.5
    """Tolerant teacher: weight of the gap between the first and the next four classes."""
    rho: float = 0.05
    """Sharpness-aware minimisation: radius."""
    average_from: float = 0.75
    """Weight averaging: share of the run after which it begins."""


@dataclass(frozen=True)
class TrainConfig:
    data: str = "digits"
    """"digits", or a path to a folder, zip, npz or binary files; see `train_cls.data`."""
    splits: DataConfig = field(default_factory=DataConfig)
    model: str = "preresnet-small"
    method: str = "seal"
    generations: int = 4
    """G; methods without generations run as long."""
    epochs: int = 20
    """E, epochs of one generation."""
    batch: int = 32
    optimizer: OptimizerName = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    warmup: float = 0.0
    """Epochs of linear warm-up at the start of every generation."""
    constant_lr: bool = False
    label_smoothing: float = 0.1
    flip: bool = False
    pad: int = 1
    """Pixels of zero padding for random crops; 0 is off."""
    accumulate: int = 1
    """Batches per optimizer step."""
    clip: float = 0.0
    """Largest gradient norm of each parameter group; 0 is off."""
    ema: float = 0.0
    """Decay of an average of the weights that is evaluated as well; 0 is off."""
    precision: Precision = "float32"
    device: str = "auto"
    seed: int = 0
    evaluate_every: int = 1
    """Epochs between two looks at the validation and test images."""
    anneal: AnnealConfig = field(default_factory=AnnealConfig)

    def __post_init__(self) -> None:
        positive = {"generations": self.generations, "epochs": self.epochs, "batch": self.batch, "accumulate": self.accumulate}
        for name, value in {**positive, "lr": self.lr, "evaluate_every": self.evaluate_every}.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        for name, value, low, high in (
            ("momentum", self.momentum, 0, 1),
            ("weight_decay", self.weight_decay, 0, 10),
            ("label_smoothing", self.label_smoothing, 0, 1),
            ("ema", self.ema, 0, 1),
            ("pad", self.pad, 0, 64),
            ("clip", self.clip, 0, 1e9),
            ("anneal.share", self.anneal.share, 0, 1),
            ("anneal.scale", self.anneal.scale, 0, 100),
            ("anneal.temperature", self.anneal.temperature, 0, 1e9),
            ("anneal.cooling", self.anneal.cooling, 0, 1),
            ("anneal.eps", self.anneal.eps, 1e-12, 1e12),
            ("anneal.power", self.anneal.power, 0, 10),
            ("anneal.t_initial", self.anneal.t_initial, 1e-12, 1e12),
            ("anneal.width", self.anneal.width, 1e-9, 1e9),
            ("anneal.distill", self.anneal.distill, 0, 1),
            ("anneal.soften", self.anneal.soften, 1e-3, 1e3),
            ("anneal.rho", self.anneal.rho, 0, 10),
            ("anneal.average_from", self.anneal.average_from, 0, 1),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {value}.")
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(f"warmup must lie in [0, epochs={self.epochs}), got {self.warmup}.")


PRESETS: dict[str, dict[str, Any]] = {
    "digits": {},
    "paper": {
        "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "batch": 32, "generations": 10, "epochs": 160, "label_smoothing": 0.1,
        "flip": True, "pad": 4, "model": "resnet50", "anneal.before": "layer3",
    },
    "seal-code": {
        "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "batch": 32, "generations": 10, "epochs": 160, "label_smoothing": 0.1, "warmup": 20,
        "flip": True, "pad": 4, "model": "resnet50", "anneal.before": "layer3", "anneal.decay_weights": False, "anneal.reinit": "torch",
    },
}  # fmt: skip
"""Settings by name: `paper` as SEAL's text says (sec. 4.1), `seal-code` as its public code does."""

for _part in (TrainConfig, AnnealConfig, DataConfig):
    _part.__pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore[reportAttributeAccessIssue]
_ADAPTER = TypeAdapter(TrainConfig)


def with_overrides(config: TrainConfig, overrides: dict[str, Any]) -> TrainConfig:
    """`config` with settings replaced by dotted name, e.g. {"lr": 0.1, "anneal.scale": 0.03}.

    Raises:
        ValueError: A name that does not exist (the nearest ones are named) or a value of the wrong kind.
    """
    tree = asdict(config)
    for name, value in overrides.items():
        *path, last = name.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            from difflib import get_close_matches

            known = [
                *(k for k in tree if not isinstance(tree[k], dict)),
                *(f"{k}.{s}" for k in tree if isinstance(tree[k], dict) for s in tree[k]),
            ]
            near = ", ".join(get_close_matches(name, known, 3)) or ", ".join(known)
            raise ValueError(f"There is no setting {name!r}. Near it: {near}.")
        node[last] = value
    return from_dict(tree)


def from_dict(tree: dict[str, Any]) -> TrainConfig:
    """Undo `dataclasses.asdict`; unknown names and wrong kinds are refused."""
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ValueError(f"{where}: {message}, got {first['input']!r}." if where and first["type"] != "value_error" else message) from error


def read(path: Path) -> TrainConfig:
    """A config.json.

    Raises:
        ValueError: Not there, not JSON, or not a configuration.
    """
    try:
        return from_dict(json.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error.msg} at line {error.lineno}.") from error


def to_dict(config: TrainConfig) -> dict[str, Any]:
    return asdict(config)


def preset(name: str, **changes: Any) -> TrainConfig:
    """A preset, with some settings changed."""
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    return replace(with_overrides(TrainConfig(), PRESETS[name]), **changes)
