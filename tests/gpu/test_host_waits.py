"""The host does not wait for the GPU where it need not.

Counted by torch on a GPU; on the CPU by the calls that would have to wait there
(`benchmarks.parts.gpu.waits.host_waits`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.parts.gpu.bench import FOR_EVER, MOVING, SMALL, WRN_32, make_trainer, settings, steps
from benchmarks.parts.gpu.waits import host_waits
from tests.gpu.devices import GPU, Reallocating, everywhere

#: None reallocates in the steps of a test.
QUIET: dict[str, dict[str, Any]] = {
    "dense": {},
    "static": {},
    "dsr": {"period": FOR_EVER, "target_moves": 5},
    "set": {"period": FOR_EVER},
    "rigl": {"period": FOR_EVER},
    "sparse_momentum": {"period": FOR_EVER},
}


@everywhere
def test_masking_gradients_waits_for_nothing(device: torch.device) -> None:
    run = Reallocating("dsr", device)
    run.before(1)
    with host_waits(device) as waits:
        run.masks.mask_gradients()
    assert waits == []


@everywhere
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(QUIET))
def test_a_step_between_reallocations_waits_once(name: str, precision: str, device: torch.device) -> None:
    """The one wait is for whether loss and gradients are finite, before the optimizer's step."""
    config = settings(SMALL, {"name": name, **QUIET[name]}, train={"precision": precision, "channels_last": True})
    trainer = make_trainer(config, device)
    steps(trainer, 3)  # After which weights outside the masks are counted, once each.
    epoch = trainer.data.train.epoch()
    for _ in range(2):
        batch = next(epoch)
        with host_waits(device) as waits:
            trainer.train_step(batch)
        assert len(waits) == 1, waits
        assert trainer.progress.reallocations == 0


@everywhere
@pytest.mark.parametrize("train", [{"clip": {"norm": 0.1, "value": 0.01}}, {"optimizer": {"name": "lamb"}}], ids=str)
def test_neither_clipping_nor_lamb_waits(train: dict[str, Any], device: torch.device) -> None:
    trainer = make_trainer(settings(SMALL, {"name": "static"}, train=train), device)
    steps(trainer, 3)
    batch = next(trainer.data.train.epoch())
    with host_waits(device) as waits:
        trainer.train_step(batch)
    assert len(waits) == 1, waits


@everywhere
def test_waits_are_counted(device: torch.device) -> None:
    numbers = torch.arange(5, device=device)
    with host_waits(device) as waits:
        (numbers + 1).sum()
        torch.where(numbers > 2, numbers, 0)
        numbers.masked_fill(numbers > 2, 0)
    assert waits == []
    with host_waits(device) as waits:
        numbers.sum().item()
        numbers[numbers > 2]
        bool((numbers > 2).any())
        numbers.nonzero()
        numbers.tolist()
    assert len(waits) == 5, waits
    numbers.tolist()
    assert len(waits) == 5, "not beyond the block"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dsr", "rigl", "deepr"])
def test_a_reallocation_waits_as_often_for_many_layers_as_for_few(name: str) -> None:
    """24 and 2 layers. Random draws may take a round more or less, of two waits each."""
    waits = []
    for include in ("*.conv?.weight", "group1.0.conv?.weight"):
        config = settings(WRN_32, MOVING[name], sparsity={"include": [include]})
        trainer = make_trainer(config, GPU)
        steps(trainer, 3)
        epoch = trainer.data.train.epoch()
        batch = next(epoch)
        before = trainer.progress.reallocations
        with host_waits(GPU) as seen:
            trainer.train_step(batch)
        assert trainer.progress.reallocations == before + 1
        waits.append(len(seen))
    assert abs(waits[0] - waits[1]) <= (0 if name == "rigl" else 4), waits
