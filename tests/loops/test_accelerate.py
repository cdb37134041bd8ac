"""SparseTraining in a loop of Accelerate's: its optimizer is a wrapper, and steps only when gradients are complete."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader

from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from pipelines.common.torchvision_ops import import_torchvision
from tests.loops.counting import Count, Counter, counter_for
from tests.loops.small import BY_GRADIENT, KEEP_LAYERS, METHODS, images, network, optimizer_for
from tests.ranks import run_distributed

import_torchvision()
accelerate: Any = pytest.importorskip("accelerate")

GUIDE = Path(__file__).parents[2] / "docs/your-own-loop.md"
BATCHES, BATCH, EPOCHS, STOP = 9, 4, 4, 2
STEPS_PER_EPOCH = 5  # Of two batches, and one of what is left.


class Run:
    """Loop as a user would write it, with a counter."""

    def __init__(self, accelerator: Any, method: str) -> None:
        self.accelerator, self.method, self.resumed = accelerator, method, False
        model = network()
        optimizer = optimizer_for(method, model)
        schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS_PER_EPOCH * accelerator.num_processes)
        data = DataLoader(images(BATCHES * BATCH * accelerator.num_processes), batch_size=BATCH)
        self.model, self.optimizer, self.schedule, self.data = accelerator.prepare(model, optimizer, schedule, data)
        self.sparse = SparseTraining(
            self.model,
            self.optimizer,
            METHODS[method],
            sparsity=0.8,
            total_steps=EPOCHS * STEPS_PER_EPOCH,
            steps_per_epoch=STEPS_PER_EPOCH,
            on_reallocation=lambda report: self.sparse.apply_masks(self.average),
        )
        self.average = AveragedModel(accelerator.unwrap_model(self.model), avg_fn=get_ema_avg_fn(0.9))
        accelerator.register_for_checkpointing(self.sparse)
        accelerator.register_for_checkpointing(self.average)

    def train(self, epochs: range, folder: Path | None = None, overflow_at: int = -1) -> Counter:
        """Save to `folder` in between, if given; let gradients overflow once, if asked."""
        counter = counter_for(self.sparse, self.model, self.optimizer)
        counter.follow(self.average)
        step = 0
        for epoch in epochs:
            for pictures, labels in self.data:
                with self.accelerator.accumulate(self.model):
                    loss = nn.functional.cross_entropy(self.model(pictures), labels)
                    self.accelerator.backward(loss * float("inf") if step == overflow_at else loss)
                    if self.accelerator.sync_gradients:
                        self.clip(counter)
                    self.optimizer.step()
                    self.schedule.step()
                    self.optimizer.zero_grad()
                if self.accelerator.sync_gradients:
                    step += 1
                    self.average.update_parameters(self.accelerator.unwrap_model(self.model))
                    counter.look()
            if folder is not None and epoch == STOP - 1:
                self.accelerator.save_state(str(folder))
        counter.close()
        return counter

    def clip(self, counter: Counter) -> None:
        """Clip as docs/your-own-loop.md says."""
        self.accelerator.unscale_gradients()
        if self.method in BY_GRADIENT and not self.resumed:  # A resumed run has a momentum already.
            counter.show_gradients(BY_GRADIENT[self.method])
        self.sparse.prepare_gradients()
        counter.look_at_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)

    def averaged(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.average.parameters()])


@contextmanager
def accelerator_on(worker: Worker) -> Iterator[Any]:
    """An Accelerator for ranks that have joined already."""
    where = {"RANK": worker.rank, "LOCAL_RANK": worker.local_rank, "WORLD_SIZE": worker.world_size}
    os.environ.update({name: str(value) for name, value in where.items()})
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": "0"})  # Asked for, never used.
    os.environ["OMP_NUM_THREADS"] = "1"
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)


def straight_and_resumed(worker: Worker, folder: Path) -> dict[str, list[tuple[Count, Tensor]]]:
    runs: dict[str, list[tuple[Count, Tensor]]] = {}
    for method in METHODS:
        with accelerator_on(worker) as accelerator:
            run = Run(accelerator, method)
            straight = run.train(range(EPOCHS), folder / method)
        with accelerator_on(worker) as accelerator:
            again = Run(accelerator, method)
            again.resumed = True
            accelerator.load_state(str(folder / method))
            resumed = again.train(range(STOP, EPOCHS))
        runs[method] = [(straight.count, run.averaged()), (resumed.count, again.averaged())]
    return runs


def test_accelerate_keeps_what_is_sparse(tmp_path: Path) -> None:
    ranks = run_distributed(straight_and_resumed, 2, tmp_path)
    for method in METHODS:
        (straight, average), (resumed, average_resumed) = ranks[0][method]
        assert (straight.steps, resumed.steps) == (EPOCHS * STEPS_PER_EPOCH, (EPOCHS - STOP) * STEPS_PER_EPOCH)
        for count, reallocations in ((straight, 4), (resumed, 1)):
            assert not count.faults(layers_keep=method in KEEP_LAYERS, reallocations=reallocations), method
            assert count.copies_seen == 2 * count.steps + 1, "seen at each step, when it has followed, at the end"
        assert straight.growths_judged == (straight.reallocations if method in BY_GRADIENT else 0)
        assert resumed.budget == straight.budget
        assert resumed.digest == straight.digest, f"{method}: a resumed run ends elsewhere"
        assert torch.equal(average, average_resumed)
        assert [run[0].digest for run in ranks[1][method]] == [straight.digest, resumed.digest], "ranks differ"


def pretend_fp16(accelerator: Any) -> None:
    """Let Accelerate unscale as in float16, which it has on GPUs alone. The forward pass stays as it was prepared."""
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"


def with_a_scaler(worker: Worker) -> dict[str, tuple[Count, int]]:
    """Accelerate has no fp16 without a GPU, but its optimizer takes the scaler that it would make for it."""
    runs = {}
    for method in METHODS:
        with accelerator_on(worker) as accelerator:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024)
            run = Run(accelerator, method)
            pretend_fp16(accelerator)
            counter = run.train(range(EPOCHS), overflow_at=5)  # Where a reallocation is due.
            runs[method] = (counter.count, run.sparse.steps)
    return runs


def test_a_step_that_a_scaler_skips_is_none() -> None:
    (runs,) = run_distributed(with_a_scaler, 1)
    for method, (count, steps) in runs.items():
        assert count.steps == steps == EPOCHS * STEPS_PER_EPOCH - 1
        assert not count.faults(layers_keep=method in KEEP_LAYERS, reallocations=4), method


def as_printed(worker: Worker, kind: str) -> dict[str, dict[float, list[Tensor]]]:
    """Run the snippet of docs/your-own-loop.md with a scaler of each factor."""
    (source,) = re.findall(r"```python\n(model, optimizer, loader = acc.*?)```", GUIDE.read_text(), re.DOTALL)
    before, loop = source.split("\nwith ")
    loop = compile(f"with {loop}", str(GUIDE), "exec")
    ends: dict[str, dict[float, list[Tensor]]] = {"rigl": {}, "sparse_momentum": {}}
    for method, scale in product(ends, (1.0, 65536.0)):
        with accelerator_on(worker) as accelerator:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            model = network()
            optimizer = optim.AdamW(model.parameters(), lr=0.01, fused=kind == "fused")
            loader = DataLoader(images(BATCHES * BATCH), batch_size=BATCH)
            scope = {"accelerator": accelerator, "model": model, "optimizer": optimizer, "loader": loader, "steps": 8}
            scope |= {"torch": torch, "SparseTraining": SparseTraining}
            exec(before.replace('"rigl"', repr(METHODS[method])), scope)
            pretend_fp16(accelerator)
            for pictures, labels in scope["loader"]:
                scope["loss"] = nn.functional.cross_entropy(scope["model"](pictures), labels)
                exec(loop, scope)
            sparse = scope["sparse"]
            assert sparse.steps == STEPS_PER_EPOCH
            states = [optimizer.state[layer.parameter]["exp_avg_sq"] for layer in sparse.masks]
            momenta = list(getattr(sparse.method, "momentum", {}).values())
            ends[method][scale] = [*(layer.active for layer in sparse.masks), *states, *momenta]
    return ends


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_the_guides_snippet_learns_from_gradients_of_their_true_size(kind: str) -> None:
    (ends,) = run_distributed(as_printed, 1, kind)
    for method, by_scale in ends.items():
        assert all(map(torch.equal, by_scale[1.0], by_scale[65536.0])), method


def clipped_late(worker: Worker) -> str:
    with accelerator_on(worker) as accelerator:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024)
        run = Run(accelerator, "sparse_momentum")
        pretend_fp16(accelerator)
        pictures, labels = next(iter(run.data))
        accelerator.backward(nn.functional.cross_entropy(run.model(pictures), labels))
        run.sparse.prepare_gradients()
        with pytest.raises(UserError) as raised:
            accelerator.clip_grad_norm_(run.model.parameters(), 0.5)
        return str(raised.value)


def test_accelerates_clipping_after_the_look_is_refused() -> None:
    (message,) = run_distributed(clipped_late, 1)
    assert "Accelerate: accelerator.unscale_gradients()" in message
