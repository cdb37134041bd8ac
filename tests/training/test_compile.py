"""`train.compile: true`: compiled once, whatever moves, and the same training but for rounding.

In the order of a run: one graph for training at its first step, at the end of the first epoch those for evaluation,
and none from then on, which `fail_on_recompile` enforces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor
from torch._dynamo.utils import counters

from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from dynsparse.training.callbacks import Summary
from dynsparse.training.evaluate import Evaluations
from tests.ranks import run_distributed
from tests.training import runs

#: Two reallocations an epoch of four steps; every step with deepr.
METHODS: dict[str, dict[str, Any]] = {
    "dsr": {"period": 2, "initial_threshold": 0.02, "target_moves": 30},
    "rigl": {"period": 2, "until": 1.0},
    "deepr": {"eta": 1.0, "temperature": 1e-4},
}
STEPS, EPOCHS = 4, 3
BATCH = 12
"""Samples of a worker in training and in evaluation, whose last batch is smaller."""


def settings(method: str, *, compiled: bool, workers: int = 1, **train: Any) -> RunConfig:
    size = {"shape": [3, 6, 6], "samples": workers * STEPS * BATCH, "test_samples": workers * (BATCH + 8)}
    batches = {"epochs": EPOCHS, "global_batch_size": workers * BATCH, "evaluation_batch_size": BATCH}
    return runs.config(
        model={"name": "small_cnn", "channels": [4, 6]},
        data=size,
        method={"name": method, **METHODS[method]},
        train={**batches, "compile": compiled, **train},
        distributed={"gradients": "active" if workers > 1 else "dense"},
    )


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    prepare()
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def prepare() -> None:
    """A compiler that knows nothing yet, and compiles in this very process: no pool of others to start and to end."""
    torch._inductor.config.compile_threads = 1
    torch._dynamo.reset()
    counters.clear()


@dataclass
class Run:
    """Results of a run."""

    summary: Summary
    losses: list[float]
    test_losses: list[float]
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    graphs: list[int]
    """Number of graphs compiled so far, after each step."""
    graphs_at_the_end: int
    breaks: dict[str, int]


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def run(config: RunConfig, worker: Worker | None = None) -> Run:
    """Train to the end. After the first evaluation a graph compiled anew is an error."""
    trainer = runs.trainer(config, worker)
    losses, test_losses, compiled = [], [], []
    train_step, evaluate = trainer.train_step, trainer.evaluate

    def watched_step(micro_batches: Any) -> Tensor:
        loss = train_step(micro_batches)
        losses.append(loss.item())
        compiled.append(graphs())
        return loss

    def watched_evaluation() -> Evaluations:
        results = evaluate()
        test_losses.append(results.test.loss)
        torch.compiler.set_stance("fail_on_recompile")
        return results

    trainer.train_step, trainer.evaluate = watched_step, watched_evaluation  # type: ignore[method-assign]
    summary = trainer.fit()
    trainer.masks.check()
    return Run(
        summary=summary,
        losses=losses,
        test_losses=test_losses,
        weights={name: parameter.detach() for name, parameter in trainer.model.named_parameters()},
        masks={layer.name: layer.mask for layer in trainer.masks},
        graphs=compiled,
        graphs_at_the_end=graphs(),
        breaks=dict(counters["graph_break"]),
    )


def compiled_and_not(worker: Worker | None, method: str, **train: Any) -> tuple[Run, Run]:
    prepare()
    workers = worker.world_size if worker else 1
    compiled = run(settings(method, compiled=True, workers=workers, **train), worker)
    torch.compiler.set_stance("default")
    return compiled, run(settings(method, compiled=False, workers=workers, **train), worker)


def check_compiled_once(run: Run, *, for_training: int = 1) -> None:
    """`for_training` graphs from the first step on; more after the first epoch, for evaluation; then never again."""
    assert run.graphs[:STEPS] == [for_training] * STEPS
    assert run.graphs[STEPS:] == [run.graphs_at_the_end] * ((EPOCHS - 1) * STEPS)
    assert for_training < run.graphs_at_the_end <= for_training + 2, "one for evaluation, one for its last batch"
    assert run.breaks == {}
    assert run.summary.reallocations >= 4


def check_same_training(ours: Run, theirs: Run) -> None:
    """The compiler fuses operations and sums in another order, and nothing else.

    A float32 sum is off by some units in its last place, 1.2e-7 of it; in 12 steps at rate 0.05 that stays far below
    1e-5 of the largest. The masks must be equal, for no score is that close to another. A forward pass in the wrong
    mode, a stale graph or a forgotten mask is off by a percent or more.
    """
    assert torch.tensor(ours.losses) == pytest.approx(torch.tensor(theirs.losses), rel=1e-5)
    assert ours.test_losses == pytest.approx(theirs.test_losses, rel=1e-5)
    assert ours.summary.mask_digest == theirs.summary.mask_digest
    for name, weight in ours.weights.items():
        scale = float(theirs.weights[name].abs().max())
        assert float((weight - theirs.weights[name]).abs().max()) <= 1e-5 * scale, name
    for name, mask in ours.masks.items():
        assert not ours.weights[name][~mask].any(), name


@pytest.mark.parametrize("method", ["dsr", "rigl", pytest.param("deepr", marks=pytest.mark.slow)])
def test_compiled_once_and_the_same_training(method: str) -> None:
    """Evaluation has batches of training's size, and a smaller last one."""
    compiled, plain = compiled_and_not(None, method)
    check_compiled_once(compiled)
    assert plain.graphs_at_the_end == compiled.graphs_at_the_end, "the plain run compiles nothing"
    check_same_training(compiled, plain)


@pytest.mark.slow
def test_uneven_micro_batches_are_compiled_for_any_size() -> None:
    """Parts of 2 and of 3 samples: a graph for 2, then one for any number, both within the first step."""
    compiled, plain = compiled_and_not(None, "dsr", micro_batches=5)
    check_compiled_once(compiled, for_training=2)
    check_same_training(compiled, plain)


@pytest.mark.slow
def test_bf16_and_channels_last_are_compiled_once() -> None:
    compiled, _ = compiled_and_not(None, "dsr", precision="bf16", channels_last=True)
    check_compiled_once(compiled)


@pytest.mark.slow
def test_two_ranks() -> None:
    """DistributedDataParallel sends the gradients of active weights alone."""
    ranks = run_distributed(compiled_and_not, 2, "dsr")
    for compiled, plain in ranks:
        check_compiled_once(compiled)
        check_same_training(compiled, plain)
    (first, _), (second, _) = ranks
    assert first.summary.weight_digest == second.summary.weight_digest
