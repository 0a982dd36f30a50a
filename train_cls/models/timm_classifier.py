"""Any classifier of timm as a network of train_cls: `timm:resnet50`."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from train_cls.models.classifier import Classifier
from train_cls.models.timm_import import import_timm

PREFIX = "timm:"
RESERVED = frozenset(
    {
        "checkpoint_path",
        "in_chans",
        "model_name",
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
    }
)
"""Arguments of timm.create_model that other settings determine."""


class TimmClassifier(Classifier):
    """A network of timm behind `Pixels`.

    Layers are named as in timm ("layer3", "blocks.6", "stages.2"), in timm's order of definition.
    Dropout and stochastic depth draw from torch's global generator, which every training pass
    forks and seeds from `rng`.
    """

    prefix = "network."

    def __init__(
        self,
        classes: int,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        name: str,
        pretrained: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            pretrained: Load timm's weights, and normalise as they need it instead of by `mean` and
                `std`. The last layer is new unless the classes are as many.
            arguments: Of timm.create_model.

        Raises:
            ValueError: No such network, argument or weights, or no linear last layer.
        """
        network: Any = _create(name, classes, channels, pretrained, arguments or {})
        if pretrained:
            mean, std = (_per_channel(network.pretrained_cfg[k], channels) for k in ("mean", "std"))
        super().__init__(mean, std)
        self.name, self.network = name, network
        self.head = _head(network, name)

    @property
    def body(self) -> nn.Module:
        return self.network

    @property
    def fc(self) -> nn.Linear:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.network.get_submodule(self.head)  # pyright: ignore[reportReturnType]

    @property
    def channels_last(self) -> bool:
        """Whether the stages put out [b, h, w, d] instead of [b, d, h, w], as Swin's do."""
        return getattr(self.network, "output_fmt", "NCHW") == "NHWC"

    def stages(self) -> list[str]:
        """The stages or blocks that timm's `feature_info` names, and the last layer."""
        found = getattr(self.network, "feature_info", [])
        stages = [info["module"] for info in getattr(found, "info", found)]
        return [self.prefix + name for name in (*stages, self.head)]

    def depths(self) -> dict[str, int]:
        """As in timm's layer decay: the entries of the network's `group_matcher`."""
        if not hasattr(self.network, "group_matcher"):
            raise ValueError(
                f"{PREFIX}{self.name} does not number its layers (timm's group_matcher), which "
                "layer_decay and a threshold by default need. Set layer_decay to 1 and "
                "anneal.before to the name of a module."
            )
        matcher = self.network.group_matcher(coarse=False)  # pyright: ignore[reportCallIssue]
        return import_timm().models.group_parameters(self.network, matcher, reverse=True)

    def undecayed(self) -> set[str]:
        """Also what the network itself exempts, such as position embeddings."""
        exempt = getattr(self.network, "no_weight_decay", set)()
        return super().undecayed() | set(exempt)

    def forward(self, images: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits of images: uint8 in [0, 255] or floating point in [0, 1].

        Raises:
            ValueError: Images of a size that the network does not take, another number of
                channels, or an integer type other than uint8.
        """
        return self._run(self.network, self.pixels(images))

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        def run(x: Tensor) -> Tensor:
            return self.network.forward_head(self.network.forward_features(x), pre_logits=True)  # pyright: ignore[reportCallIssue]

        return self._run(run, x).flatten(1)

    def _run(self, function: Any, x: Tensor) -> Tensor:
        try:
            if not self.training or self.rng is None:
                return function(x)
            seed = int(torch.randint(2**62, (), generator=self.rng))
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                torch.manual_seed(seed)
                return function(x)
        except AssertionError as error:
            height, width = x.shape[-2:]
            raise ValueError(
                f"{PREFIX}{self.name} does not take images of {height} x {width} pixels: {error} "
                "Resize them with --size, or build the network for them with --set "
                f"'model_args={{\"img_size\": {height}}}'."
            ) from error


def _create(
    name: str, classes: int, channels: int, pretrained: bool, arguments: Mapping[str, Any]
) -> nn.Module:
    timm = import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"timm {timm.__version__} has no network {name!r}.{hint}")
    if taken := RESERVED & arguments.keys():
        raise ValueError(
            f"model_args must not contain {min(taken)!r}, which follows from the data and from "
            "the settings pretrained and initial_checkpoint."
        )
    try:
        if not pretrained:
            return timm.create_model(name, num_classes=classes, in_chans=channels, **arguments)
        return timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay={"file": _pretrained_file(name)},
            num_classes=classes,
            in_chans=channels,
            **arguments,
        )
    except (RuntimeError, TypeError) as error:  # also of an unknown tag or other weights
        raise ValueError(
            f"{PREFIX}{name} cannot be built with {dict(arguments)}: {error}."
        ) from error


def _pretrained_file(name: str) -> str:
    """Path of a network's weights as safetensors, downloaded once into the Hub's cache: timm itself
    would fall back to pickles."""
    from huggingface_hub import hf_hub_download

    found = import_timm().get_pretrained_cfg(name, allow_unregistered=False)
    if found is None or not found.hf_hub_id or found.custom_load:
        raise ValueError(
            f"There are no pretrained weights of {PREFIX}{name} as safetensors. See "
            "timm.list_pretrained() for the names that have some."
        )
    file = (found.hf_hub_filename or "model.safetensors").replace(
        "pytorch_model.bin", "model.safetensors"
    )
    try:
        return hf_hub_download(found.hf_hub_id, file)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The pretrained weights of {PREFIX}{name} cannot be loaded: "
            f"{str(error).strip().splitlines()[0]} Connect to the network once, or give a "
            "safetensors file by --initial-checkpoint."
        ) from error


def _head(network: nn.Module, name: str) -> str:
    last = network.get_classifier()  # pyright: ignore[reportCallIssue]
    names = [key for key, module in network.named_modules() if module is last]
    if not isinstance(last, nn.Linear) or not names:
        raise ValueError(
            f"The last layer of {PREFIX}{name} is {type(last).__name__}, but methods that forget "
            "or probe need one linear layer. Choose another network."
        )
    return names[0]


def _per_channel(values: Sequence[float], channels: int) -> Sequence[float]:
    """timm's 3 values, or their mean for other numbers of channels."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels
