"""Data sets of every layout, choice of images, batches, augmentation, and errors of bad data."""

import gzip
import re
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from train_cls.data import (
    DataConfig,
    Dataset,
    Splits,
    augment,
    batch_order,
    channel_stats,
    choose_classes,
    count_training_images,
    load_splits,
    stratified,
)
from train_cls.data import arrays as data_arrays
from train_cls.data import images as data_images
from train_cls.data.arrays import resized
from train_cls.data.files import ZipTree, decode_image

COUNTS = {"ant": 6, "bee": 4, "cow": 5}
CLASSES = tuple(COUNTS)


def colour(split: int, label: int, i: int) -> tuple[int, int, int]:
    """A distinct colour per image, which reveals mixed-up images and labels."""
    return split * 100, label * 50, i * 10


def write_image(
    path: Path,
    rgb: tuple[int, int, int] = (1, 2, 3),
    size: tuple[int, int] = (4, 4),
    mode: str = "RGB",
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, rgb).convert(mode).save(path)


def write_folders(root: Path, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """train/CLASS/IMAGE.png ..., the colours by `colour`, files in an order that is not the sorted
    one."""
    for split, name in enumerate(splits):
        for label, (kind, count) in enumerate(COUNTS.items()):
            for i in reversed(range(count)):
                write_image(root / name / kind / f"{i}.png", colour(split, label, i))
    return root


def zipped(root: Path, target: Path, inside: str = "", reverse: bool = False) -> Path:
    files = sorted((path for path in root.rglob("*") if path.is_file()), reverse=reverse)
    with zipfile.ZipFile(target, "w") as archive:
        for path in files:
            archive.write(path, f"{inside}{path.relative_to(root).as_posix()}")
    return target


def same(a: Splits, b: Splits) -> bool:
    return all(
        torch.equal(x.images, y.images)
        and torch.equal(x.labels, y.labels)
        and x.classes == y.classes
        for x, y in zip(a, b, strict=True)
    )


def arrays(
    channels: int = 3, size: int = 32, count: int = 12, classes: int = 3, first: int = 0
) -> dict[str, np.ndarray]:
    """Random train and test images [n, c, h, w] and their labels."""
    rng = np.random.default_rng(0)
    made = {}
    for split in ("train", "test"):
        made[f"{split}_images"] = rng.integers(
            0, 256, (count, channels, size, size), dtype=np.uint8
        )
        made[f"{split}_labels"] = (np.arange(count) % classes + first).astype(np.int64)
    return made


def check_equal(splits: Splits, made: dict[str, np.ndarray], first: int = 0) -> None:
    for split, dataset in (("train", splits.train), ("test", splits.test)):
        assert np.array_equal(dataset.images.numpy(), made[f"{split}_images"])
        assert np.array_equal(dataset.labels.numpy(), made[f"{split}_labels"] - first)


# ---------------------------------------------------------------- sources


def test_digits_need_no_file():
    splits = load_splits("digits")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1000, 0, 797)
    assert splits.train.images.shape == (1000, 1, 8, 8) and splits.train.images.dtype == torch.uint8
    assert splits.train.labels.bincount().tolist() == [100] * 10 and splits.train.classes == tuple(
        "0123456789"
    )
    assert splits.train.images.max() == 255 and splits.train.images.min() == 0


def test_a_folder_may_be_named_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folders(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert load_splits("digits").train.classes != CLASSES
    assert (
        load_splits("./digits").train.classes
        == load_splits(Path("digits")).train.classes
        == CLASSES
    )


def test_folders_and_their_zips_give_the_same_data_set(tmp_path: Path):
    """In any order of the files, and also one folder deeper."""
    root = write_folders(tmp_path / "set")
    splits = load_splits(root)
    assert splits.train.classes == CLASSES and splits.train.labels.bincount().tolist() == list(
        COUNTS.values()
    )
    for split, dataset in ((0, splits.train), (1, splits.test)):
        expected = [
            colour(split, label, i)
            for label, count in enumerate(COUNTS.values())
            for i in range(count)
        ]
        assert dataset.images[:, :, 2, 3].tolist() == [list(rgb) for rgb in expected]
    for number, (inside, reverse) in enumerate([("", False), ("", True), ("deeper/", True)]):
        assert same(load_splits(zipped(root, tmp_path / f"{number}.zip", inside, reverse)), splits)
    assert same(load_splits(tmp_path / "set" / ".." / "set"), splits)
    shutil.copytree(root, tmp_path / "around" / "set")
    assert same(load_splits(str(tmp_path / "around")), splits)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_tests_where_there_is_no_test_folder(tmp_path: Path, name: str):
    splits = load_splits(write_folders(tmp_path, ("train", name)))
    assert len(splits.test) == 15 and len(splits.validation) == 0


def test_a_validation_folder_beside_a_test_folder_is_the_validation_split(tmp_path: Path):
    root = write_folders(tmp_path, ("train", "test", "val"))
    splits = load_splits(root)
    assert (
        splits.validation.images[0, :, 0, 0].tolist() == [200, 0, 0]
        and len(splits.validation) == 15
    )
    splits = load_splits(root, DataConfig(validation=3))
    assert splits.validation.images[:, 0].max() == 0 and len(splits.validation) == 3, (
        "taken from train if requested"
    )


def test_other_files_beside_the_images_are_ignored(tmp_path: Path):
    root = write_folders(tmp_path / "set")
    clean = load_splits(root)
    (root / "train" / "ant" / "notes.txt").write_text("hello")
    (root / "train" / "ant" / "._0.png").write_bytes(b"resource fork")
    (root / "train" / ".cache").mkdir()
    (root / "cache.pkl").write_bytes(b"")
    assert same(load_splits(root), clean)
    archive = zipped(root, tmp_path / "set.zip", "set/")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/set/train/ant/0.png", b"resource fork")
    assert same(load_splits(archive), clean)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    write_image(path, (255, 255, 255), (5, 3), mode)
    pixels = decode_image(path.read_bytes(), "image")
    assert pixels.shape == (3, 5, 3) and pixels.dtype == np.uint8 and (pixels == 255).all()


def test_sixteen_bits_are_refused_and_not_truncated(tmp_path: Path):
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="deep.png cannot be read .*I;16, expected 8 bits"):
        decode_image((tmp_path / "deep.png").read_bytes(), "deep.png")


def test_size_resizes_files_and_arrays(tmp_path: Path):
    root = write_folders(tmp_path / "set")
    write_image(root / "train" / "ant" / "0.png", (0, 0, 0), (9, 5))
    assert load_splits(root, DataConfig(size=6)).train.images.shape == (15, 3, 6, 6)
    assert load_splits("digits", DataConfig(size=16, per_class=2)).train.images.shape == (
        20,
        1,
        16,
        16,
    )
    with pytest.raises(ValueError, match=r"1.png is 4 x 4 pixels and others are 5 x 9.*set size"):
        load_splits(root)


def test_arrays_are_resized_as_pillow_resizes():
    image = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)).astype(
        int
    )
    ours = resized(torch.tensor(image).view(1, 1, 40, 30), 16)[0, 0].numpy()
    assert np.abs(ours - theirs).max() <= 1


def write_tiny(root: Path) -> Path:
    """Tiny-ImageNet's layout, with its unlabelled test images."""
    lines = []
    for label, (kind, count) in enumerate(COUNTS.items()):
        (root / "train" / kind).mkdir(parents=True, exist_ok=True)
        (root / "train" / kind / f"{kind}_boxes.txt").write_text("0.png\t0\t0\t9\t9\n")
        for i in range(count):
            write_image(root / "train" / kind / "images" / f"{kind}_{i}.JPEG", colour(0, label, i))
            number = len(lines)
            write_image(root / "val" / "images" / f"val_{number}.JPEG", colour(1, label, i))
            lines.append(f"val_{number}.JPEG\t{kind}\t0\t0\t3\t3\n")
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    (root / "wnids.txt").write_text("\n".join(reversed(CLASSES)))
    write_image(root / "test" / "images" / "test_0.JPEG")
    return root


def test_tiny_imagenet_as_it_is_distributed(tmp_path: Path):
    root = write_tiny(tmp_path / "tiny-imagenet-200")
    splits = load_splits(root)
    assert splits.test.classes == CLASSES and splits.test.labels.bincount().tolist() == list(
        COUNTS.values()
    )
    assert (
        splits.test.images[:, 1, 0, 0].float() / 50
    ).round().tolist() == splits.test.labels.tolist()
    assert same(load_splits(zipped(root, tmp_path / "tiny.zip", "tiny-imagenet-200/")), splits)


def test_tiny_imagenet_with_sorted_validation_images(tmp_path: Path):
    """As many scripts leave it: val/WNID/images, and test/images without labels."""
    root = write_tiny(tmp_path)
    expected = load_splits(root)
    annotations = (root / "val" / "val_annotations.txt").read_text().splitlines()
    for name, kind, *_ in (line.split("\t") for line in annotations):
        (root / "val" / kind / "images").mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(root / "val" / kind / "images" / name)
    (root / "val" / "images").rmdir()
    (root / "val" / "val_annotations.txt").unlink()
    splits = load_splits(root)
    assert (
        splits.test.labels.tolist() == expected.test.labels.tolist() and len(splits.validation) == 0
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "val" / "images" / "val_3.JPEG").unlink(),
            "14 images and 15 annotations do not match, as in 'val_3.JPEG'",
        ),
        (
            lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG ant"),
            "line 1: expected file, tab, class",
        ),
        (
            lambda root: (root / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe\tant"),
            "not text in UTF-8",
        ),
        (
            lambda root: shutil.rmtree(root / "train" / "bee"),
            "wnids.txt names bee, which train/ lacks",
        ),
    ],
)
def test_damage_to_tiny_imagenet_is_an_error(
    tmp_path: Path, damage: Callable[[Path], object], message: str
):
    root = write_tiny(tmp_path)
    damage(root)
    with pytest.raises(ValueError, match=message):
        load_splits(root)


def write_cifar10(root: Path, made: dict[str, np.ndarray], batches: int = 2) -> Path:
    root.mkdir(exist_ok=True)
    records = {
        split: np.concatenate(
            [
                made[f"{split}_labels"].astype(np.uint8)[:, None],
                made[f"{split}_images"].reshape(-1, 3072),
            ],
            1,
        )
        for split in ("train", "test")
    }
    for i, part in enumerate(np.array_split(records["train"], batches)):
        (root / f"data_batch_{i + 1}.bin").write_bytes(part.tobytes())
    (root / "test_batch.bin").write_bytes(records["test"].tobytes())
    (root / "batches.meta.txt").write_text("airplane\nautomobile\nbird\n\n")
    return root


def test_cifar10_binary_files(tmp_path: Path):
    made = arrays()
    root = write_cifar10(tmp_path / "cifar-10-batches-bin", made)
    splits = load_splits(tmp_path)
    check_equal(splits, made)
    assert splits.train.classes == ("airplane", "automobile", "bird")
    (root / "batches.meta.txt").unlink()
    assert load_splits(root).train.classes == ("0", "1", "2")


def test_cifar100_binary_files_give_fine_labels(tmp_path: Path):
    made = arrays()
    for split in ("train", "test"):
        labels = made[f"{split}_labels"].astype(np.uint8)
        coarse = np.full_like(labels, 9)
        records = np.concatenate(
            [np.stack([coarse, labels], 1), made[f"{split}_images"].reshape(-1, 3072)], 1
        )
        (tmp_path / f"{split}.bin").write_bytes(records.tobytes())
    (tmp_path / "fine_label_names.txt").write_text("apple\naquarium_fish\nbaby\n")
    (tmp_path / "coarse_label_names.txt").write_text("aquatic_mammals\n")
    splits = load_splits(tmp_path)
    check_equal(splits, made)
    assert splits.train.classes == ("apple", "aquarium_fish", "baby")


def test_damage_to_cifar_is_an_error(tmp_path: Path):
    root = write_cifar10(tmp_path, arrays())
    (root / "batches.meta.txt").write_text("airplane\n")
    with pytest.raises(ValueError, match="label 2 has no name, there are 1 names"):
        load_splits(root)
    (root / "data_batch_1.bin").write_bytes((root / "data_batch_1.bin").read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"data_batch_1.bin has 18,437 bytes, expected a multiple of 3,073"
    ):
        load_splits(root)
    (root / "data_batch_1.bin").rename(root / "data_batch_3.bin")
    with pytest.raises(ValueError, match=r"lacks data_batch_1.bin"):
        load_splits(root)
    (root / "test_batch.bin").unlink()
    with pytest.raises(ValueError, match=r"lacks data_batch_1.bin, test_batch.bin"):
        load_splits(root)


@pytest.mark.parametrize(
    "names",
    [("data_batch_1", "test_batch"), ("train", "test", "meta"), ("cifar.pkl",), ("train.pickle",)],
)
def test_pickles_are_refused_with_a_hint_and_never_opened(tmp_path: Path, names: tuple[str, ...]):
    for name in names:
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch run'\ntR.")
    for source in (tmp_path, tmp_path / names[0]):
        with pytest.raises(
            ValueError, match=r"pickle.*Download CIFAR's binary version|neither a folder"
        ):
            load_splits(source)
    assert not Path("run").exists()


def write_idx(
    root: Path, made: dict[str, np.ndarray], pack: bool = False, separator: str = "-"
) -> Path:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = made[f"{split}_images"][:, 0], made[f"{split}_labels"].astype(np.uint8)
        for array, part in ((images, f"images{separator}idx3"), (labels, f"labels{separator}idx1")):
            data = (
                bytes((0, 0, 8, array.ndim))
                + struct.pack(f">{array.ndim}I", *array.shape)
                + array.tobytes()
            )
            (root / f"{prefix}-{part}-ubyte{'.gz' * pack}").write_bytes(
                gzip.compress(data) if pack else data
            )
    return root


@pytest.mark.parametrize(("pack", "separator"), [(False, "-"), (True, "-"), (False, ".")])
def test_idx_files_plain_and_packed(tmp_path: Path, pack: bool, separator: str):
    made = arrays(channels=1, size=7, first=1)
    splits = load_splits(write_idx(tmp_path, made, pack, separator))
    check_equal(splits, made, first=1)
    assert splits.train.classes == ("1", "2", "3"), (
        "labels that do not begin at 0 keep their number as a name"
    )


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:count])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: cut(root / "train-images-idx3-ubyte", 100),
            r"train-images-idx3-ubyte has 84 values .* declares \(12, 7, 7\)",
        ),
        (
            lambda root: cut(root / "train-images-idx3-ubyte", 9),
            "does not begin with the header of an IDX file",
        ),
        (
            lambda root: (root / "train-labels-idx1-ubyte").write_bytes(
                bytes((0, 0, 13, 1, 0, 0, 0, 0))
            ),
            "does not begin with the header of an IDX file",
        ),
        (lambda root: (root / "t10k-labels-idx1-ubyte").unlink(), "lacks t10k-labels-idx1-ubyte"),
        (
            lambda root: (root / "t10k-labels-idx1-ubyte").write_bytes(
                bytes((0, 0, 8, 1, 0, 0, 0, 2, 0, 1))
            ),
            "12 images and 2 labels",
        ),
        (
            lambda root: (root / "t10k-labels-idx1-ubyte").write_bytes(
                bytes((0, 0, 8, 1, 0, 0, 0, 12, *[7] * 12))
            ),
            "the test split has labels that the train split lacks: 7",
        ),
        (
            lambda root: (root / "t10k-images-idx3-ubyte").write_bytes(
                bytes((0, 0, 8, 3, *[255] * 12))
            ),
            "0 values after its header",
        ),
    ],
)
def test_damage_to_idx_files_is_an_error(
    tmp_path: Path, damage: Callable[[Path], object], message: str
):
    root = write_idx(tmp_path, arrays(channels=1, size=7))
    damage(root)
    with pytest.raises(ValueError, match=message):
        load_splits(root)


def test_a_packed_idx_file_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write_idx(tmp_path, arrays(channels=1, size=7), pack=True)
    cut(root / "t10k-images-idx3-ubyte.gz", 60)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.gz is damaged"):
        load_splits(root)
    monkeypatch.setattr(data_arrays, "MAX_DATASET_BYTES", 2**20)
    head = bytes((0, 0, 8, 3)) + struct.pack(">3I", 1, 2**12, 2**12)
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(2**24)))
    with pytest.raises(ValueError, match="more than the 1,048,576 allowed"):
        load_splits(root)


@pytest.mark.parametrize("layout", ["n c h w", "n h w c", "n h w"])
@pytest.mark.parametrize("names", ["train_images", "x_train"])
def test_npz_files(tmp_path: Path, layout: str, names: str):
    made = arrays(channels=1 if layout == "n h w" else 3)
    stored = dict(made)
    for split in ("train", "test"):
        images = made[f"{split}_images"]
        stored[f"{split}_images"] = {
            "n c h w": images,
            "n h w c": np.moveaxis(images, 1, -1),
            "n h w": images[:, 0],
        }[layout]
        stored[f"{split}_labels"] = made[f"{split}_labels"][:, None].astype(
            np.uint8
        )  # [n, 1], as Keras and MedMNIST store them
    if names == "x_train":
        stored = {
            ("x_" if "images" in name else "y_") + name.split("_")[0]: array
            for name, array in stored.items()
        }
    np.savez_compressed(tmp_path / "set.npz", allow_pickle=False, **stored)
    check_equal(load_splits(tmp_path / "set.npz"), made)


def test_an_npz_file_may_hold_a_validation_split(tmp_path: Path):
    made = arrays()
    np.savez(
        tmp_path / "set.npz",
        allow_pickle=False,
        **made,
        val_images=made["test_images"][:5],
        val_labels=made["test_labels"][:5],
    )
    assert len(load_splits(tmp_path / "set.npz").validation) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_labels": np.array([{"a": 1}] * 12, dtype=object)},
            "train_labels cannot be read without running code",
        ),
        (
            {"train_images": np.zeros((12, 3, 8, 8), np.float32)},
            "train_images is float32 .* Expected uint8",
        ),
        ({"train_images": np.zeros((12, 4, 8, 8), np.uint8)}, "channel axis is missing"),
        ({"train_images": np.zeros((12, 3, 8, 3), np.uint8)}, "channel axis is ambiguous"),
        ({"train_labels": np.zeros(12, np.float64)}, "train_labels is float64"),
        ({"train_labels": np.zeros(11, np.int64)}, "12 images and 11 labels"),
        (
            {"train_labels": np.zeros(12, np.int64)},
            "test split has labels that the train split lacks: 1, 2",
        ),
        (
            {"test_images": np.zeros((12, 3, 8, 8), np.uint8)},
            r"test images are \[3, 8, 8\], train images \[3, 32, 32\]",
        ),
        (
            {
                "train_images": np.zeros((0, 3, 32, 32), np.uint8),
                "train_labels": np.zeros(0, np.int64),
            },
            "0 images and 0 labels",
        ),
        ({"train_images": None}, "has no array train_images or x_train; it holds test_images"),
        ({"val_images": np.zeros((12, 3, 32, 32), np.uint8)}, "has no array val_labels or y_val"),
    ],
)
def test_wrong_arrays_in_an_npz_file_are_errors(
    tmp_path: Path, change: dict[str, np.ndarray | None], message: str
):
    stored = {name: array for name, array in (arrays() | change).items() if array is not None}
    np.savez(tmp_path / "set.npz", **stored)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=message):
        load_splits(tmp_path / "set.npz")


def test_a_damaged_npz_file_is_an_error(tmp_path: Path):
    path = tmp_path / "set.npz"
    for content in (b"", b"not a zip", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"set\.npz"):
            load_splits(path)
    with zipfile.ZipFile(path, "w") as archive:  # a header that declares an exabyte
        head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 3, 32000, 32000), }"
        archive.writestr(
            "train_images.npy",
            b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n",
        )
        archive.writestr("train_labels.npy", b"")
    with pytest.raises(ValueError, match=r"set\.npz"):
        load_splits(path)


# ---------------------------------------------------------------- bad sources


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: [remove(path) for path in (root / "train" / "bee").iterdir()],
            r"train has no images for bee\. Fill",
        ),
        (
            lambda root: remove(root / "test" / "bee"),
            "train/ and test/ differ in their classes; only train/ has bee",
        ),
        (lambda root: remove(root / "train" / "bee"), "only test/ has bee"),
        (lambda root: write_image(root / "test" / "dog" / "0.png"), "only test/ has dog"),
        (lambda root: remove(root / "test"), r"has train/ but no test/CLASS/"),
        (
            lambda root: [(root / name).mkdir() for name in ("val", "validation")],
            "has the folders val and validation. Keep one",
        ),
        (
            lambda root: [remove(root / s / c) for s in ("train", "test") for c in ("bee", "cow")],
            "has only the class ant left",
        ),
        (
            lambda root: [remove(path) for path in (root / "train").iterdir()],
            "train holds no class folders",
        ),
        (
            lambda root: remove(root / "train"),
            "no known layout; it holds test/. Known layouts, at the root or one folder deeper",
        ),
        (lambda root: [remove(path) for path in root.iterdir()], "it holds nothing"),
        (
            lambda root: [cut(root / "train" / "cow" / f"{i}.png", 40) for i in (1, 2)],
            r"train: 2 of 15 images cannot be read, and at most 1% are passed over: .*"
            r"train/cow/1\.png cannot be read as an image .*train/cow/2\.png",
        ),
        (lambda root: write_image(root / "test" / "cow" / "0.png", size=(5, 5)), "4 x 4.*set size"),
        (
            lambda root: [
                write_image(root / "test" / c / f"{i}.png", size=(5, 5))
                for c, n in COUNTS.items()
                for i in range(n)
            ],
            "test images are 5 x 5",
        ),
    ],
)
def test_bad_folders_are_errors(tmp_path: Path, damage: Callable[[Path], object], message: str):
    root = write_folders(tmp_path / "set")
    damage(root)
    with pytest.raises(ValueError, match=message):
        load_splits(root)


def test_missing_and_unreadable_sources_are_errors(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"There is no data set at .*nothing\. Give 'digits', a folder"
    ):
        load_splits(tmp_path / "nothing")
    (tmp_path / "set.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"neither a folder nor a \.zip or \.npz file\. Unpack it"):
        load_splits(tmp_path / "set.tar.gz")
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04 and then something else")
    with pytest.raises(ValueError, match=r"set\.zip is not a readable zip file"):
        load_splits(tmp_path / "set.zip")
    write_folders(tmp_path / "both" / "one")
    write_folders(tmp_path / "both" / "two")
    with pytest.raises(ValueError, match=r"several data sets: one, two\. Give one"):
        load_splits(tmp_path / "both")


@pytest.mark.parametrize("name", ["../train/ant/9.png", "/train/ant/9.png", "set/../../9.png"])
def test_a_zip_that_points_outside_itself_is_refused(tmp_path: Path, name: str):
    archive = zipped(write_folders(tmp_path / "set"), tmp_path / "set.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"")
    with pytest.raises(ValueError, match="points outside the archive"):
        load_splits(archive)


def test_a_damaged_file_in_a_zip_is_passed_over_and_an_oversized_one_refused(tmp_path: Path):
    root = write_folders(tmp_path / "set")
    archive = zipped(root, tmp_path / "set.zip")
    content = bytearray(archive.read_bytes())
    where = content.index((root / "train" / "bee" / "2.png").read_bytes())
    content[where + 60] ^= 1
    archive.write_bytes(content)
    splits = load_splits(archive)
    assert len(splits.train) == 14
    assert re.search(
        r"set\.zip: train/bee/2\.png cannot be read \(Bad CRC-32", splits.train.unreadable[8]
    )
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.png", bytes(10**7))
    with pytest.raises(
        ValueError, match="takes 10,000,000 bytes in memory, more than the 1,000,000 allowed"
    ):
        ZipTree(archive).read("bomb.png", 10**6)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 40_000])
def test_a_decompression_bomb_is_refused(side: int):
    """Also between Pillow's limit and twice the limit, where Pillow only warns."""
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read as an image .*exceeds limit"):
        decode_image(png_of_size(side, side), "bomb.png")


def test_malformed_images_are_decoded_or_refused(shared_data: Path):
    refused = []
    for path in sorted((shared_data / "malformed_images").iterdir()):
        begin = time.perf_counter()
        try:
            pixels = decode_image(path.read_bytes(), path.name)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        except ValueError as error:
            assert path.name in str(error)
            refused.append(path.name)
        assert time.perf_counter() - begin < 5, path.name
    assert {
        "broken.png",
        "truncated_jpeg.jpg",
        "truncated_image.png",
        "decompression_bomb.gif",
        "badwidth.bmp",
    } <= set(refused)


def test_malformed_images_among_good_ones_are_passed_over_and_listed(
    tmp_path: Path, shared_data: Path, caplog: pytest.LogCaptureFixture
):
    root = write_folders(tmp_path)
    expected = load_splits(root, DataConfig(size=8))
    bad = shared_data / "malformed_images" / "truncated_jpeg.jpg"
    shutil.copy(bad, root / "train" / "ant" / "x.jpg")
    assert same(load_splits(root, DataConfig(size=8)), expected)
    assert re.search(
        r"train: passed over 1 of 16 images that cannot be read: .*train/ant/x\.jpg cannot be read "
        r"as an image \(.*truncated",
        caplog.text,
    )
    shutil.copy(bad, root / "train" / "cow" / "y.jpg")
    with pytest.raises(ValueError, match=r"train: 2 of 17 images cannot be read"):
        load_splits(root, DataConfig(size=8))


# ---------------------------------------------------------------- real data


def test_cifar10_as_images_in_a_zip(shared_data: Path):
    config = DataConfig(only_classes="cat,8", per_class=20, validation=30)
    splits = load_splits(shared_data / "images" / "cifar10_jpg_imagefolder.zip", config)
    assert splits.train.classes == ("cat", "ship") and splits.train.images.shape == (40, 3, 32, 32)
    assert splits.validation.labels.bincount().tolist() == [
        15,
        15,
    ] and splits.test.labels.bincount().tolist() == [1000, 1000]
    blue = splits.test.images[:, 2].float().mean((1, 2)) - splits.test.images[:, 0].float().mean(
        (1, 2)
    )
    assert blue[splits.test.labels == 1].mean() > blue[splits.test.labels == 0].mean() + 10, (
        "ships have sea and sky"
    )


def test_tiny_imagenet_in_a_zip_with_its_grey_images(shared_data: Path):
    archive = shared_data / "images" / "tinyimagenet20_64_imagefolder.zip"
    splits = load_splits(archive, DataConfig(only_classes="10,17", per_class=100))
    assert splits.train.images.shape == (
        200,
        3,
        64,
        64,
    ) and splits.test.labels.bincount().tolist() == [50, 50]
    assert splits.train.classes == ("n03255030", "n04532670")
    grey = (splits.train.images[:, 0] == splits.train.images[:, 2]).flatten(1).all(1)
    assert 0 < grey.sum() < 40


def test_flowers_resized(shared_data: Path):
    archive = shared_data / "images" / "flowers12_224_imagefolder.zip"
    splits = load_splits(archive, DataConfig(only_classes="colts-foot, iris", per_class=5, size=32))
    assert splits.train.classes == ("colts-foot", "iris") and splits.train.images.shape == (
        10,
        3,
        32,
        32,
    )
    assert splits.test.labels.bincount().tolist() == [20, 20]


# ---------------------------------------------------------------- the choice of images


def positions(part: Dataset, whole: Dataset) -> list[int]:
    """Positions in `whole` of the images of `part`, which are all different."""
    index = {image.numpy().tobytes(): i for i, image in enumerate(whole.images)}
    return [index[image.numpy().tobytes()] for image in part.images]


def test_the_number_of_training_images_is_that_loaded():
    for config in (
        DataConfig(),
        DataConfig(per_class=7),
        DataConfig(only_classes="2-4"),
        DataConfig(only_classes="2-4", per_class=7),
    ):
        assert count_training_images("digits", config) == len(load_splits("digits", config).train)


def test_fewer_test_images_are_the_same_for_every_seed_and_choice_of_classes():
    whole = load_splits("digits").test
    few, other = (
        load_splits("digits", DataConfig(test_per_class=7, per_class=5, seed=seed)).test
        for seed in (0, 1)
    )
    assert few.labels.bincount().tolist() == [7] * 10 and torch.equal(few.images, other.images)
    fours = load_splits("digits", DataConfig(test_per_class=7, only_classes="4-5")).test
    assert torch.equal(fours.images, few.select((few.labels == 4) | (few.labels == 5)).images)
    assert {image.numpy().tobytes() for image in few.images} <= {
        image.numpy().tobytes() for image in whole.images
    }
    assert len(load_splits("digits", DataConfig(test_per_class=10**6)).test) == len(whole)


def test_the_choice_is_a_function_of_the_seed():
    whole = load_splits("digits")
    config = DataConfig(per_class=20, validation=100, seed=1)
    first, again, other = (
        load_splits("digits", c)
        for c in (config, config, DataConfig(per_class=20, validation=100, seed=2))
    )
    assert same(first, again)
    assert positions(first.train, whole.train) != positions(other.train, whole.train)
    assert torch.equal(first.test.images, other.test.images), (
        "the test split is the same for every seed"
    )
    assert (
        first.train.labels.bincount().tolist() == [20] * 10
        and first.validation.labels.bincount().tolist() == [10] * 10
    )
    chosen, held_out = positions(first.train, whole.train), positions(first.validation, whole.train)
    assert chosen == sorted(chosen) and not set(chosen) & set(held_out)


def test_smaller_choices_are_subsets_and_classes_are_independent():
    whole = load_splits("digits")
    few, more = (load_splits("digits", DataConfig(per_class=n, validation=200)) for n in (10, 20))
    assert set(positions(few.train, whole.train)) < set(positions(more.train, whole.train))
    assert torch.equal(few.validation.images, more.validation.images)
    half = load_splits("digits", DataConfig(per_class=10, validation=100, only_classes="5-9"))
    late = few.train.labels >= 5
    assert torch.equal(half.train.images, few.train.images[late]) and torch.equal(
        half.train.labels + 5, few.train.labels[late]
    )
    assert half.test.classes == tuple("56789") and half.test.labels.unique().tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_images_that_are_not_chosen_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = write_folders(tmp_path)
    decoded = []
    real = data_images.decode_image
    monkeypatch.setattr(
        data_images,
        "decode_image",
        lambda data, name, size: decoded.append(name) or real(data, name, size),
    )
    splits = load_splits(root, DataConfig(only_classes="ant,cow", per_class=2))
    assert len(splits.train) == 4 and len(decoded) == 4 + 6 + 5
    (root / "train" / "bee" / "0.png").write_bytes(b"broken")
    assert same(load_splits(root, DataConfig(only_classes="ant,cow", per_class=2)), splits)


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ("", [0, 1, 2, 3]),
        ("0-1", [0, 1]),
        ("2, 0", [0, 2]),
        ("iris,colts-foot", [0, 1]),
        ("3,0-1", [0, 1, 3]),
        ("rose,3", [2, 3]),
        ("1 - 2", [1, 2]),
    ],
)
def test_classes_are_kept_by_name_position_and_range(wanted: str, kept: list[int]):
    assert choose_classes(("colts-foot", "iris", "rose", "tulip"), wanted) == kept


def test_names_take_precedence_over_positions():
    assert choose_classes(("1", "10", "2"), "2") == [2]
    assert choose_classes(("4-5", "a", "b"), "4-5") == [0]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("tulips", "'tulips' is neither a class nor a position below 2. Did you mean 'tulip'"),
        ("xyz", "The classes are iris, tulip"),
        ("7", "'7' is neither"),
        ("0-7", "'7' is neither"),
        ("1-0", "is descending"),
        ("iris,", "'' is neither"),
        ("²", "is neither"),
        ("iris", "has only the class iris left"),
    ],
)
def test_unknown_classes_are_errors(tmp_path: Path, wanted: str, message: str):
    for split in ("train", "test"):
        for kind in ("iris", "tulip"):
            write_image(tmp_path / split / kind / "0.png")
    with pytest.raises(ValueError, match=message):
        load_splits(tmp_path, DataConfig(only_classes=wanted))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            DataConfig(per_class=101),
            "Class 0 has 100 training images, but 101 are needed for training and 0 for "
            "validation. Lower",
        ),
        (
            DataConfig(per_class=60, validation=500),
            "60 are needed for training and 50 for validation",
        ),
        (DataConfig(validation=1000), "1 are needed for training and 100 for validation"),
        (DataConfig(validation=1001), "validation=1001 is more than the 1000 training images"),
    ],
)
def test_more_images_than_there_are_is_an_error(config: DataConfig, message: str):
    with pytest.raises(ValueError, match=message):
        load_splits("digits", config)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.data())
def test_stratified_parts_add_up_and_are_in_proportion(sizes: list[int], data: st.DataObject):
    total = data.draw(st.integers(0, sum(sizes)))
    parts = stratified(sizes, total)
    assert sum(parts) == total
    for part, size in zip(parts, sizes, strict=True):
        assert 0 <= part <= size and abs(part - total * size / sum(sizes)) < 1


def test_a_dataset_selects_and_moves():
    dataset = load_splits("digits", DataConfig(per_class=3)).train
    part = dataset.select(torch.tensor([5, 0]))
    assert (
        len(part) == 2
        and torch.equal(part.images[1], dataset.images[0])
        and part.classes == dataset.classes
    )
    assert len(dataset.select(dataset.labels == 4)) == 3
    assert dataset.to("meta").images.device.type == "meta" and len(dataset.to("cpu")) == 30


# ---------------------------------------------------------------- batches, augmentation, statistics


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 5), st.integers(0, 2**40))
def test_every_image_comes_once_an_epoch(count: int, batch: int, epoch: int, seed: int):
    batches = batch_order(count, batch, epoch, seed)
    assert torch.cat(batches).sort().values.tolist() == list(range(count))
    assert (
        all(len(b) == batch for b in batches[:-1]) and len(batches[-1]) == (count - 1) % batch + 1
    )
    full = batch_order(count, batch, epoch, seed, drop_last=True)
    assert len(full) == count // batch and all(
        torch.equal(a, b) for a, b in zip(full, batches, strict=False)
    )


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(epoch: int, seed: int) -> list[int]:
        return torch.cat(batch_order(50, 8, epoch, seed)).tolist()

    torch.manual_seed(0)
    first = order(3, 1)
    torch.manual_seed(1)
    assert first == order(3, 1) and first != order(4, 1) and first != order(3, 2)
    with pytest.raises(ValueError, match="a batch of 0"):
        batch_order(10, 0, 0, 0)


def augment_slowly(
    images: torch.Tensor, rng: torch.Generator, flip: bool, pad: int
) -> torch.Tensor:
    """Pixel by pixel, drawing the same numbers."""
    b, _, h, w = images.shape
    offsets = (
        torch.randint(0, 2 * pad + 1, (2, b), generator=rng)
        if pad
        else torch.zeros(2, b, dtype=torch.int64)
    )
    mirrored = torch.rand(b, generator=rng) < 0.5 if flip else torch.zeros(b, dtype=torch.bool)
    out = torch.zeros_like(images)
    for n in range(b):
        for y in range(h):
            for x in range(w):
                from_y, from_x = (
                    y + int(offsets[0, n]) - pad,
                    (w - 1 - x if mirrored[n] else x) + int(offsets[1, n]) - pad,
                )
                if 0 <= from_y < h and 0 <= from_x < w:
                    out[n, :, y, x] = images[n, :, from_y, from_x]
    return out


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 7),
    st.integers(0, 99),
)
def test_augmentation_is_the_slow_loop(
    b: int, c: int, h: int, w: int, flip: bool, pad: int, seed: int
):
    images = torch.arange(1, b * c * h * w + 1).remainder(256).to(torch.uint8).view(b, c, h, w)
    fast = augment(images, torch.Generator().manual_seed(seed), flip, pad)
    assert fast.dtype == torch.uint8 and torch.equal(
        fast, augment_slowly(images, torch.Generator().manual_seed(seed), flip, pad)
    )


def test_augmentation_draws_every_shift_and_mirrors_half():
    images = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).repeat(4000, 1, 1, 1)
    rows = augment(images, torch.Generator().manual_seed(0), flip=False, pad=1)
    assert len({tuple(image.flatten().tolist()) for image in rows}) == 9
    turned = augment(images, torch.Generator().manual_seed(0), flip=True, pad=0)
    assert (turned[:, 0, 0, 0] == 3).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(augment(images, torch.Generator(), flip=False, pad=0), images)


def test_channel_statistics_are_exact(rng: torch.Generator):
    images = torch.randint(0, 256, (50, 3, 9, 7), dtype=torch.uint8, generator=rng)
    mean, std = channel_stats(images)
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    assert channel_stats(torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)) == (
        (pytest.approx(7 / 255),),
        (1 / 255,),
    )
