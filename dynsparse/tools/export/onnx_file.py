"""An ONNX graph: images [batch, channels, height, width] to logits [batch, classes], float32, of any batch size."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from dynsparse.errors import UserError
from dynsparse.tools.export.network import ExportedNetwork, libraries

SUFFIX = ".onnx"
LOADING = 'onnxruntime.InferenceSession("{path}").run(None, {{"images": images}})[0]'

OPSET = 18
"""Version that torch's exporter writes without conversion; ONNX Runtime 1.14 (2023) and later read it."""
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
    images = torch.zeros(2, *network.image_shape)  # Given one image, torch would take the batch size for a constant.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are torch's own: what it calls has been renamed elsewhere in torch.
        try:
            program = torch.onnx.export(
                network.model,
                (images,),
                input_names=["images"],
                output_names=["logits"],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--format onnx: torch cannot translate {network.facts['model']} ({reason})") from error
    assert program is not None
    return program.model_proto
