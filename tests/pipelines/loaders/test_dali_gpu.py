"""The wheel of DALI that serves a GPU is named in one line, before DALI fails in many."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest

from pipelines.base import Request
from pipelines.common.errors import UserError
from pipelines.datasets.synthetic import SyntheticSettings
from pipelines.loaders.dali_gpu import driver, refused
from pipelines.loaders.registry import loader
from pipelines.order import Share

V100 = (
    "the installed DALI (nvidia-dali-cuda130) cannot use Tesla V100: it has compute capability 7.0, and this wheel "
    "needs 7.5; pip install nvidia-dali-cuda120 in its place, or set data.loader: torch"
)
OLD_DRIVER = (
    "the installed DALI (nvidia-dali-cuda130) cannot use NVIDIA A100: its driver knows CUDA 12.4, and this wheel needs "
    "13.0; pip install nvidia-dali-cuda120 in its place, or set data.loader: torch"
)
OLDER_DRIVER = (
    "the installed DALI (nvidia-dali-cuda120) cannot use NVIDIA A100: its driver knows CUDA 11.8, and this wheel needs "
    "12.0; install a newer driver, or set data.loader: torch"
)


@pytest.mark.parametrize(
    ("cuda", "name", "capability", "known", "expected"),
    [
        (13, "NVIDIA H100", (9, 0), 13000, None),
        (13, "NVIDIA H100", (9, 0), 13010, None),
        (13, "Tesla T4", (7, 5), 13000, None),
        (13, "NVIDIA H100", (9, 0), None, None),
        (13, "Tesla V100", (7, 0), 13000, V100),
        (12, "Tesla V100", (7, 0), 12080, None),
        (13, "NVIDIA A100", (8, 0), 12040, OLD_DRIVER),
        (12, "NVIDIA A100", (8, 0), 13000, None),
        (12, "NVIDIA A100", (8, 0), 11080, OLDER_DRIVER),
        (13, "NVIDIA A100", (8, 0), 11080, OLDER_DRIVER.replace("120", "130").replace("12.0;", "13.0;")),
    ],
)
def test_refusals(cuda: int, name: str, capability: tuple[int, int], known: int | None, expected: str | None) -> None:
    assert refused(cuda, name, capability, known) == expected


def test_a_machine_without_a_driver_has_no_version() -> None:
    with patch("ctypes.CDLL", side_effect=OSError):
        assert driver() is None


def made(**settings: Any) -> object:
    request = Request(0, 8, Share(), 8, device_id=0)
    return loader(SyntheticSettings(name="synthetic", **settings), request)


@pytest.mark.parametrize("built_for", [1302, 13492, 13000])
def test_a_run_is_refused_with_dali_and_goes_on_with_torch(built_for: int) -> None:
    with (
        patch("torch.cuda.get_device_name", lambda device: "Tesla V100"),
        patch("torch.cuda.get_device_capability", lambda device: (7, 0)),
        patch("pipelines.loaders.dali_gpu.driver", lambda: 13000),
        patch("pipelines.loaders.dali_loader.BUILT_FOR", built_for),
    ):
        with pytest.raises(UserError) as raised:
            made(loader="dali")
        assert str(raised.value) == V100
        assert made(loader="torch")
