"""Networks without shortcuts: VGG-16 for small images and NN2."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from train_cls.models.classifier import Classifier, Dropout, init_convolutions_


def convolutions(inputs: int, *widths: int) -> list[nn.Module]:
    """3 x 3 convolutions with bias, each followed by ReLU, then 2 x 2 max-pooling."""
    layers: list[nn.Module] = []
    for a, b in pairwise((inputs, *widths)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
    return [*layers, nn.MaxPool2d(2)]


class VGG16(Classifier):
    """13 convolutions without batch norm and 3 linear layers of 512, 512 and `classes`
    (arXiv:1409.1556).

    For 32 x 32 pixels, as in the SWA paper's code (arXiv:1803.05407), which the landscape
    modification thesis uses: dropout before both hidden linear layers, convolutions from N(0, 2 /
    fan_out), torch's default for linear layers. Features of larger images are averaged over
    positions.
    """

    min_size = 32

    def __init__(
        self, classes: int, channels: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(mean, std)
        self.layer1 = nn.Sequential(*convolutions(channels, 64, 64))
        self.layer2 = nn.Sequential(*convolutions(64, 128, 128))
        self.layer3 = nn.Sequential(*convolutions(128, 256, 256, 256))
        self.layer4 = nn.Sequential(*convolutions(256, 512, 512, 512))
        self.layer5 = nn.Sequential(*convolutions(512, 512, 512, 512))
        self.drop1, self.fc1 = Dropout(0.5), nn.Linear(512, 512)
        self.drop2, self.fc2 = Dropout(0.5), nn.Linear(512, 512)
        self.fc = nn.Linear(512, classes)
        init_convolutions_(self, "fan_out")

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5):
            x = layer(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        x = F.relu(self.fc1(self.drop1(x)))
        return F.relu(self.fc2(self.drop2(x)))


class NN2(Classifier):
    """6 convolutions, batch norm after each of 3 max-poolings, 3 linear layers of 1024, 512 and
    `classes`.

    The small network of the landscape modification thesis (Todea 2022, section 3.3.1), with torch's
    default initialisation. For 32 x 32 pixels; features of other sizes are pooled to 4 x 4.
    """

    min_size = 8

    def __init__(
        self, classes: int, channels: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(mean, std)
        self.layer1 = nn.Sequential(*convolutions(channels, 32, 64), nn.BatchNorm2d(64))
        self.layer2 = nn.Sequential(*convolutions(64, 128, 128), nn.BatchNorm2d(128))
        self.layer3 = nn.Sequential(*convolutions(128, 256, 256), nn.BatchNorm2d(256))
        self.fc1 = nn.Linear(256 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, 512)
        self.fc = nn.Linear(512, classes)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        x = self.layer3(self.layer2(self.layer1(x)))
        if x.shape[-2:] != (4, 4):
            x = F.adaptive_avg_pool2d(x, 4)
        x = F.relu(self.fc1(x.flatten(1)))
        return F.relu(self.fc2(x))
