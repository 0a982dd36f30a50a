"""MobileNetV2 (arXiv:1801.04381).

Not transformers' MobileNetV2, whose batch norms have momentum 0.997: in torch's convention, running
statistics of the last batch only, which suits loaded weights but not training. Its weights are
compatible, which the tests use.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from train_cls.models.classifier import Classifier, Dropout, init_convolutions_

# expansion, channels, blocks, stride of the first block: Table 2 of the paper
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def convolution(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)


class InvertedResidual(nn.Module):
    """1 x 1 expansion (unless `expansion` is 1), 3 x 3 depthwise, 1 x 1 projection; adds the input
    if shapes match."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = expansion * inputs
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self.conv1, self.bn1 = convolution(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = (
            convolution(width, width, 3, stride, groups=width),
            nn.BatchNorm2d(width),
        )
        self.conv3, self.bn3 = convolution(width, outputs, 1), nn.BatchNorm2d(outputs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        y = F.relu6(self.bn1(self.conv1(x))) if self.expands else x
        y = F.relu6(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return x + y if self.adds else y


class MobileNetV2(Classifier):
    """Width 1.0, total stride 32, dropout 0.2 before `fc`.

    The paper gives no initialisation; this is torchvision's: N(0, 2 / fan_out) for convolutions,
    where a depthwise one has the fan of a dense one, N(0, 0.01^2) for the weight of `fc` and 0 for
    its bias.
    """

    def __init__(
        self, classes: int, channels: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(mean, std)
        self.conv1, self.bn1 = convolution(channels, 32, 3, 2), nn.BatchNorm2d(32)
        inputs = 32
        for i, (expansion, outputs, depth, stride) in enumerate(STAGES):
            blocks = []
            for j in range(depth):
                blocks.append(InvertedResidual(inputs, outputs, expansion, stride if j == 0 else 1))
                inputs = outputs
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.conv2, self.bn2 = convolution(inputs, 1280, 1), nn.BatchNorm2d(1280)
        self.drop = Dropout(0.2)
        self.fc = nn.Linear(1280, classes)
        init_convolutions_(self, "fan_out")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        x = F.relu6(self.bn1(self.conv1(x)))
        for i in range(len(STAGES)):
            x = self.get_submodule(f"layer{i + 1}")(x)
        x = F.relu6(self.bn2(self.conv2(x)))
        return self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1))
