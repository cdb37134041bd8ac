"""A network in a file of weights alone, which any program may have written: a state_dict, dense, with zeros in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from dynsparse import __version__
from dynsparse.errors import UserError
from dynsparse.hints import models_of
from dynsparse.models import AnyModel, ModelSettings, more_names, timm_models
from dynsparse.models.base import PREFIX
from dynsparse.tools.export.network import ExportedNetwork
from dynsparse.training.exported import read_weights
from dynsparse.training.fitting import fitted
from pipelines.common.text import nearest

CLASSES = 1000
IMAGE_SHAPE = (3, 224, 224)
"""Images of networks for ImageNet, whose names say so."""
_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".csr")


def take_weights(
    path: Path, name: str, *, classes: int | None = None, image_shape: tuple[int, int, int] | None = None
) -> ExportedNetwork:
    """Return the network `name` with the weights of a file, exactly: all tensors fit, and none is left over.

    Prefixes of wrappers (DDP's `module.`, compile's `_orig_mod.`) are taken off. The masks are where weights are not
    0, of the weights that have zeros. Raises UserError, in one line.
    """
    settings = _settings(name)
    shape, number = image_shape or _usual_shape(name), classes or CLASSES
    tensors = read_weights(path, nested=True)
    model = settings.build(shape, number).eval().requires_grad_(False)
    remedy = "name the network by --model, and its sizes by --classes and --image-size"
    model.load_state_dict(fitted(model, tensors, str(path), remedy=remedy), strict=False)
    masks = _masks(model)
    return ExportedNetwork(
        model, masks, {"name": name}, shape, number, _facts(path, name, model, masks, shape, number), str(path)
    )


def _settings(name: str) -> ModelSettings:
    known = models_of(AnyModel)
    if not name.startswith((PREFIX, timm_models.PREFIX)) and name not in known:
        own = [one for one in known if not one.endswith("...")]
        raise UserError(f"--model: unknown model '{name}'{nearest(name, [*own, *more_names()])}")
    try:
        settings: ModelSettings = TypeAdapter(AnyModel).validate_python({"name": name})
    except ValidationError as error:
        raise UserError(f"--model: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return settings


def _usual_shape(name: str) -> tuple[int, int, int]:
    if name.startswith((PREFIX, timm_models.PREFIX, "imagenet")):
        return IMAGE_SHAPE
    raise UserError(f"--image-size is missing: {name} is for images of any size; give one such as 1x28x28 or 3x32x32")


def _masks(model: nn.Module) -> dict[str, Tensor]:
    weights = {name: value.detach() for name, value in model.named_parameters() if value.dim() >= 2}
    return {name: value != 0 for name, value in weights.items() if not bool(value.all())}


def _facts(
    path: Path, name: str, model: nn.Module, masks: Mapping[str, Tensor], shape: tuple[int, int, int], classes: int
) -> dict[str, str]:
    weights, active = sum(mask.numel() for mask in masks.values()), sum(int(mask.sum()) for mask in masks.values())
    total = sum(value.numel() for value in model.parameters())
    described: dict[str, Any] = {"shape": list(shape), "number_of_classes": classes}
    return {
        "run": _stem(path.name),
        "model": name,
        "method": "",
        "step": "",
        "test_top1": "",
        "active_weights": str(active),
        "sparsity": f"{1 - active / max(1, weights):.6f}",
        "model_sparsity": f"{(weights - active) / max(1, total):.6f}",
        "input": json.dumps(described),
        "tied": "false",
        "mask_digest": "",
        "weight_digest": "",
        "dynsparse": __version__,
    }


def _stem(name: str) -> str:
    """Return a file's name without the endings of weights."""
    while (stem := Path(name).stem) != name and Path(name).suffix in _ENDINGS:
        name = stem
    return name
