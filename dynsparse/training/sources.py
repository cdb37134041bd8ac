"""Sources of a new run: weights and masks that it takes over from another one before its first step.

The paper's experiments need them. Pruning starts from a trained dense network. A static network copies the masks of a
dynamic one, with fresh weights or with those that the dynamic one began with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.bits import unpack_bits
from dynsparse.training import packing
from dynsparse.training.checkpoint import checkpoint_of, read_run
from dynsparse.training.exported import read_weights
from dynsparse.training.run import names

State = Mapping[str, Any]


@dataclass(frozen=True)
class Sources:
    """Contents of the checkpoints that a config's `start` section names."""

    weights: State | None = None
    masks: State | None = None
    weights_from: str = ""
    masks_from: str = ""

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
        exported: Mapping[str, Tensor] | None = self.weights.get("exported")
        if exported is not None:
            kept = packing.buffers(model)
            saved = {name: value for name, value in exported.items() if name not in kept}
            buffers = {name: value for name, value in exported.items() if name in kept}
        else:
            saved = whole_weights(self.weights)
            buffers = packing.mean_buffers([rank["buffers"] for rank in self.weights["ranks"]])
        ours = {name: _text(value.shape) for name, value in model.named_parameters()}
        theirs = {name: _text(value.shape) for name, value in saved.items()}
        _require_equal(ours, theirs, f"start.weights_from: {self.weights_from}")
        if wrong := [name for name, value in {**saved, **buffers}.items() if not value.isfinite().all()]:
            raise UserError(
                f"start.weights_from: {self.weights_from}: {wrong[0]} holds NaN or inf; "
                "take another checkpoint, or export one"
            )
        for name, parameter in model.named_parameters():
            parameter.copy_(saved[name])
        if exported is not None:
            ours = {name: _text(value.shape) for name, value in packing.buffers(model).items()}
            theirs = {name: _text(value.shape) for name, value in buffers.items()}
            _require_equal(ours, theirs, f"start.weights_from: {self.weights_from}")
        packing.unpack_buffers(model, buffers)

    def active_units(self, specs: Sequence[LayerSpec]) -> dict[str, Tensor] | None:
        """Active units of each layer in the source, int64. None without a source. UserError if layers differ."""
        if self.masks is None:
            return None
        saved = self.masks["masks"]["layers"]
        where = f"start.masks_from: {self.masks_from}"
        ours = {spec.name: _text(spec.shape, spec.mask_dims) for spec in specs}
        theirs = {name: _text(layer["shape"], layer["mask_dims"]) for name, layer in saved.items()}
        _require_equal(ours, theirs, where)
        return {
            spec.name: torch.nonzero(unpack_bits(saved[spec.name]["mask"], spec.units)).squeeze(1) for spec in specs
        }


NOTHING = Sources()


def read_sources(config: RunConfig) -> Sources:
    """Read what the config's `start` section names. UserError if it cannot be read or cannot be started from."""
    start = config.start
    weights = _read(start.weights_from, "weights_from")
    masks = _read(start.masks_from, "masks_from")
    if masks is not None and all(_is_full(layer) for layer in masks["masks"]["layers"].values()):
        raise UserError(f"start.masks_from: {start.masks_from} is dense, it has no masks to copy; name a sparse run")
    if config.method.needs_weights and weights is not None and (sparse := _sparse_in(weights)):
        raise UserError(
            f"start.weights_from: {start.weights_from} is sparse in {sparse[0]}; {config.method.name} starts from a "
            f"dense network: name a run with method dense"
        )
    return Sources(weights, masks, start.weights_from or "", start.masks_from or "")


def _read(source: str | None, key: str) -> State | None:
    if source is None:
        return None
    try:
        path = checkpoint_of(source)
        try:
            return read_run(path)
        except UserError:
            weights = _exported(path)
            if weights is None:
                raise
            if key == "masks_from":
                raise UserError(f"{path} holds weights without masks; name the run it is of") from None
            return {"exported": weights}
    except UserError as error:
        raise UserError(*(f"start.{key}: {line}" for line in error.lines)) from None


def _exported(path: Path) -> dict[str, Tensor] | None:
    """Read the weights in a file of `python -m dynsparse export`. None for other files, and for checkpoints of runs."""
    if path.parent.name == names.CHECKPOINTS:
        return None
    try:
        return read_weights(path)
    except UserError:
        if path.suffix == ".safetensors":
            raise
        return None


def missing_sources(config: RunConfig) -> list[str]:
    """A line for each entry of `start` that names a checkpoint which is not there yet."""
    named = {"weights_from": config.start.weights_from, "masks_from": config.start.masks_from}
    return [
        f"start.{key}: {source} is not there yet"
        for key, source in named.items()
        if source and not _is_there(checkpoint_of(source))
    ]


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # In a folder that may not be read, for instance: the reader tells why.
        return True
    return True


def require_sources(config: RunConfig) -> None:
    """Raise UserError for sources that are not there."""
    if missing := missing_sources(config):
        raise UserError(*(f"{line}; run it first, or name another run or checkpoint" for line in missing))


def whole_weights(saved: State) -> dict[str, Tensor]:
    """Parameters by name in full shape. Outside the masks they are 0, or the initial values where these were saved."""
    layers = saved["masks"]["layers"]
    initial = saved.get("initial_weights", {})
    whole = {}
    for name, value in saved["weights"].items():
        if name in initial:
            whole[name] = initial[name]
        elif name in layers:
            shape = layers[name]["shape"]
            units = torch.zeros(_units(layers[name]), value.shape[1])
            units[unpack_bits(layers[name]["mask"], len(units))] = value
            whole[name] = units.view(shape)
        else:
            whole[name] = value
    return whole


def _units(layer: Mapping[str, Any]) -> int:
    return math.prod(layer["shape"][: layer["mask_dims"]])


def _sparse_in(weights: State) -> list[str]:
    """Names of the layers that are sparse. An exported file has no masks. Its zeros tell, for training makes none."""
    if "exported" in weights:
        tensors: Mapping[str, Tensor] = weights["exported"]
        return [name for name, value in tensors.items() if value.dim() > 1 and _share_of_zeros(value) > 0.01]
    return [name for name, layer in weights["masks"]["layers"].items() if not _is_full(layer)]


def _share_of_zeros(value: Tensor) -> float:
    return float((value == 0).float().mean()) if value.numel() else 0.0


def _is_full(layer: Mapping[str, Any]) -> bool:
    return bool(unpack_bits(layer["mask"], _units(layer)).all())


def _require_equal(ours: Mapping[str, str], theirs: Mapping[str, str], where: str) -> None:
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{where} is of another network: {name} is {theirs.get(name, 'absent')} there, "
                f"{ours.get(name, 'absent')} here; name a run of the same model and sparsity.granularity"
            )


def _text(shape: Sequence[int], mask_dims: int | None = None) -> str:
    text = "x".join(map(str, shape))
    return text if mask_dims is None else f"{text} in units of {'x'.join(map(str, shape[mask_dims:])) or '1'}"
