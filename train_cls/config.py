"""Settings of a training run: frozen dataclasses, validated at construction, written to and read
from config.json."""

import json
import os
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dreamsa.settings import from_tree, settings, with_overrides

OptimizerName = Literal["sgd", "adam", "adamw", "adagrad", "rmsprop"]
Precision = Literal["float32", "bfloat16", "float16"]
PresetName = Literal["digits", "paper", "seal-code", "resnet110"]
TrackerName = Literal["tensorboard", "wandb"]
DEFAULT_THRESHOLD = "layer3"


@settings("splits")
class DataConfig:
    """Which images of a data set are used."""

    per_class: int = Field(default=0, ge=0)
    """Training images per class, the rest unused; 0 for all."""
    test_per_class: int = Field(default=0, ge=0)
    """Max test images per class, the same ones for every seed; 0 for all."""
    validation: int = Field(default=0, ge=0)
    """Images taken from the training split for validation, each class in proportion; 0 for none, or
    the source's own split."""
    only_classes: str = Field(default="", coerce_numbers_to_str=True)
    """Classes to keep, by name or by position from 0, separated by commas, with ranges: "0-4" or
    "cat,dog". Empty for all."""
    size: int = Field(default=0, ge=0, le=1024)
    """Resize images to size x size pixels; 0 keeps their size, which must be the same for all."""
    seed: int = 0
    """Seed of the choice of training and validation images; it does not affect the test split."""
    resident: float = Field(default=4.0, ge=0)
    """GiB up to which all decoded image files are held in memory; more are streamed, with the same
    results. Arrays (CIFAR, IDX, npz) are always held."""
    workers: int | None = Field(default=None, ge=0, le=256)
    """Processes that decode image files; None for one per core, at most 8."""


@settings("anneal")
class AnnealConfig:
    """Parameters of the methods; `train-cls methods` lists which method depends on which."""

    scale: float = Field(default=0.01, ge=0, le=100)
    """S: factor on the learning rate of ascending layers."""
    share: float = Field(default=0.25, ge=0, le=1)
    """Fraction of a generation in which they ascend (k = E/4)."""
    before: str = Field(default=DEFAULT_THRESHOLD, coerce_numbers_to_str=True)
    """The threshold: early layers precede this module, or layer number L if it is a number. In
    networks without a layer3, the default stands for half of the layers."""
    moments: Literal["reset", "keep"] = "reset"
    """Whether the optimizer's moments are cleared at both edges of an ascent."""
    decay_weights: bool = True
    """Whether weight decay applies to ascending layers (the paper) or not (its code)."""
    norm_statistics: Literal["update", "freeze"] = "update"
    """Running statistics of early batch norms while their layers ascend."""
    reinit: Literal["model", "torch"] = "model"
    """Fresh weights: the model's own initialisation; or, as in published code, torch's default for
    convolutions and linear layers, where LLF and seal-reinit keep biases and norms as trained."""
    bound: float = Field(default=20.0, ge=0)
    """An ascent ends early when the loss exceeds `bound` * ln(classes) or is not finite."""
    fit_share: float = Field(default=0.8, gt=0, lt=1)
    """Knowledge evolution: fraction of each layer in the fit hypothesis."""
    prune: float = Field(default=0.2, ge=0, lt=1)
    """Pruning: fraction of the remaining weights to remove per generation."""
    temperature: float = Field(default=1e-6, ge=0, le=1e9)
    """Langevin and kinetic annealing: initial temperature."""
    cooling: float = Field(default=0.01, ge=0, le=1)
    """Final temperature as a fraction of the initial one."""
    cooling_law: Literal["geometric", "logarithmic"] = "geometric"
    """Geometric from `temperature` on; or temperature / ln(step + 2) (Todea, eq. 2.6)."""
    state_noise: float = Field(default=0.0, ge=0, le=1e9)
    """Langevin: factor on (U - c)^power, which is added to the temperature; 0 is off."""
    friction: float | None = Field(default=1.0, ge=0, le=1e12)
    """Kinetic annealing: momentum is 1 - friction * sqrt(lr); null for friction 1 / T, which
    leaves no momentum at temperatures that networks tolerate."""
    eps: float = Field(default=1.0, ge=1e-12, le=1e12)
    """Landscape modification: eps of grad U / (f((U - c)+) + eps)."""
    power: float = Field(default=1.0, ge=0, le=10)
    """Exponent: f(x) = x^power of landscape modification and state-dependent noise."""
    c: float | None = None
    """Landscape modification: the loss above which it acts; null for the running minimum."""
    t_initial: float = Field(default=15.0, ge=1e-12, le=1e12)
    """SA-GD's temperature."""
    strength: float = Field(default=1.0, ge=0, le=1e9)
    """Distancing: height of a hill."""
    width: float = Field(default=0.1, ge=1e-9, le=1e9)
    """Distancing: sigma of a hill, relative to the norm of its snapshot."""
    shrink: float = Field(default=0.4, ge=0, le=1)
    """Shrink and perturb: factor on the weights."""
    perturb: float = Field(default=0.1, ge=0, le=10)
    """Shrink and perturb: w = shrink * w + perturb * fresh."""
    distill: float = Field(default=0.5, ge=0, le=1)
    """Distillation: weight of the teacher's loss."""
    soften: float = Field(default=1.0, ge=1e-3, le=1e3)
    """Distillation: temperature of both softmaxes."""
    tolerance: float = Field(default=0.5, ge=0, le=1e3)
    """Tolerant teacher: weight of the gap between the first and the next four classes."""
    rho: float = Field(default=0.05, ge=0, le=10)
    """Sharpness-aware minimisation: radius."""
    average_from: float = Field(default=0.75, ge=0, le=1)
    """Weight averaging: fraction of the run after which it begins."""


@settings("augment")
class AugmentConfig:
    """Augmentation beyond crops and flips, drawn anew for every batch."""

    mixup: float = Field(default=0.0, ge=0, le=100)
    """Mixup: alpha of lambda ~ Beta(alpha, alpha); 0 is off. With cutmix, each batch takes one of
    both."""
    cutmix: float = Field(default=0.0, ge=0, le=100)
    """Cutmix: alpha; 0 is off."""
    erase: float = Field(default=0.0, ge=0, le=1)
    """Probability that a rectangle of an image is replaced by noise (random erasing)."""
    operations: int = Field(default=0, ge=0, le=14)
    """RandAugment: operations per image; 0 is off, 2 as in the paper."""
    magnitude: float = Field(default=9.0, ge=0, le=10)
    """RandAugment: their strength."""


@settings()
class TrainConfig:
    """All settings of a run."""

    data: str = "digits"
    """"digits", or the path of a folder, .zip or .npz; see `train_cls.data`."""
    splits: DataConfig = Field(default_factory=DataConfig)
    model: str = "preresnet-small"
    """A name that `train-cls models` lists, or "timm:NAME"."""
    model_args: dict[str, Any] = Field(default_factory=dict)
    """More arguments of a network of timm: {"img_size": 64, "drop_path_rate": 0.1}."""
    pretrained: bool = False
    """Start a network of timm from its pretrained weights."""
    initial_checkpoint: str = ""
    """Start from the weights of this run or .safetensors file; the last layer is new if the classes
    are not as many."""
    method: str = "seal"
    """Name of the method; see `train-cls methods`."""
    generations: int = Field(default=4, gt=0)
    """G; methods without generations train for as many epochs."""
    epochs: int = Field(default=20, gt=0)
    """E, epochs per generation."""
    batch: int = Field(default=32, gt=0)
    """Images per batch."""
    optimizer: OptimizerName = "sgd"
    """Name of the torch optimizer."""
    lr: float = Field(default=0.05, gt=0)
    """Learning rate before any decay."""
    momentum: float = Field(default=0.9, ge=0, le=1)
    """Momentum of sgd."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""
    weight_decay: float = Field(default=5e-4, ge=0, le=10)
    """Coefficient of the L2 penalty, decoupled in adamw."""
    decay_norms: bool = True
    """Whether weight decay applies to norms and biases too (SEAL's code); timm excludes them."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from each layer to the one before it; 1 is off."""
    warmup: float = Field(default=0.0, ge=0)
    """Epochs of linear warm-up at the start of every generation."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning rate within a generation: half a cosine to 0, steps down (`decay_at`), or constant.
    Methods with a schedule of their own use it unless this is "constant"."""
    decay_at: tuple[float, ...] = ()
    """With schedule=step: epochs of a generation after which the learning rate drops."""
    decay: float = Field(default=0.1, gt=0, le=1)
    """Factor on the learning rate at every drop."""
    lr_updates: Literal["step", "epoch"] = "step"
    """How often the learning rate follows its schedule; once per epoch in SEAL's code."""
    label_smoothing: float = Field(default=0.1, ge=0, le=1)
    """Probability mass of the targets that is spread over all classes."""
    flip: bool = False
    """Whether half of the training images are mirrored at random."""
    pad: int = Field(default=1, ge=0, le=64)
    """Pixels of zero padding for random crops; 0 is off."""
    normalize: Literal["data", "imagenet"] = "data"
    """Mean and standard deviation of the inputs: of the training images, or of ImageNet."""
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    accumulate: int = Field(default=1, gt=0)
    """Batches per optimizer step."""
    clip: float = Field(default=0.0, ge=0, le=1e9)
    """Max gradient norm of each parameter group; 0 is off."""
    ema: float = Field(default=0.0, ge=0, le=1)
    """Decay of an exponential moving average of the weights, evaluated as well; 0 is off."""
    precision: Precision = "float32"
    """Precision of forward passes; float16 also scales the loss."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of weights, batches and augmentation; the flag --seed also sets splits.seed."""
    evaluate_every: int = Field(default=1, gt=0)
    """Epochs between evaluations."""
    anneal: AnnealConfig = Field(default_factory=AnnealConfig)

    def __post_init__(self) -> None:
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup must lie in [0, epochs={self.epochs}), got {self.warmup}.")
        if (self.schedule == "step") != bool(self.decay_at):
            raise ValueError(
                f"schedule={self.schedule} with decay_at={list(self.decay_at)}: steps need both, "
                "as in schedule=step decay_at=[150,225]."
            )
        if any(not 0 < epoch < inf for epoch in self.decay_at):
            raise ValueError(f"decay_at must be epochs above 0, got {list(self.decay_at)}.")


_SEAL = {
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch": 32,
    "generations": 10,
    "epochs": 160,
    "label_smoothing": 0.1,
    "flip": True,
    "pad": 4,
    "model": "resnet50",
    "anneal.before": "layer3",
}
PRESETS: dict[PresetName, dict[str, Any]] = {
    "digits": {},
    "paper": {**_SEAL, "lr": 0.01},
    "seal-code": {
        **_SEAL,
        "lr": 0.1,
        "warmup": 20,
        "anneal.decay_weights": False,
        "anneal.reinit": "torch",
        "lr_updates": "epoch",
        "normalize": "imagenet",
    },
    "resnet110": {
        "model": "resnet110",
        "lr": 0.1,
        "weight_decay": 1e-4,
        "batch": 128,
        "generations": 10,
        "epochs": 164,
        "schedule": "step",
        "decay_at": (150.0, 225.0),
        "label_smoothing": 0.0,
        "flip": True,
        "pad": 4,
        "anneal.before": "layer3",
    },
}
"""Settings by name: `paper` follows SEAL's text (sec. 4.1), `seal-code` its public code, except
that an epoch drops its last short batch; `resnet110` the thesis's comparison with born-again
networks (sec. 3.4.2), whose second drop of the learning rate lies beyond the last epoch."""


def preset(name: PresetName) -> TrainConfig:
    """A preset by name.

    Raises:
        ValueError: Unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return with_overrides(TrainConfig(), PRESETS[name])


def read(path: Path) -> TrainConfig:
    """Read a config.json.

    Raises:
        ValueError: Missing, not JSON, or not a configuration.
    """
    try:
        tree = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    return from_saved(tree)


def from_saved(tree: dict[str, Any]) -> TrainConfig:
    """A configuration from its tree, also of an older version.

    Raises:
        ValueError: Not a configuration.
    """
    if isinstance(tree, dict) and "constant_lr" in tree:
        tree = {key: value for key, value in tree.items() if key != "constant_lr"} | (
            {"schedule": "constant"} if tree["constant_lr"] else {}
        )
    return from_tree(TrainConfig, tree)


def with_absolute_data(config: TrainConfig) -> TrainConfig:
    """A copy whose data set and initial checkpoint are absolute paths, so that the run resumes from
    any working directory."""
    data, initial = config.data, config.initial_checkpoint
    return replace(
        config,
        data=data if data == "digits" else _absolute(data),
        initial_checkpoint=initial and _absolute(initial),
    )


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())
