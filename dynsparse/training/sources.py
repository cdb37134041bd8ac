"""Sources of a new run: weights and masks that it takes over from another one before its first step.

The paper's experiments need them. Pruning starts from a trained dense network. A static network copies the masks of a
dynamic one, with fresh weights or with those that the dynamic one began with.

`start.weights_from` goes on with the very network of another run. `model.weights` fine-tunes a trained network, whoever
trained it: its head may be of other classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.keeping.structures import require_structures
from dynsparse.masks import LayerSpec
from dynsparse.masks.bits import unpack_bits
from dynsparse.shrinking.kept import shrinkages_in
from dynsparse.training import packing
from dynsparse.training.checkpoint import checkpoint_of, read_run, result_of
from dynsparse.training.exported import read_weights
from dynsparse.training.fitting import FLOATS, fitted, require_equal, shape_text, without_other_head
from dynsparse.training.judged import judged
from dynsparse.training.published import asks_for_published, cached_file, read_published
from dynsparse.training.run import names

State = Mapping[str, Any]


@dataclass(frozen=True)
class Sources:
    """Contents of the files that a config names: weights by one of two keys, and masks."""

    weights: State | None = None
    """State of a checkpoint, or {"exported": tensors} of a file that holds weights alone."""
    masks: State | None = None
    weights_from: str = ""
    """The weights' key and its value, for messages."""
    masks_from: str = ""
    fine_tunes: bool = False
    """Whether a head of another size starts anew, as with `model.weights`."""

    @property
    def wants_fresh_weights(self) -> bool:
        """Whether another run's masks get new weights. They are drawn from another seed than that run's.

        From the same seed they would be the very weights that it began with.
        """
        return self.masks is not None and self.weights is None

    @torch.no_grad()
    def load_weights(self, model: nn.Module) -> None:
        """Give `model`, on the CPU, the weights and buffers of the source. UserError if they do not fit.

        An initial checkpoint has the whole weights of before the first step. So a copied mask finds the initial value
        of each of its positions.
        """
        if self.weights is None:
            return
        tensors = self._tensors(self.weights)
        if self.fine_tunes:
            tensors = without_other_head(model, tensors, self.weights_from)
            remedy = "name weights of the same model"
        else:
            remedy = "name a run of the same model and sparsity.granularity"
        found = fitted(model, tensors, self.weights_from, remedy=remedy)
        for name, value in {**dict(model.named_parameters()), **packing.buffers(model)}.items():
            if name in found:
                value.copy_(found[name])

    @staticmethod
    def _tensors(weights: State) -> Mapping[str, Tensor]:
        """Whole parameters and buffers by name. BatchNorm statistics of a checkpoint are the mean over its ranks."""
        if "exported" in weights:
            exported: Mapping[str, Tensor] = weights["exported"]
            return exported
        return {**whole_weights(weights), **packing.mean_buffers([rank["buffers"] for rank in weights["ranks"]])}

    def active_units(self, config: RunConfig, specs: Sequence[LayerSpec]) -> dict[str, Tensor] | None:
        """Active units of each layer in the source, int64. None without a source.

        UserError if layers differ, or have not the structure that the config asks for.
        """
        if self.masks is None:
            return None
        saved = self.masks["masks"]["layers"]
        ours = {spec.name: _text(spec.shape, spec.mask_dims) for spec in specs}
        theirs = {name: _text(layer["shape"], layer["mask_dims"]) for name, layer in saved.items()}
        remedy = "name a run of the same model and sparsity.granularity"
        require_equal(ours, theirs, f"start.masks_from: {self.masks_from}", remedy)
        active = {
            spec.name: torch.nonzero(unpack_bits(saved[spec.name]["mask"], spec.units)).squeeze(1) for spec in specs
        }
        source = f"start.masks_from: {self.masks_from}"
        remedy = "name a run of that structure, or set sparsity.structure to free"
        require_structures(config.method.build(), specs, active, source, remedy, exact=True)
        return active


NOTHING = Sources()


def read_sources(config: RunConfig) -> Sources:
    """Read the weights and masks that the config names. UserError if they cannot be read or cannot be started from."""
    start = config.start
    weights, where = _read_weights(config)
    masks = _read(start.masks_from, "start.masks_from", checkpoint_of)
    if masks is not None and all(_is_full(layer) for layer in masks["masks"]["layers"].values()):
        raise UserError(f"start.masks_from: {start.masks_from} is dense, it has no masks to copy; name a sparse run")
    if config.method.needs_weights and weights is not None and (sparse := _sparse_in(weights)):
        raise UserError(
            f"{where} is sparse in {sparse[0]}; {config.method.name} starts from a "
            f"dense network: name a run with method dense"
        )
    return Sources(weights, masks, where, start.masks_from or "", fine_tunes=config.model.weights is not None)


def _read_weights(config: RunConfig) -> tuple[State | None, str]:
    """Return the weights to start from, and their key with its value. A run's best are the ones to fine-tune."""
    if asks_for_published(config):
        return {"exported": read_published(config)}, f"model.weights: {config.model.weights}"
    if config.model.weights is not None:
        return _read(config.model.weights, "model.weights", result_of), f"model.weights: {config.model.weights}"
    weights_from = config.start.weights_from
    return _read(weights_from, "start.weights_from", checkpoint_of), f"start.weights_from: {weights_from}"


def _read(source: str | None, key: str, find: Callable[[str], Path]) -> State | None:
    """Read a checkpoint, or a file of weights alone where `key` is not that of masks."""
    if source is None:
        return None
    try:
        path = find(source)
        try:
            saved = judged(read_run(path)) if key == "model.weights" else read_run(path)
        except UserError:
            weights = _exported(path, whoever=key == "model.weights")
            if weights is None:
                raise
            if key == "start.masks_from":
                raise UserError(f"{path} holds weights without masks; name the run it is of") from None
            return {"exported": weights}
        _require_whole(saved, path)
        return saved
    except UserError as error:
        raise UserError(*(f"{key}: {line}" for line in error.lines)) from None


def _require_whole(saved: State, path: Path) -> None:
    """Raise UserError for a run whose network has lost channels: what is left of it fits no whole network."""
    if any(one.modules for one in shrinkages_in(saved)):
        raise UserError(
            f"{path} is of a network that has lost channels (train.shrink), which fits no whole one; name a checkpoint "
            f"from before its first shrink"
        )


def _exported(path: Path, *, whoever: bool) -> dict[str, Tensor] | None:
    """Read the weights in a file that holds nothing else. None for other files, and for checkpoints of runs.

    With `whoever` another program may have written it, and a UserError tells what is wrong with it.
    """
    if path.parent.name == names.CHECKPOINTS:
        return None
    try:
        return read_weights(path)
    except UserError:
        if path.suffix == ".safetensors" or (whoever and isfile(path)):
            raise
        return None


def missing_sources(config: RunConfig) -> list[str]:
    """A line for each source that a config names and that is not there yet."""
    start, weights = config.start, config.model.weights
    named = {
        "start.weights_from": start.weights_from and checkpoint_of(start.weights_from),
        "start.masks_from": start.masks_from and checkpoint_of(start.masks_from),
        "model.weights": cached_file(config) if asks_for_published(config) else weights and result_of(weights),
    }
    said = {"start.weights_from": start.weights_from, "start.masks_from": start.masks_from, "model.weights": weights}
    return [f"{key}: {said[key]} is not there yet" for key, path in named.items() if path and not _is_there(path)]


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # In a folder that may not be read, for instance: the reader tells why.
        return True
    return True


def require_sources(config: RunConfig) -> None:
    """Raise UserError for sources that are not there. Published weights are fetched when they are read."""
    if asks_for_published(config):
        config = config.model_copy(update={"model": config.model.model_copy(update={"weights": None})})
    if missing := missing_sources(config):
        raise UserError(*(f"{line}; run it first, or name another run or checkpoint" for line in missing))


def whole_weights(saved: State) -> dict[str, Tensor]:
    """Parameters by name in full shape. Outside the masks they are 0, or the initial values where these were saved."""
    parts: dict[str, list[str]] = {}
    for name, layer in saved["masks"]["layers"].items():
        parts.setdefault((layer.get("block") or {"parameter": name})["parameter"], []).append(name)
    shapes = packing.sparse_shapes(saved["masks"]["layers"])
    return {
        name: _whole(saved, shapes[name], parts[name], value) if name in parts else value
        for name, value in saved["weights"].items()
    }


def _whole(saved: State, shape: tuple[int, ...], names: Sequence[str], values: Tensor) -> Tensor:
    """A parameter in full shape, given the names of its layers and what is stored of it."""
    layers, initial = saved["masks"]["layers"], saved.get("initial_weights", {})
    held = torch.ones(shape, dtype=torch.bool)
    for name in names:
        mask = unpack_bits(layers[name]["mask"], _units(layers[name])).view(-1, 1)
        _rows(layers[name], held).copy_(mask.expand(-1, _unit_size(layers[name])).reshape(layers[name]["shape"]))
    whole = torch.zeros(shape)
    whole[held] = values.flatten()
    for name in initial.keys() & set(names):
        _rows(layers[name], whole).copy_(initial[name])
    return whole


def _rows(layer: Mapping[str, Any], tensor: Tensor) -> Tensor:
    """View the layer's rows of a tensor of the parameter's shape."""
    start = (layer.get("block") or {"start": 0})["start"]
    return tensor[start : start + layer["shape"][0]]


def _unit_size(layer: Mapping[str, Any]) -> int:
    return math.prod(layer["shape"][layer["mask_dims"] :])


def _units(layer: Mapping[str, Any]) -> int:
    return math.prod(layer["shape"][: layer["mask_dims"]])


def _sparse_in(weights: State) -> list[str]:
    """Names of the layers that are sparse. An exported file has no masks. Its zeros tell, for training makes none."""
    if "exported" in weights:
        tensors: Mapping[str, Tensor] = weights["exported"]
        numbers = {name: value for name, value in tensors.items() if value.dim() > 1 and value.dtype in FLOATS}
        return [name for name, value in numbers.items() if _share_of_zeros(value) > 0.01]
    return [name for name, layer in weights["masks"]["layers"].items() if not _is_full(layer)]


def _share_of_zeros(value: Tensor) -> float:
    return float((value == 0).float().mean()) if value.numel() else 0.0


def _is_full(layer: Mapping[str, Any]) -> bool:
    return bool(unpack_bits(layer["mask"], _units(layer)).all())


def _text(shape: Sequence[int], mask_dims: int) -> str:
    return f"{shape_text(shape)} in units of {'x'.join(map(str, shape[mask_dims:])) or '1'}"
