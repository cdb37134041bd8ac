"""The host does not wait for the GPU where it need not.

Counted by torch on a GPU; on the CPU by the calls that would have to wait there
(`benchmarks.parts.gpu.waits.host_waits`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.parts.gpu.bench import FOR_EVER, MOVING, SMALL, WRN_32, make_trainer, settings, steps
from benchmarks.parts.gpu.waits import host_waits
from pipelines.loaders.torch_views import made_of
from pipelines.views import RandomCrop
from tests.gpu.devices import CPU, GPU, Reallocating, everywhere

#: None reallocates in the steps of a test.
QUIET: dict[str, dict[str, Any]] = {
    "dense": {},
    "static": {},
    "dsr": {"period": FOR_EVER, "target_moves": 5},
    "set": {"period": FOR_EVER},
    "rigl": {"period": FOR_EVER},
    "sparse_momentum": {"period": FOR_EVER},
    "topkast": {"period": FOR_EVER},
}


@everywhere
def test_masking_gradients_waits_for_nothing(device: torch.device) -> None:
    run = Reallocating("dsr", device)
    run.before(1)
    with host_waits(device) as waits:
        run.masks.mask_gradients()
    assert waits == []


@everywhere
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", sorted(QUIET))
def test_a_step_between_reallocations_does_not_wait(name: str, precision: str, device: torch.device) -> None:
    """One wait is left on a processor: are all gradients finite?"""
    config = settings(SMALL, {"name": name, **QUIET[name]}, train={"precision": precision, "channels_last": True})
    trainer = make_trainer(config, device)
    steps(trainer, 3)  # After which weights outside the masks are counted, once each.
    epoch = trainer.data.train.epoch()
    for _ in range(2):
        batch = next(epoch)
        with host_waits(device) as waits:
            trainer.train_step(batch)
        assert len(waits) == (device == CPU), waits
        assert trainer.progress.reallocations == 0


@everywhere
def test_batches_that_are_made_on_the_device_wait_for_nothing(device: torch.device) -> None:
    """Images in the device's memory, with random crops, whose places come from the host."""
    view = RandomCrop((6, 6), (2, 2))
    images = torch.randint(256, (20, 8, 8, 3), dtype=torch.uint8).to(device)
    places = torch.arange(6).to(device)
    numbers = view.numbers(np.random.default_rng(0).random((6, view.uniforms)))
    with host_waits(device) as waits:
        found = made_of(view, images, places, numbers)
    assert waits == []
    assert found.shape == (6, 3, 6, 6)


@everywhere
@pytest.mark.parametrize("train", [{"clip": {"norm": 0.1, "value": 0.01}}, {"optimizer": {"name": "lamb"}}], ids=str)
def test_neither_clipping_nor_lamb_waits(train: dict[str, Any], device: torch.device) -> None:
    trainer = make_trainer(settings(SMALL, {"name": "static"}, train=train), device)
    steps(trainer, 3)
    batch = next(trainer.data.train.epoch())
    with host_waits(device) as waits:
        trainer.train_step(batch)
    assert len(waits) == (device == CPU or "optimizer" in train), waits


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_whole_steps_of_a_trainer_wait_for_nothing(precision: str) -> None:
    """Steps include the fetch of their data, and all options are on: torch raises an error at the first wait."""
    train = {
        "precision": precision,
        "clip": {"norm": 0.1},
        "ema": {"decay": 0.9},
        "optimizer": {"name": "adamw"},
    }
    trainer = make_trainer(settings(SMALL, {"name": "set", "period": FOR_EVER}, train=train), GPU)
    trainer.engine.precision.load_state_dict({**trainer.engine.precision.state_dict(), "scale": 1.0})
    batches = trainer.steps()
    for _ in range(4):
        trainer.train_step(next(batches))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            trainer.train_step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.outcomes.catch_up()
    assert trainer.progress.skipped_in_a_row == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["static", "sparse_momentum", "topkast"])
def test_a_bad_step_on_a_gpu_leaves_no_trace_though_nobody_waits(name: str) -> None:
    train = {"clip": {"norm": 0.1}, "ema": {"decay": 0.9}, "optimizer": {"name": "adamw"}}
    trainer = make_trainer(settings(SMALL, {"name": name, **QUIET[name]}, train=train), GPU)
    steps(trainer, 4)
    ((images, labels),) = next(trainer.data.train.epoch())
    assert trainer.ema is not None
    parts = [trainer.model.state_dict(), trainer.ema.model.state_dict(), *trainer.optimizer.state.values()]
    method = trainer.sparse.method
    reserves = [] if method.reserve is None else method.reserve.layers.values()
    tensors = [value for part in parts for value in part.values()]
    tensors += [value for layer in trainer.masks for value in method.learnt(layer)]
    tensors += [value for part in reserves for value in part.tensors()]
    before = [tensor.clone() for tensor in tensors]
    with host_waits(GPU) as waits:
        trainer.train_step([(images * torch.nan, labels)])
    assert waits == []
    assert all(map(torch.equal, before, tensors))
    trainer.outcomes.catch_up()
    assert (trainer.progress.skipped_steps, trainer.ema.updates) == (1, 4)


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
