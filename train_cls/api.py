"""The functions of the command line, for scripts: train, resume, evaluate finished runs, sweep."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dreamsa import checkpoint
from dreamsa.device import Processes, resolve_device
from dreamsa.randomness import generator_for
from dreamsa.settings import with_overrides
from train_cls import run as runs
from train_cls.compare import generations, last_scores
from train_cls.config import DataConfig, TrainConfig, read
from train_cls.data import (
    Dataset,
    Splits,
    augment,
    channel_stats,
    count_training_images,
    load_splits,
)
from train_cls.evaluate.ensemble import ensemble_scores
from train_cls.evaluate.few_shot import FewShotConfig, few_shot_affine, few_shot_linear
from train_cls.evaluate.hessian import HessianConfig, hessian_spectrum
from train_cls.evaluate.linear_probe import ProbeConfig, linear_probe
from train_cls.evaluate.metrics import device_of, predict, scores
from train_cls.evaluate.prediction_depth import DepthConfig, prediction_depth
from train_cls.models import Classifier, build_model, load_weights_
from train_cls.train import EpochResult


def train(config: TrainConfig, folder: Path, tensorboard: bool = False) -> Iterator[EpochResult]:
    """Train a new run in `folder`. Raises errors before it creates the folder."""
    splits = load_splits(config.data, config.splits)
    runs.check(config, splits)
    processes = Processes.current()
    if processes.is_first:
        runs.new_run(folder, config)
    processes.wait()
    return runs.continue_run(folder, splits, tensorboard=tensorboard)


def load_run(folder: Path, generation: int | None = None) -> tuple[TrainConfig, Classifier, Splits]:
    """Settings, network in eval mode and data of a run; the network after `generation`, by default
    the last.

    Raises:
        ValueError: Not a run, or it has no such finished generation.
    """
    config = read(folder / "config.json")
    splits = load_splits(config.data, config.splits)
    finished = generations(folder)
    if not finished:
        raise ValueError(
            f"{folder} has no finished generation yet. Resume it: {runs.resume_command(folder)}"
        )
    if generation is not None and not 1 <= generation <= len(finished):
        raise ValueError(f"{folder} has generations 1 to {len(finished)}, not {generation}.")
    channels = splits.train.images.shape[1]
    model = build_model(
        config.model,
        len(splits.train.classes),
        channels,
        *channel_stats(splits.train.images),
        seed=config.seed,
        arguments=config.model_args,
    )
    load_weights_(model, finished[(generation or len(finished)) - 1])
    return config, model.to(resolve_device(config.device)).eval(), splits


def evaluate(folder: Path, generation: int | None = None) -> dict[str, Any]:
    """Accuracy, likelihood and calibration of one generation; accuracy of every generation and
    scores of their ensemble."""
    config, model, splits = load_run(folder, generation)
    found: dict[str, Any] = {"run": str(folder), "method": config.method}
    for name, data in (("validation", splits.validation), ("test", splits.test)):
        if len(data):
            found[name] = scores(_predict(model, data), data.labels)
    members = generations(folder)
    if len(members) > 1:
        logits = []
        for weights in members:
            model.load_state_dict(weights)
            logits.append(_predict(model, splits.test))
        together = ensemble_scores(logits, splits.test.labels)
        found["test accuracy of generation"] = {
            str(i + 1): one["accuracy"] for i, one in enumerate(together.members)
        }
        found["ensemble of generations"] = {
            **together.ensemble,
            "mean disagreement": together.mean_disagreement,
        }
    return found


def probe(
    folder: Path,
    data: str,
    splits: DataConfig = DataConfig(),
    generation: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Linear probe on other data: a new last layer on frozen features, its learning rate chosen on
    a validation split."""
    _, model, _ = load_run(folder, generation)
    if not splits.validation:
        splits = replace(splits, validation=_one_tenth(data, splits))
    other = match_channels(load_splits(data, splits), model)
    result = linear_probe(model, *(_pair(d, model) for d in other), config=ProbeConfig(**settings))
    return {
        "test accuracy": result.chosen.test,
        "lr": result.chosen.lr,
        "best on test": result.best_on_test,
        "all": [asdict(s) for s in result.scores],
    }


def few_shot(
    folder: Path,
    data: str,
    splits: DataConfig = DataConfig(),
    affine: bool = False,
    **settings: Any,
) -> dict[str, float]:
    """Few-shot episodes on the test split of other data: mean accuracy and half the width of its
    95 % interval."""
    _, model, _ = load_run(folder)
    other = match_channels(load_splits(data, splits), model)
    images, labels = _pair(other.test, model)
    result = (few_shot_affine if affine else few_shot_linear)(
        model, images, labels, FewShotConfig(**settings)
    )
    return {
        "accuracy": result.mean,
        "interval": result.interval,
        "episodes": len(result.accuracies),
    }


def depth(
    folder: Path, generation: int | None = None, max_images: int = 2000, **settings: Any
) -> dict[str, Any]:
    """kNN prediction depth on the run's own data: accuracy of each layer's probe, and the mean
    depth."""
    _, model, splits = load_run(folder, generation)
    bank, queries = (_pair(_subset(d, max_images), model) for d in (splits.train, splits.test))
    result = prediction_depth(model, bank, queries, config=DepthConfig(**settings))
    return {
        "mean depth": result.mean_depth,
        "layers": dict(zip(result.layers, result.accuracies, strict=True)),
    }


def hessian(
    folder: Path, generation: int | None = None, batches: int = 4, **settings: Any
) -> dict[str, float]:
    """Largest Hessian eigenvalue and fraction of negative ones among the top five, over augmented
    mini-batches with weight decay."""
    config, model, splits = load_run(folder, generation)

    def augmented(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return augment(images, rng, config.flip, config.pad)

    chosen = HessianConfig(weight_decay=config.weight_decay, batches=batches, **settings)
    spectrum = hessian_spectrum(model, *_pair(splits.train, model), augmented, chosen)
    return {
        "maximum": spectrum.maximum,
        "mean maximum": spectrum.mean_maximum,
        "negative share": spectrum.negative_fraction,
    }


def sweep(
    config: TrainConfig, folder: Path, name: str, values: Sequence[Any], seeds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Train one run per value of a setting, such as "anneal.scale", and seed; yields their last
    scores. Resumable.

    Raises:
        ValueError: The setting is a seed, which has its own argument, or a value is out of range.
    """
    if name in ("seed", "splits.seed"):
        raise ValueError(f"{name} is not swept; give the seeds by --seeds and --first-seed.")
    configs = [(value, with_overrides(config, {name: value})) for value in values]
    for value, changed in configs:
        for seed in seeds:
            own = replace(changed, seed=seed, splits=replace(changed.splits, seed=seed))
            run = folder / f"{name}={value}" / f"seed-{seed}"
            if not (run / "config.json").exists():
                runs.new_run(run, own)
            diverged = ""
            try:
                for _ in runs.continue_run(run):
                    pass
            except FloatingPointError as error:  # divergence is a result too
                diverged = str(error)
            yield {
                name: value,
                "seed": seed,
                **({"diverged": diverged} if diverged else last_scores(run)),
            }


def match_channels(splits: Splits, model: Classifier) -> Splits:
    """Convert images to the channels of a network: RGB to grey by the mean, grey to RGB by
    repetition."""
    channels = len(model.pixels.mean)

    def convert(data: Dataset) -> Dataset:
        images = data.images
        if images.shape[1] == 3 and channels == 1:
            images = images.float().mean(1, keepdim=True).round().to(torch.uint8)
        elif images.shape[1] == 1 and channels == 3:
            images = images.expand(-1, 3, -1, -1).contiguous()
        return Dataset(images, data.labels, data.classes)

    return Splits(*(convert(part) for part in splits))


def resume(folder: Path, tensorboard: bool = False) -> Iterator[EpochResult]:
    """Resume a run exactly from its newest complete checkpoint; one that was killed before the
    first begins again, with the same result.

    Raises:
        ValueError: Not a run, or all its checkpoints are damaged.
    """
    read(folder / "config.json")
    saved = folder / "checkpoints"
    if checkpoint.latest(saved) is None and any(saved.glob("[0-9]*")):
        raise ValueError(f"{folder} has no complete checkpoint. Start again in another folder.")
    return runs.continue_run(folder, tensorboard=tensorboard)


def _predict(model: Classifier, data: Dataset) -> torch.Tensor:
    return predict(model, data.images).cpu()


def _pair(data: Dataset, model: Classifier) -> tuple[torch.Tensor, torch.Tensor]:
    device = device_of(model)
    return data.images.to(device), data.labels.to(device)


def _subset(data: Dataset, count: int) -> Dataset:
    """A random subset of at most `count` images, always the same."""
    if len(data) <= count:
        return data
    return data.select(torch.randperm(len(data), generator=generator_for(0, 0, "subset"))[:count])


def _one_tenth(data: str, splits: DataConfig) -> int:
    return max(count_training_images(data, splits) // 10, 1)
