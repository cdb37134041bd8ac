"""The teacher of a run: a trained network, in evaluation mode, that is never trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import exists
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.config.loading import parse
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.shrinking.kept import shrinkages_in
from dynsparse.training import packing
from dynsparse.training.checkpoint import read_run, result_of
from dynsparse.training.checkpoint.format import checksum
from dynsparse.training.compatibility import require_same_layers, require_same_shapes
from dynsparse.training.exported import read_weights
from dynsparse.training.judged import judged
from dynsparse.training.network import build_network
from dynsparse.training.network_input import differing_class
from dynsparse.training.run import names
from dynsparse.training.sizes import refused_size, training_shape
from pipelines.settings import DataSetSettings

State = Mapping[str, Any]
_PARTS = ("config", "masks", "weights", "ranks", "input")


class Teacher:
    """Gives logits of images. It has no gradients, and is the same on every rank and in every session."""

    def __init__(self, model: nn.Module, *, channels_last: bool = False) -> None:
        self.digest = checksum({name: value.contiguous() for name, value in model.state_dict().items()})
        """SHA-256 of weights and buffers, by which a resume knows its teacher."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=layout).requires_grad_(False).eval()  # type: ignore[call-overload]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, float32 [batch, classes]. Runs in the precision of the caller's autocast."""
        logits: Tensor = self.model(images)
        return logits.float()


@dataclass(frozen=True)
class TeacherSource:
    """The content of the file that `train.teacher.source` names, on the CPU."""

    where: str
    """Setting and path, for messages."""
    saved: State | None
    """Parts of a run's checkpoint that make its network; None for weights alone."""
    weights: Mapping[str, Tensor]
    """A state_dict, where there is no more."""

    @property
    def input(self) -> State:
        """Input and classes of the teacher (`network_input`), as far as its file tells them."""
        found: State | None = None if self.saved is None else self.saved.get("input")
        return found or {}


def read_source(config: RunConfig) -> TeacherSource | None:
    """Read the config's teacher. None if it has none; UserError if it cannot be read."""
    asked = config.train.teacher
    if asked is None:
        return None
    try:
        saved, weights = _read(result_of(asked.source))
    except UserError as error:
        raise UserError(*(f"train.teacher.source: {line}" for line in error.lines)) from None
    return TeacherSource(f"train.teacher.source: {asked.source}", saved, weights)


def _read(path: Path) -> tuple[State | None, Mapping[str, Tensor]]:
    """Return what a checkpoint knows of its network; or None, and the weights of a file that holds no more."""
    try:
        saved = judged(read_run(path))
    except UserError:
        if path.parent.name == names.CHECKPOINTS or not path.is_file():
            raise
        return None, read_weights(path)
    return {key: saved[key] for key in _PARTS if key in saved}, {}


def require_there(config: RunConfig) -> None:
    """Raise UserError for a teacher whose file is not there. Reads none of it."""
    asked = config.train.teacher
    if asked is not None and not exists(asked.source):
        raise UserError(
            f"train.teacher.source: {asked.source} is not there; name a run's folder, a checkpoint or exported weights"
        )


def build_teacher(config: RunConfig, source: TeacherSource) -> Teacher:
    """Build the teacher on the CPU. UserError if it has other classes, other images, or weights that do not fit."""
    model = _of_weights(config, source) if source.saved is None else _of_run(config, source, source.saved)
    if wrong := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        raise UserError(f"{source.where}: {wrong[0]} holds NaN or inf; take another checkpoint")
    if (found := refused_size(config, model)) is not None:
        phase, reason = found
        raise _other_images(config, source, phase.first, f"{config.train.since(phase)} ({reason})")
    return Teacher(model, channels_last=config.train.channels_last)


def _of_run(config: RunConfig, source: TeacherSource, saved: State) -> nn.Module:
    """Build a run's network with its masks, its weights, and the mean of its ranks' buffers."""
    theirs = _config_of(source, saved)
    _require_same_classes(source, theirs.data.classes, config.data.classes)
    if theirs.data.image_shape != training_shape(config, 0):  # Many networks take images of any size.
        theirs = theirs.model_copy(update={"data": _training_data(config)})
    try:
        network = build_network(theirs, torch.device("cpu"), shrinkages=shrinkages_in(saved))
        require_same_shapes(saved, network.model)
        require_same_layers(saved, theirs, network.model, network.masks)
    except UserError:
        raise _other_images(config, source, 0) from None
    network.masks.load_state_dict(saved["masks"])
    packing.unpack_weights(network.model, network.masks, saved["weights"])
    packing.unpack_buffers(network.model, packing.mean_buffers([rank["buffers"] for rank in saved["ranks"]]))
    return copy.deepcopy(network.model)  # Free of the masks, and of all that hangs on its weights.


def _training_data(config: RunConfig) -> DataSetSettings:
    """Return the settings of the data with the size of the first training images, which need not be that of others."""
    size = config.train.size_at(0)
    return config.data if size is None else config.data.model_copy(update={"image_size": size})


def _other_images(config: RunConfig, source: TeacherSource, epoch: int, why: str = "") -> UserError:
    shape = "x".join(map(str, training_shape(config, epoch)))
    return UserError(
        f"{source.where}: its network does not take this run's images, {shape}{why}; "
        f"name a teacher that was trained on images of this shape"
    )


def _config_of(source: TeacherSource, saved: State) -> RunConfig:
    try:
        return parse(saved["config"], source=f"{source.where}: its config", run_code=False)
    except UserError as error:
        raise UserError(f"{error.lines[0]}; written by another version of dynsparse: export it with that") from None


def _of_weights(config: RunConfig, source: TeacherSource) -> nn.Module:
    """Build the network that is trained, with the weights of a file: it does not say which network they are of."""
    model = config.model.build(config.data.image_shape, config.data.classes)
    ours, theirs = (
        {name: tuple(value.shape) for name, value in at.items()} for at in (model.state_dict(), source.weights)
    )
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{source.where}: is of another network, or of other classes: {name} is {_text(theirs.get(name))} "
                f"there, {_text(ours.get(name))} here; name a checkpoint of its run, which says which network it is"
            )
    model.load_state_dict(dict(source.weights))
    return model


def _require_same_classes(source: TeacherSource, theirs: int, ours: int) -> None:
    if theirs != ours:
        raise UserError(
            f"{source.where}: has {theirs} classes, this run's data have {ours}; name a teacher of the same classes"
        )


def require_same_input(source: TeacherSource, ours: State) -> None:
    """Raise UserError for a teacher of classes or pixel values other than this run's, as far as both are known."""
    theirs = source.input
    mine, other = ours["class_names"], theirs.get("class_names", ())
    if (number := differing_class(mine, other)) is not None:
        raise UserError(
            f"{source.where}: its class {number} is {other[number]}, and {mine[number]} in this run's data; name a "
            f"teacher of the same classes"
        )
    for key in ("mean", "std"):
        if None not in (theirs.get(key), ours[key]) and theirs[key] != ours[key]:
            raise UserError(
                f"{source.where}: was trained on images normalised with {key} {theirs[key]}, this run's have "
                f"{ours[key]}; name a teacher of the same data"
            )


def require_same_teacher(saved: State, digest: str | None) -> None:
    """Raise UserError if a checkpoint was trained with another teacher, or with none, or with one that is gone."""
    theirs = saved.get("teacher")
    if theirs == digest:
        return
    before, now = ("no teacher" if one is None else f"a teacher (digest {one[:12]})" for one in (theirs, digest))
    raise UserError(
        f"the checkpoint was trained with {before}, this run has {now}: resume with the same train.teacher.source, or "
        f"start a new run from its weights (start.weights_from)"
    )


def _text(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"
