"""The operations on pixels that a run asks for, in their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.order import Uniforms
from pipelines.pixels.applying import applied
from pipelines.pixels.erasing import Erasing
from pipelines.pixels.policies import Policy


@dataclass(frozen=True)
class Pixels:
    """Operations on a batch of views: those of the policies, in turn; after the normalisation, erasing."""

    policies: tuple[Policy, ...] = ()
    erasing: Erasing | None = None

    @property
    def streams(self) -> tuple[tuple[str, int], ...]:
        """Name and length of the random numbers of a sample, for each part."""
        of_policies = tuple((policy.stream, policy.uniforms) for policy in self.policies)
        return of_policies if self.erasing is None else (*of_policies, (self.erasing.stream, self.erasing.uniforms))

    def changed(self, images: Tensor, uniforms: Uniforms) -> Tensor:
        """Return the images after all policies: uint8 [batch, channels, height, width].

        `images`: grey levels, uint8 or float. `uniforms`: float64 [batch, all of `streams`].
        """
        images = images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)
        height, width = images.shape[-2:]
        for policy, numbers in zip(self.policies, self._parts(uniforms), strict=False):
            images = applied(images, policy.rounds(numbers, height, width))
        return images

    def erase(self, images: Tensor, uniforms: Uniforms) -> None:
        """Erase windows of normalised images, float [batch, channels, height, width], in place."""
        if self.erasing is not None:
            self.erasing.erase(images, self._parts(uniforms)[-1])

    def _parts(self, uniforms: Uniforms) -> list[Uniforms]:
        ends = np.cumsum([length for _, length in self.streams])
        return np.split(uniforms, ends[:-1], axis=1)


NO_PIXELS = Pixels()
"""No operations: views stay as they are."""
