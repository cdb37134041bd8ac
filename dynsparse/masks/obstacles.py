"""Weights that cannot be kept sparse, and the remedy for each."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynsparse.errors import UserError
from dynsparse.masks.tensors import is_dense

_NAMED = 3  # Names in a message; the others are counted.


def obstacle(module: nn.Module, key: str) -> str | None:
    """Reason against keeping the parameter `key` of `module` sparse, with the remedy; None if there is none."""
    parameter = module._parameters.get(key)
    if parameter is None:
        return _computed(module, key)
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "has no shape yet (a lazy module): run a forward pass first"
    if _is_sharded(parameter):
        return "is sharded over ranks (FSDP2, tensor parallelism), and masks need whole weights: use DDP, or exclude it"
    if not parameter.is_floating_point():
        return f"is of {parameter.dtype}, which is not trained: exclude it"
    if not parameter.requires_grad:
        return "is frozen, and its trained weights would be lost: exclude it, or set requires_grad"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
        return "is an embedding with sparse gradients: set its sparse=False, or exclude it"
    if parameter.is_inference():
        return "was made in inference mode, and cannot be changed: make the model outside of it"
    if not is_dense(parameter):
        return "is a view with gaps in memory: make it contiguous, or exclude it"
    return None


def _computed(module: nn.Module, key: str) -> str:
    if parametrize.is_parametrized(module, key):
        return "is parametrized: remove the parametrization (torch.nn.utils.parametrize), or exclude it"
    if f"{key}_orig" in module._parameters:
        return "is computed by torch.nn.utils.prune or spectral_norm: call its remove() first, or exclude it"
    if f"{key}_v" in module._parameters:
        return "is computed by weight_norm: call torch.nn.utils.remove_weight_norm first, or exclude it"
    return "is no parameter of its module: exclude it"


def _is_sharded(parameter: Tensor) -> bool:
    tensors = sys.modules.get("torch.distributed.tensor")  # Takes a second to import; without it there is no DTensor.
    return tensors is not None and isinstance(parameter, tensors.DTensor)


def refuse_model(model: nn.Module) -> None:
    """Raise UserError for a model whose weights are out of reach: scripted, on the meta device, or sharded by FSDP1."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UserError(
            "the model is scripted, and its layers cannot be recognised: make SparseTraining before torch.jit"
        )
    if on_meta := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise UserError(
            f"{listed(on_meta)} is on the meta device: give the model its weights first (to_empty, "
            f"load_state_dict(assign=True))"
        )
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise UserError("the model is sharded by FullyShardedDataParallel, and masks need whole weights: use DDP")


def refuse(obstacles: Mapping[str, str]) -> None:
    """Raise UserError for layers with obstacles, if there are any: a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in obstacles.items():
        by_reason.setdefault(reason, []).append(name)
    if by_reason:
        raise UserError(*(f"{listed(names)} {reason}" for reason, names in by_reason.items()))


def listed(names: list[str]) -> str:
    """Name the first few, and count the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
