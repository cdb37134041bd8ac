"""Distillation: its loss by hand, the teacher in runs, and teachers that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynsparse.config.recipe import TeacherSettings
from dynsparse.config.schema import RunConfig
from dynsparse.config.sections import TrainSettings
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.tools import export
from dynsparse.training.building import build_trainer
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.criterion import Criterion, distillation
from dynsparse.training.preflight import require_usable_teacher
from dynsparse.training.trainer import Trainer
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_resume import assert_same

LOGITS, TAUGHT = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]]), torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 4.0]])
TORCH = {"loader": "torch"}
TEACHER = {"model": {"name": "mnist_mlp", "hidden": [10]}, "seed": 11, "data": TORCH}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained teacher of another shape."""
    settings = config(tmp_path_factory.mktemp("teachers"), "teacher", **TEACHER)
    trainer = build_trainer(settings, Worker(), checkpoints=CheckpointFolder(settings.folder / "checkpoints", keep=1))
    trainer.fit()
    return settings.folder


def config(folder: Path, name: str = "run", teacher: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    sections["train"] = {"epochs": 1, "teacher": teacher, **sections.get("train", {})}
    sections["data"] = {**TORCH, **sections.get("data", {})}
    return runs.config(runs=str(folder), name=name, **sections)


def student(source: Path | str, **options: Any) -> RunConfig:
    train = options.pop("train", {})
    return runs.config(data=TORCH, train={"epochs": 1, "teacher": {"source": str(source), **options}, **train})


def test_the_loss_by_hand() -> None:
    """Labels get 1/4; T = 2 and T^2 = 4 times the sum of p (log p - log q)."""
    settings = TrainSettings(teacher=TeacherSettings(source="x", temperature=2.0, share=0.75))
    labels = torch.tensor([0, 2])
    p, q = (TAUGHT / 2).softmax(1), (LOGITS / 2).softmax(1)
    hard = -LOGITS.log_softmax(1)[range(2), labels].mean()
    expected = 0.25 * hard + 0.75 * 4 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(Criterion(settings)(LOGITS, labels, TAUGHT), expected)
    assert float(distillation(TAUGHT, TAUGHT, 3.0)) == pytest.approx(0, abs=1e-6)


def test_its_gradient_is_that_of_the_papers_cross_entropy() -> None:
    logits = LOGITS.clone().requires_grad_()
    distillation(logits, TAUGHT, 4.0).backward()
    expected = 4.0 * ((LOGITS / 4).softmax(1) - (TAUGHT / 4).softmax(1)) / 2  # T (q - p), the mean of two samples.
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected)


def test_a_student_learns_from_its_teacher_alone(folder: Path) -> None:
    """Given a share of 1 labels do not matter. The student comes to agree with the teacher, which stays as it is."""
    trainer = build_trainer(student(folder, share=1.0, train={"epochs": 3}), Worker())
    teacher = trainer.engine.criterion.teacher
    assert teacher is not None
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}  # type: ignore[attr-defined]

    def agreement() -> float:
        images = next(trainer.data.test.batches())[0]  # type: ignore[union-attr]
        with torch.no_grad():
            return float((trainer.model.eval()(images).argmax(1) == teacher(images).argmax(1)).float().mean())

    first = agreement()
    trainer.model.train()
    trainer.fit()
    assert agreement() > first + 0.2
    assert_same(teacher.model.state_dict(), before)  # type: ignore[attr-defined]
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())  # type: ignore[attr-defined]
    assert not teacher.model.training  # type: ignore[attr-defined]


def test_the_teacher_has_the_masks_of_its_run_and_the_weights_of_its_best(folder: Path) -> None:
    from dynsparse.tools.opening import open_checkpoint

    trainer = build_trainer(student(folder), Worker())
    opened = open_checkpoint(folder / "checkpoints" / "best.pt")
    assert trainer.engine.criterion.teacher is not None
    assert_same(dict(trainer.engine.criterion.teacher.model.state_dict()), dict(opened.network.model.state_dict()))  # type: ignore[attr-defined]


def test_precision_is_that_of_the_run(folder: Path) -> None:
    trainer = build_trainer(student(folder, train={"precision": "bf16"}), Worker())
    seen: list[torch.dtype] = []
    model = trainer.engine.criterion.teacher.model  # type: ignore[union-attr]
    model.fc1.register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))
    trainer.train_step(next(trainer.data.train.epoch()))
    assert seen == [torch.bfloat16]


def test_exported_weights_teach_as_their_run_does(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    export.main([str(folder), "--format", "torch", "--out", str(path)])
    settings = runs.config(**{**student(path).as_dict(), "model": TEACHER["model"]})
    ours, theirs = (build_trainer(one, Worker()).run.teacher for one in (settings, student(folder)))
    assert ours == theirs is not None


def state_after(worker: Worker, settings: RunConfig, saved: Any, steps: int) -> Any:
    """Train on by some steps; returns what a checkpoint would hold on one rank."""
    trainer = build_trainer(settings, worker)
    trainer.engine.settle(epoch=0, gradients_before=None, always_whole=False)
    if saved is not None:
        trainer.load(saved)
    epoch = trainer.data.train.epoch()
    for _ in range(steps):
        trainer.train_step(next(epoch))
    return trainer.run.save([trainer.run.of_this_rank()])


def test_resumed_it_learns_on_from_the_same_teacher(folder: Path) -> None:
    settings = student(folder, train={"mixing": {"mixup_alpha": 0.5}, "loss": "bce", "ema": {"decay": 0.5}})
    whole, half = (state_after(Worker(), settings, None, steps) for steps in (6, 3))
    assert len(half["teacher"]) == 64
    assert_same(state_after(Worker(), settings, half, 3), whole)


def test_two_ranks_learn_as_one(folder: Path) -> None:
    """Equal to rounding, in evaluation mode: BatchNorm would see the statistics of each part."""
    alone = first_step(Worker(), student(folder))
    for weights in run_distributed(first_step, 2, student(folder, train={"micro_batches": 2})):
        torch.testing.assert_close(weights, alone, rtol=1e-5, atol=1e-7)


def first_step(worker: Worker, settings: RunConfig) -> dict[str, Tensor]:
    trainer = build_trainer(settings, worker)
    trainer.model.eval()
    trainer.train_step(next(trainer.data.train.epoch()))
    return dict(trainer.model.state_dict())


def test_a_resume_needs_the_same_teacher(folder: Path, tmp_path: Path) -> None:
    half = state_after(Worker(), student(folder), None, 2)
    other = config(tmp_path, "other", **{**TEACHER, "seed": 12})
    build_trainer(other, Worker(), checkpoints=CheckpointFolder(other.folder / "checkpoints", keep=1)).fit()
    for settings in (student(other.folder), runs.config(data=TORCH, train={"epochs": 1})):
        with pytest.raises(UserError, match=r"trained with a teacher \(digest [0-9a-f]{12}\), this run has (no|a) "):
            build_trainer(settings, Worker()).load(half)
        with pytest.raises(UserError, match=r"resume with the same train.teacher.source, or start a new run"):
            require_usable_teacher(settings, half)
    require_usable_teacher(student(folder), half)
    plain = state_after(Worker(), runs.config(data=TORCH, train={"epochs": 1}), None, 2)
    with pytest.raises(UserError, match=r"was trained with no teacher, this run has a teacher"):
        build_trainer(student(folder), Worker()).load(plain)


def _of(folder: Path, train: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    return config(folder.parent, teacher={"source": str(folder)}, train=train or {}, **sections)


REFUSED: list[tuple[Callable[[Path], RunConfig], str]] = [
    (lambda at: _of(at, data={"number_of_classes": 7}), r": has 10 classes, this run's data have 7; name a teacher of"),
    (lambda at: _of(at, data={"shape": [1, 5, 5]}), r"its network does not take this run's images, 1x5x5; name a"),
    (lambda at: student(at / "x"), r"train.teacher.source: checkpoint .*x: does not exist"),
    (lambda at: student(at / "config.yaml"), r"train.teacher.source: .*config.yaml: no file of weights, or damaged"),
    (
        lambda at: student(at.parent / "teacher.pt"),
        r"teacher.pt: is of another network, or of other classes: fc1.weight is 10x36 there, 24x36 here; name a check",
    ),
]


@pytest.mark.parametrize(("made", "expected"), REFUSED, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_teachers_that_do_not_fit(folder: Path, made: Callable[[Path], RunConfig], expected: str) -> None:
    (folder / "config.yaml").write_text("no weights\n")
    export.main([str(folder), "--format", "torch", "--out", str(folder.parent / "teacher.pt"), "--overwrite"])
    with pytest.raises(UserError, match=expected) as caught:
        require_usable_teacher(made(folder))
    assert len(caught.value.lines) == 1


def test_a_teacher_of_other_pixels_or_class_names_is_refused(folder: Path) -> None:
    from dynsparse.training.teacher import read_source, require_same_input

    source = read_source(student(folder))
    assert source is not None
    ours = dict(source.input)
    require_same_input(source, ours)
    with pytest.raises(UserError, match=r"normalised with std .*, this run's have \[1.0\]; name a teacher of"):
        require_same_input(source, {**ours, "std": [1.0]})
    named = {**ours, "class_names": ["cat", "dog"]}
    theirs = type(source)(source.where, {"input": {**ours, "class_names": ["cat", "fox"]}}, {})
    with pytest.raises(UserError, match=r"its class 1 is fox, and dog in this run's data"):
        require_same_input(theirs, named)


def test_a_teacher_with_nan_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    export.main([str(folder), "--format", "torch", "--out", str(path)])
    weights = torch.load(path)
    weights["fc1.weight"][0, 0] = math.nan
    torch.save(weights, path)
    with pytest.raises(UserError, match=r"teacher.pt: fc1.weight holds NaN or inf"):
        require_usable_teacher(runs.config(**{**student(path).as_dict(), "model": TEACHER["model"]}))


def test_a_run_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    """Nothing starts without the teacher. Killed in mid-epoch and resumed, it ends as the run that never was."""
    options = {"checkpoint": {"every_steps": 3}, "train": {"epochs": 1}}
    whole, killed = (config(tmp_path, name, teacher={"source": str(folder)}, **options) for name in ("whole", "killed"))
    missing = config(tmp_path, "missing", teacher={"source": str(tmp_path / "none")})
    refused = runs.dist_train("--config", runs.write_config(tmp_path, missing))
    assert refused.returncode == 2 and not missing.folder.exists()
    assert refused.stderr.strip().splitlines()[-1].startswith("error: train.teacher.source: ")

    assert runs.dist_train("--config", runs.write_config(tmp_path, whole)).returncode == 0
    arguments = ["--config", runs.write_config(tmp_path, killed), "--resume", "auto"]
    faulty = Path(__file__).with_name("faulty_run.py")
    assert runs.dist_train(*arguments, script=faulty, FAULTS="kill 0 step 5").returncode != 0
    finished = runs.dist_train(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert runs.metrics(killed.folder) == runs.metrics(whole.folder)
    assert runs.summary(killed.folder)["weight_digest"] == runs.summary(whole.folder)["weight_digest"]


def test_without_a_teacher_nothing_is_saved_of_one() -> None:
    trainer: Trainer = runs.trainer(runs.config(data=TORCH))
    assert trainer.run.teacher is None
    assert "teacher" not in trainer.run.save([trainer.run.of_this_rank()])
