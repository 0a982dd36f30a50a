"""Initial weights from a finished run or a safetensors file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dreamsa import checkpoint
from train_cls.models.classifier import Classifier, load_weights_

PICKLES = {".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar"}


def load_initial_(model: Classifier, path: Path) -> None:
    """Copy the weights of another training run into a network, with their normalisation.

    The last layer stays as it is if the file has none or one for another number of classes.

    Args:
        path: A run of train_cls, whose last generation is taken, one of its checkpoints, or a
            .safetensors file, of timm's networks also with timm's own names.

    Raises:
        ValueError: Not such a file or folder, damaged, a pickle, or weights of another network.
    """
    own, last_layer = model.state_dict(), f"{model.prefix}{model.head}."
    given = {name if name in own else model.prefix + name: v for name, v in read(path).items()}
    last = {name for name in own if name.startswith(last_layer)}
    other_head = any(name in given and given[name].shape != own[name].shape for name in last)
    optional = {name for name in own if name in last or name.startswith("pixels.")}
    weights = {name: own[name] for name in optional} | {
        name: value for name, value in given.items() if not (other_head and name in last)
    }
    try:
        load_weights_(model, weights)
    except ValueError as error:
        raise ValueError(f"{path} has no weights for this network. {error}") from error


def read(path: Path) -> dict[str, Tensor]:
    """Named weights of a run, a checkpoint or a safetensors file.

    Raises:
        ValueError: As load_initial_.
    """
    if path.is_dir():
        finished = path if (path / checkpoint.MANIFEST).exists() else None
        finished = finished or checkpoint.latest(path / "generations")
        if finished is None:
            raise ValueError(
                f"{path} is no run with a finished generation. Give a finished run of train-cls, "
                "or a .safetensors file."
            )
        return checkpoint.load(finished).tensors["model"]
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"{path} is a pickle, which can run code when it is read; convert it where you trust "
            f"it: safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True), "
            f"{path.with_suffix('.safetensors').name!r})."
        )
    try:
        return load_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}.") from error
