"""Training steps on each device: precision, compilation, checkpoints, the hook of the active gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.parts.gpu.bench import MOVING, SMALL, is_zero_outside, make_trainer, settings, steps
from dynsparse.determinism import deterministic
from dynsparse.distributed.allreduce import ActiveAllReduce
from dynsparse.training.checkpoint import read, write
from tests.gpu.devices import CPU, GPU, Reallocating, everywhere, images_and_labels


@everywhere
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", sorted(MOVING))
def test_losses_are_finite_and_weights_stay_inside(method: str, precision: str, device: torch.device) -> None:
    trainer = make_trainer(settings(SMALL, MOVING[method], train={"precision": precision}), device)
    losses = steps(trainer, 8)
    assert all(map(math.isfinite, losses))
    assert trainer.progress.reallocations >= 3
    assert is_zero_outside(trainer)
    trainer.masks.check()
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@everywhere
@pytest.mark.parametrize("method", sorted(MOVING))
def test_deterministic_steps_repeat_to_the_bit(method: str, device: torch.device) -> None:
    """No operation of a step or of a reallocation lacks a deterministic algorithm, and clipping has one too."""
    train = {"precision": "bf16", "channels_last": True, "clip": {"norm": 0.5}}
    config = settings(SMALL, MOVING[method], train=train)
    with deterministic(True):
        first, second = make_trainer(config, device), make_trainer(config, device)
        assert steps(first, 8) == steps(second, 8)
    assert first.progress.reallocations >= 3
    for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@everywhere
def test_fp16_finds_its_scale(device: torch.device) -> None:
    """Steps are skipped and counted, and change nothing, until the scale no longer makes every gradient overflow."""
    trainer = make_trainer(settings(SMALL, MOVING["dsr"], train={"precision": "fp16"}), device)
    trainer.engine.precision.load_state_dict({**trainer.engine.precision.state_dict(), "scale": 2.0**60})
    before = [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.dim() == 1]
    steps(trainer, 1)
    after = [parameter.detach() for parameter in trainer.model.parameters() if parameter.dim() == 1]
    assert trainer.progress.skipped_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    steps(trainer, 60)
    trainer.outcomes.catch_up()
    assert 1 < trainer.progress.skipped_steps < 60
    assert trainer.progress.skipped_in_a_row == 0
    assert is_zero_outside(trainer)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._inductor.config.compile_threads = 1
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    "device", [pytest.param(CPU, marks=pytest.mark.slow), pytest.param(GPU, marks=pytest.mark.gpu)], ids=str
)
def test_compiled_once(device: torch.device) -> None:
    """Whatever moves, for three methods in turn. Losses as without, but for the order of sums."""
    for method in MOVING.values():
        compiled, plain = (
            make_trainer(settings(SMALL, method, train={"compile": compiled}), device) for compiled in (True, False)
        )
        assert steps(compiled, 8) == pytest.approx(steps(plain, 8), rel=1e-4)
        assert compiled.progress.reallocations >= 4
        assert is_zero_outside(compiled)
    assert counters["stats"]["unique_graphs"] == 1, "one for all: the networks are alike"
    assert not counters["graph_break"]


@everywhere
@pytest.mark.parametrize("method", sorted(MOVING))
def test_a_checkpoint_holds_the_state_to_the_bit(method: str, device: torch.device, tmp_path: Path) -> None:
    config = settings(SMALL, MOVING[method], train={"precision": "bf16", "channels_last": True})
    first, second = make_trainer(config, device), make_trainer(config, device)
    steps(first, 5)
    write(tmp_path / "saved.pt", first.run.save([first.run.of_this_rank()]))
    second.load(read(tmp_path / "saved.pt"))
    for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.device == theirs.device
        moments, others = first.optimizer.state[ours], second.optimizer.state[theirs]
        assert moments.keys() == others.keys()
        assert all(torch.equal(moments[key], others[key]) for key in moments if isinstance(moments[key], Tensor))
    for one, other in zip(first.masks, second.masks, strict=True):
        assert torch.equal(one.active, other.active)
        assert torch.equal(one.explored, other.explored)
    assert steps(second, 1)[0] == pytest.approx(steps(first, 1)[0], rel=1e-5)


@pytest.fixture
def _one_rank(device: torch.device, tmp_path: Path) -> Iterator[None]:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
@everywhere
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_active_gradients_of_one_rank(layout: torch.memory_format, device: torch.device) -> None:
    """Over NCCL on a GPU: with the hook, those of plain DDP after masking, to the bit; at less than half the bytes.

    Of given gradients: cuDNN need not give the same ones twice.
    """
    ways = {way: Reallocating("static", device) for way in ("dense", "active")}
    modules: dict[str, DistributedDataParallel] = {}
    for way, run in ways.items():
        run.model.to(memory_format=layout)  # type: ignore[call-overload]
        ids = [0] if device == GPU else None
        modules[way] = DistributedDataParallel(Given(run.model), device_ids=ids, gradient_as_bucket_view=True)
    hook = ActiveAllReduce(ways["active"].masks)
    hook.register(modules["active"])
    sent = 0
    for number in range(3):  # Buckets are laid out anew after the first.
        torch.manual_seed(number)
        gradients = [torch.randn_like(parameter) for parameter in ways["dense"].model.parameters()]
        for way, run in ways.items():
            run.model.zero_grad()
            modules[way](gradients).backward()
        outside = [~layer.mask for layer in ways["active"].masks]
        layers = ways["active"].masks.layers
        assert not any(layer.weight.grad[out].any() for layer, out in zip(layers, outside, strict=True))  # type: ignore[index]
        ways["dense"].masks.mask_gradients()
        for ours, theirs in zip(ways["active"].model.parameters(), ways["dense"].model.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
        counted, sent = hook.bytes_sent - sent, hook.bytes_sent
        assert 0 < counted < 0.5 * 4 * sum(gradient.numel() for gradient in gradients)


class Given(nn.Module):
    """A model whose loss has just the gradients that it is given; with images, the model itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, gradients: list[Tensor]) -> Tensor:
        pairs = zip(self.model.parameters(), gradients, strict=True)
        return torch.stack([(weight * gradient).sum() for weight, gradient in pairs]).sum()


@pytest.mark.usefixtures("_one_rank")
@everywhere
def test_the_hook_in_a_whole_step(device: torch.device) -> None:
    """Forward and backward of images under bf16 autocast: gradients finite, and 0 outside the masks."""
    run = Reallocating("static", device)
    module = DistributedDataParallel(run.model, device_ids=[0] if device == GPU else None, gradient_as_bucket_view=True)
    ActiveAllReduce(run.masks).register(module)
    images, labels = images_and_labels(device)
    for _ in range(3):
        run.model.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = module(images)
        functional.cross_entropy(logits.float(), labels).backward()
        for layer in run.masks:
            gradient = layer.weight.grad
            assert gradient is not None and bool(gradient.isfinite().all())
            assert bool(gradient[layer.mask].any()) and not gradient[~layer.mask].any()
