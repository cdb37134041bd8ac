"""Confusion matrices: exact, over any number of ranks, in a file, with the accuracy of each class."""

from __future__ import annotations

import csv
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from dynsparse.cli.actions.base import require
from dynsparse.cli.actions.confusion_file import by_class, write_confusion
from dynsparse.cli.actions.evaluation import Evaluation
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.confusion import Confusion
from dynsparse.training.evaluate import evaluate
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_evaluate import Samples, data

CPU = torch.device("cpu")


def test_worked_by_hand() -> None:
    """The first of equal logits counts, as for top-1. The last class has no sample."""
    confusion = Confusion.empty(3, CPU)
    confusion.add(torch.tensor([[2.0, 1, 0], [1, 1, 0], [0, 0, 5]]), torch.tensor([0, 1, 1]))
    confusion.add(torch.tensor([[0.0, 4, 1]]), torch.tensor([1]))
    assert confusion.counts.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert confusion.samples == [1, 3, 0]
    assert confusion.accuracies == [100, pytest.approx(100 / 3), None]
    assert by_class(confusion, ["a", "b", "c"]) == ["accuracy by class:", "  a: 100.00 % of 1", "  b: 33.33 % of 3"]


def counted(worker: Worker) -> tuple[list[list[int]], float]:
    images, labels = data()
    start, end = worker.rank * 11 // worker.world_size, (worker.rank + 1) * 11 // worker.world_size
    pipeline, confusion = Samples(images[start:end], labels[start:end], claimed=11), Confusion.empty(7, CPU)
    result = evaluate(nn.Identity(), pipeline, CPU, nullcontext, tally=confusion.add)  # type: ignore[arg-type]
    return confusion.summed().counts.tolist(), result.top1


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same(workers: int) -> None:
    alone = counted(Worker())
    assert run_distributed(counted, workers) == [alone] * workers
    counts = torch.tensor(alone[0])
    assert (int(counts.sum()), 100 * int(counts.diagonal().sum()) / 11) == (11, alone[1])


def test_the_weakest_of_many_classes_are_said() -> None:
    counts = torch.eye(30, dtype=torch.int64) * torch.arange(1, 31)
    counts[7, 0] = 8
    lines = by_class(Confusion(counts), [f"class {i}" for i in range(30)])
    assert lines[:2] == ["accuracy by class, the weakest 20 of 30:", "  class 7: 50.00 % of 16"]
    assert len(lines) == 21


@pytest.mark.parametrize("ending", ["csv", "svg", "png"])
def test_names_of_any_kind_are_written(ending: str, tmp_path: Path) -> None:
    """Commas, quotes and dollar signs are no trouble, and the bytes are the same each time."""
    confusion = Confusion(torch.tensor([[3, 1], [0, 0]]))
    names = ['a, "b" $x$', "c\nd"]
    files = write_confusion(f"{tmp_path}/m.{ending}", confusion, names)
    assert files == [tmp_path / "m.csv", *([] if ending == "csv" else [tmp_path / f"m.{ending}"])]
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["true class", *names, "samples", "accuracy"],
        [names[0], "3", "1", "4", "75.00"],
        [names[1], "0", "0", "0", ""],
    ]
    before = [path.read_bytes() for path in files]
    write_confusion(f"{tmp_path}/m.{ending}", confusion, names)
    assert [path.read_bytes() for path in files] == before


def test_too_many_classes_are_refused() -> None:
    with pytest.raises(UserError, match="have 5,000 classes; a matrix has at most 4,000"):
        Confusion.empty(5000, CPU)
    rules = Evaluation(runs.config(data={"number_of_classes": 5000}), "run", "matrix.csv").rules(Worker())
    with pytest.raises(UserError, match="have 5,000 classes; a matrix has at most 4,000"):
        require(rules)


def test_from_the_command_line(tmp_path: Path) -> None:
    """One and two workers write the same file, on data of the run's kind and on others."""
    config = runs.config(runs=str(tmp_path), name="run", train={"epochs": 1})
    assert runs.dist_train("--config", runs.write_config(tmp_path, config)).returncode == 0
    for workers in (0, 2):
        file = tmp_path / f"{workers}.csv"
        done = runs.dist_train(
            "--evaluate", config.folder, "--confusion", file, "data.test_samples=33", workers=workers
        )
        assert done.returncode == 0, done.stderr
        assert f"written: {file}" in done.stdout
    assert (tmp_path / "0.csv").read_text() == (tmp_path / "2.csv").read_text()
    with (tmp_path / "0.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert sum(int(row["samples"]) for row in rows) == 33
    top1 = 100 * sum(int(row[row["true class"]]) for row in rows) / 33
    assert f"test: top-1 {top1:.2f} %" in done.stdout
    for words, message in (
        (["--evaluate", config.folder, "--confusion", tmp_path / "a.txt"], "none of the endings .csv, .png, .svg"),
        (["--evaluate", config.folder, "--confusion", tmp_path / "no" / "a.csv"], "in a folder that is there"),
        (["--config", tmp_path / "config.yaml", "--confusion", "a.csv"], "only with argument --evaluate"),
    ):
        refused = runs.dist_train(*words)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert message in refused.stderr
