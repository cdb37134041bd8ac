"""Depth of each parameter of a transformer, counted in blocks."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from dynsparse.errors import UserError


def depths(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Return the depth of each parameter: 0 before the blocks, 1 in the first, one more than the last's behind them.

    Parameters come in the order in which the model registers them. UserError for a model without a chain of blocks
    with attention, which are of one class and hold most of the parameters.
    """
    prefix, blocks = _chain(model)
    found: dict[str, int] = {}
    deepest = 0
    for name in names:
        inside = name.startswith(prefix) and name.removeprefix(prefix).partition(".")[0]
        if inside:
            deepest = found[name] = blocks.index(inside) + 1
        else:
            found[name] = len(blocks) + 1 if deepest else 0
    return found


def _chain(model: nn.Module) -> tuple[str, list[str]]:
    """Return the beginning of the names in the chain of blocks, and the blocks' own names."""
    chains = [(name, module) for name, module in model.named_modules() if _is_chain(module)]
    name, chain = max(chains, key=lambda named: _size(named[1]), default=("", None))
    if chain is None or 2 * _size(chain) < _size(model):
        raise UserError(
            "train.parameters.layer_decay is below 1, and the model has no chain of attention blocks of one class that "
            "holds most of its parameters: set train.parameters.lr_factors by patterns instead"
        )
    return f"{name}." if name else "", list(dict(chain.named_children()))


def _is_chain(module: nn.Module) -> bool:
    blocks = list(module.children())
    return (
        isinstance(module, (nn.ModuleList, nn.Sequential))
        and len(blocks) > 1
        and len({type(block) for block in blocks}) == 1
        and any("attention" in type(part).__name__.lower() for part in blocks[0].modules())
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
