"""Tensors of the plain state_dict in a safetensors file, which tells where they come from."""

from __future__ import annotations

import json

from dynsparse.tools.export.network import ExportedNetwork, libraries

SUFFIX = ".safetensors"
LOADING = 'model.load_state_dict(safetensors.torch.load_file("{path}"))'


def encode(network: ExportedNetwork) -> bytes:
    """Return the file's content. UserError where the library is missing."""
    (safetensors,) = libraries("safetensors", "safetensors.torch")
    # "format: pt" is what readers of such files look for.
    settings = json.dumps(dict(network.settings))
    content: bytes = safetensors.save(
        network.state_dict(), metadata={"format": "pt", "settings": settings, **network.facts}
    )
    return content
