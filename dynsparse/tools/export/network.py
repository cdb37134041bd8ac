"""The network of a checkpoint without its run: an ordinary module in evaluation mode, weights in full tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynsparse.errors import UserError
from dynsparse.masks.rows import by_parameter, whole_mask
from dynsparse.shrinking import compact
from dynsparse.sparse_kernels import found_patterns
from dynsparse.tools.opening import Opened, averaged, looking_up, open_checkpoint
from dynsparse.training.checkpoint import how_chosen, result_of
from dynsparse.training.network import Network
from pipelines.common.extras import install_command


@dataclass(frozen=True)
class ExportedNetwork:
    """A network, and all that a format may write of it."""

    model: nn.Module
    """The module on the CPU, in evaluation mode, contiguous. Tied weights are read from their banks."""
    masks: Mapping[str, Tensor]
    """Masks of the weights that are not full, by name: bool, of the weight's shape, True where active.

    A weight that packs several layers, as attention's query, key and value, has one mask.
    """
    settings: Mapping[str, Any]
    """The config's model section, which builds the network."""
    image_shape: tuple[int, int, int]
    classes: int
    facts: Mapping[str, str]
    """Origin, and `input` (as JSON: shape, mean, classes), for formats that have a place for it."""
    chosen: str
    """Its checkpoint, in words."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies that share no memory, row-major whatever the run trained in."""
        state: Mapping[str, Tensor] = self.model.state_dict()
        return {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}

    @property
    def dense_bytes(self) -> int:
        """Bytes of all values of the state_dict."""
        return sum(value.numel() * value.element_size() for value in self.model.state_dict().values())


def source_of(source: str) -> Path:
    """Return the checkpoint to export: the file itself, or a run's best, or its latest if none is best yet.

    UserError if there is none.
    """
    with looking_up(source):
        return result_of(source)


def take_network(path: Path, *, ema: bool = False) -> ExportedNetwork:
    """Return the network of a checkpoint, or the average of its weights. UserError as in `open_checkpoint`."""
    opened = averaged(open_checkpoint(path)) if ema else open_checkpoint(path)
    network, config = opened.network, opened.config
    parameters = dict(network.model.named_parameters())
    masks = {
        name: whole_mask(parameters[name], layers)
        for name, layers in by_parameter(network.masks).items()
        if not all(layer.is_full for layer in layers)
    }
    facts = _facts(opened)
    for layer in network.tied:
        module = network.model.get_submodule(layer.name.rpartition(".")[0])
        parametrize.remove_parametrizations(module, layer.name.rpartition(".")[2], leave_parametrized=True)
    model = network.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model.eval().requires_grad_(False)
    settings = config.as_dict()["model"]
    return ExportedNetwork(
        model,
        masks,
        settings,
        config.data.image_shape,
        config.data.classes,
        facts,
        how_chosen(opened.path, opened.saved) + ("; the average of its weights" if ema else ""),
    )


def made_compact(network: ExportedNetwork, file_format: str) -> ExportedNetwork:
    """Return the network without the channels that do nothing. Its state_dict has smaller tensors, maybe more biases.

    Raises UserError for the format csr, and for a network that cannot be made compact. One without such channels stays
    as it is.
    """
    if file_format == "csr":
        raise UserError("--compact: the format csr keeps every channel; use compact, onnx, safetensors or torch")
    before, whole = network.dense_bytes, _shapes(network.model)
    found = compact(network.model, network.image_shape)
    network.model.requires_grad_(False)
    alone = "".join(f"; {layer} is left alone, for {reason}" for layer, reason in found.left_alone.items())
    share = network.dense_bytes / before
    said = f"{len(found.layers)} layers are smaller, {share:.3f} of the bytes; outputs differ by {found.difference:.0e}"
    changed = {name: shape for name, shape in _shapes(network.model).items() if shape != whole.get(name)}
    shapes = {**json.loads(network.facts.get("shapes", "{}")), **changed}
    facts = {**network.facts, "compact": f"{said}{alone}", "shapes": json.dumps(shapes)}
    return replace(network, masks={}, facts=facts)


def with_two_of_four(network: ExportedNetwork) -> ExportedNetwork:
    """Return the network with the layers of 2:4 weights among its facts, as JSON, if it has any.

    `layers`: weights with at most 2 of each 4 inputs; `others`: the other layers, with what is in the way.
    """
    found = found_patterns(network.model)
    if not found.layers:
        return network
    told = json.dumps({"layers": list(found.layers), "others": dict(found.others)})
    return replace(network, facts={**network.facts, "two_of_four": told})


def _facts(opened: Opened) -> dict[str, str]:
    network, config, top1 = opened.network, opened.config, opened.test_top1
    return {
        "run": config.run_name,
        "model": config.model.name,
        "method": config.method.name,
        "step": str(opened.step),
        "test_top1": "" if top1 is None else f"{top1:.2f}",
        "active_weights": str(network.active_weights),
        "sparsity": f"{network.sparsity:.6f}",
        "model_sparsity": f"{network.model_sparsity:.6f}",
        "input": json.dumps(opened.input),
        "tied": str(bool(network.tied)).lower(),
        "mask_digest": opened.mask_digest,
        "weight_digest": opened.weight_digest,
        "dynsparse": str(opened.saved["versions"]["dynsparse"]),
        **_shrunk(network),
    }


def _shrunk(network: Network) -> dict[str, str]:
    """Return what has become of a network that lost channels while it trained, and the shapes of what it lost from."""
    if network.start is None:
        return {}
    whole = _shapes(network.start.model)
    shapes = {name: shape for name, shape in _shapes(network.model).items() if shape != whole.get(name)}
    return {"shrunk": network.shrunk_line, "shapes": json.dumps(shapes)}


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    """Return the shape of each tensor of a model's state_dict."""
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def libraries(file_format: str, *names: str) -> Sequence[Any]:
    """Import the packages that a format needs beside torch. UserError if one is not installed."""
    try:
        return [import_module(name) for name in names]
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format {file_format} needs {error.name}, which is not installed; "
            f"{install_command('export')}, or make setup"
        ) from None
