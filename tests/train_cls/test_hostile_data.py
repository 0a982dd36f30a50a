"""Data as people have them, and as an attacker would make them: read, passed over with a word, or
refused in one sentence before they take memory."""

import gzip
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train_cls import api
from train_cls.config import TrainConfig, with_absolute_data
from train_cls.data import DataConfig, load_splits
from train_cls.data.files import FolderTree, ZipTree, decode_image


def write_classes(root: Path, kinds: tuple[str, ...], count: int = 6, suffix: str = "png") -> Path:
    rng = np.random.default_rng(0)
    for kind in kinds:
        (root / kind).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{i}.{suffix}")
    return root


def write_set(root: Path, kinds: tuple[str, ...] = ("cat", "dog"), count: int = 6) -> Path:
    for split in ("train", "test"):
        write_classes(root / split, kinds, count)
    return root


# ---------------------------------------------------------------- as people have them


def test_classes_that_are_numbers_are_sorted_by_number(tmp_path: Path):
    root = write_set(tmp_path, tuple(str(i) for i in range(12)), count=1)
    assert load_splits(root).train.classes == tuple(str(i) for i in range(12))
    first, rest = (load_splits(root, DataConfig(only_classes=c)) for c in ("0-4", "5-11"))
    assert first.train.classes == tuple("01234")
    assert rest.train.classes == ("5", "6", "7", "8", "9", "10", "11")


def test_what_is_passed_over_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = write_set(tmp_path)
    (root / "train" / "cat" / "day1").mkdir()
    for i in range(3):
        (root / "train" / "cat" / f"{i}.png").rename(root / "train" / "cat" / "day1" / f"{i}.png")
    for name in ("a.heic", "b.HEIC", "c.txt", "Thumbs"):
        (root / "train" / "dog" / name).write_bytes(b"")
    assert len(load_splits(root).train) == len(load_splits(root).train) == 9
    assert [r.getMessage() for r in caplog.records] == [
        f"{root}: passed over 4 files of other types (.heic 2, .txt 1, no suffix 1) and 1 folder "
        "with 3 files inside class folders (train/cat/day1; only images/ is read there)."
    ]


def test_a_gif_gives_its_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    pixels = decode_image((tmp_path / "x.gif").read_bytes(), "x.gif")
    assert (pixels == [255, 0, 0]).all()
    root = write_set(tmp_path / "set")
    shutil.copy(tmp_path / "x.gif", root / "train" / "dog" / "X.GIF")
    assert len(load_splits(root).train) == 13


@pytest.mark.parametrize("outer", ["", "pets"])
def test_a_folder_of_classes_is_split_the_same_for_every_seed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, outer: str
):
    write_classes(tmp_path / "set" / outer, ("cat", "dog"), count=10)
    one, other = (load_splits(tmp_path / "set", DataConfig(seed=seed)) for seed in (0, 1))
    assert one.train.labels.bincount().tolist() == [8, 8]
    assert one.test.labels.bincount().tolist() == [2, 2]
    assert torch.equal(one.test.images, other.test.images)
    everything = {image.numpy().tobytes() for part in one for image in part.images}
    assert len(everything) == 20
    assert "has no test split: 4 of 20 images, about 20% of each class, are set" in caplog.text
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")
    assert torch.equal(load_splits(archive).test.images, one.test.images)


def test_folders_of_splits_are_no_classes(tmp_path: Path):
    write_classes(tmp_path, ("Train", "Test"))
    with pytest.raises(ValueError, match="no known layout; it holds Test/, Train/"):
        load_splits(tmp_path)


def test_a_folder_of_classes_needs_two_images_of_each(tmp_path: Path):
    write_classes(tmp_path, ("cat", "dog"), count=1)
    with pytest.raises(ValueError, match="no test split, and class cat has only one image"):
        load_splits(tmp_path)


def test_zips_of_windows_programs_and_upper_case_names_are_read(tmp_path: Path):
    root = write_set(tmp_path / "set")
    expected = load_splits(root)
    with zipfile.ZipFile(tmp_path / "SET.ZIP", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            info = zipfile.ZipInfo()
            info.filename = str(path.relative_to(root)).replace("/", "\\")
            archive.writestr(info, path.read_bytes())
    assert torch.equal(load_splits(tmp_path / "SET.ZIP").train.images, expected.train.images)
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.writestr("train\\..\\..\\x.png", b"")
    with pytest.raises(ValueError, match="points outside the archive"):
        load_splits(tmp_path / "out.zip")


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_set(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_splits("~/set").train) == 12
    assert with_absolute_data(TrainConfig(data="~/set")).data == str(tmp_path / "set")


def test_links_that_lead_nowhere_and_folders_named_as_images_are_passed_over(tmp_path: Path):
    root = write_set(tmp_path)
    (root / "train" / "cat" / "loop.png").symlink_to("loop.png")
    (root / "train" / "cat" / "gone.png").symlink_to("nothing.png")
    (root / "train" / "cat" / "folder.png").mkdir()
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    assert len(load_splits(root).train) == 12


def test_messages_name_the_file_and_no_python_object(tmp_path: Path):
    for data in (b"", b"\x00" * 10, b"\x89PNG\r\n\x1a\n" + bytes(30), b"GIF89a" + bytes(20)):
        with pytest.raises(ValueError, match=r"^x\.png cannot be read as an image \(.+\)") as error:
            decode_image(data, "x.png")
        assert "<" not in str(error.value)


def test_at_most_one_percent_of_a_split_is_passed_over(tmp_path: Path):
    root = write_set(tmp_path, count=100)
    for i in range(2):
        (root / "train" / "cat" / f"{i}.png").write_bytes(b"")
    assert len(load_splits(root).train) == 198
    (root / "train" / "dog" / "5.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3 of 200 images cannot be read, and at most 1% are"):
        load_splits(root)


def test_a_class_without_readable_images_is_refused(tmp_path: Path):
    root = write_set(tmp_path, count=1)
    (root / "train" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image of cat is left: .*train/cat/0\.png"):
        load_splits(root)


def test_bad_data_leave_no_folder_behind(tmp_path: Path):
    root = write_set(tmp_path / "set", count=2)
    for path in (root / "train" / "cat").iterdir():
        path.write_bytes(b"")
    for data, batch in ((str(root), 2), (str(tmp_path / "none"), 2), ("digits", 10**6)):
        with pytest.raises(ValueError):
            api.train(TrainConfig(data=data, batch=batch, device="cpu"), tmp_path / "run")
        assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- as an attacker makes them


def zeros_in(archive: Path, name: str, head: bytes = b"", mebibytes: int = 260) -> None:
    with (
        zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as file,
        file.open(name, "w", force_zip64=True) as entry,
    ):
        entry.write(head)
        for _ in range(mebibytes):
            entry.write(bytes(2**20))


def npy_header(shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, description)
    return head.getvalue()


def write_bomb(folder: Path, kind: str) -> Path:
    path = folder / kind
    if kind == "npz":
        zeros_in(folder / "x.npz", "train_images.npy", npy_header((260, 2**10, 2**10)))
        return folder / "x.npz"
    if kind == "cifar":
        zeros_in(folder / "x.zip", "data_batch_1.bin")
        return folder / "x.zip"
    path.mkdir()
    head = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**14, 2**10, 2**10)
    (path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(100)))
    for name in ("train-labels-idx1", "t10k-labels-idx1", "t10k-images-idx3"):
        (path / f"{name}-ubyte.gz").write_bytes(gzip.compress(bytes(8)))
    return path


def test_bombs_are_refused_before_they_inflate(tmp_path: Path):
    """A process that is given all of them grows by less than one."""
    paths = [write_bomb(tmp_path, kind) for kind in ("npz", "cifar", "idx")]
    program = (
        "import resource, sys\n"
        "from train_cls.data import load_splits\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        load_splits(path)\n"
        "    except ValueError as error:\n        print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", program, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *messages, grown = done.stdout.splitlines()
    assert len(messages) == 3 and int(grown) < 64 * 1024  # KiB
    for message in messages:
        assert re.search(r"bytes and declares [\d,]+: a [\d,]+-fold compression", message)


def test_a_packed_file_that_declares_more_than_it_holds_takes_no_memory_for_it(tmp_path: Path):
    path = write_bomb(tmp_path, "idx")
    rng = np.random.default_rng(0)
    head = bytes((0, 0, 8, 3)) + struct.pack(">3I", 10, 2**12, 2**12)  # 160 MiB
    packed = gzip.compress(head + rng.integers(0, 256, 2**20, dtype=np.uint8).tobytes())
    (path / "train-images-idx3-ubyte.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"1,048,576 values after its header, which declares"):
        load_splits(path)


def test_a_zip_whose_entries_share_their_data_counts_them_all(tmp_path: Path):
    """Each alone is within the limits."""
    entry = bytes(2**20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat/0.png", entry)
        for i in range(1, 300):
            info = zipfile.ZipInfo(f"train/cat/{i}.png")
            first = archive.infolist()[0]
            for name in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
                setattr(info, name, getattr(first, name))
            archive.filelist.append(info)
    with pytest.raises(ValueError, match="fold compression, where at most 300-fold is accepted"):
        ZipTree(tmp_path / "x.zip")


def test_trees_read_no_more_than_the_limit(tmp_path: Path):
    (tmp_path / "big.bin").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="takes 1,000 bytes in memory, more than the 999 allowed"):
        FolderTree(tmp_path).read("big.bin", 999)
