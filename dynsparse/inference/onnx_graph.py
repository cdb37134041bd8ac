"""The ONNX graph of a network."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

IMAGES, LOGITS = "images", "logits"
"""Names of the graph's input and output."""
OPSET = 18
"""Version that torch's exporter writes without conversion; ONNX Runtime 1.14 (2023) and later read it."""


def onnx_graph(network: nn.Module, images: Tensor) -> Any:
    """Return an onnx.ModelProto of a network in evaluation mode, float32, of any batch size.

    `images` is a batch of the input; the values do not matter. Raises torch.onnx.OnnxExporterError where torch cannot
    translate the network.
    """
    two = images[:1].expand(2, *images.shape[1:]).contiguous()  # torch would take a batch size of 1 for a constant.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are torch's own: what it calls has been renamed elsewhere in torch.
        program = torch.onnx.export(
            network,
            (two,),
            input_names=[IMAGES],
            output_names=[LOGITS],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto
