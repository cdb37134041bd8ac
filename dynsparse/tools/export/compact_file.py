"""The network as a program of torch.export, which torch alone loads: images to logits, float32, of any batch size.

A state_dict would not do: no class of the network builds one with some of its channels gone.
"""

from __future__ import annotations

import io
import json

import torch

from dynsparse.errors import UserError
from dynsparse.tools.export.network import ExportedNetwork

SUFFIX = ".pt2"
LOADING = 'torch.export.load("{path}").module()(images)'


def encode(network: ExportedNetwork) -> bytes:
    """Return the file's content. Raises UserError where torch cannot make a program of the network."""
    images = torch.zeros(2, *network.image_shape)
    try:
        program = torch.export.export(network.model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # As many kinds as there are networks.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"--format compact: torch cannot translate {network.facts['model']} ({reason})") from error
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"facts.json": json.dumps(dict(network.facts))})
    return file.getvalue()
