"""Proof that what a layer reads is the same number for every image, and not just for a few.

Channels whose writers have no weights give their biases. All others become NaN when the image is NaN: a number that is
still finite then has not met the image. Comparisons lose NaN, as in torch.where, so images of several scales are tried
as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

SCALES = (0.0, 1.0, 30.0, 1000.0)
"""Scales of the random images that are tried."""
TOLERANCE = 1e-4
"""Largest difference of an output that sums in another order may make, as a fraction of the largest output."""
_COARSE = 1e-2
"""Tolerance for images of scales above 1, on which softmax and sigmoid make more of rounding."""
_MOST = 30.0
"""Largest scale for which outputs are compared. At 1000 a saturated gate may turn a rounding into a tenth of them."""


def rows_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a layer takes or gives as (places, channels)."""
    return (inputs.movedim(1, -1) if isinstance(module, nn.Conv2d) else inputs).flatten(0, -2)


def tried_images(images: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Yield scales, with images of the same shape and other numbers."""
    numbers = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    for scale in SCALES:
        yield scale, (scale * numbers).to(images)


@torch.no_grad()
def moving(
    model: nn.Module, images: Tensor, silent: Mapping[nn.Module, Tensor], first: Mapping[nn.Module, Tensor]
) -> dict[nn.Module, Tensor]:
    """Return for each layer of `first` which of its inputs may be other numbers on another image: bool, one a channel.

    `images`: as those that are tried. `silent`: bool, True for outputs of a layer that have no weights. `first`: what a
    layer has read in the first place on some image, one number a channel.
    """
    found = {module: torch.zeros_like(values, dtype=torch.bool) for module, values in first.items()}

    def compare(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[module] |= ~(rows_of(module, inputs[0]) == first[module]).all(0)

    with ExitStack() as stack:
        for module in first:
            stack.callback(module.register_forward_pre_hook(compare).remove)
        for module, outputs in silent.items():
            stack.callback(module.register_forward_hook(_biases_alone(outputs)).remove)
        for _, others in tried_images(images):
            model(others)
        try:
            with _ZeroStays():  # type: ignore[no-untyped-call]
                model(torch.full_like(images, torch.nan))
        except Exception:  # noqa: BLE001 - a network that refuses NaN: nothing is proved
            return {module: torch.ones_like(one) for module, one in found.items()}
    return found


def _biases_alone(outputs: Tensor) -> Any:
    """Return a hook that gives these outputs of a layer their biases, whatever it reads: 0 times NaN is NaN."""

    def give(module: nn.Module, _: object, given: Tensor) -> Tensor:
        given = given.clone()
        last = given.movedim(1, -1) if isinstance(module, nn.Conv2d) else given
        at, bias = outputs.to(given.device), module._parameters.get("bias")
        last[..., at] = 0.0 if bias is None else bias.detach()[at].to(given.dtype)
        return given

    return give


class _ZeroStays(TorchDispatchMode):
    """Products in which 0 times NaN is 0, as 0 times any number is: a channel of zeros stays so behind a gate."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func not in (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor):
            return func(*args, **(kwargs or {}))
        zero = (args[0] == 0) | (args[1] == 0)
        found = func(*args, **(kwargs or {}))
        return found.masked_fill_(zero, 0) if found is args[0] else found.masked_fill(zero, 0)


Outputs = list[tuple[float, Tensor]]
"""Outputs of a network, each with the scale of the images."""


def outputs_of(model: nn.Module, images: Tensor) -> Outputs:
    """Return the outputs on `images`, as of scale 1, and then on the others that are tried."""
    tried = ((scale, others) for scale, others in tried_images(images) if scale <= _MOST)
    return [(1.0, model(images)), *((scale, model(others)) for scale, others in tried)]


def difference(before: Outputs, after: Outputs) -> tuple[float, bool]:
    """Return the largest difference on the first images, or where another is more than rounding, and whether one is.

    An output that was not finite before tells nothing: a network may overflow, or divide by the sum of a black image.
    """
    usual = float(before[0][1].abs().max())
    first = _largest(before[0][1], after[0][1])
    for (scale, ours), (_, theirs) in zip(before, after, strict=True):
        if not bool(ours.isfinite().all()):
            continue
        most = max(usual, float(ours.abs().max())) * (_COARSE if scale > 1 else TOLERANCE)
        if not (found := _largest(ours, theirs)) <= most:
            return found, True
    return first, False


def _largest(before: Tensor, after: Tensor) -> float:
    return float((after - before).abs().max()) if before.shape == after.shape else float("inf")
