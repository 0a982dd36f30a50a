"""Images that stay files: the same batches, training and evaluations as in memory."""

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dreamsa import checkpoint
from train_cls import api
from train_cls import train as train_module
from train_cls.config import TrainConfig
from train_cls.data import (
    DataConfig,
    FileImages,
    batch_order,
    channel_stats,
    load_splits,
    with_channels,
)
from train_cls.data import images as data_images
from train_cls.run import rows
from train_cls.train import new_training, train

RESIDENT = DataConfig(size=8, workers=0)
STREAMED = replace(RESIDENT, resident=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, 12 x 10 pixels: 40 images to train on, 12 to test with."""
    root, rng = tmp_path_factory.mktemp("streamed") / "set", np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for kind, light in (("dark", 128), ("light", 256)):
            (root / split / kind).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(light - 128, light, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / kind / f"{i}.png")
    return root


def config_of(root: Path, splits: DataConfig, **settings: object) -> TrainConfig:
    chosen = {"model": "preresnet-tiny", "generations": 2, "epochs": 2, "batch": 8, "device": "cpu"}
    return TrainConfig(data=str(root), splits=splits, flip=True, **(chosen | settings))  # pyright: ignore


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def assert_same_end(folder: Path, name: str) -> None:
    """The runs `whole` and `part` have the same last weights."""
    ends = [
        checkpoint.load(folder / run / "checkpoints" / name).tensors["model"]
        for run in ("whole", "part")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_size_of_the_images_decides_whether_they_are_streamed(root: Path):
    decoded = 52 * 3 * 8 * 8
    for resident, streams in ((decoded / 2**30, False), ((decoded - 1) / 2**30, True)):
        splits = load_splits(root, replace(RESIDENT, resident=resident))
        assert all(
            isinstance(part.images, FileImages) is streams for part in (splits[0], splits[2])
        )
    few = replace(RESIDENT, resident=(decoded - 1) / 2**30, per_class=5)
    assert isinstance(load_splits(root, few).train.images, Tensor)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_stand_in_for_a_tensor(root: Path, workers: int):
    whole = load_splits(root, RESIDENT).train
    files = load_splits(root, replace(STREAMED, workers=workers)).train
    assert isinstance(files.images, FileImages) and files.images.shape == whole.images.shape
    assert files.fingerprint == whole.fingerprint and torch.equal(files.labels, whole.labels)
    assert channel_stats(files.images) == channel_stats(whole.images)
    assert channel_stats(replace(files.images, histogram=None)) == channel_stats(whole.images)
    for index in (slice(2), torch.tensor([[3, 1], [0, 39]]), whole.labels == 1, torch.tensor([])):
        index = index.long() if isinstance(index, Tensor) and index.is_floating_point() else index
        assert torch.equal(files.images[index], whole.images[index])
    assert torch.equal(torch.cat(list(files.images.split(7))), whole.images)
    order = batch_order(40, 8, epoch=3, seed=1)
    for (images, labels), index in zip(files.batches(order), order, strict=True):
        assert torch.equal(images, whole.images[index])
        assert torch.equal(labels, whole.labels[index])
    grey, expected = (with_channels(part.images, 1) for part in (files, whole))
    assert grey.shape == expected.shape and torch.equal(grey[:5], expected[:5])
    part = files.select(torch.tensor([5, 0]))
    assert isinstance(part.images, Tensor) and torch.equal(part.images, whole.images[[5, 0]])


@pytest.mark.parametrize("method", ["seal", "swa"])
def test_training_is_bit_identical_to_training_in_memory(root: Path, method: str):
    """Augmented batches, statistics, the accuracy after an ascent, averaged batch norms, scores."""
    results, ends = [], []
    for splits in (RESIDENT, STREAMED):
        config = config_of(root, splits, method=method)
        loaded = load_splits(config.data, config.splits)
        training = new_training(config, loaded.train)
        results.append(list(train(training, loaded)))
        ends.append(weights(training.model))
    assert torch.equal(*ends)
    for one, other in zip(*results, strict=True):
        assert one._replace(seconds=0) == other._replace(seconds=0)


def test_workers_give_the_same_run_and_do_not_draw_from_the_global_generator(root: Path):
    before, ends = torch.get_rng_state(), []
    for workers in (0, 2):
        config = config_of(root, replace(STREAMED, workers=workers), generations=1, epochs=1)
        loaded = load_splits(config.data, config.splits)
        training = new_training(config, loaded.train)
        list(train(training, loaded))
        ends.append(weights(training.model))
    assert torch.equal(*ends) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_resumes_exactly(
    root: Path, tmp_path: Path, monkeypatch, workers: int
):
    config = config_of(root, replace(STREAMED, workers=workers), generations=1)
    list(api.train(config, tmp_path / "whole"))
    calls, loss_of = iter(range(100)), train_module.loss_of

    def interrupting(*arguments):
        if next(calls) == 6:  # the second step of epoch 2
            signal.raise_signal(signal.SIGINT)
        return loss_of(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_module, "loss_of", interrupting)
        list(api.train(config, tmp_path / "part"))
    newest = checkpoint.latest(tmp_path / "part" / "checkpoints")
    assert newest is not None and newest.name == "00000007"
    list(api.resume(tmp_path / "part"))
    assert_same_end(tmp_path, "00000010")
    assert [r["loss"] for r in rows(tmp_path / "whole")] == [
        r["loss"] for r in rows(tmp_path / "part")
    ]


def test_a_run_whose_files_vanish_in_an_epoch_saves_and_resumes(root: Path, tmp_path: Path):
    shutil.copytree(root, tmp_path / "set")
    config = config_of(tmp_path / "set", STREAMED, generations=1)
    list(api.train(config, tmp_path / "whole"))
    results = api.train(config, tmp_path / "part")
    next(results)
    (tmp_path / "set" / "train").rename(tmp_path / "away")
    order = batch_order(40, 8, epoch=1, seed=0)
    for path in (tmp_path / "away" / "light").iterdir():  # those of the first three batches stay
        position = 20 + sorted(p.name for p in path.parent.iterdir()).index(path.name)
        if position in torch.cat(order[:3]):
            kept = tmp_path / "set" / "train" / "light" / path.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, kept)
    shutil.copytree(tmp_path / "away" / "dark", tmp_path / "set" / "train" / "dark")
    with pytest.raises(ValueError, match="No such file or directory: .*train/light"):
        next(results)
    newest = checkpoint.latest(tmp_path / "part" / "checkpoints")
    assert newest is not None and newest.name == "00000008"
    shutil.rmtree(tmp_path / "set" / "train")
    (tmp_path / "away").rename(tmp_path / "set" / "train")
    list(api.resume(tmp_path / "part"))
    assert_same_end(tmp_path, "00000010")


def test_a_run_surveys_its_files_once(root: Path, tmp_path: Path, monkeypatch):
    """Later evaluations and resumes take what data.json says."""
    surveyed = []
    survey = FileImages.survey
    monkeypatch.setattr(FileImages, "survey", lambda images: surveyed.append(1) or survey(images))
    list(api.train(config_of(root, STREAMED, generations=1, epochs=1), tmp_path / "run"))
    assert len(surveyed) == 2  # train and test
    api.evaluate(tmp_path / "run")
    list(api.resume(tmp_path / "run"))
    assert len(surveyed) == 2


def test_evaluations_are_those_of_images_in_memory(root: Path, tmp_path: Path):
    found = []
    for name, splits in (("memory", RESIDENT), ("files", STREAMED)):
        run = tmp_path / name
        list(api.train(config_of(root, splits, generations=1, epochs=1, seed=3), run))
        shots = {"shots": 1, "way": 2, "queries": 2, "episodes": 3, "epochs": 2}
        facts = [
            api.evaluate(run),
            api.probe(run, str(root), replace(splits, validation=4), epochs=2),
            api.few_shot(run, str(root), splits, **shots),
            api.few_shot(run, str(root), splits, affine=True, **shots),
            api.depth(run, max_images=30, neighbours=3),
            api.depth(run, neighbours=3),
            api.hessian(run, batches=1, batch=4),
        ]
        facts[0].pop("run")
        found.append(facts)
    assert found[0] == found[1]


def test_unreadable_files_are_left_out_as_in_memory(root: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    (copy / "train" / "dark" / "3.png").write_bytes(b"damaged")
    whole, files = (load_splits(copy, splits).train for splits in (RESIDENT, STREAMED))
    assert len(files) == len(whole) == 39 and list(files.unreadable) == list(whole.unreadable)
    assert torch.equal(files.images[:], whole.images[:])
    assert channel_stats(files.images) == channel_stats(whole.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_lost_later_is_named(root: Path, tmp_path: Path, workers: int):
    shutil.copytree(root, tmp_path / "set")
    images = load_splits(tmp_path / "set", replace(STREAMED, workers=workers)).train.images
    (tmp_path / "set" / "train" / "dark" / "3.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"^\S+: train/dark/3.png cannot be read as an image"):
        list(images.split(8))
    (tmp_path / "set" / "train" / "dark" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"No such file or directory: .*3.png"):
        list(images.split(8))


def test_zips_are_streamed_by_forked_workers(root: Path, tmp_path: Path, monkeypatch):
    """Which share no position in the archive."""
    monkeypatch.setattr(data_images, "CHUNK", 2)
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", root)
    expected = load_splits(root, RESIDENT).train.images
    for config in (replace(STREAMED, workers=2), replace(RESIDENT, workers=2)):
        images = load_splits(archive, config).train.images
        assert torch.equal(torch.cat(list(images.split(3))), expected)


def test_signals_to_all_processes_of_a_job_do_not_end_workers(root: Path):
    """As a terminal and job schedulers send them: the interrupted step is still finished."""
    images = load_splits(root, replace(STREAMED, workers=2)).train.images
    parts = images.split(4)
    got = [next(parts), next(parts)]  # both have begun
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        assert child.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child.pid, number)
    assert torch.equal(torch.cat([*got, *parts]), images[:])


def test_a_killed_worker_is_named(root: Path):
    images = load_splits(root, replace(STREAMED, workers=1)).train.images
    parts = images.split(1)
    next(parts)
    (child,) = multiprocessing.active_children()
    # torch raises where the signal of its death finds the training process
    with pytest.raises((ValueError, RuntimeError), match=r"DataLoader worker \(pid"):
        child.kill()
        list(parts)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] no memory\nat")])
def test_too_little_memory_is_one_sentence(root: Path, monkeypatch, error: Exception):
    def load(images: FileImages) -> None:
        raise error

    monkeypatch.setattr(FileImages, "load", load)
    with pytest.raises(ValueError, match="set does not fit into memory: .*lower splits.resident"):
        load_splits(root, RESIDENT)


def test_streaming_is_stated(root: Path, caplog: pytest.LogCaptureFixture):
    load_splits(f"{root}/", STREAMED)
    assert "52 images would take 9.3e-06 GiB of memory, more than splits.resident=0" in caplog.text
