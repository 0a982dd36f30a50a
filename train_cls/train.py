"""THE FILE TO READ FIRST: one training step and the loop around it. The annealer's rules act inside
`optimizer.step()`."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from dreamsa import checkpoint
from dreamsa.annealing import (
    Annealer,
    Rule,
    ScaleRate,
    by_name,
    generation_cosine,
    step_decay,
)
from dreamsa.annealing.transforms import Schedule
from dreamsa.device import Processes, resolve_device
from dreamsa.randomness import generator_for, seed_for
from dreamsa.signals import held_interrupts
from train_cls.averaging import Average, exponential_average
from train_cls.config import OptimizerName, TrainConfig
from train_cls.data import (
    Dataset,
    Splits,
    augment,
    batch_order,
    channel_stats,
    erase,
    mix,
    rand_augment,
)
from train_cls.evaluate.metrics import predict, predict_classes, scores
from train_cls.forgetting import Forgetting, norm
from train_cls.groups import split_groups
from train_cls.methods import plan_for
from train_cls.models import (
    Classifier,
    build_model,
    load_initial_,
    load_weights_,
    seed_dropout_,
)
from train_cls.plan import ALWAYS, FORGETTING, Backward, Plan, Setup

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Stopped(KeyboardInterrupt):
    """Training was interrupted between two steps, where it can be saved."""


class EpochResult(NamedTuple):
    """Metrics of one epoch, or of its part since a resume."""

    epoch: int  # from 1
    generation: int  # from 1
    phase: str  # of the epoch's last step
    loss: float  # mean of those that are finite
    recent_loss: float  # mean over the run's last 20 batches (Todea, sec. 3.2.2)
    accuracy: float  # on the training batches, before each update
    lr: float  # scheduled, of the epoch's last step
    early_lr: float  # the highest of the early layers in that step, with all rules; 0 if frozen
    early_norm: float  # ||w|| of the early layers
    late_norm: float
    grad_norm: float  # in the epoch's last step
    seconds: float
    scores: dict[str, float]
    """ "test accuracy", "validation nll", ... of epochs with evaluation, "distance to snapshot 1",
    ... and what `Forgetting` measured if an ascent has ended."""


RECENT = 20


@dataclass
class Training:
    """Mutable state of a run."""

    config: TrainConfig
    model: Classifier
    optimizer: torch.optim.Optimizer
    annealer: Annealer
    plan: Plan
    setup: Setup
    schedule: Schedule
    """Factor on the learning rate at each step."""
    average: Average | None = None
    batches: int = 0
    """Batches consumed. Exceeds `step` by the number of updates that GradScaler skipped."""
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False)
    )
    """Scales the loss in float16."""
    sums: Tensor = field(default_factory=lambda: torch.zeros(3))
    """Sum of losses, correct predictions and images since the epoch began."""
    recent: Tensor = field(default_factory=lambda: torch.full((RECENT,), math.nan))
    """Losses of the last batches, by batch number modulo their number."""

    @property
    def step(self) -> int:
        """Optimizer steps taken: the time of every schedule and rule."""
        return self.annealer.step

    @property
    def steps(self) -> int:
        """Batches of the whole run, and its optimizer steps if none is skipped."""
        return (self.plan.generations or self.config.generations) * self.setup.period

    @property
    def epoch(self) -> int:
        """Finished epochs. An epoch is a fixed number of batches, including skipped updates."""
        return self.batches // self.setup.steps

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Networks besides the trained one that are part of the state."""
        averaged = {} if self.average is None else {"average": self.average.module}
        return self.plan.modules | averaged

    @property
    def is_generation_end(self) -> bool:
        """Whether the last batch completed a generation."""
        return self.batches % self.setup.period == 0

    def save(self, folder: Path, keep: int | None = None) -> Path:
        """Write the checkpoint `folder/BATCHES`; keep the newest `keep`, or all. See
        `dreamsa.checkpoint.save_step`."""
        tensors, optimizer = checkpoint.pack_optimizer(self.optimizer)
        memory: dict[str, Tensor] = {}
        snapshots = [*self.plan.snapshots, self.setup.forgetting.start]
        for name, parts in (("snapshot", snapshots), ("mask", self.plan.masks)):
            for i, part in enumerate(parts):
                memory |= {f"{name}.{i}.{k}": v for k, v in part.tensors().items()}
        for name, module in self.modules.items():
            memory |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
        groups = {
            "model": self.model.state_dict(),
            "training": {**tensors, "sums": self.sums, "recent": self.recent},
            "memory": memory,
        }
        state = {
            "batches": self.batches,
            "annealer": self.annealer.state_dict(),
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "ascent": self.setup.forgetting.measured,
        }
        return checkpoint.save_step(folder, self.batches, groups, state, keep)

    def load(self, checkpoint_folder: Path) -> None:
        """Restore a checkpoint of this run exactly."""
        memory = self.branch(checkpoint_folder)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for i, snapshots in enumerate([*self.plan.snapshots, self.setup.forgetting.start]):
            snapshots.restore(parameters, _under(memory, f"snapshot.{i}."))
        for i, masks in enumerate(self.plan.masks):
            masks.restore(_under(memory, f"mask.{i}."))
        for name, module in self.modules.items():
            module.load_state_dict(_under(memory, f"{name}."))

    def branch(self, checkpoint_folder: Path) -> dict[str, Tensor]:
        """Start from a checkpoint of another run's first generation: its weights and optimizer
        state, this run's rules.

        Returns:
            Snapshots, masks, further networks and averaged weights of the other run.
        """
        tensors, state = checkpoint.load(checkpoint_folder)
        load_weights_(self.model, tensors["model"])
        self.sums = tensors["training"].pop("sums").to(self.sums.device)
        recent = tensors["training"].pop("recent", self.recent)  # older checkpoints have none
        self.recent = recent.to(self.recent.device)
        checkpoint.unpack_optimizer(self.optimizer, tensors["training"], state["optimizer"])
        if "batches" not in state:  # an older checkpoint, before the schedule became rule 0
            state["batches"] = state["step"]
            state["annealer"]["ended"] = [rule + 1 for rule in state["annealer"]["ended"]]
        for group in self.optimizer.param_groups:  # older checkpoints hold the scheduled rate
            group["lr"] = self.config.lr * group.get("lr_scale", 1.0)
        self.annealer.load_state_dict(state["annealer"])
        if state.get("scaler"):  # empty unless in float16; older checkpoints have none
            self.scaler.load_state_dict(state["scaler"])
        self.batches = state["batches"]
        self.setup.forgetting.measured = state.get("ascent", {})
        return tensors["memory"]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def new_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], config: TrainConfig
) -> torch.optim.Optimizer:
    """A torch optimizer, fused where torch has a fused kernel. Weight decay is coupled except in
    AdamW."""
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if name == "sgd":
        return torch.optim.SGD(
            groups, momentum=config.momentum, nesterov=config.nesterov, fused=True, **common
        )
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, alpha=0.99, **common)
    adaptive = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adagrad": torch.optim.Adagrad,
    }
    return adaptive[name](groups, fused=True, **common)


def new_training(config: TrainConfig, train: Dataset, initial: bool = True) -> Training:
    """A run before its first step.

    Args:
        initial: Load the pretrained weights or the initial checkpoint, if configured. False before
            a checkpoint of the run itself is loaded.

    Raises:
        ValueError: Unknown model or method, no such device, no such initial weights, or fewer
            images than one step needs.
    """
    device = resolve_device(config.device)
    classes, channels = len(train.classes), train.images.shape[1]
    mean, std = _normalization(config, train)
    if len(train) < config.batch * config.accumulate:
        raise ValueError(
            f"A step needs {config.batch * config.accumulate} images, but there are only "
            f"{len(train)} training images. Lower the batch."
        )

    def build(seed: int, pretrained: bool = False) -> Classifier:
        return build_model(
            config.model, classes, channels, mean, std, seed, pretrained, config.model_args
        )

    def fresh(step: int) -> list[Tensor]:
        model = build(seed_for(config.seed, step, "reinitialise"))
        if config.anneal.reinit == "torch":
            _torch_reset_(model, seed_for(config.seed, step, "reset parameters"))
        return [
            p.detach().to(device) for group in split_groups(model, config) for p in group["params"]
        ]

    model = build(config.seed, config.pretrained and initial)
    if config.initial_checkpoint and initial:
        load_initial_(model, Path(config.initial_checkpoint).expanduser())
    model = model.to(device)
    if device.type == "cuda" or config.precision == "bfloat16":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images, labels = train.images, train.labels

    def accuracy() -> float:
        return float((predict_classes(model, images).cpu() == labels).double().mean())

    steps = len(train) // (config.batch * config.accumulate)
    setup = Setup(config, model, classes, steps, fresh, Forgetting(accuracy))
    plan = plan_for(setup)
    optimizer = new_optimizer(config.optimizer, split_groups(model, config), config)
    schedule = learning_rate_schedule(setup, plan)
    annealer = Annealer(optimizer, [Rule(ALWAYS, ScaleRate(schedule), phase=None), *plan.rules])
    training = Training(
        config,
        model,
        optimizer,
        annealer,
        plan,
        setup,
        schedule,
        exponential_average(model, config.ema) if config.ema else plan.average,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "float16"),
    )
    training.sums, training.recent = training.sums.to(device), training.recent.to(device)
    return training


def _normalization(config: TrainConfig, train: Dataset) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the inputs per channel, on the scale of [0, 1]."""
    if config.normalize == "data":
        return channel_stats(train.images)
    if train.images.shape[1] != 3:
        raise ValueError(
            f"normalize=imagenet needs 3 channels, the images have {train.images.shape[1]}. "
            "Choose normalize=data."
        )
    return IMAGENET


def _torch_reset_(model: nn.Module, seed: int) -> None:
    """Draw torch's default weights for convolutions and linear layers, as published code does; keep
    biases and norms."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5)


def loss_of(training: Training, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, logits) of one batch: label-smoothed cross-entropy, changed by the terms of the plan.

    Args:
        labels: int64 [b], or of mixed images the weight of each class, [b, classes].
    """
    logits = training.model(images).float()
    smoothing = training.config.label_smoothing
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    for term in training.plan.terms:
        loss = term(loss, logits, images, training.step)
    return loss, logits


def train_step(
    training: Training,
    images: Tensor,
    labels: Tensor,
    processes: Processes,
) -> None:
    """One update: events, gradients of all accumulated batches, and `optimizer.step()`, unless
    GradScaler skips it.

    Args:
        images: uint8 in [0, 255] or float in [0, 1], [accumulate * b, c, h, w], augmented; this
            process's part of the batch.
        labels: int64 [accumulate * b], or weights of the classes, [accumulate * b, classes].
    """
    config, model, optimizer = training.config, training.model, training.optimizer
    scaler = training.scaler
    training.annealer.begin()
    model.train()
    if config.anneal.norm_statistics == "freeze" and training.annealer.phase == "ascend":
        _freeze_early_norms(model, optimizer)
    seed_dropout_(model, config.seed, training.step)
    chunks = list(
        zip(images.chunk(config.accumulate), labels.chunk(config.accumulate), strict=True)
    )
    backward = partial(_backward, training, chunks)
    (training.plan.gradients or _once)(backward)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if processes.count > 1:
        processes.sum_(gradients)
        torch._foreach_div_(gradients, processes.count)
    if config.clip:
        scaler.unscale_(optimizer)
        # per group: with one norm over all, an exploding early gradient would throttle the rest
        for parameters in by_name(optimizer.param_groups).values():
            nn.utils.clip_grad_norm_(parameters, config.clip)
    step, initialised = training.step, set(optimizer.state)
    scaler.step(optimizer)
    if training.step == step:  # skipped: fused SGD leaves new momentum buffers uninitialised
        for parameter in optimizer.state.keys() - initialised:
            del optimizer.state[parameter]
    scaler.update()
    training.batches += 1
    if training.average is not None:
        training.average.update(model, training.batches)


def _once(backward: Backward) -> None:
    backward(True)


def _backward(training: Training, chunks: list[tuple[Tensor, Tensor]], first: bool) -> None:
    """Gradients of all chunks; their losses and predictions count if these are the first."""
    training.optimizer.zero_grad()
    losses = []
    for images, labels in chunks:
        with autocast(training.config, images.device):
            loss, logits = loss_of(training, images, labels)
        training.scaler.scale(loss / len(chunks)).backward()
        if first:
            training.annealer.observe(loss)
            losses.append(loss.detach())
            # of a mixed image, the class with the larger weight counts
            wanted = labels if labels.ndim == 1 else labels.argmax(1)
            correct = (logits.argmax(1) == wanted).sum()
            sums = [loss.detach() * len(labels), correct, torch.full_like(correct, len(labels))]
            # a loss that is not finite may end an ascent, and is no part of the epoch's mean
            training.sums += torch.where(loss.isfinite(), torch.stack(sums), 0.0)
    if first:
        training.recent[training.batches % RECENT] = torch.stack(losses).mean()


def learning_rate_schedule(setup: Setup, plan: Plan) -> Schedule:
    """Factor on the learning rate: constant, the plan's own, or that of each generation."""
    config, steps = setup.config, setup.steps
    if config.schedule == "constant":
        return lambda step: 1.0
    warmup = round(config.warmup * steps)
    drops = [round(epoch * steps) for epoch in config.decay_at]
    own = (
        step_decay(setup.period, drops, config.decay, warmup)
        if config.schedule == "step"
        else generation_cosine(setup.period, warmup)
    )
    schedule = plan.schedule or own
    if config.lr_updates == "step":
        return schedule
    again = plan.schedule is None  # warm up in every generation

    def per_epoch(step: int) -> float:
        """As in published code, where a warm-up counts the epochs done at the end of this one."""
        warms_up = (step % setup.period if again else step) < warmup
        return schedule(step // steps * steps + (steps - 1 if warms_up else 0))

    return per_epoch


def autocast(config: TrainConfig, device: torch.device) -> Any:
    """Context that sets the precision of forward passes."""
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, config.precision))


def _freeze_early_norms(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    early = {id(p) for p in by_name(optimizer.param_groups)["early"]}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module.weight) in early:
            module.eval()


def train(
    training: Training,
    splits: Splits,
    processes: Processes = Processes(),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochResult]:
    """Train to the end of the run; yields after every epoch. Close the generator to stop.

    Args:
        stop: Like an interrupt once it is true; called before every step.

    Raises:
        FloatingPointError: The weights, or all losses of an epoch, are not finite.
        Stopped: Interrupted; after the current step, or the epoch that it ends.
    """
    config = training.config
    device = next(training.model.parameters()).device
    data = splits.train.to(device)
    per_step = config.batch * config.accumulate
    part = processes.share(per_step, "batch * accumulate")
    while training.batches < training.steps:
        started = time.monotonic()
        phase = "descend"
        with held_interrupts() as received:  # a half-done step is never saved
            for images, labels in data.batches(_remaining_batches(training, len(data))):
                if received or stop():
                    raise Stopped
                rng = generator_for(config.seed, training.batches, "augment", device)
                phase = training.annealer.phase
                images = augment(images, rng, config.flip, config.pad)
                images, labels = _augmented(training, images, labels, rng)
                train_step(training, images[part], labels[part], processes)
            if processes.count > 1:
                _average_buffers_(training.model, processes)
            result = _epoch_result(training, splits, phase, time.monotonic() - started)
        yield result
        if received:
            raise Stopped


def _augmented(
    training: Training, images: Tensor, labels: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The configured augmentation beyond crops and flips, in timm's order."""
    config, seed, batch = training.config.augment, training.config.seed, training.batches
    if config.operations:
        draws = generator_for(seed, batch, "rand augment")
        images = rand_augment(images, draws, config.operations, config.magnitude)
    images = erase(images, rng, config.erase)
    return mix(images, labels, training.setup.classes, config, generator_for(seed, batch, "mix"))


def _remaining_batches(training: Training, count: int) -> list[Tensor]:
    """Positions of each remaining batch of the epoch, of `count` images."""
    per_step = training.config.batch * training.config.accumulate
    batches = batch_order(count, per_step, training.epoch, training.config.seed, drop_last=True)
    return batches[training.batches % training.setup.steps :]


def _average_buffers_(model: nn.Module, processes: Processes) -> None:
    """Average batch-norm statistics over processes, which see different images."""
    floats = [b for b in model.buffers() if b.is_floating_point()]
    processes.sum_(floats)
    for buffer in floats:
        buffer /= processes.count


def _epoch_result(training: Training, splits: Splits, phase: str, seconds: float) -> EpochResult:
    config, epoch = training.config, training.epoch
    loss, correct, count = (float(value) for value in training.sums)
    training.sums.zero_()
    groups = by_name(training.optimizer.param_groups)
    early_norm = norm(p.detach() for p in groups["early"])
    late_norm = norm(p.detach() for name in FORGETTING for p in groups[name])
    if count == 0 or not math.isfinite(early_norm + late_norm):
        raise FloatingPointError(
            f"Training diverged in epoch {epoch}: its losses or the weights are not finite. "
            "Lower lr or anneal.scale."
        )
    gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
    recent = training.recent[training.recent.isfinite()]
    evaluates = (
        training.batches >= training.steps
        or training.is_generation_end
        or epoch % config.evaluate_every == 0
    )
    return EpochResult(
        epoch=epoch,
        generation=(training.batches - 1) // training.setup.period + 1,
        phase=phase,
        loss=loss / max(count, 1),
        recent_loss=float(recent.mean()) if len(recent) else loss / max(count, 1),
        accuracy=correct / max(count, 1),
        lr=config.lr * training.schedule(max(training.step - 1, 0)),
        early_lr=float(training.annealer.rates.get("early", 0.0)),
        early_norm=early_norm,
        late_norm=late_norm,
        grad_norm=norm(gradients),
        seconds=seconds,
        scores={
            **training.setup.forgetting.take(),
            **_distances(training),
            **(evaluate(training, splits) if evaluates else {}),
        },
    )


def _distances(training: Training) -> dict[str, float]:
    """||w - s|| / ||s|| for every snapshot s that the method keeps."""
    snapshots = [one for kept in training.plan.snapshots for one in kept.values]
    return {
        f"distance to snapshot {i}": norm(p.detach() - s for p, s in one.items())
        / norm(one.values())
        for i, one in enumerate(snapshots, 1)
    }


def evaluate(training: Training, splits: Splits) -> dict[str, float]:
    """Scores on the validation and test images; also of the averaged weights, if any."""
    found = _scores(training.model, splits, "")
    if training.average is not None and training.average.started:
        averaged = training.average.module
        if not training.average.has_statistics:
            device = next(training.model.parameters()).device
            update_bn(splits.train.images.to(device).split(256), averaged)
        found |= _scores(averaged.module, splits, "average ")
    return found


def _scores(model: nn.Module, splits: Splits, prefix: str) -> dict[str, float]:
    device = next(model.parameters()).device
    parts = {"validation": splits.validation, "test": splits.test}
    found = {}
    for part, data in parts.items():
        if len(data):
            values = scores(predict(model, data.images.to(device)), data.labels.to(device))
            found |= {f"{part} {prefix}{name}": value for name, value in values.items()}
    return found
