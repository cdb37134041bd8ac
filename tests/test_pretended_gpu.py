"""Everything of a run that may meet a tensor of another device, on a GPU that is none."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim

from benchmarks.parts.live_memory import as_on_gpu
from dynsparse import SparseTraining
from dynsparse.distributed import digest
from dynsparse.masks import block
from dynsparse.reallocation.parted_choice import PartedChoice
from dynsparse.runtime import Worker
from tests.methods.test_contract import BUSY, structure_of
from tests.pretended_gpu import pretended_gpu
from tests.ranks import run_distributed

FIRST = ("chase", "deepr", "dsr", "nm", "rigl", "topkast")
"""Methods that take ways of their own; the others repeat them."""
REST = sorted({*BUSY, "static"} - {"pruning", *FIRST})  # Pruning counts epochs, in the trainer alone.
STEPS = 8


def network(structure: str) -> nn.Module:
    torch.manual_seed(0)
    if structure != "free":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    convolutions = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 4))


def started(worker: Worker, name: str, device: torch.device) -> tuple[nn.Module, optim.Optimizer, SparseTraining]:
    model = network(structure_of(name)).to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = SparseTraining(
        model,
        optimizer,
        {"name": name, **BUSY.get(name, {})},
        sparsity=0.5,
        structure=structure_of(name),
        total_steps=STEPS,
        steps_per_epoch=2,
        exclude=["0.weight"] if structure_of(name) == "free" else ["1.weight"],
        input_shape=(1, 8, 8) if name == "chase" else None,
        process_group=dist.group.WORLD if worker.world_size > 1 else None,
    )
    return model, optimizer, run


def state_of(one: nn.Module | optim.Optimizer | SparseTraining) -> dict[str, Any]:
    return deepcopy(one.state_dict())


def trained(worker: Worker, name: str, *, far: bool, resumed_at: int | None = None) -> dict[str, Any]:
    """Train the same on each rank, on the pretended GPU or the CPU; return what there is in the end."""
    with pretended_gpu() if far else nullcontext(torch.device("cpu")) as device, as_on_gpu() if far else nullcontext():
        model, optimizer, run = started(worker, name, device)
        for step in range(STEPS):
            if step == resumed_at:
                model_state, optimizer_state, run_state = state_of(model), state_of(optimizer), state_of(run)
                model, optimizer, run = started(worker, name, device)
                model.load_state_dict(model_state)
                optimizer.load_state_dict(optimizer_state)
                run.load_state_dict(run_state)
            torch.manual_seed(step)
            images, labels = torch.randn(8, 1, 8, 8).to(device), torch.randint(4, (8,)).to(device)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        run.check()
        assert {one.device.type for one in model.state_dict().values()} == {device.type}
        found = run.state_dict()
        return {"weights": digest.weight_digest(model, run.masks), "masks": found["masks"]}


@pytest.mark.parametrize("name", [*FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_each_method_trains_as_on_a_processor(name: str) -> None:
    """Two ranks compare their digests."""
    far = run_distributed(trained_far, 2, name)
    near = run_distributed(trained_near, 2, name)
    assert far[0]["weights"] == far[1]["weights"] == near[0]["weights"]


@pytest.mark.parametrize(
    "name", ["rigl", "dsr", *(pytest.param(name, marks=pytest.mark.slow) for name in ("set", "gmp", "granet"))]
)
def test_large_layers_train_in_parts_as_on_a_processor(name: str) -> None:
    far = run_distributed(trained_in_parts, 2, name)
    assert far[0].pop("moved") > 1
    near = run_distributed(trained_near, 1, name)
    assert far[0]["weights"] == far[1]["weights"] == near[0]["weights"]


@pytest.mark.parametrize(
    ("name", "part", "resumed_at"),
    [
        ("rigl", 500, 5),  # Rows of 512 weights are longer than a part.
        pytest.param("rigl", 1_000, 5, marks=pytest.mark.slow),
        pytest.param("dsr", 500, None, marks=pytest.mark.slow),
        pytest.param("dsr", 1_000, 5, marks=pytest.mark.slow),
        pytest.param("set", 500, 4, marks=pytest.mark.slow),
        pytest.param("granet", 500, 4, marks=pytest.mark.slow),
    ],
)
def test_large_layers_resume_and_have_long_rows(name: str, part: int, resumed_at: int | None) -> None:
    # In a process of its own: torch 2.11 fixes the devices of its gradients when it makes the first ones.
    (far,) = run_distributed(trained_in_parts, 1, name, part, resumed_at)
    assert far["moved"] > 1
    assert far["weights"] == trained(Worker(), name, far=False)["weights"]


def trained_in_parts(worker: Worker, name: str, part: int = 1_000, resumed_at: int | None = None) -> dict[str, Any]:
    """Train with parts of at most so many weights; return how often a layer moved in parts, too."""
    moved = 0
    move = PartedChoice.move

    def counted(choice: PartedChoice, *known: Any) -> Any:
        nonlocal moved
        moved += 1
        return move(choice, *known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "ON_GPU", 2_000)
        patch.setattr(block, "A_PART", part)
        patch.setattr(PartedChoice, "move", counted)
        return {**trained(worker, name, far=True, resumed_at=resumed_at), "moved": moved}


def trained_far(worker: Worker, name: str) -> dict[str, Any]:
    return trained(worker, name, far=True)


def trained_near(worker: Worker, name: str) -> dict[str, Any]:
    return trained(worker, name, far=False)


def test_what_a_gpu_refuses_is_refused() -> None:
    run_distributed(refuses, 1)


def refuses(worker: Worker) -> None:
    with pretended_gpu() as gpu:
        far, near = torch.ones(3, device=gpu), torch.ones(3)
        assert far.device == gpu and (far * 2 + torch.tensor(1.0)).sum().item() == 9
        assert far[far > 0].tolist() == [1, 1, 1] and far.cpu().device.type == "cpu"
        for act in (lambda: far + near, lambda: torch.cat((far, near[:0])), lambda: far.index_select(0, near.long())):
            with pytest.raises(RuntimeError, match=r"^Expected all tensors to be on the same device"):
                act()
