"""The library in somebody else's loop."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dynsparse import SparseTraining
from dynsparse.errors import DesyncError
from dynsparse.masks.optimizer_state import moments
from dynsparse.methods.rigl import RiglSettings
from dynsparse.runtime import Worker
from pipelines.common.torchvision_ops import import_torchvision
from tests.ranks import run_distributed

ROOT = Path(__file__).parents[1]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def batches(n: int, rank: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(rank)
    return [
        (torch.randn(8, 3, 6, 6, generator=generator), torch.randint(4, (8,), generator=generator)) for _ in range(n)
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[Any]) -> None:
    for images, labels in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


METHODS = ["deepr", "dsr", "rigl", "set", "sparse_momentum", "static"]
OPTIONS: dict[str, dict[str, Any]] = {
    "dsr": {"period": 2, "initial_threshold": 0.02, "target_moves": 30},
    "rigl": {"period": 2},
    "set": {"period": 2},
    "sparse_momentum": {"period": 2},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_that_knows_nothing_of_it(method: str) -> None:
    model, reports = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    sparse = SparseTraining(
        model,
        optimizer,
        {"name": method, **OPTIONS.get(method, {})},
        sparsity={"conv": 0.5, "fc": 0.9},
        total_steps=20,
        steps_per_epoch=10,
        on_reallocation=reports.append,
    )
    budget = sparse.masks.active_weights
    assert budget == 108 + 115
    train(model, optimizer, batches(10))
    sparse.masks.check()
    assert sparse.masks.active_weights == budget
    for layer in sparse.masks:
        assert all(not moment[~layer.mask].any() for _, moment in moments(optimizer, layer))
    assert len(reports) == {"static": 0, "deepr": 10}.get(method, 5)


def test_it_is_saved_and_goes_on() -> None:
    data = batches(10)

    def begin() -> tuple[nn.Module, torch.optim.Optimizer, SparseTraining]:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        method = {"name": "dsr", **OPTIONS["dsr"]}
        return model, optimizer, SparseTraining(model, optimizer, method, sparsity=0.8, total_steps=10)

    whole, optimizer, _ = begin()
    train(whole, optimizer, data)
    model, optimizer, sparse = begin()
    train(model, optimizer, data[:5])
    saved = [part.state_dict() for part in (model, optimizer, sparse)]
    resumed, optimizer, sparse = begin()
    for part, state in zip((resumed, optimizer, sparse), saved, strict=True):
        part.load_state_dict(state)
    train(resumed, optimizer, data[5:])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def under_ddp(worker: Worker, spoil: bool) -> list[Any]:
    """The wrapped model is given; each rank has its own samples."""
    parallel = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
    sparse = SparseTraining(parallel, optimizer, RiglSettings(name="rigl"), sparsity=0.8, total_steps=200)
    sparse.steps = 95  # RigL's first event is at step 100.
    train(parallel, optimizer, batches(4, worker.rank))
    if spoil and worker.rank == 1:
        with torch.no_grad():
            sparse.masks.layers[0].weight[sparse.masks.layers[0].mask] += 1
    train(parallel, optimizer, batches(4, worker.rank))
    return [layer.active.tolist() for layer in sparse.masks]


def test_ranks_agree_and_a_difference_is_found() -> None:
    first, second = run_distributed(under_ddp, 2, False)
    assert first == second
    with pytest.raises(AssertionError, match=DesyncError.__name__):
        run_distributed(under_ddp, 2, True)


def test_gradients_can_be_prepared_before_they_are_clipped() -> None:
    """The norm is then that of the active weights, RigL still saw the whole gradients, and it counts as one step."""
    grown = []
    for prepare in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = {"name": "rigl", "period": 1}
        sparse = SparseTraining(model, optimizer, method, sparsity=0.9, total_steps=10)
        for images, labels in batches(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            if prepare:
                sparse.prepare_gradients()
                assert all(not layer.weight.grad[~layer.mask].any() for layer in sparse.masks)  # type: ignore[index]
            optimizer.step()
        assert sparse.steps == 3
        grown.append([layer.active for layer in sparse.masks])
    assert all(torch.equal(a, b) for a, b in zip(*grown, strict=True))


def test_the_readmes_loop_works_and_takes_at_most_six_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The loop without the statements that name SparseTraining is a whole loop of somebody else's.

    Its state is saved and loaded as the guide says.
    """
    import_torchvision()
    page, guide = (ROOT / "README.md").read_text(), (ROOT / "docs/your-own-loop.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (saving,) = re.findall(r"```python\n(state = .*?)```", guide, re.DOTALL)
    *statements, shown = ast.parse(source).body
    assert ast.unparse(shown) == "print(sparse)"
    ours = [node for node in statements if "SparseTraining" in ast.unparse(node)]
    assert len(ours) == 2
    assert sum((node.end_lineno or 0) - node.lineno + 1 for node in ours) <= 6
    theirs = "\n".join(ast.unparse(node) for node in statements if node not in ours)
    assert "sparse" not in theirs
    exec(compile(theirs, "README.md", "exec"), {})
    scope: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), scope)
    scope["sparse"].masks.check()
    assert scope["sparse"].steps == 10
    assert scope["sparse"].masks.sparsity == pytest.approx(0.9, abs=0.001)
    monkeypatch.chdir(tmp_path)
    exec(compile(saving, "README.md", "exec"), scope)
    scope["sparse"].masks.check()


def test_an_optimizer_that_has_stepped_before_moves_nothing_outside() -> None:
    torch.manual_seed(0)
    model = nn.Linear(50, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        model(torch.randn(8, 50)).square().mean().backward()
        optimizer.step()
    sparse = SparseTraining(model, optimizer, "set", sparsity=0.9, total_steps=1000)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 50)).square().mean().backward()
        optimizer.step()
        sparse.masks.check()


def test_the_library_needs_torch_numpy_and_pydantic_alone() -> None:
    """Nothing that only the trainer, its data and its tools need is imported with it."""
    script = (
        "import sys, dynsparse\n"
        "assert 'torch' not in sys.modules\n"
        "for name in dynsparse.__all__: getattr(dynsparse, name)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('pipelines')))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    packages, of_pipelines = (set(line.split()) for line in found.stdout.splitlines())
    assert {"torch", "numpy", "pydantic"} <= packages
    allowed = {"pipelines", *(f"pipelines.{part}" for part in ("common", "common.errors", "common.settings"))}
    allowed |= {"pipelines.common.by_epoch", "pipelines.common.epochs", "pipelines.common.extras"}
    assert of_pipelines <= {*allowed, "pipelines.common.text"}, "which need pydantic at most"
    assert not packages & {"yaml", "torchvision", "nvidia", "PIL", "sklearn", "tensorboard"}


def test_epochs_of_different_lengths() -> None:
    """Two epochs of 4 steps, then two of 6: a table over epochs goes by them."""
    model, reports = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(
        model,
        optimizer,
        {"name": "set", "period": {0: 4, 2: 3}},
        sparsity=0.5,
        total_steps=20,
        steps_per_epoch={0: 4, 2: np.int64(6)},
        on_reallocation=reports.append,
    )
    assert (sparse.clock(10).epoch, sparse.clock(15).epoch) == (2, 3)
    train(model, optimizer, batches(20))
    assert [report.step for report in reports] == [4, 8, 9, 12, 15, 18]
