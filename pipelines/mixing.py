"""mixup and cutmix: each sample of a global batch is mixed with its neighbour in the order.

Samples 2k and 2k + 1 are a pair. An epoch's order is a random permutation, so a pair is a random pair. `Share` keeps
pairs together: a rank has the pixels of both, with no second decoding and no exchange. So partners, fractions and boxes
are the same for every number of workers and micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from pipelines.common.settings import AtLeast1, Settings
from pipelines.order import Uniforms, fractions, generator

PAIR = 2
"""Samples that are mixed with each other."""
Alpha = Annotated[float, Field(ge=0, le=1000)]
Probability = Annotated[float, Field(ge=0, le=1)]
_NUMBERS = 6
"""Random numbers of a pair: is it mixed, by cutmix, two for the fraction, two for the place of the box."""


class MixingSettings(Settings):
    """Mixing of training samples in pairs, of pixels and labels alike. Off unless an alpha is above 0."""

    mixup_alpha: Alpha = 0.0
    """Mixup (Zhang et al. 2018) with fractions from Beta(alpha, alpha); 0: none."""
    cutmix_alpha: Alpha = 0.0
    """Cutmix (Yun et al. 2019), a box of the partner, its area from Beta(alpha, alpha); 0: none."""
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability that a batch is mixed at all, or a pair (`draw`)."""
    cutmix_share: Probability = 0.5
    """Fraction of what is mixed that cutmix gets where both are on; the rest is mixup's."""
    draw: Literal["batch", "pair"] = "batch"
    """Scope of the random numbers: one kind, fraction and box for a whole global batch, or for each pair."""
    until_epoch: AtLeast1 | None = None
    """Epoch, counted from 0, from which nothing is mixed any more."""

    @model_validator(mode="after")
    def _used(self) -> MixingSettings:
        """Raise ValueError for settings that would do nothing."""
        others = {name: field.default for name, field in type(self).model_fields.items() if "alpha" not in name}
        changed = [name for name, default in others.items() if getattr(self, name) != default]
        if changed and not self.is_on:
            raise ValueError(
                f"{changed[0]} is {getattr(self, changed[0])}, and mixup_alpha and cutmix_alpha are 0: nothing would "
                f"be mixed; set one of them, such as mixup_alpha=0.2"
            )
        return self

    @model_validator(mode="after")
    def _both_used(self) -> MixingSettings:
        """Raise ValueError for a share of one kind alone, or of none for one that is on."""
        alphas = {"mixup_alpha": self.mixup_alpha, "cutmix_alpha": self.cutmix_alpha}
        share, default = self.cutmix_share, type(self).model_fields["cutmix_share"].default
        off = [name for name, alpha in alphas.items() if not alpha]
        if off and share != default:
            raise ValueError(f"cutmix_share is {share:g}, and {off[0]} is 0: set {off[0]}, or leave cutmix_share out")
        if not off and share in (0, 1):
            name = "mixup_alpha" if share == 1 else "cutmix_alpha"
            raise ValueError(
                f"cutmix_share is {share:g}, and {name} {alphas[name]:g} would do nothing: set {name}=0, or a share "
                f"between 0 and 1"
            )
        return self

    @property
    def is_on(self) -> bool:
        """True if anything is mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @property
    def unit(self) -> int:
        """Samples of a global batch that must stay together."""
        return PAIR if self.is_on else 1

    def is_on_in(self, epoch: int) -> bool:
        """Return True if anything is mixed in this epoch."""
        return self.is_on and (self.until_epoch is None or epoch < self.until_epoch)

    @property
    def share_of_cutmix(self) -> float:
        """Fraction of what is mixed that cutmix gets."""
        if not (self.mixup_alpha and self.cutmix_alpha):
            return float(self.cutmix_alpha > 0)
        return self.cutmix_share


NO_MIXING = MixingSettings()


@dataclass(frozen=True)
class Draw:
    """The random choices of some pairs, of arrays [pairs, ...]."""

    kept: NDArray[np.float64]
    """Fraction that each of the two keeps of itself; the partner gives the rest."""
    is_cut: NDArray[np.bool_]
    """True where a box is exchanged, False where all pixels are mixed."""
    boxes: NDArray[np.int64]
    """Top, left, bottom, right [pairs, 4] in pixels, without its end."""

    def part(self, samples: slice) -> Draw:
        """Return the choices of these samples of the global batch, which are whole pairs."""
        pairs = slice(samples.start // PAIR, samples.stop // PAIR)
        return Draw(self.kept[pairs], self.is_cut[pairs], self.boxes[pairs])


@dataclass(frozen=True)
class Mixing:
    """Mixes the batches of a run. All its numbers are pure functions of the run's seed, epoch and batch."""

    settings: MixingSettings
    seed: int
    classes: int

    def drawn(self, epoch: int, batch: int, samples: int, height: int, width: int) -> Draw | None:
        """Return the choices for a whole global batch of so many samples; None if nothing of it is mixed."""
        on = self.settings
        if not on.is_on_in(epoch):
            return None
        pairs = samples // PAIR
        words = generator(self.seed, "mix", epoch, batch).random_raw(pairs * _NUMBERS)
        numbers = fractions(words).reshape(pairs, _NUMBERS)
        if on.draw == "batch":
            numbers = np.repeat(numbers[:1], pairs, axis=0)
        is_mixed = numbers[:, 0] < on.probability
        is_cut = is_mixed & (numbers[:, 1] < on.share_of_cutmix)
        kept = symmetric_beta(np.where(is_cut, on.cutmix_alpha, on.mixup_alpha), numbers[:, 2:4])
        boxes = boxes_of(kept, numbers[:, 4:], height, width)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept = np.where(is_cut, 1 - area / (height * width), np.where(is_mixed, kept, 1.0))
        return Draw(kept, is_cut, boxes) if (kept < 1).any() else None

    def mixed(self, images: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return images mixed in pairs, and soft labels, float32 [batch, classes]."""
        kept = _both(draw.kept, labels.device)
        targets = functional.one_hot(labels, self.classes).float()
        soft = targets * kept.float()[:, None] + partners(targets) * (1 - kept).float()[:, None]
        # Exact where the weight is 0 or 1.
        return torch.lerp(partners(images), images, own_weight(draw, images)), soft


def partners(values: Tensor) -> Tensor:
    """Return each sample's partner in its place: [batch, ...], with the two of each pair exchanged."""
    return values.view(-1, PAIR, *values.shape[1:]).flip(1).flatten(0, 1)


def own_weight(draw: Draw, images: Tensor) -> Tensor:
    """Return the weight of a sample's own pixels, [batch, 1, height, width] or [batch, 1, 1, 1], of the images' type.

    The partner's weight is the rest.
    """
    device = images.device
    kept = _both(draw.kept, device).to(images.dtype).view(-1, 1, 1, 1)
    if not draw.is_cut.any():
        return kept
    top, left, bottom, right = _both(draw.boxes, device).view(-1, 4, 1, 1, 1).unbind(1)
    rows, columns = (torch.arange(size, device=device) for size in images.shape[-2:])
    rows = rows.view(1, 1, -1, 1)
    is_in_box = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    is_cut = _both(draw.is_cut, device).view(-1, 1, 1, 1)
    return torch.where(is_cut, (~is_in_box).to(images.dtype), kept)


def _both(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return the values of pairs, [pairs, ...], for each of the two samples: [batch, ...]."""
    return torch.from_numpy(np.repeat(values, PAIR, axis=0)).to(device, non_blocking=True)


def symmetric_beta(alpha: NDArray[np.float64], numbers: Uniforms) -> NDArray[np.float64]:
    """Return values of Beta(alpha, alpha), float64 [n], from two random numbers each, [n, 2] in [0, 1).

    Exact for any alpha, without rejection (Devroye, "Random variate generation in one line of code", 1996; after
    Bailey's polar method for Student's t, 1994): with u = U^(1/alpha), q = u / (1 - u) and c = cos(2 pi V),
    (1 + c / sqrt(c^2 + q)) / 2. It takes few numbers, and always as many: each pair has its place in the stream.
    """
    log_u = np.log(np.maximum(numbers[:, 0], 2.0**-54)) / np.maximum(alpha, 1e-9)
    c = np.cos(2 * np.pi * numbers[:, 1])
    return np.asarray((1 + c / np.sqrt(c**2 + np.exp(log_u) / -np.expm1(log_u))) / 2)


def boxes_of(kept: NDArray[np.float64], places: Uniforms, height: int, width: int) -> NDArray[np.int64]:
    """Return top, left, bottom, right, int64 [n, 4]: boxes of a fraction 1 - kept of the area, cut at the borders.

    `places`, [n, 2] in [0, 1), are the centres. Each side is sqrt(1 - kept) of the image's, in whole pixels.

    Example: 8 x 8 pixels, of which 0.75 are kept, and the place (0.5, 0). Half of a side is 2 pixels, the centre is
    (4, 0): rows 2 to 6 and columns 0 to 2.
    """
    sides = np.array([height, width])
    half = np.floor(0.5 * sides * np.sqrt(1 - kept)[:, None])
    centre = np.floor(places * sides)
    box = np.concatenate((np.maximum(centre - half, 0), np.minimum(centre + half, sides)), axis=1)
    return box.astype(np.int64)
