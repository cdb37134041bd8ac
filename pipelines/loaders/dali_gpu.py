"""GPUs and drivers that the installed DALI serves. There is a wheel for each version of CUDA."""

from __future__ import annotations

import ctypes

import torch

from pipelines.common.errors import UserError

LEAST_CAPABILITY = {13: (7, 5)}
"""Oldest compute capability of a GPU, by CUDA's version: CUDA 13 serves none before Turing, such as V100 (7.0)."""
ELSE = "or set data.loader: torch"


def require_served(device: int, built_for: int) -> None:
    """Raise UserError in one line if a DALI built for this version of CUDA cannot use a GPU.

    DALI gives the version's digits without their dots: 1302 for 13.0.2, and 13492 for 13.4.92.
    """
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if refusal := refused(int(str(built_for)[:2]), name, capability, driver()):
        raise UserError(refusal)


def driver() -> int | None:
    """Return the newest version of CUDA that the driver knows, such as 13000; None where there is no driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if failed else version.value


def refused(cuda: int, name: str, capability: tuple[int, int], known: int | None) -> str | None:
    """Say why DALI's wheel for this CUDA, such as 13, cannot use a GPU, and which wheel to take; None if it can."""
    wheel = f"the installed DALI (nvidia-dali-cuda{cuda}0)"
    least = LEAST_CAPABILITY.get(cuda, (0, 0))
    if capability < least:
        needs = f"it has compute capability {_dotted(capability)}, and this wheel needs {_dotted(least)}"
    elif known is not None and known // 1000 < cuda:
        needs = f"its driver knows CUDA {known // 1000}.{known % 1000 // 10}, and this wheel needs {cuda}.0"
    else:
        return None
    older = cuda > 12 and (known is None or known >= 12000)
    remedy = "pip install nvidia-dali-cuda120 in its place" if older else "install a newer driver"
    return f"{wheel} cannot use {name}: {needs}; {remedy}, {ELSE}"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
