"""A plain state_dict as torch.save writes it: dense tensors with zeros, under the model's own names.

It has no place for anything else: the network's input and classes stand in a file beside it (`beside`).
"""

from __future__ import annotations

import io
import json

import torch

from dynsparse.tools.export.network import ExportedNetwork

SUFFIX = ".pt"
LOADING = 'model.load_state_dict(torch.load("{path}", weights_only=True))'


def encode(network: ExportedNetwork) -> bytes:
    """Return the file's content."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return file.getvalue()


def beside(network: ExportedNetwork) -> bytes:
    """The content of FILE.json: where the network comes from, its classes, and how an image becomes its input."""
    about = {**network.facts, "input": json.loads(network.facts["input"])}
    return (json.dumps(about, indent=2) + "\n").encode()
