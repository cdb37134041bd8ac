"""Runs whose images and global batches grow and shrink by epoch: schedules, resuming, workers, refusals."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

from dynsparse.cli.actions.preview import Preview
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.callbacks import Callback, EpochReport, RunReport, StepReport
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.preflight import require_split, require_usable_teacher
from dynsparse.training.sizes import phase_lines
from pipelines import preview
from pipelines.common.epochs import EpochTable
from pipelines.phases import Phase
from tests.pipelines.pictures import CLASSES, picture
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_resume import assert_same, state_after

SIZES, BATCHES = {0: 8, 1: 12, 2: 10}, {0: 12, 2: 6}
LENGTHS = [2, 2, 5]
"""Steps of the epochs: 30 samples, of which an epoch of batches of 12 leaves out 6."""
STEPS = sum(LENGTHS)
FAULTY_RUN = Path(__file__).with_name("faulty_run.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 10), ("val", 3)):
        for place, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = picture(24 + number, 20 + number, 100 * place + number)
                image.save(root / part / name / f"{number}.png")
    return root


def settings(folder: Path, **sections: Any) -> RunConfig:
    train = {
        "epochs": 3,
        "global_batch_size": BATCHES,
        "image_size": SIZES,
        "lr": {"name": "cosine", "peak": 0.2, "warmup_epochs": 1.5},
        **sections.pop("train", {}),
    }
    small = {"image_size": 12, "number_of_classes": 3, "threads": 1}
    return runs.config(
        model=sections.pop("model", {"name": "small_cnn", "channels": [4, 6]}),
        method={"name": "rigl", "period": {0: 2, 2: 3}, "until": 1.0},
        data={"name": "imagenet", "path": str(folder), **small, **sections.pop("data", {})},
        train=train,
        log={"every_steps": 1, "progress": "none"},
        **sections,
    )


class Watch(Callback):
    """Keeps what observers are told."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.epochs: list[EpochReport] = []

    def on_start(self, run: RunReport) -> None:
        self.run = run

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_epoch(self, report: EpochReport) -> None:
        self.epochs.append(report)


def watched(settings: RunConfig) -> tuple[Watch, list[tuple[int, ...]], Any]:
    """Train, and return what was told, the shapes of the batches, and the summary."""
    watch, shapes = Watch(), []
    trainer = runs.trainer(settings, observers=[watch])
    step = trainer.train_step

    def shown(micro_batches: Any) -> Any:
        shapes.extend(tuple(images.shape) for images, _ in micro_batches)
        return step(micro_batches)

    trainer.train_step = shown  # type: ignore[method-assign]
    return watch, shapes, trainer.fit()


def test_all_that_counts_steps_goes_by_the_phases(folder: Path) -> None:
    watch, shapes, summary = watched(settings(folder))
    assert shapes == [(12, 3, 8, 8)] * 2 + [(12, 3, 12, 12)] * 2 + [(6, 3, 10, 10)] * 5
    assert (summary.epochs, summary.steps, watch.run.steps) == (3, STEPS, STEPS)
    assert [report.step for report in watch.epochs] == [2, 4, 9]
    places = [(epoch, step + 1) for epoch, steps in enumerate(LENGTHS) for step in range(steps)]
    assert [(report.epoch, report.epoch_step) for report in watch.steps] == places
    assert summary.reallocations == 3, "after steps 2 and 4 (every 2) and 6 (every 3); at 9 RigL is at its end"
    # The rate is a curve over epochs: in the middle of an epoch it is what it is without a schedule.
    assert watch.steps[0].lr == pytest.approx(0.2 * 0.5 / 1.5)
    assert watch.steps[4].lr == pytest.approx(0.1 * (1 + math.cos(math.pi * (2 - 1.5) / 1.5)))
    assert watch.steps[7].lr == pytest.approx(0.1 * (1 + math.cos(math.pi * (2.6 - 1.5) / 1.5)))


@pytest.mark.parametrize("epoch", [0, 2])
def test_gradients_are_those_of_the_mean_over_the_phase_s_batch(folder: Path, epoch: int) -> None:
    trainer = runs.trainer(settings(folder, train={"micro_batches": 2}))
    trainer.progress.epoch, trainer.progress.step = epoch, sum(LENGTHS[:epoch])
    trainer.data.train.seek(epoch, 0)
    halves = next(trainer.data.train.epoch())
    weights = dict(trainer.model.named_parameters())
    weighed = [cross_entropy(trainer.model(images), labels, reduction="sum") for images, labels in halves]
    mean = torch.stack(weighed).sum() / (12, 12, 6)[epoch]
    expected = torch.autograd.grad(mean, weights["bn2.weight"])[0]
    found: list[torch.Tensor] = []
    trainer.engine.step = lambda unless=None: found.append(weights["bn2.weight"].grad.clone())  # type: ignore[method-assign,union-attr]
    trainer.train_step(halves)
    assert torch.allclose(found[0], expected, rtol=1e-5, atol=1e-8)


def test_work_that_is_left_is_counted_in_pixels(folder: Path) -> None:
    """The ETA takes it: a step on four times as many pixels takes four times as long."""
    watch, shapes, _ = watched(settings(folder))
    pixels = [batch * height * width for batch, _, height, width in shapes]
    assert [watch.run.work(step) for step in range(STEPS + 1)] == [sum(pixels[:step]) for step in range(STEPS + 1)]


def test_epochs_end_and_prune_after_their_own_steps(folder: Path) -> None:
    sgd = settings(folder, train={"lr": {"name": "steps", "table": {0: 0.1, 1: 0.02, 2: 0.3}}})
    watch, _, _ = watched(sgd)
    assert [report.lr for report in watch.steps] == [0.1] * 2 + [0.02] * 2 + [0.3] * 5


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """The state that the run ends with."""
    state: dict[str, Any] = state_after(Worker(), settings(folder), None, None)
    return state


EDGES = (2, 3, 4, 5)
"""Steps after which a phase ends, or of which the next one is the second of a phase."""


@pytest.mark.parametrize(
    "stop", [stop if stop in EDGES else pytest.param(stop, marks=pytest.mark.slow) for stop in range(1, STEPS)]
)
def test_resumed_at_each_step(folder: Path, whole: dict[str, Any], stop: int) -> None:
    asked, alone = settings(folder), Worker()
    half = state_after(alone, asked, None, stop)
    assert half["progress"]["step"] == stop
    half["progress"]["seconds"] = 0.0
    assert_same(state_after(alone, asked, half, None), whole)


def test_an_epoch_that_ends_after_a_resume_tells_its_own_rate(folder: Path) -> None:
    """Stopped between an epoch's last step and its evaluation, a run reports the rate of that step all the same."""
    asked = settings(folder)
    whole, _, _ = watched(asked)
    half = state_after(Worker(), asked, None, 4)
    half["progress"]["seconds"] = 0.0
    watch = Watch()
    trainer = runs.trainer(asked, observers=[watch])
    trainer.load(half)
    trainer.fit()
    assert [report.lr for report in watch.epochs] == [report.lr for report in whole.epochs[1:]]


def test_resumed_on_three_ranks(folder: Path) -> None:
    asked = settings(folder, train={"channels_last": True, "optimizer": {"name": "adamw"}})
    whole = run_distributed(state_after, 3, asked, None, None)[0]
    half = run_distributed(state_after, 3, asked, None, 4)[0]
    half["progress"]["seconds"] = 0.0
    assert_same(run_distributed(state_after, 3, asked, half, None)[0], whole)


def test_resumed_by_another_number_of_workers(folder: Path) -> None:
    """Position and masks go on; each sample of the epochs is counted once."""
    asked = settings(folder)
    half = run_distributed(state_after, 2, asked, None, 3)[0]
    half["progress"]["seconds"] = 0.0
    begun = state_after(Worker(), asked, half, 3)
    for part in ("masks", "weights", "optimizer", "method", "data"):
        assert_same(begun[part], half[part])
    whole = state_after(Worker(), asked, half, None)
    assert whole["progress"]["step"] == STEPS
    assert whole["data"]["batches"] == [[0, 12], [2, 6]]


MODERN = {
    "train": {
        "mixing": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "until_epoch": 2},
        "ema": {"decay": 0.9, "start_epoch": 1.5},
        "clip": {"norm": 1.0},
        "loss": "bce",
    },
    "data": {"trivial_augment": True, "random_erasing": 0.5, "repeated_augmentation": 2},
}
"""The other parts of a recipe that go by epochs or by the global batch."""


@pytest.mark.parametrize(("stop", "workers"), [(4, 1), pytest.param(5, 2, marks=pytest.mark.slow)])
def test_resumed_with_all_parts_of_a_recipe(folder: Path, stop: int, workers: int) -> None:
    asked = settings(folder, **copy.deepcopy(MODERN))
    whole = run_distributed(state_after, workers, asked, None, None)[0]
    assert whole["ema"]["updates"] == STEPS - 3, "half of the second epoch of two steps, and the third"
    half = run_distributed(state_after, workers, asked, None, stop)[0]
    half["progress"]["seconds"] = 0.0
    assert_same(run_distributed(state_after, workers, asked, half, None)[0], whole)


@pytest.mark.slow  # test_resumed_with_all_parts_of_a_recipe changes their number, too.
def test_all_parts_of_a_recipe_on_any_number_of_workers(folder: Path) -> None:
    asked = settings(folder, **copy.deepcopy(MODERN))
    alone = losses(Worker(), asked)
    for workers in (2, 3):
        assert run_distributed(losses, workers, asked)[0] == pytest.approx(alone, rel=1e-4)


def test_flops_are_those_of_each_phase_s_images(folder: Path) -> None:
    """Static masks: each image costs 3 x (1 - sparsity) of a dense pass of its own size."""
    asked = settings(folder).model_copy(update={"method": runs.config(method={"name": "static"}).method})
    trainer = runs.trainer(asked)
    sparse, dense = 0, 0
    for epoch, steps in enumerate(LENGTHS):
        size = asked.train.size_at(epoch)
        costs = trainer.network.costs_at((3, size, size))
        assert costs is not None
        images = steps * asked.train.batch_at(epoch)
        dense += 3 * images * costs.dense
        sparse += 3 * images * costs.inference({layer.name: layer.active_weights for layer in trainer.masks})
    summary = trainer.fit()
    assert (summary.training_flops, trainer.progress.dense_training_flops) == (sparse, dense)
    assert trainer.network.costs_at((3, 8, 8)) != trainer.network.costs


def scaled(module: torch.nn.BatchNorm2d, images: torch.Tensor) -> torch.Tensor:
    return images * module.weight[:, None, None] + module.bias[:, None, None]


def losses(worker: Worker, asked: RunConfig) -> list[float]:
    """Loss of training and of the test, epoch by epoch. BatchNorm, which sees a worker's samples, is left out."""
    watch = Watch()
    trainer = runs.trainer(asked, worker, observers=[watch])
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.forward = partial(scaled, module)  # type: ignore[method-assign]
    trainer.fit()
    return [number for report in watch.epochs for number in (report.train_loss, report.results.selecting.loss)]


def test_the_same_training_on_any_number_of_workers(folder: Path) -> None:
    """Gradients are summed in another order, and nothing else."""
    asked = settings(folder)
    alone = losses(Worker(), asked)
    for workers in (2, 3):
        assert run_distributed(losses, workers, asked)[0] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(
    ("step", "workers"),
    [(2, 0), pytest.param(4, 2, marks=pytest.mark.slow), pytest.param(5, 2, marks=pytest.mark.slow)],
)
def test_killed_at_the_edge_of_a_phase(folder: Path, tmp_path: Path, step: int, workers: int) -> None:
    """SIGKILL in the last step of a phase, or in the first."""
    names = ("whole", "killed")
    whole, killed = (
        settings(folder, name=name, runs=str(tmp_path), checkpoint={"every_steps": 1, "keep": 2}) for name in names
    )
    assert runs.dist_train("--config", runs.write_config(tmp_path, whole), workers=workers).returncode == 0
    arguments = ["--config", runs.write_config(tmp_path, killed), "--resume", "auto"]
    rank = max(0, workers - 1)
    died = runs.dist_train(*arguments, workers=workers, script=FAULTY_RUN, FAULTS=f"kill {rank} step {step}")
    assert died.returncode != 0
    finished = runs.dist_train(*arguments, workers=workers)
    assert finished.returncode == 0, finished.stderr
    for ours, theirs in zip(runs.metrics(killed.folder), runs.metrics(whole.folder), strict=True):
        assert ours == theirs
    assert runs.summary(killed.folder)["weight_digest"] == runs.summary(whole.folder)["weight_digest"]


def test_images_are_counted_by_the_phase(folder: Path) -> None:
    """Speed is images over seconds: those of the last epoch are 5 batches of 6."""
    trainer = runs.trainer(settings(folder))
    trainer.fit()
    assert trainer.reporter.epoch_watch.images == LENGTHS[2] * BATCHES[2]
    assert trainer.reporter._trained_images == 24 + 24 + 30


def test_a_later_first_epoch_is_looked_at(folder: Path, tmp_path: Path) -> None:
    """Observers and --preview show the samples that the run begins with, not those of epoch 0."""
    asked = settings(folder, train={"start_epoch": 2}, runs=str(tmp_path), name="late")
    seen: list[torch.Tensor] = []
    watch = Watch()
    watch.on_samples = lambda report: seen.append(report.picture)  # type: ignore[method-assign]
    trainer = runs.trainer(asked, observers=[watch])
    trainer.fit()
    trainer.data.train.seek(2, 0)
    ((images, labels),) = next(trainer.data.train.epoch())
    assert images.shape == (BATCHES[2], 3, SIZES[2], SIZES[2])
    (picture_of_the_run,) = seen
    assert torch.equal(picture_of_the_run, preview.picture(trainer.data, images, labels, most=32))

    Preview(asked, count=6).run(Worker())
    preview.write_png(picture_of_the_run, tmp_path / "expected.png")
    assert (tmp_path / "late_preview.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


# Off, nothing changes.


def test_one_size_and_one_batch_are_no_schedule(folder: Path) -> None:
    """A table of one entry, and the size that the data have anyway: the same bits as without."""
    plain = settings(folder, train={"global_batch_size": 12, "image_size": None})
    said = settings(folder, train={"global_batch_size": {0: 12}, "image_size": {0: 12, 99: 8}})
    assert said.train.global_batch_size == 12
    assert phase_lines(said, EpochTable.of(2)) == []
    states = [state_after(Worker(), asked, None, None) for asked in (plain, said)]
    for state in states:
        del state["config"]
    assert_same(*states)
    assert "batches" not in states[0]["data"]


# What is refused.


def refused(folder: Path, workers: int = 1, **sections: Any) -> str:
    with pytest.raises(UserError) as caught:
        require_split(settings(folder, **sections), workers)
    (line,) = str(caught.value).splitlines()
    return line


def test_batches_that_some_phase_cannot_share_out(folder: Path) -> None:
    line = refused(folder, workers=7)
    assert line.startswith("train.global_batch_size is 6 from epoch 2 on; each of 7 workers x 1 micro-batches needs a")
    assert line.endswith("take 7 or more")
    line = refused(folder, workers=4, model={"name": "small_cnn"})
    assert line.startswith("train.global_batch_size is 6 from epoch 2 on: one sample at a time for each of 4 workers")
    require_split(settings(folder, train={"epochs": 2}), 6)  # The run ends before that phase.


@pytest.mark.parametrize("network", [{"name": "mnist_mlp"}, {"name": "torchvision/vit_b_32"}])
def test_networks_of_one_size(folder: Path, network: dict[str, Any]) -> None:
    options = {"train": {"image_size": {0: 64, 1: 96}}, "data": {"image_size": 64}}
    line = refused(folder, model=network, **options)
    assert line.startswith(f"train.image_size is 96 from epoch 1 on, and {network['name']} built for images of 64 ")
    assert "leave train.image_size out" in line


def test_networks_of_any_size(folder: Path) -> None:
    for network in ({"name": "torchvision/resnet18"}, {"name": "small_cnn"}):
        require_split(settings(folder, model=network, train={"image_size": {0: 32, 1: 64}}), 1)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"image_size": {2: 8}}, "starts at epoch 2; its first entry must be for epoch 0"),
        ({"image_size": {0: 8, 1: 8193}}, "8193 at epoch 1 is no size of images in pixels; .* whole, from 1 to 8,192"),
        ({"image_size": {0: 8.5}}, "8.5 at epoch 0 is no size of images"),
        ({"image_size": 0}, "is 0; input should be greater than or equal to 1"),
        ({"image_size": "big"}, 'is "big"; input should be a valid integer'),
        ({"global_batch_size": {0: 12, 1: 0}}, "0 at epoch 1 is no number of samples; it must be whole, from 1 to"),
        ({"global_batch_size": {1: 12}}, "starts at epoch 1; its first entry must be for epoch 0"),
        ({"global_batch_size": {0: 12, 5: 8, 3: 4}}, "they must rise from entry to entry"),
    ],
)
def test_tables_that_are_none(folder: Path, train: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settings(folder, train=train)
    assert len(str(caught.value).splitlines()) == 1


def test_tables_in_the_place_of_the_size_of_evaluation(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^config: data: image_size is a table; .* of training as train.image_size$"):
        settings(folder, data={"image_size": {0: 8, 1: 12}})


def test_data_that_are_not_cropped() -> None:
    with pytest.raises(UserError, match=r"data.name synthetic does not crop images to a size: leave it out, or use im"):
        runs.config(train={"image_size": {0: 6, 1: 8}})
    runs.config(train={"global_batch_size": {0: 12, 1: 6}})  # Batches change with any data set.


def test_resumed_with_other_batches_before(folder: Path) -> None:
    half = state_after(Worker(), settings(folder), None, 6)
    other = runs.trainer(settings(folder, train={"global_batch_size": {0: 10, 2: 6}}))
    with pytest.raises(UserError, match=r"global batches \{0: 12, 2: 6\}, this run has \{0: 10, 2: 6\}"):
        other.load(half)


def test_a_config_is_read_back(folder: Path) -> None:
    asked = settings(folder)
    assert loading.parse(asked.as_dict()) == asked
    assert asked.as_dict()["train"]["image_size"] == SIZES
    assert asked.train.phases == (Phase(0, 12, 8), Phase(1, 12, 12), Phase(2, 6, 10))


def test_phases_are_told(folder: Path) -> None:
    lines = phase_lines(settings(folder), EpochTable.of({0: 2, 2: 5}))
    assert lines[0] == "epoch 1: images of 3x8x8, global batches of 12, 2 steps an epoch"
    assert lines[2] == "epoch 3: images of 3x10x10, global batches of 6, 5 steps an epoch"
    first, last = phase_lines(settings(folder, train={"image_size": 8}), EpochTable.of({0: 2, 2: 5}))
    assert first.startswith("epochs 1 to 2: images of 3x8x8, global batches of 12, ")
    assert last.startswith("epoch 3: images of 3x8x8, global batches of 6, ")


def test_parts_of_a_recipe_that_a_later_batch_does_not_fit(folder: Path) -> None:
    with pytest.raises(UserError, match=r"train: global_batch_size is 7 from epoch 2 on, and mixing .* such as 8"):
        settings(folder, train={"global_batch_size": {0: 12, 2: 7}, "mixing": {"mixup_alpha": 1}})
    with pytest.raises(UserError, match=r"repeated_augmentation is 4, train\.global_batch_size 6; each sample"):
        runs.trainer(settings(folder, data={"repeated_augmentation": 4}))
    warmed = {"name": "cosine", "peak": 0.1}
    with pytest.raises(UserError, match=r"^train.lr.warmup_steps is 5, and after 4 steps epochs have another length: "):
        runs.trainer(settings(folder, train={"lr": {**warmed, "warmup_steps": 5}}))
    runs.trainer(settings(folder, train={"lr": {**warmed, "warmup_steps": 4}}))
    with pytest.raises(UserError, match=r"^train.lr.warmup_steps is 9, and the run has 9 steps \(2 to 5 an epoch\): "):
        runs.trainer(settings(folder, train={"lr": {**warmed, "warmup_steps": 9}}))


# A teacher sees the student's images.


@pytest.fixture(scope="module")
def teachers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of trained networks: one that takes images of 12 pixels alone, and one that takes any."""
    made, root = {}, tmp_path_factory.mktemp("teachers")
    for name, model in (("of 12", {"name": "mnist_mlp", "hidden": [4]}), ("of any", {"name": "small_cnn"})):
        train = {"epochs": 2, "global_batch_size": 12, "image_size": None}
        asked = settings(folder, model=model, train=train, runs=str(root), name=name.replace(" ", "_"))
        runs.trainer(asked, checkpoints=CheckpointFolder(asked.folder / "checkpoints", keep=1)).fit()
        made[name] = asked.folder
    return made


def taught(folder: Path, teacher: Path, **sections: Any) -> RunConfig:
    train = {"teacher": {"source": str(teacher)}, **sections.pop("train", {})}
    return settings(folder, train=train, **sections)


@pytest.mark.parametrize(
    ("sizes", "since"),
    [({0: 12, 1: 8}, "3x8x8 from epoch 1 on (a and b must"), ({0: 8, 1: 12}, "3x8x8; name"), (8, "3x8x8; name a")],
)
def test_a_teacher_that_cannot_take_the_images_of_a_phase(
    folder: Path, teachers: dict[str, Path], sizes: Any, since: str
) -> None:
    with pytest.raises(UserError) as caught:
        require_usable_teacher(taught(folder, teachers["of 12"], train={"image_size": sizes}))
    (line,) = caught.value.lines
    assert line.startswith(f"train.teacher.source: {teachers['of 12']}: its network does not take this run's images, ")
    assert since in line and line.endswith("name a teacher that was trained on images of this shape")


def test_teachers_that_can(folder: Path, teachers: dict[str, Path]) -> None:
    require_usable_teacher(taught(folder, teachers["of any"]))
    for data in ({}, {"image_size": 20}):  # Evaluation's images are not the teacher's.
        require_usable_teacher(taught(folder, teachers["of 12"], train={"image_size": 12}, data=data))


# Compiled.


@pytest.mark.slow
def test_compiled_once_a_size(folder: Path) -> None:
    """Each phase compiles one graph for training, at its first step. The test set's is another."""
    torch._inductor.config.compile_threads = 1
    torch._dynamo.reset()
    asked = settings(folder, train={"compile": True, "evaluation_batch_size": 9})
    trainer = runs.trainer(asked)
    graphs: list[int] = []
    step, before = trainer.train_step, counters["stats"]["unique_graphs"]  # Other tests of the process compile too.

    def counted(micro_batches: Any) -> Any:
        loss = step(micro_batches)
        graphs.append(counters["stats"]["unique_graphs"] - before)
        return loss

    trainer.train_step = counted  # type: ignore[method-assign]
    trainer.fit()
    torch._dynamo.reset()
    assert graphs == [1] * 2 + [3] * 2 + [4] * 5, "one a phase, and one for the evaluation after the first"
