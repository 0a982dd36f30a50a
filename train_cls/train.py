"""THE FILE TO READ FIRST: one step of training, and the loop around it. The annealer's rules act inside `optimizer.step()`."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from dreamsa import checkpoint
from dreamsa.annealing import Annealer, generation_cosine
from dreamsa.processes import Processes
from dreamsa.randomness import generator_for, seed_for
from train_cls.config import OptimizerName, TrainConfig
from train_cls.data import Dataset, Splits, augment, batch_order, channel_stats
from train_cls.evaluate.metrics import predict, scores
from train_cls.methods import Plan, Setup, groups_of, plan_for
from train_cls.models import Classifier, build_model, load_weights_, seed_dropout_


class EpochResult(NamedTuple):
    """What one epoch (or the part of it since a resume) came to."""

    epoch: int  # finished epochs
    generation: int  # from 1
    phase: str  # of the epoch's last step
    loss: float
    accuracy: float  # of training batches as they were learnt from
    lr: float
    early_lr: float  # of the early layers in the epoch's last step, rules included; 0 if they stood still
    early_norm: float  # ||w|| of the early layers
    late_norm: float
    grad_norm: float  # of the epoch's last step
    seconds: float
    scores: dict[str, float]  # "test accuracy", "validation nll", ...; empty between two evaluations


@dataclass
class Training:
    """A run in memory. Time is `step`; all else that matters is in the parts."""

    config: TrainConfig
    model: Classifier
    optimizer: torch.optim.Optimizer
    annealer: Annealer
    plan: Plan
    setup: Setup
    teacher: Classifier | None = None
    average: AveragedModel | None = None
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(3))
    """Loss, right answers and images since the epoch began."""

    @property
    def steps(self) -> int:
        """How many there are in all."""
        return (self.plan.generations or self.config.generations) * self.setup.period

    def save(self, folder: Path) -> None:
        """Write a checkpoint; see `dreamsa.checkpoint`."""
        tensors, optimizer = checkpoint.pack_optimizer(self.optimizer)
        memory = {f"snapshot.{i}.{k}": v for i, s in enumerate(self.plan.snapshots) for k, v in s.tensors().items()}
        memory |= {f"mask.{i}.{k}": v for i, m in enumerate(self.plan.masks) for k, v in m.tensors().items()}
        memory |= {f"teacher.{k}": v for k, v in self.teacher.state_dict().items()} if self.teacher is not None else {}
        memory |= {f"average.{k}": v for k, v in self.average.state_dict().items()} if self.average is not None else {}
        groups = {"model": self.model.state_dict(), "training": {**tensors, "sums": self.sums}, "memory": memory}
        checkpoint.save(folder, groups, {"step": self.step, "annealer": self.annealer.state_dict(), "optimizer": optimizer})

    def load(self, folder: Path) -> None:
        """Take up a checkpoint exactly."""
        tensors, state = checkpoint.load(folder)
        load_weights_(self.model, tensors["model"])
        self.sums = tensors["training"].pop("sums").to(self.sums.device)
        checkpoint.unpack_optimizer(self.optimizer, tensors["training"], state["optimizer"])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        memory = tensors["memory"]
        for i, snapshots in enumerate(self.plan.snapshots):
            snapshots.restore(parameters, _under(memory, f"snapshot.{i}."))
        for i, masks in enumerate(self.plan.masks):
            masks.restore(_under(memory, f"mask.{i}."))
        for name, module in (("teacher", self.teacher), ("average", self.average)):
            if module is not None:
                module.load_state_dict(_under(memory, f"{name}."))
        self.annealer.load_state_dict(state["annealer"])
        self.step = state["step"]

    def branch(self, folder: Path) -> None:
        """Start from another run's first generation: its weights and moments, our rules."""
        tensors, state = checkpoint.load(folder)
        load_weights_(self.model, tensors["model"])
        tensors["training"].pop("sums")
        checkpoint.unpack_optimizer(self.optimizer, tensors["training"], state["optimizer"])
        self.annealer.load_state_dict(state["annealer"])
        self.step = state["step"]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def new_optimizer(name: OptimizerName, groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """torch's own, fused where it has a fused kernel; coupled weight decay but for AdamW."""
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, fused=True, **common)
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, alpha=0.99, **common)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}[name](groups, fused=True, **common)


def device_of(name: str) -> torch.device:
    """A device by name; "auto" is the GPU if there is one.

    Raises:
        ValueError: Asked for and not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"Device {name!r} was asked for, but torch sees no GPU here. Use --device cpu.")
    return torch.device(name)


def new_training(config: TrainConfig, train: Dataset) -> Training:
    """A run at its very beginning: weights, optimizer, rules."""
    device = device_of(config.device)
    classes, channels = len(train.classes), train.images.shape[1]
    mean, std = channel_stats(train.images)
    if len(train) < config.batch * config.accumulate:
        raise ValueError(
            f"There are {len(train)} training images, fewer than one step's {config.batch * config.accumulate}. Lower the batch."
        )

    def build(seed: int) -> Classifier:
        return build_model(config.model, classes, channels, mean, std, seed)

    def fresh(step: int) -> list[Tensor]:
        model = build(seed_for(config.seed, step, "reinitialise"))
        if config.anneal.reinit == "torch":
            _torch_reset_(model, seed_for(config.seed, step, "reset parameters"))
        return [p.detach().to(device) for group in groups_of(model, config.anneal.before) for p in group["params"]]

    model = build(config.seed).to(device)
    if device.type == "cuda" or config.precision == "bfloat16":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    setup = Setup(config, model, classes, len(train) // (config.batch * config.accumulate), fresh)
    plan = plan_for(setup)
    optimizer = new_optimizer(config.optimizer, groups_of(model, config.anneal.before), config)
    teacher = build(config.seed).to(device).eval().requires_grad_(False) if plan.teacher else None
    averaging = config.ema > 0 or plan.average_from < math.inf
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema) if config.ema else None, use_buffers=bool(config.ema))
    if plan.teacher and teacher is not None:
        plan.rules.insert(0, setup.each_generation(_Teach(model, teacher)))
    training = Training(config, model, optimizer, Annealer(optimizer, plan.rules), plan, setup, teacher, average if averaging else None)
    training.sums = training.sums.to(device)
    return training


@dataclass(frozen=True)
class _Teach:
    """An event: the teacher becomes what the student is now, batch-norm statistics and all."""

    model: nn.Module
    teacher: nn.Module

    def __call__(self, optimizer: torch.optim.Optimizer, groups: Any, step: int) -> None:
        self.teacher.load_state_dict(self.model.state_dict())


def _torch_reset_(model: nn.Module, seed: int) -> None:
    """torch's default weights for convolutions and linear layers, as published code re-initialises; biases and norms stay."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5)


def loss_of(training: Training, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, logits) of one batch: cross-entropy with label smoothing, and what the plan adds."""
    config, plan = training.config, training.plan
    logits = training.model(images).float()
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    if plan.tolerance:
        top = logits.softmax(1).topk(min(5, logits.shape[1]), dim=1).values
        loss = loss + plan.tolerance * (top[:, 0] - top[:, 1:].mean(1)).mean()
    if training.teacher is not None and training.step >= training.setup.period:
        heat, weight = config.anneal.soften, config.anneal.distill
        with torch.no_grad():
            wanted = (training.teacher(images).float() / heat).softmax(1)
        fit = nn.functional.cross_entropy(logits / heat, wanted) * heat**2
        loss = (1 - weight) * loss + weight * fit
    return loss, logits


def train_step(training: Training, images: Tensor, labels: Tensor, scaler: torch.amp.GradScaler, processes: Processes) -> None:
    """One update: events, learning rate, gradients of all accumulated batches, and `optimizer.step()`.

    Args:
        images: uint8 [accumulate * b, c, h, w], augmented; our share of the step's images.
    """
    config, model, optimizer = training.config, training.model, training.optimizer
    training.annealer.begin()
    model.train()
    if config.anneal.norm_statistics == "freeze" and training.annealer.phase == "ascend":
        _freeze_early_norms(model, config.anneal.before)
    seed_dropout_(model, config.seed, training.step)
    factor = learning_rate_factor(training)
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor
    chunks = list(zip(images.chunk(config.accumulate), labels.chunk(config.accumulate), strict=True))
    _gradients(training, chunks, scaler, observe=True)
    if training.plan.rho:
        with _uphill(training.model, training.plan.rho):
            _gradients(training, chunks, scaler, observe=False)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if processes.count > 1:
        processes.sum_(gradients)
        torch._foreach_div_(gradients, processes.count)
    if config.clip:
        scaler.unscale_(optimizer)
        for group in optimizer.param_groups:  # one norm over all would let an exploding early gradient throttle the rest
            nn.utils.clip_grad_norm_(group["params"], config.clip)
    scaler.step(optimizer)
    scaler.update()
    training.step += 1
    if training.average is not None and _averages_now(training):
        training.average.update_parameters(model)


def _gradients(training: Training, chunks: list[tuple[Tensor, Tensor]], scaler: torch.amp.GradScaler, observe: bool) -> None:
    training.optimizer.zero_grad()
    for images, labels in chunks:
        with autocast(training.config, images.device):
            loss, logits = loss_of(training, images, labels)
        scaler.scale(loss / len(chunks)).backward()
        if observe:
            training.annealer.observe(loss)
            right = (logits.argmax(1) == labels).sum()
            training.sums += torch.stack([loss.detach() * len(labels), right, torch.full_like(right, len(labels))])


class _uphill:
    """Weights moved by rho along their gradient, and put back (SAM, arXiv:2010.01412, eq. 2)."""

    def __init__(self, model: nn.Module, rho: float) -> None:
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.grad is not None]
        self.rho = rho

    @torch.no_grad()
    def __enter__(self) -> None:
        self.before = [p.clone() for p in self.parameters]
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_add_(self.parameters, torch._foreach_mul(gradients, self.rho / (norm + 1e-12)))

    @torch.no_grad()
    def __exit__(self, *_: Any) -> None:
        torch._foreach_copy_(self.parameters, self.before)


def learning_rate_factor(training: Training) -> float:
    """The schedule's factor at the coming step: constant, the plan's own, or a cosine per generation."""
    config, setup = training.config, training.setup
    if config.constant_lr:
        return 1.0
    schedule = training.plan.schedule or generation_cosine(setup.period, round(config.warmup * setup.steps))
    return schedule(training.step)


def autocast(config: TrainConfig, device: torch.device) -> Any:
    """The precision that forward passes run in."""
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, config.precision))


def _averages_now(training: Training) -> bool:
    """EMA at every step; stochastic weight averaging once an epoch from its beginning on."""
    if training.config.ema:
        return True
    return training.step % training.setup.steps == 0 and training.step >= training.plan.average_from * training.steps


def _freeze_early_norms(model: nn.Module, before: str) -> None:
    early = {id(p) for p in groups_of(model, before)[0]["params"]}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module.weight) in early:
            module.eval()


def train(training: Training, splits: Splits, processes: Processes = Processes()) -> Iterator[EpochResult]:
    """Train to the end, from wherever `training` stands; yields after every epoch. To stop, close the generator.

    Raises:
        FloatingPointError: The loss of an epoch is not finite.
    """
    config = training.config
    device = next(training.model.parameters()).device
    data = splits.train.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    per_step = config.batch * config.accumulate
    ours = processes.share(per_step, "batch * accumulate")
    while training.step < training.steps:
        started = time.monotonic()
        epoch = training.step // training.setup.steps
        phase = "descend"
        for index in _epoch_batches(training, data, epoch):
            rng = generator_for(config.seed, training.step, "augment", device)
            phase = training.annealer.phase
            images = augment(data.images[index], rng, config.flip, config.pad)
            train_step(training, images[ours], data.labels[index][ours], scaler, processes)
        if processes.count > 1:
            _average_buffers_(training.model, processes)
        yield _epoch_result(training, splits, phase, time.monotonic() - started)


def _epoch_batches(training: Training, data: Dataset, epoch: int) -> Iterator[Tensor]:
    """What is left of an epoch: one index tensor per optimizer step."""
    per_step = training.config.batch * training.config.accumulate
    batches = batch_order(len(data), per_step, epoch, training.config.seed, drop_last=True)
    for index in list(batches)[training.step % training.setup.steps :]:
        yield index.to(data.images.device)


def _average_buffers_(model: nn.Module, processes: Processes) -> None:
    """Batch-norm statistics differ between processes, which saw different images: take their mean."""
    floats = [b for b in model.buffers() if b.is_floating_point()]
    processes.sum_(floats)
    for buffer in floats:
        buffer /= processes.count


def _epoch_result(training: Training, splits: Splits, phase: str, seconds: float) -> EpochResult:
    config, setup = training.config, training.setup
    loss, right, count = (float(value) for value in training.sums)
    training.sums.zero_()
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"Training diverged in epoch {training.step // setup.steps}: the loss is {loss}. Lower lr or anneal.scale."
        )
    early, *late = ([p.detach() for p in group["params"]] for group in training.optimizer.param_groups)
    gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
    lr = float(training.optimizer.param_groups[0]["lr"])
    epoch = training.step // setup.steps
    last = training.step >= training.steps or training.step % setup.period == 0
    return EpochResult(
        epoch=epoch,
        generation=(training.step - 1) // setup.period + 1,
        phase=phase,
        loss=loss / max(count, 1),
        accuracy=right / max(count, 1),
        lr=lr,
        early_lr=float(training.annealer.rates["early"]),
        early_norm=_norm(early),
        late_norm=_norm([p for group in late for p in group]),
        grad_norm=_norm(gradients),
        seconds=seconds,
        scores=evaluate(training, splits) if last or epoch % config.evaluate_every == 0 else {},
    )


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))) if tensors else 0.0


def evaluate(training: Training, splits: Splits) -> dict[str, float]:
    """Scores on the validation and test images; of the averaged weights too, where there are any."""
    found = _scores(training.model, splits, "")
    if training.average is not None and int(training.average.n_averaged) > 0:
        if not training.config.ema:  # averaged weights have seen no batch-norm statistics of their own
            device = next(training.model.parameters()).device
            update_bn(splits.train.images.to(device).split(256), training.average)
        found |= _scores(training.average.module, splits, "average ")
    return found


def _scores(model: nn.Module, splits: Splits, prefix: str) -> dict[str, float]:
    device = next(model.parameters()).device
    parts = {"validation": splits.validation, "test": splits.test}
    return {
        f"{part} {prefix}{name}": value
        for part, data in parts.items()
        if len(data)
        for name, value in scores(predict(model, data.images.to(device)), data.labels.to(device)).items()
    }
