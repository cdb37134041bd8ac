"""A rehearsal of one of many workers, beside as many real ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.parts.scaling.counting import Sent as Counted
from benchmarks.parts.scaling.counting import counted
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.distributed.rehearsing import Sent, lone_rank
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.rehearsal import rehearse
from pipelines.datasets.synthetic import SyntheticSettings, load
from tests.ranks import run_distributed
from tests.training import runs

METHODS: dict[str, dict[str, Any]] = {
    "dsr": {"name": "dsr", "period": 3, "target_moves": 5},
    "rigl": {"name": "rigl", "period": 3},
    "deepr": {"name": "deepr"},
    "static": {"name": "static"},
}


def settings(method: str, gradients: str = "active") -> RunConfig:
    return runs.config(
        method=METHODS[method], distributed={"gradients": gradients}, train={"global_batch_size": 12, "epochs": 2}
    )


def real_steps(worker: Worker, config: RunConfig, usual: int | None, event: int | None) -> list[Counted | None]:
    """Make the same steps among real ranks."""
    trainer = runs.trainer(config, worker)
    trainer.settle()
    step(trainer, usual or event or 1)
    found: list[Counted | None] = []
    for number in (usual, event):
        with counted() as sent:
            if number is not None:
                step(trainer, number)
        found.append(None if number is None else dict(sent))
    return found


def step(trainer: Any, number: int) -> None:
    trainer.progress.step = trainer.sparse.steps = number - 1
    trainer.data.train.seek(0, 0)
    trainer.train_step(next(trainer.steps()))


def by_call(sent: tuple[Sent, ...]) -> Counted:
    found: Counted = {}
    for one in sent:
        found.setdefault(one.call, []).append(one.bytes)
    return found


@pytest.mark.parametrize(("method", "ranks"), [("dsr", 3), ("rigl", 2), ("deepr", 2), ("static", 2)])
def test_a_rehearsal_hands_over_what_a_real_rank_does(method: str, ranks: int) -> None:
    config = settings(method)
    found = rehearse(config, 0, ranks)
    usual = None if method == "deepr" else 1
    assert (found.event_step is None) == (method == "static")
    real = run_distributed(real_steps, ranks, config, usual, found.event_step)[0]
    assert by_call(found.step) == (real[0] or {})
    assert by_call(found.event) == (real[1] or {})
    assert found.plan == (0 if method == "static" else 48 * (1 + len(runs.trainer(config).masks)))


def test_shares_and_memory() -> None:
    found = rehearse(settings("dsr", "dense"), 4, 5)
    assert found.share == ((9, 3),), "12 samples over 5 workers: 2 2 3 2 3"
    assert (found.fewest, found.most, found.global_batch) == (2, 3, 12)
    trainer = runs.trainer(settings("dsr"))
    parameters = 4 * sum(one.numel() for one in trainer.model.parameters())
    assert found.gradients["dense"] == found.memory["gradients"] == found.memory["optimizer"] == parameters
    inactive = trainer.masks.weights - trainer.masks.active_weights
    assert found.gradients["active"] == parameters - 4 * inactive
    assert found.memory["average"] == 0
    assert isinstance(found.activations, int)
    assert found.activations > 3 * 4 * 36, "the images of three samples, and what is computed from them"
    held = found.memory["masks"]
    assert 8 * trainer.masks.active_weights <= held <= 16 * trainer.masks.active_weights + trainer.masks.weights


def read_in_a_run(worker: Worker, config: RunConfig) -> list[list[str]]:
    """Return the images that a real rank trains on, step by step."""
    trainer, read = runs.trainer(config, worker), []
    train_step = trainer.train_step

    def noted(micro_batches: Any) -> Any:
        read.append([name_of(image) for images, _ in micro_batches for image in images])
        return train_step(micro_batches)

    trainer.train_step = noted  # type: ignore[method-assign]
    trainer.fit()
    return read


def name_of(image: torch.Tensor) -> str:
    """Return the grey levels of a normalised image, as `synthetic.build` normalises it."""
    return (image * 64 + 127.5).round().to(torch.uint8).numpy().tobytes().hex()


def test_the_samples_are_those_that_real_ranks_read() -> None:
    config = runs.config(
        method=METHODS["static"],
        data={"samples": 60, "validation_samples": 10},
        train={"micro_batches": 2, "global_batch_size": 13},
    )
    assert isinstance(config.data, SyntheticSettings)
    images = load(config.data)[0].images.transpose(0, 3, 1, 2)
    number_of = {image.tobytes().hex(): number for number, image in enumerate(images)}
    assert len(number_of) == 60
    found = [rehearse(config, rank, 2).samples for rank in range(2)]
    real = run_distributed(read_in_a_run, 2, config)
    for rank, epochs in enumerate(found):
        for epoch, numbers in enumerate(epochs):
            assert [number_of[name] for name in real[rank][3 * epoch]] == list(numbers)
    for ours, theirs in zip(*found, strict=True):
        assert not set(ours) & set(theirs)
        assert len(ours) + len(theirs) == 13
    assert set(found[0][0]) != set(found[0][1]), "each epoch has an order of its own"


def test_auto_sends_the_active_gradients() -> None:
    found = rehearse(settings("dsr", "auto"), 0, 2)
    assert found.chosen == "auto"
    assert Counter(one.call for one in found.step)["all_reduce"] >= 1
    assert sum(one.bytes for one in found.step if one.call == "all_reduce") == found.gradients["active"]


@pytest.mark.parametrize("ranks", [2, 6, 4096])
def test_a_lone_rank_hears_itself(ranks: int) -> None:
    with lone_rank(ranks) as group:
        assert sync.all_of("a") == ["a"] * ranks
        assert sync.gather(3) == [3] * ranks
        assert sync.from_rank_0(lambda: 7) == 7
        assert sync.any_of(True, False) == (True, False)
        assert sync.largest_(torch.tensor([3, -5])).tolist() == [3, -5]
        assert sync.sum_(torch.tensor([1.5])).tolist() == [1.5 * ranks]
        assert dist.all_reduce(torch.ones(2), async_op=True).get_future().value()[0].tolist() == [ranks, ranks]
        dist.barrier()
        assert sum(sent.call == "send" for sent in group.sent) > 0
        assert dist.get_backend() == "fake"
        with pytest.raises(AssertionError, match="no other result is defined"):
            dist.all_reduce(torch.ones(2), op=dist.ReduceOp.MAX)
        with pytest.raises(UserError, match="--rehearse does not know the call reduce, which this run makes"):
            dist.reduce(torch.ones(2), 0)
    assert not dist.is_initialized()


def test_it_ends_when_the_work_fails() -> None:
    with pytest.raises(ZeroDivisionError), lone_rank(2):
        1 / 0  # noqa: B018
    assert not dist.is_initialized()
