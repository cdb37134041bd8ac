"""The network that chose a run's best, its weights or their average, is the one that others take from the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from dynsparse.training.building import build_trainer
from dynsparse.training.checkpoint import read
from dynsparse.training.confusion import Confusion
from dynsparse.training.network import build_network
from dynsparse.training.sources import read_sources
from dynsparse.training.teacher import build_teacher, read_source
from pipelines.datasets import digits
from tests.tools.trained import call, train
from tests.training import runs

CPU = torch.device("cpu")
DIGITS: dict[str, Any] = {
    "model": {"name": "small_cnn", "channels": [4, 4]},
    "data": {"name": "digits", "image_size": 12, "threads": 1, "loader": "torch"},
}


def trained(folder: Path, best_by: str) -> tuple[runs.RunConfig, dict[str, nn.Module]]:
    """A run with an average, and the networks of its best checkpoint."""
    config = train(folder, "run", **DIGITS, train={"epochs": 1, "ema": {"decay": 0.9, "best_by": best_by}})
    trainer = runs.trainer(config)
    trainer.run.load_network(read(config.folder / "checkpoints" / "best.pt"))
    assert trainer.ema is not None
    return config, {"model": trainer.model.eval(), "ema": trainer.ema.model.eval()}


def assert_is(found: nn.Module, networks: dict[str, nn.Module], best_by: str) -> None:
    wanted = networks[best_by].state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())
    other = networks["ema" if best_by == "model" else "model"].state_dict()
    assert not torch.equal(wanted["conv2.weight"], other["conv2.weight"])


@pytest.mark.parametrize("best_by", ["ema", pytest.param("model", marks=pytest.mark.slow)])
def test_others_take_the_network_that_chose_the_best(best_by: str, tmp_path: Path, capsys: Any) -> None:
    config, networks = trained(tmp_path, best_by)
    model = {**DIGITS["model"], "weights": str(config.folder)}
    tuned = runs.config(**{**DIGITS, "model": model}, method={"name": "dense"})
    assert_is(build_network(tuned, CPU, read_sources(tuned)).model, networks, best_by)
    student = runs.config(**DIGITS, train={"teacher": {"source": str(config.folder)}})
    source = read_source(student)
    assert source is not None
    assert_is(build_teacher(student, source).model, networks, best_by)
    images = digits.load()[1].images[:3]
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
    code, out, _ = call(capsys, "predict", config.folder, *sorted(tmp_path.glob("*.png")), "--json", "--top", 10)
    assert code == 0
    rows = [sorted(json.loads(line)["classes"], key=lambda one: one["class"]) for line in out.splitlines()]
    trainer = build_trainer(config, runs.Worker())
    assert trainer.data.test is not None
    shown, _ = next(iter(trainer.data.test.batches()))
    expected = networks[best_by](shown[:3]).softmax(1)
    torch.testing.assert_close(torch.tensor([[one["probability"] for one in row] for row in rows]), expected)


@pytest.mark.parametrize("best_by", ["ema", "model"])
def test_a_confusion_matrix_is_of_that_network(best_by: str) -> None:
    trainer = runs.trainer(runs.config(train={"ema": {"decay": 0.9, "best_by": best_by}}))
    for batch in trainer.data.train.epoch():
        trainer.train_step(batch)
    confusion = Confusion.empty(10, CPU)
    result = trainer.evaluate(confusion.add)
    assert result.candidate.test is not None
    hits = int(confusion.counts.diagonal().sum())
    assert 100 * hits / int(confusion.counts.sum()) == pytest.approx(result.candidate.test.top1)
    assert int(confusion.counts.sum()) == 50
