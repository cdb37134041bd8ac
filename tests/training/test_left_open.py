"""Steps whose outcome the host reads later, as on a GPU: no step waits, and nothing else changes.

Here the CPU is taken for a device that works behind the host. Its flags are read by optimizers and kernels as there.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.parts.gpu.waits import host_waits
from dynsparse import later
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.errors import DivergedError
from dynsparse.runtime import Worker
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.engine import Engine
from dynsparse.training.norms import GradientNorms, Norms
from dynsparse.training.outcomes import Outcomes
from dynsparse.training.trainer import Trainer
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_bad_steps import CNN, everything, poison
from tests.training.test_resume import assert_same, state_after

CPU = torch.device("cpu")
CLIPPED = {"clip": {"norm": 0.1, "value": 0.01}, "ema": {"decay": 0.75, "ramp": True}}
TRAIN: list[dict[str, Any]] = [
    CLIPPED,
    {"precision": "bf16", "micro_batches": 2, "ema": {"decay": 0.75, "every_steps": 3}},
    {"precision": "fp16", "micro_batches": 3, "optimizer": {"name": "adamw"}, **CLIPPED},
]
NM = {"structure": "1:2", "conv": 0.5, "fc": 0.5, "exclude": ["conv1.weight"]}
LEARNING: dict[str, dict[str, Any]] = {
    "sparse_momentum": {"method": {"name": "sparse_momentum", "period": 6, "fraction": 0.3}},
    "topkast": {"method": {"name": "topkast", "period": 6, "reserve": 0.2, "exploration_loss": 0.01}},
    "nm": {"method": {"name": "nm", "period": 6}, "sparsity": NM},
}
"""Methods that learn from the gradients of each step."""
OWN = """
from typing import Literal

from dynsparse.methods.sparse_momentum import SparseMomentum, SparseMomentumSettings


class OwnSettings(SparseMomentumSettings):
    name: Literal["own"] = "own"

    def build(self):
        return Own(self)


class Own(SparseMomentum):
    def observe(self, layer, gradient):
        super().observe(layer, gradient)
"""


@pytest.fixture(name="far")
def _far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later, "is_far", lambda device: True)


def set_every(period: int, train: dict[str, Any], **sections: Any) -> RunConfig:
    method = {"name": "set", "period": period, "fraction": 0.3}
    return runs.config(model=CNN, method=method, train={"epochs": 2, **train}, **sections)


def waits_of(trainer: Trainer) -> dict[int, int]:
    """Count the waits of each step of the first epoch, from the fetch of its data to the next one's."""
    trainer._start()
    found: dict[int, int] = {}
    with host_waits(CPU) as waits:
        for batches in trainer.steps():
            before = len(waits)
            trainer.train_step(batches)
            found[trainer.progress.step] = len(waits) - before
        assert len(waits) == sum(found.values()), "none between steps"
    return found


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("train", TRAIN, ids=["fp32", "bf16", "fp16"])
def test_an_ordinary_step_waits_for_nothing(train: dict[str, Any]) -> None:
    """Strays are counted in the first steps, at events and after them. That of step 10 is read in step 11."""
    waits = waits_of(runs.trainer(set_every(6, train, data={"samples": 240})))
    events, looked_at = {6, 12, 18}, {1, 2, 3, 7, 13, 19}
    assert {step for step, count in waits.items() if count} == events | looked_at
    assert {waits[step] for step in looked_at} == {2, 1}, "the first step needs its outcome too"
    assert all(waits[step] <= 18 for step in events), waits
    assert len(waits) == 20


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("train", [CLIPPED, {"optimizer": {"name": "adamw"}}], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", LEARNING)
def test_a_step_from_which_a_method_learns_waits_for_nothing(name: str, train: dict[str, Any]) -> None:
    waits = waits_of(runs.trainer(runs.config(model=CNN, train=train, data={"samples": 240}, **LEARNING[name])))
    assert {step for step, count in waits.items() if count} == {1, 2, 3, 6, 7, 12, 13, 18, 19}
    assert all(waits[step] <= 2 for step in (1, 2, 3, 7, 13, 19)), waits


def test_on_a_processor_each_step_is_read() -> None:
    waits = waits_of(runs.trainer(set_every(100, {})))
    assert all(count >= 1 for count in waits.values())


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("method", [{"path": "own.py", "name": "own"}, {"name": "deepr"}], ids=["own", "deepr"])
def test_methods_that_move_weights_or_learn_what_they_do_not_name_leave_no_step_open(
    method: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class with an `observe` of its own may learn more than the class names that it is derived from."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    opened: list[Any] = []
    monkeypatch.setattr(Outcomes, "leave_open", lambda self, outcome: opened.append(outcome))
    runs.trainer(runs.config(model=CNN, method=method, train={"epochs": 1})).fit()
    assert opened == []


@pytest.mark.usefixtures("far")
def test_flags_travel_and_outcomes_are_read_while_the_device_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags of the next step while a step runs, its outcome when the next one's passes are queued."""
    told: list[str] = []
    for owner, name in ((Engine, "backward"), (later.Later, "read"), (Engine, "step"), (sync, "any_of")):
        monkeypatch.setattr(owner, name, _telling(told, name, getattr(owner, name)))
    trainer = runs.trainer(set_every(100, {}))
    steps = trainer.steps()
    for _ in range(5):
        trainer.train_step(next(steps))
    first, ordinary = ["any_of", "backward", "step"], ["any_of", "backward", "read", "step"]
    assert told == [*first, *first, *ordinary, *ordinary, *ordinary]
    trainer.outcomes.catch_up()
    assert told[-1] == "read"


def _telling(told: list[str], name: str, act: Any) -> Any:
    def telling(*arguments: Any, **options: Any) -> Any:
        told.append(name)
        return act(*arguments, **options)

    return telling


def course(settings: RunConfig, bad: set[int]) -> tuple[list[list[Tensor]], Any, list[str], int]:
    """Tensors after each step, what a checkpoint would hold in the end, warnings, and how many steps were open."""
    trainer, after, opened = runs.trainer(settings), [], 0
    poison(trainer, bad, rank=0)
    train_step, leave_open = trainer.train_step, trainer.outcomes.leave_open

    def watched(batches: Any) -> Tensor:
        loss = train_step(batches)
        after.append([*everything(trainer), *learnt_by(trainer)])
        return loss

    def counted(outcome: Tensor) -> None:
        nonlocal opened
        opened += 1
        leave_open(outcome)

    trainer.train_step = watched  # type: ignore[method-assign]
    trainer.outcomes.leave_open = counted  # type: ignore[method-assign]
    with _warnings() as lines:
        trainer.fit()
    state = trainer.run.save([trainer.run.of_this_rank()])
    state["progress"].pop("seconds")
    return after, state, lines, opened


def learnt_by(trainer: Trainer) -> list[Tensor]:
    """Tensors of the method's state: momenta, or values in reserve with their optimizer's state."""
    return [one.clone() for one in tree_leaves(trainer.sparse.method.state_dict()) if isinstance(one, Tensor)]


class _warnings(logging.Handler):  # noqa: N801 - a context
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger().addHandler(self)
        return self.lines

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


@pytest.mark.parametrize("train", TRAIN, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_bad_steps_leave_no_trace(train: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random steps are bad. Left open or read at once, all tensors are the same after each step, and so is the end."""
    chance = random.Random(seed)
    bad = {step for step in range(1, 19) if chance.random() < 0.25} | {chance.choice([5, 8, 11])}
    settings = set_every(chance.choice([3, 7, 100]), {**train, "lr": {"name": "steps", "table": 0.02}})
    require_no_trace(settings, bad, monkeypatch)


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("sparse_momentum", TRAIN[0]),
        ("topkast", TRAIN[2]),
        ("nm", TRAIN[0]),
        *(
            pytest.param(name, train, marks=pytest.mark.slow)
            for name, train in [("sparse_momentum", TRAIN[2]), ("topkast", TRAIN[0]), ("nm", TRAIN[2])]
        ),
        ("topkast", {"optimizer": {"name": "sgd", "momentum": 0, "nesterov": False}}),
    ],
)
def test_nothing_is_learnt_from_bad_steps(name: str, train: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 5, 9 and 14 follow good ones, so they are left open; 6 and 12 are events, 10 follows a bad one."""
    train = {"epochs": 2, **train, "lr": {"name": "steps", "table": 0.02}}
    require_no_trace(runs.config(model=CNN, train=train, **LEARNING[name]), {5, 9, 10, 12, 14}, monkeypatch)


def require_no_trace(settings: RunConfig, bad: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that two runs are the same to the bit after each step, one read at once and one left open."""
    at_once = course(settings, bad)
    monkeypatch.setattr(later, "is_far", lambda device: True)
    left_open = course(settings, bad)
    for step, (ours, theirs) in enumerate(zip(left_open[0], at_once[0], strict=True), start=1):
        assert all(map(torch.equal, ours, theirs)), (step, bad)
    assert_same(left_open[1], at_once[1])
    assert left_open[2] == at_once[2]
    assert left_open[1]["progress"]["skipped_steps"] == len(bad - set(range(17, 19)))
    assert (at_once[3], left_open[3] > 3) == (0, True)


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize(("stop", "name"), [(4, None), (5, None), (8, None), (5, "sparse_momentum"), (5, "topkast")])
def test_saved_in_any_step_a_run_ends_alike(stop: int, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after step 5, whose outcome is open by then, among others. The first half is of the other kind."""
    learning = {} if name is None else runs.config(model=CNN, train={"epochs": 2, **TRAIN[2]}, **LEARNING[name])
    settings = learning or set_every(7, TRAIN[0])
    half = state_after(Worker(), settings, None, stop)
    whole = state_after(Worker(), settings, None, None)
    half["progress"]["seconds"] = 0.0
    monkeypatch.undo()
    assert_same(state_after(Worker(), settings, half, None), whole)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_a_run_that_diverges_ends_in_the_same_step(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps from 11 on are bad. Checkpoints are of steps before that, with either."""
    ends = []
    for kind in ("near", "far"):
        monkeypatch.setattr(later, "is_far", lambda device, kind=kind: kind == "far")
        folder = tmp_path / kind
        settings = set_every(100, {"max_bad_steps": most}, runs=str(folder), checkpoint={"every_steps": 1, "keep": 2})
        trainer = runs.trainer(settings, checkpoints=CheckpointFolder(folder, 2))
        poison(trainer, set(range(11, 40)), rank=0)
        with pytest.raises(DivergedError) as raised:
            trainer.fit()
        files = sorted(path.name for path in folder.glob("step-*.pt"))
        ends.append((str(raised.value), files, trainer.progress.model_dump(exclude={"seconds"}), everything(trainer)))
    assert f"{most} steps in a row, the last of them step {10 + most}," in ends[0][0]
    assert ends[0][1] == ["step-000000009.pt", "step-000000010.pt"]
    assert ends[1][:3] == ends[0][:3]
    assert all(map(torch.equal, ends[0][3], ends[1][3]))


def on_ranks(worker: Worker, settings: RunConfig, far: bool) -> tuple[list[Tensor], dict[str, Any]]:
    """Tensors and progress in the end, where steps 5 and 8 are bad on the last rank alone."""
    before, later.is_far = later.is_far, lambda device: far
    try:
        trainer = runs.trainer(settings, worker)
        poison(trainer, {5, 8}, rank=worker.world_size - 1)
        trainer.fit()
    finally:
        later.is_far = before
    return [*everything(trainer), *learnt_by(trainer)], trainer.progress.model_dump(exclude={"seconds"})


@pytest.mark.parametrize("name", [None, "sparse_momentum", "topkast"])
def test_ranks_decide_alike(name: str | None) -> None:
    learning = {"method": {"name": "set", "period": 7, "fraction": 0.3}} if name is None else LEARNING[name]
    train = {**TRAIN[2], "micro_batches": 2, "epochs": 1}
    settings = runs.config(model=CNN, train=train, distributed={"gradients": "active"}, **learning)
    near, far = (run_distributed(on_ranks, 2, settings, kind) for kind in (False, True))
    for (ours, progress), (theirs, expected) in zip(far, near, strict=True):
        assert all(map(torch.equal, ours, theirs))
        assert progress == expected
        assert progress["skipped_steps"] >= 2


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize(
    ("method", "train", "reason"),
    [
        ({"name": "set"}, {"optimizer": {"name": "lamb"}}, "Lamb cannot skip a step there, as sgd and adamw can"),
        ({"name": "deepr"}, {}, "method deepr learns from each step, or moves weights in it"),
        ({"name": "set"}, {"max_bad_steps": 1}, "train.max_bad_steps is 1, so that any step may be the last"),
        ({"name": "set"}, {}, None),
        ({"name": "sparse_momentum"}, {}, None),
        ({"name": "topkast"}, {}, None),
    ],
    ids=["lamb", "deepr", "max_bad_steps", "set", "sparse_momentum", "topkast"],
)
def test_a_run_says_why_each_step_waits(
    method: dict[str, Any], train: dict[str, Any], reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = runs.trainer(runs.config(method=method, train={"epochs": 1, **train}))
    with caplog.at_level(logging.INFO):
        trainer.fit()
    lines = [line for line in caplog.messages if line.startswith("the host waits")]
    assert lines == ([] if reason is None else [f"the host waits for the GPU in every step: {reason}"])


def test_an_epoch_of_bad_steps_alone_has_no_norm() -> None:
    norms = GradientNorms(CPU)
    norms.add(torch.tensor(torch.nan), unless=torch.tensor(True))
    assert norms.read() == Norms()
    norms.add(torch.tensor(2.0), unless=torch.tensor(False))
    norms.add(torch.tensor(torch.inf), unless=torch.tensor(True))
    assert norms.read() == Norms(latest=2.0, largest=2.0, mean=2.0)
