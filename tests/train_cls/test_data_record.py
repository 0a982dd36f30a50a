"""A run resumes on its own data, and is evaluated on its own classes, or says why not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train_cls import api
from train_cls.config import TrainConfig
from train_cls.data import DataConfig, load_splits
from train_cls.data.record import check_classes, record
from train_cls.run import continue_run, new_run

KINDS = ("ape", "cat", "cow")


def write_set(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for kind in KINDS:
            (root / split / kind).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / kind / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `set` and `run`, stopped after one of its two generations."""
    folder = tmp_path_factory.mktemp("record")
    config = TrainConfig(
        data=str(write_set(folder / "set")),
        model="preresnet-tiny",
        method="restarts",
        generations=2,
        epochs=1,
        batch=4,
        device="cpu",
    )
    new_run(folder / "run", config)
    for _ in continue_run(folder / "run"):
        break
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of both, so that each test may change the data."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace(str(stopped), str(tmp_path)))
    return tmp_path / "run"


def test_on_its_own_data_it_resumes_and_is_evaluated(run: Path, caplog: pytest.LogCaptureFixture):
    assert api.evaluate(run)["test"]["accuracy"] >= 0
    assert [result.epoch for result in api.resume(run)] == [2] and not caplog.text


def test_renamed_classes_are_refused_with_both_lists(run: Path):
    for split in ("train", "test"):
        (run.parent / "set" / split / "cow").rename(run.parent / "set" / split / "aaa")
    for function in (api.evaluate, lambda run: list(api.resume(run))):
        with pytest.raises(
            ValueError,
            match=r"run was trained on the classes ape, cat, cow, but \S+set has aaa, ape, cat\. ",
        ):
            function(run)


def copy_image(root: Path, split: str) -> None:
    shutil.copy(root / split / "cat" / "0.png", root / split / "cat" / "9.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: copy_image(root, "train"), "12 train images before and 13 now"),
        (lambda root: copy_image(root, "test"), "12 test images before and 13 now"),
        (lambda root: (root / "train/cow/2.png").unlink(), "12 train images before and 11 now"),
        (
            lambda root: (root / "train/cow/2.png").rename(root / "train/cow/7.png"),
            "as many train images as before, but not the same ones",
        ),
        (
            lambda root: Image.new("RGB", (8, 8)).save(root / "train/cow/2.png"),
            "as many train images as before, but not the same ones",
        ),
    ],
)
def test_other_images_are_refused_by_resume_and_stated_by_evaluate(
    run: Path, caplog: pytest.LogCaptureFixture, change, message: str
):
    change(run.parent / "set")
    with pytest.raises(ValueError, match=f"set has changed since .*run was started: {message}"):
        list(api.resume(run))
    api.evaluate(run)
    assert f"was trained: {message}. Scores are of the data as they are now." in caplog.text


def test_other_values_of_arrays_are_other_data(tmp_path: Path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(6) % 2
    prints = []
    for change in ((0, 0), (0, 1), (1, 0)):
        arrays["train_images"][0, 0, 0], arrays["test_labels"][5] = change
        np.savez(tmp_path / "set.npz", **arrays)
        splits = load_splits(tmp_path / "set.npz")
        prints.append((splits.train.fingerprint, splits.test.fingerprint))
    assert prints[0][0] == prints[1][0] != prints[2][0]
    assert prints[0][1] == prints[2][1] != prints[1][1]


def test_where_the_data_lie_is_no_difference(tmp_path: Path):
    one = load_splits(write_set(tmp_path / "one"))
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "one")
    assert record(one) == record(load_splits(archive))


def test_of_many_classes_only_those_that_differ_are_listed():
    splits = load_splits("digits", DataConfig(per_class=1))
    names = tuple(f"class {i}" for i in range(30))
    known = replace(record(splits), classes=names)
    other = splits._replace(train=replace(splits.train, classes=(*names[:-1], "new")))
    with pytest.raises(ValueError, match=r"classes class 29 \(of 30\), but X has new \(of 30\)"):
        check_classes(known, other, "run", "X")


def test_a_damaged_record_says_what_to_do(run: Path):
    whole = json.loads((run / "data.json").read_text())
    for damaged in ("", "[" * 10**5, "{}", json.dumps({**whole, "train": {"images": "x"}})):
        (run / "data.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"data\.json, which tells .* is damaged .*Remove it"):
            api.evaluate(run)
    (run / "data.json").unlink()
    assert [result.epoch for result in api.resume(run)] == [2]
    assert json.loads((run / "data.json").read_text()) == whole
