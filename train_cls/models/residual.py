"""Residual networks: ResNet (arXiv:1512.03385) and its pre-activation form (arXiv:1603.05027).

A layer threshold needs features that transformers' ResNetForImageClassification lacks: stages
`layer1` to `layer4` as children of the classifier, each block's shortcut defined after its
convolutions, and a stem for small images. Its weights are compatible, which the tests use. Counting
convolutions without shortcuts, `layer3` is L = 23 in ResNet-50 and L = 10 in ResNet-18, and
`layer4` is L = 14 in ResNet-18.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from train_cls.models.classifier import Classifier, init_convolutions_


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """size x size without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def pool(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d"]:
    """The mean over all positions."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class PadShortcut(nn.Module):
    """Shortcut without parameters: strided positions, zeros for new channels (arXiv:1512.03385,
    option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = outputs - inputs, stride

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """1 x 1 convolution and batch norm (option B)."""
    return nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """The 3 x 3 convolution has the stride, as in torchvision and SEAL's code; in the paper, the
    first 1 x 1 has it."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = convolution(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class PreBasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), convolution(width, width, 3)
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        y = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(y))) + self.shortcut(x)


class PreBottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, width, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), convolution(width, width, 3, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), convolution(width, 4 * width, 1)
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return self.conv3(F.relu(self.bn3(y))) + self.shortcut(x)


Block = type[BasicBlock] | type[Bottleneck] | type[PreBasicBlock] | type[PreBottleneck]
Shortcut = Callable[[int, int, int], nn.Module]


def add_stages_(
    model: nn.Module,
    block: Block,
    inputs: int,
    widths: Sequence[int],
    depths: Sequence[int],
    shortcut: Shortcut,
) -> tuple[list[str], int]:
    """Add children layer1, layer2, ...: `depths[i]` blocks of `widths[i]`, with stride 2 from the
    second stage on.

    Blocks that change the shape get `shortcut(inputs, outputs, stride)`, all others the identity.

    Returns:
        The names of the stages, and the output channels of the last one.
    """
    names = []
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        blocks: list[nn.Module] = []
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            outputs = block.expansion * width
            skip = (
                nn.Identity()
                if stride == 1 and inputs == outputs
                else shortcut(inputs, outputs, stride)
            )
            blocks.append(block(inputs, width, stride, skip))
            inputs = outputs
        names.append(f"layer{i + 1}")
        model.add_module(names[-1], nn.Sequential(*blocks))
    return names, inputs


class ResNet(Classifier):
    """Convolution, batch norm, stages, mean over positions, one linear layer (arXiv:1512.03385).

    Initialised as in SEAL's code: N(0, 2 / fan_in) for every convolution and for the weight of
    `fc`.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        block: Block,
        widths: Sequence[int],
        depths: Sequence[int],
        large_stem: bool = False,
        shortcut: Shortcut = projection,
    ) -> None:
        """large_stem: 7 x 7 with stride 2, then max-pooling with stride 2, for 224 x 224 pixels;
        otherwise 3 x 3."""
        super().__init__(mean, std)
        self.conv1 = (
            convolution(channels, widths[0], 7, 2)
            if large_stem
            else convolution(channels, widths[0], 3)
        )
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.pool = nn.MaxPool2d(3, 2, 1) if large_stem else nn.Identity()
        self.stages, outputs = add_stages_(self, block, widths[0], widths, depths, shortcut)
        self.fc = nn.Linear(outputs, classes)
        init_convolutions_(self, "fan_in")
        nn.init.kaiming_normal_(self.fc.weight, mode="fan_in", nonlinearity="relu")

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return pool(x)


class PreResNet(Classifier):
    """Convolution, stages of pre-activation blocks, batch norm, mean over positions, one linear
    layer (arXiv:1603.05027).

    As in the SWA paper's code (arXiv:1803.05407): shortcuts are 1 x 1 convolutions without batch
    norm of the block's input before its activation; convolutions are initialised from N(0, 2 /
    fan_out).
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        block: Block,
        widths: Sequence[int],
        depths: Sequence[int],
    ) -> None:
        super().__init__(mean, std)
        self.conv1 = convolution(channels, widths[0], 3)
        self.stages, outputs = add_stages_(
            self,
            block,
            widths[0],
            widths,
            depths,
            lambda inputs, outputs, stride: convolution(inputs, outputs, 1, stride),
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.fc = nn.Linear(outputs, classes)
        init_convolutions_(self, "fan_out")

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        x = self.conv1(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return pool(F.relu(self.bn(x)))
