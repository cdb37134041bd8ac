"""FLOPs in words."""

from __future__ import annotations

from dynsparse.flops.costs import Costs

_UNITS = ("", " k", " M", " G", " T", " P", " E")


def in_words(flops: float | None) -> str:
    """Return FLOPs to three digits, such as 8.18 G; a dash for None."""
    if flops is None:
        return "-"
    thousands = 0
    while flops >= 999.5 and thousands < len(_UNITS) - 1:
        flops, thousands = flops / 1000, thousands + 1
    return f"{flops:.3g}{_UNITS[thousands]}"


def multiples(costs: Costs, inference: int, training: float) -> str:
    """Return a line on inference, given its FLOPs, and on training, given its multiple of dense training."""
    return (
        f"FLOPs of an image: {in_words(inference)}, {inference / costs.reference:.3f} of the dense network's "
        f"{in_words(costs.reference)}; of training at these densities: {training:.3f} of dense"
    )
