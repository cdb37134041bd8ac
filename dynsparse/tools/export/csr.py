"""Sparse layers as CSR matrices: a file that shrinks with the density, and linear layers that skip the zeros.

`load` gives the network back:

    from dynsparse.tools.export.csr import load
    model = load("digits_dsr.csr.pt")
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.inference.csr_layers import SparseLinear, csr_parts
from dynsparse.models import AnyModel, ModelSettings
from dynsparse.tools.export.network import ExportedNetwork
from dynsparse.training.checkpoint.limits import DamagedError
from dynsparse.training.exported import CSR_FORMAT, dense_of, matrices, read_csr

SUFFIX = ".csr.pt"
LOADING = 'from dynsparse.tools.export import csr; model = csr.load("{path}")'

RUN_FROM, RUN_BELOW = 100_000, 0.15
"""Weights and density of the linear layers that run as CSR, from between what was measured (docs/results/csr.md).

Of 30,000 weights they are mostly slower than dense, of 235,000 mostly faster; at a density of 0.1 mostly faster, at 0.2
not.
"""


def encode(network: ExportedNetwork) -> bytes:
    """Return the file's content: plain data and tensors, which `torch.load(weights_only=True)` opens.

    A sparse layer is a matrix [out, in], a convolution [out, in x height x width], with int32 indices: 8 bytes for each
    active weight, those at 0 included. Where that is no less than the dense tensor takes, it stays dense, as all else
    does. UserError if that leaves no layer.
    """
    if "shrunk" in network.facts:
        raise UserError(
            "--format csr: the run has shrunk, and the file is loaded into the whole network; use compact, onnx, "
            "safetensors or torch"
        )
    state = network.state_dict()
    sparse = {name: mask for name, mask in network.masks.items() if 2 * int(mask.count_nonzero()) < mask.numel()}
    if not sparse:
        tied = network.facts["tied"] == "true"
        why = "tied weights share values and are not 0" if tied else "no layer is sparser than a half"
        raise UserError(f"--format csr: {why}: CSR would be larger than dense; use torch or safetensors")
    content = {
        "format": CSR_FORMAT,
        "model": dict(network.settings),
        "image_shape": list(network.image_shape),
        "classes": network.classes,
        "facts": dict(network.facts),
        "shapes": {name: list(state[name].shape) for name in sparse},
        "sparse": {name: csr_parts(state[name].flatten(1), mask.flatten(1)) for name, mask in sparse.items()},
        "dense": {name: value for name, value in state.items() if name not in sparse},
    }
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def load(path: str | Path, *, run_sparse: bool = True) -> nn.Module:
    """Return the network in a file that `encode` wrote, in evaluation mode, on the CPU. UserError for other files.

    Large linear layers of low density multiply CSR matrices (RUN_FROM, RUN_BELOW). All else has dense tensors,
    convolutions too: torch has no sparse ones. Without `run_sparse` it is the ordinary module, to be moved or trained.
    """
    content = read_csr(Path(path))
    try:
        settings: ModelSettings = TypeAdapter(AnyModel).validate_python(content["model"])
        with torch.device("meta"):  # Takes no memory: the file may ask for any.
            shapes = {name: list(value.shape) for name, value in _build(settings, content).state_dict().items()}
        whole = {**content["dense"], **dense_of(content, Path(path).stat().st_size)}
        if shapes != {name: list(value.shape) for name, value in whole.items()}:
            raise DamagedError("its weights are not of its model")
        model = _build(settings, content)
        model.load_state_dict(whole)
    except (DamagedError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}); export anew") from None
    if run_sparse and torch.backends.mkl.is_available():  # Measured with MKL alone.
        for name, matrix in matrices(content).items():
            if name.endswith(".weight"):  # Attention's packed weight is no module's.
                _run_sparse(model, name.removesuffix(".weight"), matrix)
    return model.eval()


def _build(settings: ModelSettings, content: dict[str, Any]) -> nn.Module:
    return settings.build(tuple(content["image_shape"]), content["classes"])


def _run_sparse(model: nn.Module, path: str, matrix: Tensor) -> None:
    """Replace an nn.Linear that is large and sparse. Other classes, such as attention, read weights past `forward`."""
    layer = model.get_submodule(path)
    weights, active = matrix.numel(), matrix.values().numel()
    if type(layer) is nn.Linear and weights >= RUN_FROM and active <= RUN_BELOW * weights:
        bias = None if layer.bias is None else layer.bias.detach()
        model.set_submodule(path, SparseLinear(matrix, bias))
