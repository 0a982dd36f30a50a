"""Small training settings, and a network of 500 parameters with the children of a ResNet."""

from torch import nn

from train_cls.config import DataConfig, TrainConfig
from train_cls.models.classifier import Classifier

SMALL = TrainConfig(
    epochs=2, generations=3, batch=20, splits=DataConfig(per_class=10, validation=50)
)


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class TinyModel(Classifier):
    def __init__(self, classes: int = 4) -> None:
        super().__init__(mean=(0.5,) * 3, std=(0.25,) * 3)
        self.conv1, self.bn1, self.relu = (
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
        )
        self.layer1 = nn.Sequential(block(4, 4))
        self.layer2 = nn.Sequential(nn.MaxPool2d(2), block(4, 6))
        self.fc = nn.Linear(6, classes)

    def features(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer2(self.layer1(x)).mean((2, 3))


def snapshot(model: nn.Module):
    """The state that an evaluation must not change: parameters, buffers, gradients, modes."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return tensors, grads, trainable, [module.training for module in model.modules()]


def assert_unchanged(model: nn.Module, before) -> None:
    tensors, *rest = snapshot(model)
    assert all(tensor.equal(before[0][name]) for name, tensor in tensors.items())
    assert rest == list(before[1:])
