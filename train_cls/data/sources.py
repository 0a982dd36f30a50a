"""Find a data set and recognise its layout: digits, image folders with or without splits and
Tiny-ImageNet here, arrays in `data.arrays`.

A source lists its images and decodes an image file only when its position is requested.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from dreamsa.randomness import generator_for
from train_cls.data.arrays import (
    Pool,
    Source,
    has_cifar,
    has_idx,
    has_pickle,
    in_memory,
    is_pickle,
    load_cifar,
    load_idx,
    load_npz,
    load_pickle,
    pickle_refused,
)
from train_cls.data.files import (
    FolderTree,
    Tree,
    ZipTree,
    abbreviate,
    image_files,
    join,
    passed_over,
    plural,
    read_text,
)
from train_cls.data.images import FileImages

DIGITS_TRAIN = 100  # images of each digit in the training split, of 174 to 183
VALIDATION_NAMES = ("val", "valid", "validation")
SPLIT_NAMES = frozenset({"train", "training", "test", "testing", *VALIDATION_NAMES})
"""Folders that are no classes, in any case of letters."""
FLAT_TEST = 0.2
"""Fraction of each class that is the test split of a folder without one."""


def open_source(source: str | Path, size: int = 0) -> Source:
    """Open "digits", a folder, a .zip or an .npz; resize images to size x size unless `size` is 0.

    A folder named digits is opened as "./digits"; "~" is the home folder.

    Raises:
        ValueError: What was found, what was expected, what to do.
    """
    path = Path(os.path.expanduser(source))
    suffix = path.suffix.lower()
    if source == "digits":
        return digits(size)
    if path.is_dir():
        return recognise(FolderTree(path), size)
    if not path.is_file():
        raise ValueError(
            f"There is no data set at {source}. Give 'digits', a folder, a .zip or an .npz file."
        )
    if suffix == ".npz":
        return load_npz(path, size)
    if suffix == ".zip":
        return recognise(ZipTree(path), size)
    if is_pickle(path.name):
        raise pickle_refused(str(path))
    raise ValueError(
        f"{path} is neither a folder nor a .zip or .npz file. Unpack it, or give the folder that "
        "contains it."
    )


def recognise(tree: Tree, size: int) -> Source:
    """The source at the root of `tree`, or else in the only one of its folders that has one."""
    for bases in ([""], tree.folders("")):
        found = [
            (base, layout) for base in bases for layout in LAYOUTS if layout.matches(tree, base)
        ]
        places = sorted({base for base, _ in found})
        if len(places) > 1:
            raise ValueError(
                f"{tree.name} holds several data sets: {', '.join(places)}. Give one of these "
                "folders."
            )
        if found:
            base, layout = found[0]
            return layout.load(tree, base, size)
    seen = [*(f"{name}/" for name in tree.folders("")), *tree.files("")]
    raise ValueError(
        f"{tree.name} has no known layout; it holds {abbreviate(seen)}. Known layouts, at the "
        "root or one folder deeper: train/CLASS/*.jpg with test/ or val/ beside it, CLASS/*.jpg "
        "alone, Tiny-ImageNet's val/val_annotations.txt, CIFAR's "
        "data_batch_1.bin or train.bin, and MNIST's "
        "train-images-idx3-ubyte."
    )


# ---------------------------------------------------------------- digits


def digits(size: int = 0) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey: 100 of each for training, the other 797
    for testing, always the same."""
    from sklearn.datasets import load_digits  # takes a second to import

    images, labels = load_digits(return_X_y=True)
    pixels = (
        torch.tensor(images).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    )  # from 0 .. 16
    targets = torch.tensor(labels)
    train = torch.zeros(len(targets), dtype=torch.bool)
    for digit in range(10):
        positions = (targets == digit).nonzero().flatten()
        order = torch.randperm(len(positions), generator=generator_for(0, digit, "digits"))
        train[positions[order[:DIGITS_TRAIN]]] = True
    pools = [in_memory(pixels[chosen], targets[chosen], size) for chosen in (train, ~train)]
    return Source(tuple("0123456789"), pools[0], None, pools[1])


# ---------------------------------------------------------------- image folders


def has_folders(tree: Tree, base: str) -> bool:
    return "train" in tree.folders(base)


def load_folders(tree: Tree, base: str, size: int) -> Source:
    """train/CLASS/*.jpg and test/ or val/ (or valid/, validation/) likewise; with both, val/ is the
    validation split.

    A test/ whose only folder is images/, as in Tiny-ImageNet, has no labels and is ignored.
    """
    folders = tree.folders(base)
    validations = [name for name in VALIDATION_NAMES if name in folders]
    labelled = "test" in folders and tree.folders(join(base, "test")) not in ([], ["images"])
    tests = [*(["test"] if labelled else []), *validations]
    if not tests:
        raise ValueError(
            f"{join(tree.name, base)} has train/ but no test/CLASS/, val/CLASS/ or "
            f"validation/CLASS/. Add one of them, or give {join(tree.name, base, 'train')} itself: "
            "a part of it is then set aside for testing."
        )
    if len(validations) > 1:
        raise ValueError(
            f"{join(tree.name, base)} has the folders {' and '.join(validations)}. Keep one of "
            "them."
        )
    train = class_files(tree, join(base, "train"))
    pools = []
    for name in tests:
        files = class_files(tree, join(base, name))
        check_same(tree, base, name, train, files)
        pools.append(file_pool(tree, list(files.values()), size))
    return Source(
        tuple(train),
        file_pool(tree, list(train.values()), size),
        pools[1] if pools[1:] else None,
        pools[0],
        notes_on(tree, [join(base, s, name) for s in ("train", *tests) for name in train]),
    )


def notes_on(tree: Tree, folders: Sequence[str], *more: str) -> tuple[str, ...]:
    return tuple(note for note in (passed_over(tree, folders), *more) if note)


def has_flat(tree: Tree, base: str) -> bool:
    folders = tree.folders(base)
    if any(name.lower() in SPLIT_NAMES for name in (base.rpartition("/")[2], *folders)):
        return False
    return sum(bool(image_files(tree, join(base, name))) for name in folders) > 1


def load_flat(tree: Tree, base: str, size: int) -> Source:
    """CLASS/*.jpg without splits: FLAT_TEST of each class are the test split, at least one image
    and always the same."""
    name = join(tree.name, base)
    train, test = {}, {}
    for kind, paths in class_files(tree, base).items():
        if len(paths) < 2:
            raise ValueError(
                f"{name} has no test split, and class {kind} has only one image, which cannot be "
                "both trained on and tested with. Add images, or a test/ beside a train/."
            )
        rng = generator_for(0, 0, f"test split of class {kind}")
        order = torch.randperm(len(paths), generator=rng)
        held = set(order[: max(1, round(FLAT_TEST * len(paths)))].tolist())
        train[kind] = [path for i, path in enumerate(paths) if i not in held]
        test[kind] = [path for i, path in enumerate(paths) if i in held]
    count, total = (
        sum(map(len, part)) for part in (test.values(), (*train.values(), *test.values()))
    )
    note = (
        f"{name} has no test split: {count:,} of {plural(total, 'image')}, about {FLAT_TEST:.0%} "
        "of each class, are set aside as one, the same for every seed."
    )
    pools = [file_pool(tree, list(part.values()), size) for part in (train, test)]
    folders = [join(base, kind) for kind in train]
    return Source(tuple(train), pools[0], None, pools[1], notes_on(tree, folders, note))


def class_files(tree: Tree, folder: str) -> dict[str, list[str]]:
    """Maps class names to the paths of their images, both sorted; names that are numbers, by
    number."""
    names = tree.folders(folder)
    if all(name.isascii() and name.isdigit() for name in names):
        names = sorted(names, key=lambda name: (int(name), name))
    classes = {name: image_files(tree, join(folder, name)) for name in names}
    if not classes:
        raise ValueError(
            f"{join(tree.name, folder)} holds no class folders. Expected one folder of images per "
            "class."
        )
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise ValueError(
            f"{join(tree.name, folder)} has no images for {abbreviate(empty)}. Fill these folders "
            "or remove them."
        )
    return classes


def check_same(
    tree: Tree, base: str, name: str, train: Mapping[str, object], other: Mapping[str, object]
) -> None:
    """Raises ValueError unless both splits have the same classes."""
    only_train, only_other = (
        sorted(train.keys() - other.keys()),
        sorted(other.keys() - train.keys()),
    )
    if only_train or only_other:
        parts = [f"only train/ has {abbreviate(only_train)}"] * bool(only_train) + [
            f"only {name}/ has {abbreviate(only_other)}"
        ] * bool(only_other)
        raise ValueError(
            f"{join(tree.name, base)}: train/ and {name}/ differ in their classes; "
            f"{' and '.join(parts)}. Make them equal."
        )


def file_pool(tree: Tree, files: Sequence[Sequence[str]], size: int) -> Pool:
    """A pool of image files; `files` has one list of paths per class, in class order."""
    paths = [path for one_class in files for path in one_class]
    labels = torch.tensor([label for label, one_class in enumerate(files) for _ in one_class])

    def fingerprint(positions: Int64[Tensor, " k"]) -> str:
        digest = hashlib.sha256()
        for i in positions.tolist():
            line = f"{int(labels[i])}\t{tree.size(paths[i])}\t{paths[i]}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()

    files_ = FileImages(tree, paths, size)
    return Pool(labels, lambda positions: files_.select(positions.tolist()), fingerprint)


# ---------------------------------------------------------------- Tiny-ImageNet

ANNOTATIONS = "val_annotations.txt"


def has_tiny(tree: Tree, base: str) -> bool:
    return ANNOTATIONS in tree.files(join(base, "val")) and "images" in tree.folders(
        join(base, "val")
    )


def load_tiny(tree: Tree, base: str, size: int) -> Source:
    """train/WNID/images/*.JPEG, and val/images/*.JPEG with their classes in val_annotations.txt;
    the unlabelled test/ is ignored."""
    train = class_files(tree, join(base, "train"))
    if "wnids.txt" in tree.files(base):
        missing = sorted(set(read_text(tree, join(base, "wnids.txt")).split()) - train.keys())
        if missing:
            raise ValueError(
                f"{join(tree.name, base)}: wnids.txt names {abbreviate(missing)}, which train/ "
                "lacks. Unpack it again."
            )
    labels = {}
    for i, line in enumerate(read_text(tree, join(base, "val", ANNOTATIONS)).splitlines()):
        fields = line.split("\t")
        if len(fields) < 2:
            raise ValueError(
                f"{join(tree.name, base, 'val', ANNOTATIONS)}, line {i + 1}: expected file, tab, "
                f"class, got {line[:80]!r}."
            )
        labels[fields[0]] = fields[1]
    paths = image_files(tree, join(base, "val"))
    files = {name.rpartition("/")[2] for name in paths}
    if files != labels.keys():
        raise ValueError(
            f"{join(tree.name, base, 'val')}: {len(files)} images and {len(labels)} annotations "
            "do not match, as in "
            f"{min(files ^ labels.keys())!r}. Unpack it again."
        )
    check_same(tree, base, "val", train, dict.fromkeys(labels.values()))
    val: dict[str, list[str]] = {name: [] for name in train}
    for path in paths:
        val[labels[path.rpartition("/")[2]]].append(path)
    return Source(
        tuple(train),
        file_pool(tree, list(train.values()), size),
        None,
        file_pool(tree, list(val.values()), size),
        notes_on(tree, [join(base, "train", name) for name in train]),
    )


class Layout(NamedTuple):
    matches: Callable[[Tree, str], bool]
    load: Callable[[Tree, str, int], Source]


LAYOUTS = (
    Layout(has_tiny, load_tiny),
    Layout(has_cifar, load_cifar),
    Layout(has_idx, load_idx),
    Layout(has_folders, load_folders),
    Layout(has_flat, load_flat),
    Layout(has_pickle, load_pickle),
)
