"""A plain state_dict as torch.save writes it: dense tensors with zeros, under the model's own names."""

from __future__ import annotations

import io

import torch

from dynsparse.tools.export.network import ExportedNetwork

SUFFIX = ".pt"
LOADING = 'model.load_state_dict(torch.load("{path}", weights_only=True))'


def encode(network: ExportedNetwork) -> bytes:
    """The file's content."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return file.getvalue()
