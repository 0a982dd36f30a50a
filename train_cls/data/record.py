"""What a run was trained on: written beside its configuration, so that it never resumes on other
data in silence."""

from collections.abc import Sequence

import torch
from pydantic import Field

from dreamsa.settings import settings
from train_cls.data.files import abbreviate, plural
from train_cls.data.images import FileImages, Survey
from train_cls.data.splits import Dataset, Splits

SHOWN = 20
"""Classes up to which messages list them all."""


@settings()
class SplitRecord:
    images: int
    """Without the unreadable ones."""
    fingerprint: str
    """See `Pool.fingerprint`."""
    unreadable: dict[int, str] = Field(default_factory=dict)
    histogram: tuple[tuple[int, ...], ...] | None = None
    """Pixels of each value per channel, of streamed images."""


@settings()
class DataRecord:
    classes: tuple[str, ...]
    train: SplitRecord
    validation: SplitRecord
    test: SplitRecord


def record(splits: Splits) -> DataRecord:
    """What identifies the data, and what a survey of streamed images has found."""
    return DataRecord(splits.train.classes, *map(_record_split, splits))


def _record_split(data: Dataset) -> SplitRecord:
    counts = data.images.histogram if isinstance(data.images, FileImages) else None
    histogram = None if counts is None else tuple(map(tuple, counts.tolist()))
    return SplitRecord(len(data), data.fingerprint, dict(data.unreadable), histogram)


def surveys(known: DataRecord) -> dict[str, Survey]:
    """Of streamed images, by fingerprint: see `load_splits`."""
    return {
        part.fingerprint: Survey(part.unreadable, torch.tensor(part.histogram))
        for part in (known.train, known.validation, known.test)
        if part.histogram is not None
    }


def check_classes(known: DataRecord, splits: Splits, run: str, source: str) -> None:
    """Raises ValueError unless the classes are those of the record, in the same order."""
    before, now = known.classes, splits.train.classes
    if before != now:
        raise ValueError(
            f"{run} was trained on the classes {_listed(before, now)}, but {source} has "
            f"{_listed(now, before)}. Restore the names and number of the classes, or train a new "
            "run."
        )


def changed_images(known: DataRecord, splits: Splits) -> str:
    """How the images differ from those of the record, in words; empty if they do not."""
    for name, data in splits._asdict().items():
        part: SplitRecord = getattr(known, name)
        if len(data) != part.images:
            return f"{plural(part.images, f'{name} image')} before and {len(data):,} now"
        if data.fingerprint != part.fingerprint:
            return f"as many {name} images as before, but not the same ones"
    return ""


def _listed(one: Sequence[str], other: Sequence[str]) -> str:
    """All classes, or, of many, the ones that differ."""
    if max(len(one), len(other)) <= SHOWN:
        return abbreviate(one, SHOWN)
    different = [name for name in one if name not in set(other)]
    return f"{abbreviate(different or one, SHOWN)} (of {len(one):,})"
