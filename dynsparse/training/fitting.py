"""Fit the tensors of a file to a model: names without prefixes, a head of another size left out, the rest equal."""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.masks.naming import plain_name
from dynsparse.training import packing

log = logging.getLogger(__name__)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of numbers that parameters take from a file. Others are codes, such as int8 and float8 with a scale beside."""
_NAMED = 3
"""Differences in a message; the others are counted."""
_COUNTER = "num_batches_tracked"
"""BatchNorm's counter of batches. Files from before 2018 have none, and nothing here reads it."""
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Heads of GoogLeNet and Inception v3 that the networks here do without."""
_OLDER = (
    # DenseNet, from when a module's name could hold a dot: norm.1 is norm1 today.
    (re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$"), r"\1\2"),
    # ViT, from before its MLP was a sequence of modules: linear_1 is 0 today, linear_2 is 3.
    (re.compile(r"^(encoder\.layers\..*\.mlp)\.linear_1\.(\w+)$"), r"\1.0.\2"),
    (re.compile(r"^(encoder\.layers\..*\.mlp)\.linear_2\.(\w+)$"), r"\1.3.\2"),
)
"""Names of tensors in the files that torchvision publishes, and what its networks call them today."""
_AVERAGED = "n_averaged"
"""The one tensor of torch's AveragedModel that is not the model's."""


def fitted(model: nn.Module, tensors: Mapping[str, Tensor], where: str, *, remedy: str) -> dict[str, Tensor]:
    """Return the tensors by the names of the model's parameters and buffers, in the model's types of numbers.

    UserError unless they fit all of them, and hold finite numbers of a type that is one of weights.
    `where` is the setting with its value, for messages.
    """
    ours, theirs = _stored(model), plain_names(tensors, model)
    wanted = {name: value for name, value in ours.items() if not (name.endswith(_COUNTER) and name not in theirs)}
    texts = {name: shape_text(value.shape) for name, value in wanted.items()}
    require_equal(texts, {name: shape_text(value.shape) for name, value in theirs.items()}, where, remedy)
    return {name: _converted(name, value, ours[name].dtype, where) for name, value in theirs.items()}


def without_other_head(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the tensors, with the model's own values for a head that differs in its number of outputs.

    Any other difference stays for `fitted` to refuse.
    """
    theirs, head = plain_names(tensors, model), head_of(model)
    mine = {name: value for name, value in _stored(model).items() if name.rpartition(".")[0] in head}
    if not all(name in theirs and theirs[name].shape[1:] == value.shape[1:] for name, value in mine.items()):
        return theirs
    others = [name for name, value in mine.items() if theirs[name].shape != value.shape]
    if not others:
        return theirs
    outputs = len(theirs[others[0]]), len(mine[others[0]])
    more = _more_heads(model, theirs, *outputs)
    heads = list(dict.fromkeys([*more, *head]))
    log.info(
        "%s has %d outputs in its head (%s), this run %d classes: the head starts from new weights",
        where,
        outputs[0],
        ", ".join(heads),
        outputs[1],
    )
    fresh = {name: value.detach() for name, value in _stored(model).items() if name.rpartition(".")[0] in heads}
    return theirs | fresh


def _more_heads(model: nn.Module, theirs: Mapping[str, Tensor], there: int, here: int) -> list[str]:
    """Return the modules that differ just as the head does, in all of their tensors, in the model's order.

    A distilled transformer has two heads, CrossViT one for each of its branches. A layer inside a network cannot differ
    so alone: its outputs are the inputs of another.
    """
    found: dict[str, bool] = {}
    for name, value in _stored(model).items():
        module, rest = name.rpartition(".")[0], value.shape[1:]
        differs = name in theirs and (value.shape, theirs[name].shape) == ((here, *rest), (there, *rest))
        found[module] = found.get(module, True) and differs
    return [module for module, is_head in found.items() if is_head]


def head_of(model: nn.Module) -> list[str]:
    """Return the names of the modules that give the logits.

    They are the last with a weight of two or more dimensions, and what follows it, such as its BatchNorm.
    """
    last = [name for name, parameter in model.named_parameters() if parameter.dim() >= 2][-1].rpartition(".")[0]
    names = [name for name, module in model.named_modules() if name == last or [*module.parameters(recurse=False)]]
    return names[names.index(last) :]


def plain_names(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors by their names in the plain model: without what wrappers put into them.

    A weight that several modules of the model share is left under its first name. Files of torchvision's networks get
    today's names, and lose the heads that only training of 2014 used.
    """
    ours, all_ours = _stored(model), model.state_dict().keys()
    named = {plain_name(name): value for name, value in tensors.items()}
    while not _any_within(ours, "module.") and _any_within(named, "module."):
        named = {name.removeprefix("module."): value for name, value in named.items() if name != _AVERAGED}
    named = {name if name in ours else _todays(name, ours): value for name, value in named.items()}
    return {
        name: value
        for name, value in named.items()
        if name in ours or not (name in all_ours or name.startswith(_AUXILIARY))
    }


def _todays(name: str, ours: Container[str]) -> str:
    """Return a tensor's name of today, if it has an older one of a tensor of ours."""
    renamed = (pattern.sub(todays, name) for pattern, todays in _OLDER)
    return next((one for one in renamed if one in ours), name)


def _any_within(names: Mapping[str, object], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the model that a file of its weights has."""
    return {**dict(model.named_parameters()), **packing.buffers(model)}


def _converted(name: str, value: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    """Return a tensor of a file in the model's type. UserError where that changes more than the rounding.

    With NaN or inf every step would be skipped, and the run would end well.
    """
    if not _fits(name, value, dtype):
        takes = ", ".join(map(dtype_text, FLOATS)) if dtype.is_floating_point else "whole numbers"
        raise UserError(
            f"{where}: {name} is {dtype_text(value.dtype)} there, {dtype_text(dtype)} here; give a file of {takes}"
        )
    found = value.to(dtype)
    if not bool(found.isfinite().all()):
        what = f"numbers beyond {dtype_text(dtype)}" if bool(value.isfinite().all()) else "NaN or inf"
        raise UserError(f"{where}: {name} holds {what}; take another checkpoint, or export one")
    return found


def _fits(name: str, value: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor of a file is of a type for one of ours of `dtype`."""
    if dtype.is_floating_point:
        return value.dtype in FLOATS
    if value.is_complex() or (value.is_floating_point() and value.dtype not in FLOATS):
        return False
    return name.endswith(_COUNTER) or torch.equal(value.to(dtype).to(value.dtype), value)


def dtype_text(dtype: torch.dtype) -> str:
    """Return a type's name, such as float32."""
    return str(dtype).removeprefix("torch.")


def require_equal(ours: Mapping[str, str], theirs: Mapping[str, str], where: str, remedy: str) -> None:
    """Raise UserError unless the same names have the same texts: a line with the first few that differ."""
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if not names:
        return
    first = [
        f"{name} is {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here" for name in names[:_NAMED]
    ]
    more = f"; and {len(names) - _NAMED:,} more differ" if len(names) > _NAMED else ""
    raise UserError(f"{where} is of another network: {'; '.join(first)}{more}; {remedy}")


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as text, such as 64x3x7x7."""
    return "x".join(map(str, shape)) or "a number"
