"""The package timm, with or without torchvision.

`import timm` imports torchvision for its image transforms and data sets, and for one class that its
networks test for (`FrozenBatchNorm2d`; timm 1.0.31, layers/create_norm.py, line 29). train_cls uses
networks, optimizers and mixup of timm only. Where torchvision is absent, or is built for another
torch and fails to import ("operator torchvision::nms does not exist"), timm is imported with
placeholders for the names below. They refuse to be used and are gone from `sys.modules` afterwards,
so that no other package takes them for torchvision.
"""

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

NAMES = {
    "torchvision": (),
    "torchvision.datasets": (
        "CIFAR10",
        "CIFAR100",
        "FashionMNIST",
        "ImageFolder",
        "KMNIST",
        "MNIST",
    ),
    "torchvision.ops": (),
    "torchvision.ops.misc": ("FrozenBatchNorm2d",),
    "torchvision.transforms": ("ToTensor",),
    "torchvision.transforms.functional": (),
}
"""Everything that `import timm` needs of torchvision, besides InterpolationMode."""


@cache
def import_timm() -> ModuleType:
    """The package timm.

    Raises:
        ValueError: It is not installed.
    """
    if find_spec("timm") is None:
        raise ValueError(
            "Networks named timm:... need the package timm, which is not installed: pip install "
            "'dreamsa[timm]', or, without torchvision, pip install --no-deps timm."
        )
    try:
        import timm
    except (ImportError, OSError, RuntimeError):  # RuntimeError: torchvision of another torch
        with _placeholders():
            import timm
    return timm


@contextmanager
def _placeholders() -> Iterator[None]:
    """Context in which the modules of NAMES can be imported."""
    known = {name: module for name, module in sys.modules.items() if _is_torchvision(name)}
    modules = {name: ModuleType(name) for name in NAMES}
    for name, classes in NAMES.items():
        modules[name].__path__ = []
        for one in classes:
            setattr(modules[name], one, type(one, (), {"__init__": _refuse, "__module__": name}))
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, modules[name])
    modules["torchvision.transforms.functional"].InterpolationMode = enum.Enum(  # pyright: ignore[reportAttributeAccessIssue]
        "InterpolationMode", "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS"
    )
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _is_torchvision(name)]:
            del sys.modules[name]
        sys.modules.update(known)


def _is_torchvision(module: str) -> bool:
    return module.partition(".")[0] == "torchvision"


def _refuse(self: Any, *args: Any, **kwargs: Any) -> None:
    raise ImportError(
        f"{type(self).__name__} is a part of torchvision, which is not installed or does not match "
        "this torch. Install the torchvision that was built for it."
    )
