"""The residual network of the paper's ImageNet experiments: torchvision's ResNet-50, and wider or narrower."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from dynsparse.models.base import ModelSettings, Widening
from dynsparse.models.initialisation import init_convolutions
from dynsparse.models.stochastic_depth import DropPath, Probability, rising

BLOCKS = (3, 4, 6, 3)
"""Bottlenecks of the four layers."""
EXPANSION = 4  # Output channels of a bottleneck over its planes.


class ResNet50Settings(ModelSettings):
    """ResNet-50 (He et al. 2016) with the stride in the 3x3 convolutions; at widen factor 1 it is torchvision's."""

    name: Literal["imagenet_resnet50"]
    widen_factor: Widening = 1.0
    """Scales the planes of all layers, the first convolution too; may be fractional, they are rounded."""
    sparse_downsample: bool = False
    """Make the shortcut convolutions sparse too."""
    zero_init_residual: bool = False
    """Begin with 0 as the weight of each block's last BatchNorm, so that a block begins as the identity (Goyal et al.
    2017)."""
    drop_path_rate: Probability = 0.0
    """Stochastic depth: the probability with which the last block's branch is left out for a sample. It rises from 0 at
    the first block."""
    dropout: Probability = 0.0
    """Probability with which an input of the classifier is 0 in training."""

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Logits [batch, classes] from images [batch, channels, height, width], of any height and width."""
        planes = [max(1, round(width * self.widen_factor)) for width in (64, 128, 256, 512)]
        model = ResNet50(image_shape[0], planes, classes, drop_path_rate=self.drop_path_rate, dropout=self.dropout)
        if self.zero_init_residual:
            model.begin_as_identity()
        return model

    def sparse_by_default(self, model: nn.Module) -> Sequence[str]:
        """The convolutions of the blocks and the classifier; the first convolution stays dense (paper)."""
        blocks = {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}
        convs = [f"{block}.{conv}.weight" for block in blocks for conv in ("conv1", "conv2", "conv3")]
        downsample = [f"{name}.downsample.0.weight" for name, block in blocks.items() if block.downsample is not None]
        return [*convs, *(downsample if self.sparse_downsample else []), "fc.weight"]


class Bottleneck(nn.Module):
    """Residual block: x plus 1x1, 3x3 and 1x1 convolutions of it, each with BatchNorm."""

    def __init__(self, c_in: int, planes: int, stride: int, drop_path: float = 0.0) -> None:
        super().__init__()
        c_out = EXPANSION * planes
        self.conv1 = nn.Conv2d(c_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.drop_path = DropPath(drop_path)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, c_in, h, w] to [batch, 4 planes, h / stride, w / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.drop_path(self.bn3(self.conv3(y)))
        y += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(y)
        return result


class ResNet50(nn.Module):
    """A 7x7 convolution, max-pooling, 16 bottlenecks in four layers, mean, a linear layer. Names are torchvision's."""

    def __init__(
        self, channels: int, planes: Sequence[int], classes: int, *, drop_path_rate: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes[0], 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        rates = rising(sum(BLOCKS), drop_path_rate)
        by_layer = [list(islice(rates, blocks)) for blocks in BLOCKS]
        self.layer1 = self._layer(planes[0], planes[0], 1, by_layer[0])
        self.layer2 = self._layer(EXPANSION * planes[0], planes[1], 2, by_layer[1])
        self.layer3 = self._layer(EXPANSION * planes[1], planes[2], 2, by_layer[2])
        self.layer4 = self._layer(EXPANSION * planes[2], planes[3], 2, by_layer[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(EXPANSION * planes[3], classes)
        init_convolutions(self)

    @staticmethod
    def _layer(c_in: int, planes: int, stride: int, drop_path: Sequence[float]) -> nn.Sequential:
        """Make a layer of as many blocks as there are probabilities of leaving one out."""
        first = Bottleneck(c_in, planes, stride, drop_path[0])
        return nn.Sequential(first, *(Bottleneck(EXPANSION * planes, planes, 1, rate) for rate in drop_path[1:]))

    def begin_as_identity(self) -> None:
        """Set the weight of each block's last BatchNorm to 0."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to logits [batch, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return logits
