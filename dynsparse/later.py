"""Small numbers on their way from a device to the host, which goes on with its work meanwhile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_far(device: torch.device) -> bool:
    """Whether the host waits for all that the device has still to do when it reads a number there."""
    return device.type == "cuda"


class Later:
    """Copy of a small tensor, as it is when the device gets here, for the host to read some time later."""

    def __init__(self, values: Tensor) -> None:
        """Queue the copy. The host waits for nothing."""
        self._copy = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=values.is_cuda)
        self._copy.copy_(values, non_blocking=True)
        self._arrived = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def read(self) -> Any:
        """Return the values, as `tolist` does. Waits for the copy, and for nothing that was queued after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy.tolist()
