"""An import of torchvision that works beside a torch which its compiled part was not built for.

The package indexes carry torchvision built for CUDA; beside a CPU build of
torch its compiled operators cannot load, and importing it fails because it
registers shape functions for two operators that are then unknown. Declaring
their schemas is enough for models, data sets and transforms; none of these
calls the operators.
"""

from __future__ import annotations

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # A library's declarations end with it.


def import_torchvision() -> None:
    """Import torchvision, declaring the missing operators first where its own cannot load."""
    try:
        import torchvision
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS.values():
            library.define(schema)
        _declared.append(library)
        import torchvision  # noqa: F401
