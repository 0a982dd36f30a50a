"""Models on the Hub and on this machine: which are here, how big they are, how to get them.

A generation never downloads anything by itself: a model of the Hub is downloaded first, on request.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch

from dreamsa.config import TOYBOX, ModelConfig
from dreamsa.guidance.stable_diffusion import COMPONENTS, ModelNotFound, locate_model
from dreamsa.presets import KNOWN_MODELS, MODEL_ALIASES

TIMEOUT = 5.0
"""Seconds after which the Hub counts as unreachable."""
WEIGHTS = COMPONENTS[1:4]
"""Components with weights."""
LICENCES = {
    TOYBOX: "Apache-2.0, part of dreamsa",
    KNOWN_MODELS[0]: "CreativeML OpenRAIL-M: commercial use, with restrictions of use",
    KNOWN_MODELS[1]: "CreativeML OpenRAIL++-M; a copy by volunteers of the withdrawn original",
}
STEP_FLOPS = 3.9e12
"""Of a step with Stable Diffusion 1.5: two UNet predictions (1.6e12) and the encoder with its
gradient at 512 pixels (2.3e12), counted by torch's FlopCounterMode."""


LARGE = 500_000_000
"""Parameters from which a model counts as full-size; Stable Diffusion 1.5 has 1.1e9."""


class Facts(NamedTuple):
    """The weights of a model on this machine."""

    bytes: int
    """On disk."""
    parameters: int

    @property
    def memory(self) -> str:
        """What its weights need, without activations."""
        halves, floats = size_text(2 * self.parameters), size_text(4 * self.parameters)
        return f"{halves} on a GPU (float16), {floats} on a CPU (float32)"


class Download(NamedTuple):
    """What a download of a model would fetch."""

    files: list[str]
    bytes: int


def size_text(size: float) -> str:
    """Bytes in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def model_id(name: str) -> str:
    """The Hub id of an alias; any other name stays."""
    return MODEL_ALIASES.get(name, name)


def local_folder(config: ModelConfig) -> Path | None:
    """The complete folder of a model that is on this machine, the Hub's cache included; None if it
    is a single file or not here."""
    kind, source = locate_model(config)
    if kind == "folder":
        return Path(source)
    if kind == "file":
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, revision=config.revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    complete = all(any((folder / part).glob("*.safetensors")) for part in WEIGHTS)
    return folder if complete and all((folder / part).is_dir() for part in COMPONENTS) else None


def local_place(config: ModelConfig) -> Path | None:
    """The folder or single file of a model that is on this machine."""
    kind, source = locate_model(config)
    return Path(source) if kind == "file" else local_folder(config)


def require_model(config: ModelConfig) -> None:
    """Check that a model is on this machine, and if it is not, whether the Hub has it.

    Raises:
        ModelNotFound: It is not here; the message says how to get it.
    """
    kind, source = locate_model(config)
    if kind != "hub" or local_folder(config) is not None:
        return
    offline = config.offline or os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "ON")
    if offline:
        raise ModelNotFound(
            f"The model {source} is not on this machine and may not be downloaded (HF_HUB_OFFLINE "
            "or model.offline is set). Give a local folder: --model FOLDER."
        )
    size = plan_download(source, config.revision).bytes
    raise ModelNotFound(
        f"The model {source} is not on this machine yet. Download it first ({size_text(size)}): "
        f"dreamsa models download {source}"
    )


def plan_download(name: str, revision: str | None = None) -> Download:
    """The files of a model of the Hub that dreamsa reads.

    Raises:
        ModelNotFound: The Hub cannot be reached within TIMEOUT seconds, or has no such model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    def ask() -> Any:
        return HfApi().model_info(name, revision=revision, timeout=TIMEOUT, files_metadata=True)

    try:
        info = _within(TIMEOUT, ask)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise ModelNotFound(
            f"The Hub has no model {name!r} for you ({status}). Known ids: "
            f"{', '.join(KNOWN_MODELS)}."
        ) from error
    except Exception as error:  # however a connection fails
        host = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        raise ModelNotFound(
            f"Cannot reach the Hub at {host}, and the model {name} is not on this machine. Copy "
            "its folder here from another machine and name it: --model FOLDER."
        ) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    files = wanted_files(sizes)
    if not files:
        raise ModelNotFound(f"{name} is not a Stable Diffusion model in diffusers' layout.")
    return Download(files, sum(sizes[file] for file in files))


def wanted_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that are read: each component's configuration, and its weights
    as safetensors without a variant, or else in float16."""
    names, wanted = list(names), []
    for part in COMPONENTS:
        inside = [name for name in names if name.startswith(f"{part}/")]
        weights = [name for name in inside if name.endswith(".safetensors")]
        plain = [name for name in weights if name.partition("/")[2].count(".") == 1]
        wanted += plain or [name for name in weights if ".fp16" in name]
        wanted += [name for name in inside if name.endswith((".json", ".txt"))]
        if part in WEIGHTS and not weights:
            return []
    return [*wanted, *(name for name in names if name == "model_index.json")]


def download(name: str, plan: Download, revision: str | None = None) -> Path:
    """Fetch a model into the Hub's cache, with progress bars; what is there is not fetched again.

    Raises:
        ModelNotFound: The disk is too small, or the connection broke.
    """
    from huggingface_hub import constants, snapshot_download

    cache = Path(constants.HF_HUB_CACHE)
    home = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(home).free
    if free < plan.bytes:
        raise ModelNotFound(
            f"{name} needs {size_text(plan.bytes)}, and {home} has {size_text(free)} left. "
            "Name another folder in $HF_HOME."
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=plan.files))
    except Exception as error:  # however a connection fails
        raise ModelNotFound(
            f"The download of {name} broke off ({type(error).__name__}). The same command resumes "
            "it."
        ) from error


def inspect(place: Path) -> Facts:
    """Read the headers of the weights in a model's folder or single file.

    Raises:
        ModelNotFound: A file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    size, parameters = 0, 0
    inside = (path for part in WEIGHTS for path in (place / part).glob("*.safetensors"))
    for path in [place] if place.is_file() else sorted(inside):
        try:
            with safe_open(path, "pt") as file:
                shapes = (file.get_slice(key).get_shape() for key in file.keys())  # noqa: SIM118
                parameters += sum(map(prod, shapes))
        except (SafetensorError, OSError) as error:
            raise ModelNotFound(f"{path} is damaged: {error}. Fetch it again.") from error
        size += path.stat().st_size
    return Facts(size, parameters)


def cpu_hours(config: ModelConfig, steps: int) -> float | None:
    """Hours that a run of a full-size Stable Diffusion would take at least on this CPU, from the
    speed of a matrix product; None for small models."""
    place = local_place(config)
    if place is None or inspect(place).parameters < LARGE:
        return None
    return steps * STEP_FLOPS / _flops_per_second() / 3600


def _flops_per_second(size: int = 1024) -> float:
    a = torch.ones(size, size)
    torch.mm(a, a)
    began = time.perf_counter()
    for _ in range(4):
        torch.mm(a, a)
    return 4 * 2 * size**3 / (time.perf_counter() - began)


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """The answer of `ask`; raises TimeoutError when time is over, even where it waits for a name
    server, whose time cannot be limited."""
    answers: list[Any] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError
    return answers[0]
