"""Programs that run a network in place of torch: each makes a module of it that takes and gives the same tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.inference.onnx_graph import IMAGES, onnx_graph
from pipelines.common.extras import install_command

TORCH = "torch"
_COLOUR = re.compile(r"\x1b\[\d*m")


class OnnxRuntimeNetwork(nn.Module):
    """A network in ONNX Runtime, on the CPU: float32 to float32, of any batch size."""

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        runtime = _library("onnxruntime", "onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        (logits,) = self.session.run(None, {IMAGES: images.detach().contiguous().numpy()})
        return torch.from_numpy(logits)


class OpenVinoNetwork(nn.Module):
    """A network in OpenVINO, on the CPU: float32 to float32, of any batch size."""

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        core = _library("openvino", "openvino").Core()
        # float32: on processors with AMX it would compute in bfloat16.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.network = core.compile_model(core.read_model(graph), "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        logits = self.network(images.detach().contiguous().numpy())[0]
        return torch.from_numpy(logits).clone()  # The next call writes to the same memory.


def _in_onnxruntime(network: nn.Module, example: Tensor) -> nn.Module:
    return OnnxRuntimeNetwork(onnx_graph(network, example).SerializeToString())


def _in_openvino(network: nn.Module, example: Tensor) -> nn.Module:
    return OpenVinoNetwork(onnx_graph(network, example).SerializeToString())


def _by_inductor(network: nn.Module, example: Tensor) -> nn.Module:
    """Compile with weights as constants, so that BatchNorm goes into the convolutions. It needs a C++ compiler."""
    compiled: nn.Module = torch.compile(network, options={"freezing": True})  # type: ignore[assignment]
    with torch.no_grad():
        compiled(example)
    return compiled


ENGINES: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "inductor": _by_inductor,
    "onnxruntime": _in_onnxruntime,
    "openvino": _in_openvino,
}
"""Makers by the words for `through`. All but inductor run on the CPU alone."""
_LIBRARIES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}


def require_libraries(through: str) -> None:
    """Raise UserError for a package that is not installed."""
    for name in _LIBRARIES.get(through, ()):
        _library(through, name)


def made(through: str, network: nn.Module, example: Tensor) -> nn.Module:
    """Return the network as another program runs it. Raises UserError where that program cannot take it."""
    try:
        return ENGINES[through](network, example)
    except UserError:
        raise
    except Exception as error:  # As many kinds as there are networks.
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        reason = _COLOUR.sub("", first).rstrip(".")
        raise UserError(f"speed_up: {through} cannot run the network ({reason}); use through='torch'") from error


def _library(through: str, name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"speed_up: through='{through}' needs {error.name}, which is not installed; {install_command(through)}"
        ) from None
