"""Only active gradients travel, and nothing else changes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.distributed.allreduce import ActiveAllReduce
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.structure import n_of_m
from dynsparse.runtime import Worker
from dynsparse.training import parallel
from tests.methods.test_contract import REGISTRY, sparsity_section, structure_of
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_every_method import BUSY
from tests.training.test_loop import Recorder

CNN = {"name": "small_cnn", "channels": [6, 8]}
Weights = dict[str, Tensor]

#: In 40 steps and more.
SLOWER = {"dsr": {"period": 20}, "rigl": {"period": 20}, "set": {"period": 20}}


def settings(method: str, steps: int, gradients: str, **sections: Any) -> RunConfig:
    chosen = {"name": method, **BUSY.get(method, {}), **(SLOWER.get(method, {}) if steps >= 40 else {})}
    start = {"weights_from": "unread"} if method == "pruning" else {}
    one_input = {"exclude": ["conv1.weight"]} if n_of_m(structure_of(method)) else {}
    sections["sparsity"] = {**sparsity_section(method), **one_input, **sections.pop("sparsity", {})}
    train = {"epochs": 2, "penalty": {"l1": 1e-4}, **sections.pop("train", {})}
    data = {"samples": steps * 12 // train["epochs"], "test_samples": 16}
    raw = {"model": CNN, "method": chosen, "start": start, "distributed": {"gradients": gradients}, **sections}
    return runs.config(**raw, train=train, data=data)


def trained(worker: Worker, config: RunConfig) -> Weights:
    """Parameters and optimizer state after the run, by name."""
    trainer = runs.trainer(config, worker)
    summary = trainer.fit()
    assert summary.gradients == config.distributed.gradients
    assert (summary.reallocations > 0) == (config.method.name not in ("dense", "static", "tied"))
    state = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    for name, parameter in list(state.items()):
        moments = trainer.optimizer.state[dict(trainer.model.named_parameters())[name]]
        state |= {f"{name} {key}": torch.as_tensor(value) for key, value in moments.items()}
        assert parameter.isfinite().all()
    return state


def both_ways(worker: Worker, configs: list[tuple[str, RunConfig, RunConfig]]) -> dict[str, tuple[Weights, Weights]]:
    return {name: (trained(worker, active), trained(worker, dense)) for name, active, dense in configs}


def pairs(methods: list[str], steps: int, **sections: Any) -> list[tuple[str, RunConfig, RunConfig]]:
    return [
        (name, settings(name, steps, "active", **sections), settings(name, steps, "dense", **sections))
        for name in methods
    ]


def unequal(ours: Weights, theirs: Weights) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


METHODS = sorted(REGISTRY)


@pytest.mark.parametrize("steps", [24, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("methods", [METHODS[::2], pytest.param(METHODS[1::2], marks=pytest.mark.slow)], ids=",".join)
def test_two_ranks_get_the_same_bits_either_way(methods: list[str], steps: int) -> None:
    """Weights and optimizer state after these steps, for every method."""
    for results in run_distributed(both_ways, 2, pairs(methods, steps)):
        assert {name: unequal(*ways) for name, ways in results.items()} == {name: [] for name in methods}


def actively(worker: Worker, configs: list[tuple[str, RunConfig]]) -> dict[str, Weights]:
    return {name: trained(worker, config) for name, config in configs}


@pytest.mark.parametrize(
    ("methods", "steps"),
    [(("dsr", "rigl"), 40), pytest.param(METHODS, 200, marks=pytest.mark.slow)],
    ids=["two methods", "every method"],
)
def test_four_ranks_hold_the_same_bits(methods: Sequence[str], steps: int) -> None:
    """Weights and optimizer state after these steps."""
    configs = [(name, settings(name, steps, "active")) for name in methods]
    first, *others = run_distributed(actively, 4, configs)
    for other in others:
        assert {name: unequal(other[name], first[name]) for name in methods} == {name: [] for name in methods}


def test_four_ranks_differ_from_dense_in_rounding() -> None:
    """After one step no active gradient differs by more than four units in the last place of the largest."""
    for first_step in run_distributed(one_step, 4, METHODS):
        for name, (active, dense) in first_step.items():
            scale = max(float(gradient.abs().max()) for gradient in dense.values())
            largest = max(float((active[key] - dense[key]).abs().max()) for key in dense)
            print(f"{name}: {largest / scale:.2e} of the largest gradient")
            assert largest <= 4 * torch.finfo(torch.float32).eps * scale, (name, largest / scale)


def one_step(worker: Worker, methods: list[str]) -> dict[str, tuple[Weights, Weights]]:
    """The masked gradients of the first step, both ways."""
    results = {}
    for name, *configs in pairs(methods, 24):
        ways = []
        for config in configs:
            trainer = runs.trainer(config, worker)
            trainer.settle()
            trainer.engine.backward(next(iter(trainer.data.train.epoch())), whole=False, epoch=0)
            ways.append({key: value.grad.clone() for key, value in trainer.model.named_parameters()})
        results[name] = (ways[0], ways[1])
    return results


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({"train": {"micro_batches": 3}}, marks=pytest.mark.slow),
        pytest.param({"train": {"precision": "bf16", "channels_last": True}}, marks=pytest.mark.slow),
        {"train": {"precision": "fp16", "micro_batches": 2}},
        pytest.param(
            {"train": {"optimizer": {"name": "adamw"}, "label_smoothing": 0.1}, "sparsity": {"granularity": 2}},
            marks=pytest.mark.slow,
        ),
        pytest.param({"sparsity": {"granularity": 3}, "train": {"channels_last": True}}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_with_every_option(sections: dict[str, Any]) -> None:
    for results in run_distributed(both_ways, 2, pairs(["dsr", "rigl"], 40, **sections)):
        assert {name: unequal(*ways) for name, ways in results.items()} == {"dsr": [], "rigl": []}


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_with_compile() -> None:
    sections = {"train": {"compile": True, "precision": "bf16", "channels_last": True}}
    for results in run_distributed(both_ways, 2, pairs(["dsr"], 24, **sections)):
        assert unequal(*results["dsr"]) == []


def bytes_a_step(worker: Worker, config: RunConfig) -> tuple[list[int], int, int]:
    """Bytes that each step sent; bytes of the active and of all parameters at the end."""
    recorder = Recorder()
    trainer = runs.trainer(config, worker, observers=[recorder])
    if not worker.is_main:  # Observers live on rank 0.
        trainer.fit()
        return [], 0, 0
    trainer.fit()
    dense = sum(parameter.numel() for parameter in trainer.model.parameters()) * 4
    return [step.gradient_bytes for step in recorder.steps], dense, trainer.masks.weights * 4


def test_bytes_fall_with_the_density_but_for_steps_that_grow_by_gradient() -> None:
    log = {"every_steps": 1}
    sparse = {"sparsity": {"conv": 0.9, "fc": 0.9}}
    sent, dense, covered = run_distributed(bytes_a_step, 2, settings("rigl", 40, "active", log=log, **sparse))[0]
    whole = [i + 1 for i, count in enumerate(sent) if count == dense]
    assert whole == [20]
    active = dense - covered + covered / 10
    assert all(count == pytest.approx(active, rel=0.02) for i, count in enumerate(sent) if i + 1 not in whole)
    assert len(sent) == 40
    sent, dense, _ = run_distributed(bytes_a_step, 2, settings("rigl", 8, "dense", log=log, **sparse))[0]
    assert sent == [dense] * 8


def reduced(module: nn.Module, images: Tensor, masks: MaskSet | None = None) -> list[Tensor]:
    """The gradients after one backward, in the order of the parameters."""
    module.zero_grad()
    module(images).square().sum().backward()
    if masks is not None:
        masks.mask_gradients()
    return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]


def with_rebuilt_buckets(worker: Worker) -> list[bool]:
    """Buckets so small that DDP lays them out anew after the first backward; masks that change in between."""
    results = []
    for view in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 5))
        specs = sparse_layers(model, granularity=4)
        masks = MaskSet(model, specs, {spec.name: spec.units // 10 for spec in specs})
        active, dense = (
            DistributedDataParallel(model, bucket_cap_mb=0.005, gradient_as_bucket_view=view) for _ in range(2)
        )
        ActiveAllReduce(masks).register(active)
        for step in range(4):
            images = torch.randn(8, 40, generator=torch.Generator().manual_seed(10 * step + worker.rank))
            gradients = [reduced(module, images, masks) for module in (active, dense)]
            results += [torch.equal(a, b) for a, b in zip(*gradients, strict=True)]
            for layer in masks:
                moved = torch.arange(step, layer.spec.units, 9 + step)
                masks.set_active(layer, moved)
            masks.apply_to_weights()
    return results


def test_buckets_that_are_rebuilt_and_masks_that_change() -> None:
    for results in run_distributed(with_rebuilt_buckets, 2):
        assert len(results) == 48
        assert all(results)


def whole_steps(worker: Worker) -> list[bool]:
    """Gradients of all weights, under the hook and without one."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 5))
    specs = sparse_layers(model, granularity=4)
    masks = MaskSet(model, specs, {spec.name: spec.units // 10 for spec in specs})
    hooked, plain = (DistributedDataParallel(model, gradient_as_bucket_view=True) for _ in range(2))
    ActiveAllReduce(masks, active=False).register(hooked)
    results = []
    for step in range(3):
        images = torch.randn(8, 40, generator=torch.Generator().manual_seed(10 * step + worker.rank))
        gradients = [reduced(module, images) for module in (hooked, plain)]
        results += [torch.equal(a, b) for a, b in zip(*gradients, strict=True)]
    return results


def test_a_whole_step_under_the_hook_is_one_of_ddp() -> None:
    """Three ranks show the order of sums, as 1/3 is not exact."""
    for results in run_distributed(whole_steps, 3):
        assert results == [True] * 18


def planted(worker: Worker, config: RunConfig) -> tuple[int, Weights]:
    """An infinite gradient where no weight is, on one rank, in step 3."""
    trainer = runs.trainer(config, worker)
    layer = trainer.masks.layers[0]
    place = int(layer.inactive.view(-1).nonzero()[0])

    def plant(gradient: Tensor) -> Tensor:
        if trainer.progress.step == 2 and worker.rank == 1:
            gradient = gradient.clone()
            gradient.view(-1)[place] = torch.inf
        return gradient

    layer.weight.register_hook(plant)
    trainer.fit()
    return trainer.progress.skipped_steps, {n: p.detach() for n, p in trainer.model.named_parameters()}


def test_what_lies_outside_the_masks_decides_about_no_step() -> None:
    sections = {"model": {"name": "mnist_mlp", "hidden": [24, 12]}}
    ways = [run_distributed(planted, 2, settings("dsr", 8, way, **sections)) for way in ("active", "dense")]
    for (skipped, ours), (also_skipped, theirs) in zip(*ways, strict=True):
        assert (skipped, also_skipped) == (0, 0)
        assert unequal(ours, theirs) == []


def fp16_from_a_scale_too_large(worker: Worker, config: RunConfig) -> tuple[int, Weights]:
    trainer = runs.trainer(config, worker)
    trainer.engine.precision.scaler.load_state_dict({**trainer.engine.precision.scaler.state_dict(), "scale": 2.0**40})
    trainer.fit()
    return trainer.progress.skipped_steps, {n: p.detach() for n, p in trainer.model.named_parameters()}


@pytest.mark.slow
def test_the_search_for_fp16s_scale_is_the_same_either_way() -> None:
    sections = {"train": {"precision": "fp16"}}
    ways = [
        run_distributed(fp16_from_a_scale_too_large, 2, settings("dsr", 60, way, **sections))
        for way in ("active", "dense")
    ]
    for (skipped, ours), (also_skipped, theirs) in zip(*ways, strict=True):
        assert skipped == also_skipped > 10
        assert unequal(ours, theirs) == []


def outside_the_masks(worker: Worker) -> list[int]:
    """Number of gradients outside the masks that are not 0 right after backward, in an active and a whole step."""
    torch.manual_seed(1)
    model = nn.Linear(30, 20)
    specs = sparse_layers(model, granularity=4)
    masks = MaskSet(model, specs, {spec.name: spec.units // 10 for spec in specs})
    module = DistributedDataParallel(model)
    hook = ActiveAllReduce(masks)
    hook.register(module)
    counts = []
    for hook.active in (True, False):
        model.zero_grad()
        module(torch.randn(8, 30)).square().sum().backward()
        counts.append(sum(int(layer.weight.grad[~layer.mask].count_nonzero()) for layer in masks))
    return counts


def test_what_travels_is_what_comes_back() -> None:
    for active, whole in run_distributed(outside_the_masks, 2):
        assert active == 0
        assert whole > 0


def fails_where_a_rank_is_gone(worker: Worker) -> str:
    """Rank 1 leaves before its backward: the error of the all-reduce must come out of rank 0's."""
    torch.manual_seed(1)
    model = nn.Linear(30, 20)
    masks = MaskSet(model, specs := sparse_layers(model, granularity=4), {spec.name: 9 for spec in specs})
    module = DistributedDataParallel(model)
    ActiveAllReduce(masks).register(module)
    loss = module(torch.randn(8, 30)).sum()
    if worker.rank == 1:
        dist.destroy_process_group()
        return ""
    try:
        loss.backward()
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_a_lost_rank_is_an_error() -> None:
    assert "onnect" in run_distributed(fails_where_a_rank_is_gone, 2)[0]


class Clock:
    """Says how long the steps of `auto` took: rank 1 has another opinion, which does not count."""

    def __init__(self, seconds: list[float]) -> None:
        self.readings = [reading for second in seconds for reading in (0.0, second)]

    def perf_counter(self) -> float:
        return self.readings.pop(0)


def choice(worker: Worker, config: RunConfig, seconds: list[list[float]]) -> tuple[str, list[str], bool]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    parallel.log.addHandler(handler)
    parallel.log.setLevel(logging.INFO)
    if seconds:
        parallel.time = Clock(seconds[worker.rank])  # type: ignore[assignment]
    trainer = runs.trainer(config, worker)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.settle()
    kept = all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    return trainer.progress.gradients, lines, kept


def test_auto_takes_what_rank_0_measures_and_says_why() -> None:
    fast, slow = [0.2, 0.9] * 3, [0.9, 0.2] * 3
    config = settings("dsr", 24, "auto")
    for measured, expected in (([fast, slow], "active"), ([[0.5] * 6, fast], "dense")):
        for chosen, lines, kept in run_distributed(choice, 2, config, measured):
            assert chosen == expected
            assert kept
            (line,) = lines
            assert line.startswith(f"distributed.gradients: {expected}, for a step takes ")
            assert "MB" in line


@pytest.mark.parametrize(
    ("method", "sections", "reason"),
    [
        ("sparse_momentum", {}, "the method looks at all gradients at every step"),
        ("dense", {"sparsity": {"conv": 0.0, "fc": 0.0}}, "all weights are active"),
        ("tied", {}, "all weights are active"),
    ],
)
def test_auto_does_not_measure_where_there_is_nothing_to_gain(method: str, sections: Any, reason: str) -> None:
    for chosen, lines, _ in run_distributed(choice, 2, settings(method, 24, "auto", **sections), []):
        assert (chosen, lines) == ("dense", [f"distributed.gradients: dense, for {reason}"])


def resumed_choice(worker: Worker) -> tuple[str, Tensor, Tensor]:
    """A run of four ranks that chose one way goes on that way, whatever is faster now."""
    parallel.time = Clock([0.2, 0.9] * 3)  # type: ignore[assignment]
    whole = runs.trainer(settings("dsr", 24, "auto"), worker)
    whole.fit()
    parallel.time = Clock([0.2, 0.9] * 3)  # type: ignore[assignment]
    half = runs.trainer(settings("dsr", 24, "auto"), worker)
    steps = half.data.train.epoch()
    half.settle()
    half._begin()
    for _ in range(5):
        half.train_step(next(steps))
    saved = sync.from_rank_0(lambda: None) or sync.all_of(half.run.of_this_rank())
    state = sync.from_rank_0(lambda: half.run.save(saved))
    rest = runs.trainer(settings("dsr", 24, "auto"), worker)
    rest.load(state)
    rest.fit()
    return rest.progress.gradients, whole.network.layers[0].weight.detach(), rest.network.layers[0].weight.detach()


def test_a_resumed_run_keeps_its_choice() -> None:
    for chosen, whole, rest in run_distributed(resumed_choice, 4):
        assert chosen == "active"
        assert torch.equal(whole, rest)


def test_alone_nothing_travels() -> None:
    trainer = runs.trainer(settings("dsr", 24, "auto"))
    assert trainer.fit().gradients == "dense"
    assert trainer.engine.parallel.take_bytes_sent() == 0
