"""The functions of the command line, for scripts: train, resume, evaluate finished runs, sweep."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dreamsa import checkpoint
from dreamsa.device import Processes, resolve_device
from dreamsa.randomness import generator_for
from dreamsa.settings import with_overrides
from dreamsa.statistics import student_mean
from train_cls import run as runs
from train_cls.config import DataConfig, TrackerName, TrainConfig, read, with_absolute_data
from train_cls.data import (
    Dataset,
    Images,
    Splits,
    augment,
    count_training_images,
    load_splits,
    with_channels,
)
from train_cls.evaluate.ensemble import ensemble_scores
from train_cls.evaluate.few_shot import FewShotConfig, few_shot_affine, few_shot_linear
from train_cls.evaluate.hessian import HessianConfig, hessian_spectrum
from train_cls.evaluate.linear_probe import ProbeConfig, linear_probe
from train_cls.evaluate.metrics import device_of, predict, scores
from train_cls.evaluate.prediction_depth import DepthConfig, prediction_depth
from train_cls.models import Classifier, build_model, load_weights_
from train_cls.run import generations
from train_cls.tracking import check_trackers, recorded_trackers
from train_cls.train import EpochResult, Training
from train_cls.trials import Outcome, Study, Trial

Started = Callable[[Training], None]
"""Gets a run's state before its first step; its `batches` of `steps` tell the progress."""


def train(
    config: TrainConfig,
    folder: Path,
    track: Sequence[TrackerName] = (),
    started: Started = lambda training: None,
) -> Iterator[EpochResult]:
    """Train a new run in `folder`. Raises errors before it creates the folder."""
    check_trackers(track)
    splits = load_splits(config.data, config.splits)
    runs.check(config, splits)
    processes = Processes.current()
    if processes.is_first:
        runs.new_run(folder, config)
    processes.wait()
    return runs.continue_run(folder, splits, track=track, started=started)


def load_run(folder: Path, generation: int | None = None) -> tuple[TrainConfig, Classifier, Splits]:
    """Settings, network in eval mode and data of a run; the network after `generation`, by default
    the last.

    Raises:
        ValueError: Not a run, it has no such finished generation, or its data have other classes.
    """
    config = read(folder / "config.json")
    finished = generations(folder)
    if not finished:
        raise ValueError(
            f"{folder} has no finished generation yet. Resume it: {runs.resume_command(folder)}"
        )
    if generation is not None and not 1 <= generation <= len(finished):
        raise ValueError(f"{folder} has generations 1 to {len(finished)}, not {generation}.")
    splits = runs.evaluation_data(folder, config)
    channels = splits.train.images.shape[1]
    model = build_model(
        config.model,
        len(splits.train.classes),
        channels,
        seed=config.seed,
        arguments=config.model_args,
    )
    load_weights_(model, finished[(generation or len(finished)) - 1])
    return config, model.to(resolve_device(config.device)).eval(), splits


def evaluate(folder: Path, generation: int | None = None) -> dict[str, Any]:
    """Accuracy, likelihood and calibration of one generation; accuracy of every generation and
    scores of their ensemble; and, with validation images, the scores of the epoch that is best on
    them."""
    config, model, splits = load_run(folder, generation)
    found: dict[str, Any] = {"run": str(folder), "method": config.method}
    for name, data in (("validation", splits.validation), ("test", splits.test)):
        if len(data):
            found[name] = scores(_predict(model, data), data.labels)
    if best := runs.best_epoch(folder):
        found["best epoch on validation"] = best
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
    folder: Path, generation: int | None = None, max_images: int = 0, **settings: Any
) -> dict[str, Any]:
    """kNN prediction depth on the run's own data: accuracy of each layer's probe, and the mean
    depth.

    Args:
        max_images: Of each split; 0 for all.
    """
    _, model, splits = load_run(folder, generation)
    bank, queries = (
        _pair(_subset(d, max_images or len(d)), model) for d in (splits.train, splits.test)
    )
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
    config: TrainConfig,
    folder: Path,
    name: str,
    values: Sequence[Any],
    seeds: Sequence[int],
    workers: int | None = 1,
    threads: int | None = None,
    track: Sequence[TrackerName] = (),
) -> Iterator[Outcome]:
    """Train one run per seed and value of a setting, such as "anneal.scale", "model" or
    "splits.per_class"; yields an outcome per finished run. The same call resumes: finished runs are
    not run again. See `plan_sweep` and `Study.run`."""
    yield from plan_sweep(config, folder, name, values, seeds).run(workers, threads, track)


def plan_sweep(
    config: TrainConfig, folder: Path, name: str, values: Sequence[Any], seeds: Sequence[int]
) -> Study:
    """Check the runs of a sweep.

    Raises:
        ValueError: The setting is a seed, which has its own argument, a value is out of range,
            there are none, or a folder holds a run with other settings.
    """
    if name in ("seed", "splits.seed"):
        raise ValueError(f"{name} is not swept; give the seeds by --seeds and --first-seed.")
    if not values or not seeds:
        raise ValueError("A sweep needs at least one value and one seed.")
    trials: dict[Path, Trial] = {}
    for value in values:
        changed = with_absolute_data(with_overrides(config, {name: value}))
        for seed in seeds:
            own = replace(changed, seed=seed, splits=replace(changed.splits, seed=seed))
            run = folder / f"{name}={_as_file_name(value)}" / f"seed-{seed}"
            if run in trials and trials[run].config != own:
                raise ValueError(f"Two values of {name} have the same folder {run.parent}.")
            trials[run] = Trial(run, own, ((name, value), ("seed", seed)))
    return Study.checked(list(trials.values()))


def summary(
    outcomes: Sequence[Outcome], name: str, values: Sequence[Any], score: str = "test accuracy"
) -> list[dict[str, Any]]:
    """A row per value of a sweep: the mean of a score over the seeds that did not diverge, and its
    95 % interval (Student's; None for one seed)."""
    rows = []
    for value in values:
        own = [one for one in outcomes if one.facts[name] == value]
        found = [one.scores[score] for one in own if one.scores]
        mean = student_mean(found) if found else None
        several = mean is not None and len(found) > 1
        rows.append(
            {
                name: value,
                "seeds": len(found),
                "diverged": len(own) - len(found),
                score: mean.mean if mean else None,
                "low": mean.low if mean and several else None,
                "high": mean.high if mean and several else None,
                "seconds": sum(one.seconds for one in own),
            }
        )
    return rows


def _as_file_name(value: Any) -> str:
    return re.sub(r"[^\w.+=,-]+", "-", str(value))


def match_channels(splits: Splits, model: Classifier) -> Splits:
    """Convert images to the channels of a network: RGB to grey by the mean, grey to RGB by
    repetition."""
    channels = len(model.pixels.mean)
    return Splits(*(replace(d, images=with_channels(d.images, channels)) for d in splits))


def resume(
    folder: Path,
    generations: int | None = None,
    track: Sequence[TrackerName] = (),
    started: Started = lambda training: None,
) -> Iterator[EpochResult]:
    """Resume a run exactly from its newest complete checkpoint; one that was killed before the
    first begins again, with the same result.

    Args:
        generations: Extend the run, finished or not, to this many; see `run.extend`.

    Raises:
        ValueError: Not a run, or all its checkpoints are damaged, or it cannot be extended.
    """
    read(folder / "config.json")
    saved = folder / "checkpoints"
    if checkpoint.latest(saved) is None and any(saved.glob("[0-9]*")):
        raise ValueError(f"{folder} has no complete checkpoint. Start again in another folder.")
    check_trackers([*recorded_trackers(folder), *track])
    if generations is not None:
        runs.extend(folder, generations)
    return runs.continue_run(folder, track=track, started=started)


def _predict(model: Classifier, data: Dataset) -> torch.Tensor:
    return predict(model, data.images).cpu()


def _pair(data: Dataset, model: Classifier) -> tuple[Images, torch.Tensor]:
    device = device_of(model)
    return data.images.to(device), data.labels.to(device)


def _subset(data: Dataset, count: int) -> Dataset:
    """A random subset of at most `count` images, always the same."""
    if len(data) <= count:
        return data
    return data.select(torch.randperm(len(data), generator=generator_for(0, 0, "subset"))[:count])


def _one_tenth(data: str, splits: DataConfig) -> int:
    return max(count_training_images(data, splits) // 10, 1)
