"""The wide residual network of the paper's CIFAR-10 experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from dynsparse.models.base import MOST_LAYERS, ModelSettings, Widening
from dynsparse.models.initialisation import init_convolutions
from dynsparse.models.stochastic_depth import DropPath, Probability, rising


class WideResNetSettings(ModelSettings):
    """Pre-activation wide ResNet (Zagoruyko & Komodakis 2016): three groups of 3x3 blocks; any image size."""

    name: Literal["cifar10_WideResNet"]
    depth: Annotated[int, Field(le=MOST_LAYERS)] = 28
    """Layers of weights, 6n + 4 for n blocks in each group."""
    widen_factor: Widening = 10.0
    """k in the channels 16k, 32k, 64k of the groups; may be fractional, they are rounded."""
    drop_path_rate: Probability = 0.0
    """Stochastic depth: the probability with which the last block's branch is left out for a sample. It rises from 0 at
    the first block."""
    dropout: Probability = 0.0
    """Probability with which an input of a block's second convolution is 0 in training (Zagoruyko & Komodakis: 0.3)."""

    @field_validator("depth")
    @classmethod
    def _has_whole_blocks(cls, depth: int) -> int:
        if depth < 10 or depth % 6 != 4:
            down = (depth - 4) // 6 * 6 + 4
            near = f"{down} or {down + 6}" if down >= 10 else "10"
            raise ValueError(f"depth is {depth}; a wide ResNet has 6n + 4 layers: take {near}")
        return depth

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Logits [batch, classes] from images [batch, channels, height, width], of any height and width."""
        widths = [max(1, round(channels * self.widen_factor)) for channels in (16, 32, 64)]
        blocks = (self.depth - 4) // 6
        rates = list(rising(3 * blocks, self.drop_path_rate))
        by_group = [rates[group * blocks : (group + 1) * blocks] for group in range(3)]
        return WideResNet(image_shape[0], widths, by_group, classes, dropout=self.dropout)

    def sparse_by_default(self, model: nn.Module) -> Sequence[str]:
        """The 3x3 convolutions of the blocks; the first convolution, shortcuts and classifier stay dense (paper)."""
        blocks = [name for name, module in model.named_modules() if isinstance(module, Block)]
        return [f"{block}.{conv}.weight" for block in blocks for conv in ("conv1", "conv2")]


class Block(nn.Module):
    """Residual block: x plus two 3x3 convolutions of it, each after BatchNorm and ReLU.

    Where the shape changes, x is added after the first BatchNorm and ReLU, through a 1x1 convolution, as in the
    authors' network.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, drop_path: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.drop_path = DropPath(drop_path)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if stride > 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, c_in, h, w] to [batch, c_out, h / stride, w / stride], rounded up."""
        y: Tensor = functional.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(self.dropout(functional.relu(self.bn2(self.conv1(y)))))
        total: Tensor = shortcut + self.drop_path(y)
        return total


class WideResNet(nn.Module):
    """A 3x3 convolution to 16 channels, three groups of blocks, BatchNorm, ReLU, mean, a linear layer."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        drop_path: Sequence[Sequence[float]],
        classes: int,
        *,
        dropout: float = 0.0,
    ) -> None:
        """`drop_path`: for each group, the probability of leaving out each of its blocks."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.group1 = self._group(16, widths[0], 1, drop_path[0], dropout)
        self.group2 = self._group(widths[0], widths[1], 2, drop_path[1], dropout)
        self.group3 = self._group(widths[1], widths[2], 2, drop_path[2], dropout)
        self.bn = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], classes)
        init_convolutions(self)

    @staticmethod
    def _group(c_in: int, c_out: int, stride: int, drop_path: Sequence[float], dropout: float) -> nn.Sequential:
        first = Block(c_in, c_out, stride, drop_path[0], dropout)
        return nn.Sequential(first, *(Block(c_out, c_out, 1, rate, dropout) for rate in drop_path[1:]))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to logits [batch, classes]."""
        x = self.group3(self.group2(self.group1(self.conv1(images))))
        x = functional.relu(self.bn(x)).mean(dim=(2, 3))
        logits: Tensor = self.fc(x)
        return logits
