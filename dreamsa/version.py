"""The version of dreamsa and train_cls."""

__version__ = "0.1.0"
