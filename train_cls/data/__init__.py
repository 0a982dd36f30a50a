"""Images as uint8, in memory or streamed from files: data sets and their splits, batches and
augmentation.

splits = load_splits("digits", DataConfig(per_class=20, validation=500))
for images, labels in splits.train.batches(batch_order(len(splits.train), 32, epoch, seed)):
    rng = generator_for(seed, step, "augment")
    images = augment(images, rng, flip=False, pad=1)
"""

from train_cls.config import DataConfig
from train_cls.data.batches import augment, batch_order, channel_stats, erase, mix
from train_cls.data.images import FileImages, Images, with_channels
from train_cls.data.rand_augment import rand_augment
from train_cls.data.splits import (
    DataLost,
    Dataset,
    Splits,
    choose_classes,
    count_training_images,
    load_splits,
    stratified,
)

__all__ = [
    "DataConfig",
    "DataLost",
    "Dataset",
    "FileImages",
    "Images",
    "Splits",
    "augment",
    "batch_order",
    "channel_stats",
    "choose_classes",
    "count_training_images",
    "erase",
    "load_splits",
    "mix",
    "rand_augment",
    "stratified",
    "with_channels",
]
