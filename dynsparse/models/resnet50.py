"""The residual network of the paper's ImageNet experiments: torchvision's ResNet-50, and wider or narrower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dynsparse.models.base import ModelSettings, Widening
from dynsparse.models.initialisation import init_convolutions

EXPANSION = 4  # Output channels of a bottleneck over its planes.


class ResNet50Settings(ModelSettings):
    """ResNet-50 (He et al. 2016) with the stride in the 3x3 convolutions; at widen factor 1 it is torchvision's."""

    name: Literal["imagenet_resnet50"]
    widen_factor: Widening = 1.0
    """Scales the planes of all layers, the first convolution too; may be fractional, they are rounded."""
    sparse_downsample: bool = False
    """Make the shortcut convolutions sparse too."""

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Logits [batch, classes] from images [batch, channels, height, width], of any height and width."""
        planes = [max(1, round(width * self.widen_factor)) for width in (64, 128, 256, 512)]
        return ResNet50(image_shape[0], planes, classes)

    def sparse_by_default(self, model: nn.Module) -> Sequence[str]:
        """The convolutions of the blocks and the classifier; the first convolution stays dense (paper)."""
        blocks = {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}
        convs = [f"{block}.{conv}.weight" for block in blocks for conv in ("conv1", "conv2", "conv3")]
        downsample = [f"{name}.downsample.0.weight" for name, block in blocks.items() if block.downsample is not None]
        return [*convs, *(downsample if self.sparse_downsample else []), "fc.weight"]


class Bottleneck(nn.Module):
    """Residual block: x plus 1x1, 3x3 and 1x1 convolutions of it, each with BatchNorm."""

    def __init__(self, c_in: int, planes: int, stride: int) -> None:
        super().__init__()
        c_out = EXPANSION * planes
        self.conv1 = nn.Conv2d(c_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, c_in, h, w] to [batch, 4 planes, h / stride, w / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(y)
        return result


class ResNet50(nn.Module):
    """A 7x7 convolution, max-pooling, 16 bottlenecks in four layers, mean, a linear layer. Names are torchvision's."""

    def __init__(self, channels: int, planes: Sequence[int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes[0], 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._layer(planes[0], planes[0], 1, blocks=3)
        self.layer2 = self._layer(EXPANSION * planes[0], planes[1], 2, blocks=4)
        self.layer3 = self._layer(EXPANSION * planes[1], planes[2], 2, blocks=6)
        self.layer4 = self._layer(EXPANSION * planes[2], planes[3], 2, blocks=3)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(EXPANSION * planes[3], classes)
        init_convolutions(self)

    @staticmethod
    def _layer(c_in: int, planes: int, stride: int, *, blocks: int) -> nn.Sequential:
        first = Bottleneck(c_in, planes, stride)
        return nn.Sequential(first, *(Bottleneck(EXPANSION * planes, planes, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to logits [batch, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits
