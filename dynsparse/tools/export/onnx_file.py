"""An ONNX graph: images [batch, channels, height, width] to logits [batch, classes], float32, of any batch size."""

from __future__ import annotations

from typing import Any

import torch

from dynsparse.errors import UserError
from dynsparse.inference.onnx_graph import onnx_graph
from dynsparse.tools.export.network import ExportedNetwork, libraries

SUFFIX = ".onnx"
LOADING = 'onnxruntime.InferenceSession("{path}").run(None, {{"images": images}})[0]'

_MOST_BYTES = 2**31 - 2**24
"""A protobuf message ends at 2 GiB; the graph takes some of it."""


def encode(network: ExportedNetwork) -> bytes:
    """Return the file's content. UserError for a missing library, and for a network that is too large or torch refuses.

    Torch's exporter multiplies BatchNorm into the convolutions and linear layers: other values than the checkpoint's,
    zeros where they were.
    """
    onnx, _ = libraries("onnx", "onnx", "onnxscript")
    if network.dense_bytes > _MOST_BYTES:
        raise UserError(f"--format onnx: {network.dense_bytes:,} bytes of weights; a file holds 2 GiB: use safetensors")
    proto = _translate(network)
    onnx.helper.set_model_props(proto, network.facts)
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString()
    return content


def _translate(network: ExportedNetwork) -> Any:
    try:
        return onnx_graph(network.model, torch.zeros(1, *network.image_shape))
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--format onnx: torch cannot translate {network.facts['model']} ({reason})") from error
