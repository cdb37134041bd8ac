"""Defects of the paper's own code: one test each, which fails on the defective behaviour.

Many of these are tested in depth where they belong; here each stands once, under what users of that code saw.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dynsparse.config import loading
from dynsparse.config.sections import PenaltySettings
from dynsparse.errors import StopRequested
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.allocation import uniform
from dynsparse.masks.drawing import merge_sorted
from dynsparse.masks.optimizer_state import moments
from dynsparse.masks.selection import cuts_fraction
from dynsparse.masks.tying import tie
from dynsparse.methods import Clock
from dynsparse.methods.deepr import DeepRSettings
from dynsparse.methods.dsr import DsrSettings
from dynsparse.methods.set import SetSettings
from dynsparse.reallocation import Reallocator
from dynsparse.runtime import Worker
from dynsparse.schedules import StepTable
from dynsparse.training.building import build_parts
from dynsparse.training.checkpoint import CheckpointFolder, read
from dynsparse.training.evaluate import Evaluation, Evaluations
from dynsparse.training.penalties import add_gradients
from dynsparse.training.progress import Progress
from dynsparse.training.trainer import Trainer
from pipelines.split import stratified
from tests.methods.hand import by_hand, set_weights, values
from tests.training import runs

COLD = DeepRSettings(name="deepr", temperature=StepTable(((0, 0),)))


def network(granularity: Any, active_share: float, settings: Any, seed: int = 0) -> Reallocator:
    """A convolution with units of its granularity, and a linear layer."""
    torch.manual_seed(seed)
    model = nn.ModuleList([nn.Conv2d(8, 12, 3, bias=False), nn.Conv2d(12, 8, 5, bias=False), nn.Linear(100, 40)])
    specs = sparse_layers(model, granularity=granularity)
    masks = MaskSet(model, specs, dict(uniform(specs, {"conv": 1 - active_share, "fc": 1 - active_share})), seed=seed)
    method = settings.build()
    method.prepare(masks)
    return Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), seed=seed)


def shake(reallocator: Reallocator, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in reallocator.masks:
            layer.scatter_(layer.weight, torch.randn(layer.active_units, layer.spec.unit_size, generator=generator))


class TestDeepR:
    def test_the_first_step_drops_nothing_that_has_not_crossed(self) -> None:
        """Theirs took the signs before the weights were drawn anew, and dropped about half of all."""
        reallocator = network(4, 0.3, COLD)
        report = reallocator.after_step(Clock(1, 0))
        assert report is not None
        assert sum(report.dropped.values()) == 0

    def test_signs_survive_a_save(self) -> None:
        reallocator = network(4, 0.3, COLD)
        saved_masks, saved = reallocator.masks.state_dict(), reallocator.method.state_dict()
        again = network(4, 0.3, COLD, seed=1)  # Other weights, so other signs of its own.
        again.masks.load_state_dict(saved_masks)
        again.method.load_state_dict(saved)
        for ours, theirs in zip(reallocator.masks, again.masks, strict=True):
            theirs.scatter_(theirs.weight, ours.gather(ours.weight))
            assert not (again.method.drop_scores(theirs) < -0.5).any()
            theirs.scatter_(theirs.weight, -ours.gather(ours.weight))
            assert (again.method.drop_scores(theirs) < -0.5).all()

    def test_noise_is_not_scaled_by_learning_rate_and_momentum(self) -> None:
        """Theirs put it into the gradient. Here it moves weights even at learning rate 0."""
        settings = DeepRSettings(name="deepr", eta=0.5, temperature=StepTable(((0, 0.01),)))
        reallocator = by_hand(settings, [[1.0] * 10_000], lr=0.0)
        reallocator.method.after_step(reallocator.masks, Clock(1, 0), seed=0)
        std = float(reallocator.masks.layers[0].weight.detach().std())
        assert std == pytest.approx(math.sqrt(2 * 0.5 * 0.01), rel=0.05)

    def test_a_grown_weight_has_a_sign(self) -> None:
        """A new weight has a sign, and is dropped when it crosses 0. Theirs had none, so that it never was."""
        reallocator = by_hand(COLD, [[0.5, 0.4, 0, 0, 0, 0, 0, 0]])
        layer = reallocator.masks.layers[0]
        set_weights(layer, [0.5, -0.4, 0, 0, 0, 0, 0, 0])
        reallocator.after_step(Clock(1, 0))
        newborn = layer.active[1].item()
        fates = []
        for value in (0.1, -0.1):
            row = [0.5] + [0.0] * 7
            row[newborn] = value
            set_weights(layer, row)
            fates.append(bool((reallocator.method.drop_scores(layer) < -0.5)[1]))
        assert sorted(fates) == [False, True]

    def test_kernel_slices_work(self) -> None:
        reallocator = network(2, 0.5, COLD)
        shake(reallocator, 1)
        report = reallocator.after_step(Clock(1, 0))
        assert report is not None
        assert 0 < sum(report.dropped.values()) == sum(report.grown.values())
        reallocator.masks.check()


class TestBudget:
    @pytest.mark.parametrize("granularity", [1, 2, 3, 4])
    def test_counts_weights_not_units(self, granularity: int) -> None:
        """Theirs went from 13,310 to 11,550 weights in 30 events where units of different size trade."""
        reallocator = network(granularity, 0.4, DsrSettings(name="dsr", initial_threshold=0.3, target_moves=500))
        budget, largest = reallocator.masks.budget, max(layer.spec.unit_size for layer in reallocator.masks)
        for event in range(1, 31):
            shake(reallocator, event)
            reallocator(Clock(event, 0))
            assert abs(reallocator.masks.active_weights - budget) < largest
        assert reallocator.masks.budget == budget

    def test_rounding_does_not_grow_too_much(self) -> None:
        """Three layers with equal shares of 7 weights: rounding each would give 6 or 9."""
        rows = [
            [0.1, 0.9, 0.8, *[0.0] * 10],
            [0.1, 0.1, 0.1, 0.8, 0.9, *[0.0] * 10],
            [0.1] * 3 + [0.9] * 2 + [0.0] * 10,
        ]
        reallocator = by_hand(DsrSettings(name="dsr", initial_threshold=0.5, target_moves=7), rows)
        report = reallocator(Clock(1, 0))
        assert sum(report.dropped.values()) == sum(report.grown.values()) == 7

    @pytest.mark.parametrize("scaling", [True, False])
    def test_ends_where_no_position_is_free_and_shares_a_surplus(self, scaling: bool) -> None:
        """A is full and keeps most: by scaling it would get nearly all. B and C take it; nothing loops or is lost."""
        rows = [[0.9] * 39 + [0.1], [0.1, 0.1, 0.9] + [0.0] * 5, [0.1, 0.9] + [0.0] * 4]
        reallocator = by_hand(DsrSettings(name="dsr", initial_threshold=0.5, target_moves=4, scaling=scaling), rows)
        before = reallocator.masks.active_weights
        report = reallocator(Clock(1, 0))
        # Where layers do not trade, A cannot take back what it would drop, and keeps it.
        assert sum(report.dropped.values()) == (4 if scaling else 3)
        assert report.grown["0.weight"] == 0
        assert reallocator.masks.active_weights == before
        full = by_hand(SetSettings(name="set", fraction=0.5, scaling=scaling), [[0.5] * 8, [0.4] * 8])
        assert sum(full(Clock(1, 0)).dropped.values()) == 0

    def test_positions_above_2_to_the_24_are_exact(self) -> None:
        """float32 holds no odd integer there: indices that pass through it land beside."""
        n = 2**24 + 64
        is_odd = torch.zeros(n, dtype=torch.bool)
        is_odd[2**24 + 1 :: 2] = True
        odd = is_odd.nonzero().squeeze(1)
        model = nn.Linear(n, 1, bias=False)
        masks = MaskSet(model, sparse_layers(model), {"weight": (~is_odd).nonzero().squeeze(1)})
        layer, nothing = masks.layers[0], torch.zeros(n - len(odd), dtype=torch.bool)
        (five,) = masks.blocks[0].move(nothing, [5], [0]).grown
        assert len(five) == 5
        assert set(five.tolist()) <= set(odd.tolist())
        masks.blocks[0].move(~is_odd[layer.active], [len(odd) - 5], [1])
        assert torch.equal(layer.active, odd)
        with torch.no_grad():
            layer.scatter_(layer.weight, torch.ones(len(odd), 1))
        assert torch.equal(layer.weight.detach().flatten().nonzero().squeeze(1), odd)
        assert torch.equal(merge_sorted(odd[::2].contiguous(), odd[1::2].contiguous()), odd)

    def test_a_fraction_of_0_drops_none(self) -> None:
        """A fraction of 0 comes in the last step of a cosine. As a setting it is refused."""
        (cut,) = cuts_fraction([torch.tensor([0.5, 0.1])], 0.0)
        assert cut.count == 0
        with pytest.raises(ValidationError, match="greater than 0"):
            SetSettings(name="set", fraction=0.0)

    def test_a_layer_keeps_its_largest_weight_not_its_first(self) -> None:
        for settings in (
            SetSettings(name="set", fraction=1.0),
            DsrSettings(name="dsr", initial_threshold=9.0, target_moves=3, scaling=False),
        ):
            reallocator = by_hand(settings, [[0.1, 0.2, 0.9, 0.3, 0, 0, 0, 0]])
            reallocator(Clock(1, 0))
            assert values(reallocator.masks.layers[0])[:4] == [0, 0, 0.9, 0]


class TestState:
    def test_momentum_is_0_where_weights_come_and_go(self) -> None:
        """Dropped weights stay at 0, and regrown ones inherit nothing."""
        reallocator = network(4, 0.3, SetSettings(name="set", fraction=0.5))
        layer = reallocator.masks.layers[0]
        for step in (1, 2):
            for parameter in reallocator.model.parameters():
                parameter.grad = torch.ones_like(parameter)
            seen = reallocator.before_step(Clock(step, 0))
            reallocator.optimizers[0].step()
            reallocator(Clock(step, 0), seen)
            (_, momentum) = next(iter(moments(reallocator.optimizers[0], layer)))
            assert not momentum[~layer.mask].any()
            assert not layer.weight.detach()[~layer.mask].any()
            kept = layer.gather(layer.weight).ne(0)
            assert torch.equal(layer.gather(momentum).ne(0), kept), "newborn: weight 0 and momentum 0"

    def test_inactive_weights_are_0_in_checkpoints_and_in_the_penalty(self, tmp_path: Path) -> None:
        trainer = runs.trainer(runs.config(), checkpoints=CheckpointFolder(tmp_path, keep=1))
        trainer.fit()
        for layer in trainer.masks:
            outside = ~layer.mask
            assert not trainer.model.state_dict()[layer.name][outside].any()
            layer.weight.grad = torch.zeros_like(layer.weight)
        add_gradients(PenaltySettings(l1=1.0), trainer.masks.layers)
        assert all(not layer.weight.grad[~layer.mask].any() for layer in trainer.masks if layer.weight.grad is not None)
        saved = read(tmp_path / "latest.pt")["weights"]["fc1.weight"]
        assert saved.numel() == trainer.masks.layers[0].active_weights, "not even there"

    def test_masks_are_bits_beside_the_model(self, tmp_path: Path) -> None:
        """Theirs were float32 buffers of the model, shipped to every GPU at every forward."""
        trainer = runs.trainer(runs.config(), checkpoints=CheckpointFolder(tmp_path, keep=1))
        dense = runs.trainer(runs.config(method={"name": "dense"}))
        assert list(trainer.model.state_dict()) == list(dense.model.state_dict())
        trainer.fit()
        packed = read(tmp_path / "latest.pt")["masks"]["layers"]["fc1.weight"]["mask"]
        assert packed.dtype == torch.uint8
        assert packed.numel() == math.ceil(24 * 36 / 8)

    def test_threshold_step_epoch_and_random_state_go_on_after_a_resume(self, tmp_path: Path) -> None:
        method = {"name": "dsr", "period": 3, "initial_threshold": 0.001, "target_moves": 30}
        settings = runs.config(method=method, train={"epochs": 3})
        checkpoints = CheckpointFolder(tmp_path, keep=9)
        whole = runs.trainer(settings, checkpoints=checkpoints)
        expected = whole.fit()
        first = next(path for path in reversed(checkpoints.files()) if "000000008" in path.name)
        resumed = runs.trainer(settings)
        resumed.load(read(first))
        assert (resumed.progress.epoch, resumed.progress.step) == (1, 8)
        assert resumed.sparse.method.scalars()["threshold"] > 0.001, "it has adapted by then"
        summary = resumed.fit()
        assert (summary.mask_digest, summary.weight_digest) == (expected.mask_digest, expected.weight_digest)
        assert resumed.sparse.method.state_dict() == whole.sparse.method.state_dict()

    def test_the_number_of_prunes_goes_on_after_a_resume(self) -> None:
        """It follows from the epoch: the third of four prunes of a resumed run is the third, not the first."""
        pruning = {"name": "pruning", "after_epoch": 0, "every_epochs": 1, "iterations": 4, "target_fc": 0.9}
        settings = runs.config(method=pruning, start={"weights_from": "unread"}, train={"epochs": 4})
        whole = runs.trainer(settings)
        whole.fit()
        half = runs.trainer(settings)
        half.stop_requested = lambda: half.progress.epoch == 2 and half.progress.step == 17
        states: list[Any] = []
        half.saving.save = lambda **_: states.append(half.run.save([half.run.of_this_rank()]))  # type: ignore[method-assign]
        with pytest.raises(StopRequested):
            half.fit()
        resumed = runs.trainer(settings)
        resumed.load(states[-1])
        assert resumed.masks.sparsity == pytest.approx(1 - 0.1 ** (2 / 4), abs=0.01)
        resumed.fit()
        assert all(torch.equal(a.active, b.active) for a, b in zip(resumed.masks, whole.masks, strict=True))

    def test_the_seed_decides_the_run(self) -> None:
        digests = [runs.trainer(runs.config(seed=seed)).fit().weight_digest for seed in (1, 1, 2)]
        assert digests[0] == digests[1] != digests[2]


class TestTied:
    def test_the_gradient_is_rescaled_before_the_step(self) -> None:
        """Theirs rescaled it after the optimizer had used it."""
        moves = []
        for rescale in (False, True):
            torch.manual_seed(0)
            model = nn.Linear(12, 1, bias=False)
            bank = tie(model, sparse_layers(model)[0], 3, seed=0, rescale_gradient=rescale).weight
            before = bank.detach().clone()
            model(torch.ones(12)).backward()
            torch.optim.SGD([bank], lr=1.0).step()
            moves.append((before - bank.detach()).round(decimals=4).tolist())
        assert moves == [[4, 4, 4], [1, 1, 1]]

    def test_convolutions_honour_granularity(self) -> None:
        settings = runs.config(
            model={"name": "small_cnn", "channels": [6, 8]},
            data={"name": "synthetic", "shape": [3, 8, 8], "samples": 60, "test_samples": 20, "threads": 1},
            method={"name": "tied"},
            sparsity={"conv": 0.5, "fc": 0.5, "granularity": 2},
        )
        trainer = runs.trainer(settings)
        summary = trainer.fit()
        assert trainer.model.conv2.parametrizations.weight.original.shape == (24, 3, 3)
        slices = trainer.model.conv2.weight.detach().reshape(48, 9)
        assert len(torch.unique(slices, dim=0)) == 24
        assert summary.sparsity == pytest.approx(0.5)


class TestEvaluation:
    def test_validation_is_stratified_held_out_and_not_augmented(self) -> None:
        """Theirs took the last 10,000 files, the last few classes, trained without these, and augmented them."""
        labels = np.sort(np.arange(1000) % 10)
        train, held_out = stratified(labels, 100, seed=0)
        assert np.bincount(labels[held_out]).tolist() == [10] * 10
        assert not set(train) & set(held_out)
        config = runs.config(data={"name": "synthetic", "shape": [1, 6, 6], "samples": 100, "validation_samples": 20})
        _, data = build_parts(config, Worker())
        assert data.validation is not None
        first, second = (torch.cat([images for images, _ in data.validation.batches()]) for _ in range(2))
        assert torch.equal(first, second), "the same images each time"
        assert len(first) == 20
        assert data.train.epochs.steps(0) == 80 // 12

    def test_top_5_of_validation_is_that_of_validation(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        results = Evaluations(Evaluation(1, 50, 60, 9), Evaluation(2, 51, 61, 9), Evaluation(3, 52, 62, 9))
        monkeypatch.setattr(Trainer, "evaluate", lambda self: results)
        from dynsparse.training.callbacks.metrics_file import MetricsFile

        runs.trainer(runs.config(train={"epochs": 1}), observers=[MetricsFile(tmp_path / "metrics.jsonl")]).fit()
        line = runs.metrics(tmp_path)[-1]
        top5 = [line[f"{name}_top5"] for name in ("test", "validation", "train_evaluation")]
        assert top5 == [60, 61, 62]

    def test_the_best_accuracy_is_kept_and_chosen_on_validation(self) -> None:
        progress = Progress()

        def epoch(test: float, validation: float) -> bool:
            return progress.take(Evaluations(Evaluation(1, test, 99, 9), Evaluation(1, validation, 99, 9)))

        assert [epoch(50, 60), epoch(70, 55), epoch(65, 61), epoch(80, 61)] == [True, False, True, False]
        assert (progress.best_top1, progress.test_top1_at_best, progress.test_top1) == (61, 65, 80)

    def test_nesterov_false_is_false(self) -> None:
        settings = loading.parse(
            {
                "model": {"name": "mnist_mlp"},
                "method": {"name": "dense"},
                "data": {"name": "digits"},
                "train": {"optimizer": {"name": "sgd", "nesterov": False}},
            }
        )
        optimizer = settings.train.optimizer.build([nn.Parameter(torch.zeros(1))], lr=0.1)
        assert optimizer.param_groups[0]["nesterov"] is False
