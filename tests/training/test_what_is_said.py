"""Lines that a run prints: its start, the samples that chose its best epoch, the size of its network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pipelines
from dynsparse.cli.actions.evaluation import require_data_of
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.banner import banner_lines
from dynsparse.training.building import require_same_classes, require_same_normalisation
from dynsparse.training.callbacks import standard_observers
from dynsparse.training.callbacks.base import Summary
from dynsparse.training.callbacks.closing import closing_text
from dynsparse.training.checkpoint import how_chosen, read, result_of
from dynsparse.training.network import build_network
from dynsparse.training.resume import checkpoints_of
from dynsparse.training.trainer import Trainer
from pipelines.base import Data, Request
from pipelines.order import Share
from pipelines.views import Normalisation
from tests.pipelines import pictures
from tests.training import runs


def built(settings: RunConfig) -> Data:
    train = settings.train
    return pipelines.build(
        settings.data, Request(settings.seed, train.global_batch_size, Share(), train.evaluation_batch_size, None)
    )


def trained(settings: RunConfig, data: Data) -> tuple[Trainer, Summary]:
    settings.folder.mkdir(parents=True)
    network = build_network(settings, torch.device("cpu"))
    watching = standard_observers(settings)
    trainer = Trainer(
        settings, network, data, Worker(), observers=watching, checkpoints=checkpoints_of(settings), stop_requested=bool
    )
    return trainer, trainer.fit()


def test_two_lines_say_what_is_trained_on_what() -> None:
    settings = runs.config(name="a", data={"validation_samples": 20})
    network, data = build_network(settings, torch.device("cpu")), built(settings)
    shares = "(sparsity 79.95 %, of the whole model 74.56 %)"
    assert banner_lines(settings, network, data, Worker()) == (
        "a: 1 worker on cpu; synthetic: samples: train 80, validation 20, test 50; 10 classes, images 1x6x6",
        f"mnist_mlp by dsr: 1,364 parameters; active 255 of 1,272 in 3 sparse layers {shares}",
    )


def test_a_split_that_lacks_classes_is_told() -> None:
    settings = runs.config(name="a", data={"test_samples": 3})
    network, data = build_network(settings, torch.device("cpu")), built(settings)
    assert "test 3 (of 3 classes alone); 10 classes" in banner_lines(settings, network, data, Worker())[0]


def test_a_start_says_so_and_leaves_the_config_to_its_file(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 1})
    result = runs.dist_train("--config", runs.write_config(tmp_path, settings), workers=2)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("a: 2 workers on cpu; synthetic: samples: train 100, test 50; 10 classes")
    assert lines[1].startswith("mnist_mlp by dsr: 1,364 parameters; active 255 of 1,272")
    assert lines[2].startswith("explores about 25 % of the sparse weights in 2 events (how much each layer moves")
    assert lines[3:5] == ["", "a: done"]


INPUT = {"class_names": [], "number_of_classes": 10, "shape": [1, 6, 6], "resize": None}


def test_folder_and_checkpoints_say_what_the_network_takes(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 1})
    data = dataclasses.replace(built(settings), class_names=("no\nne", *"abcdefghi"))
    assert data.normalisation is not None
    trained(settings, data)
    expected = INPUT | {"class_names": ["no\nne", *"abcdefghi"]}
    expected |= {"mean": list(data.normalisation.mean), "std": list(data.normalisation.std)}
    assert json.loads((settings.folder / "input.json").read_text()) == expected
    assert read(settings.folder / "checkpoints" / "latest.pt")["input"] == expected


@pytest.mark.parametrize(
    ("held_out", "without_test", "said", "not_said"),
    [
        (0, False, ["highest of all epochs, chosen on the test data"], "best"),
        (
            20,
            False,
            ["best validation accuracy", "test accuracy of the epoch best in validation"],
            "chosen on the test",
        ),
        (20, True, ["best validation accuracy"], "test"),
    ],
)
def test_what_chose_the_best_epoch_is_told(
    held_out: int, without_test: bool, said: list[str], not_said: str, tmp_path: Path
) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", data={"validation_samples": held_out})
    data = built(settings)
    trainer, summary = trained(settings, dataclasses.replace(data, test=None) if without_test else data)
    facts = closing_text(summary, Path(), tensorboard=False).partition("whole model")[2].partition("reallocations")[0]
    assert all(words in facts for words in said)
    assert not_said not in facts
    on = "validation" if held_out else "test"
    assert summary.best_top1_on == on
    assert (summary.test_top1 is None) == without_test
    epochs = [line for line in runs.metrics(settings.folder) if line["kind"] == "epoch"]
    assert [line["best_top1_on"] for line in epochs] == [on, on]
    assert summary.best_top1 == max(line[f"{on}_top1"] for line in epochs)
    best = result_of(str(settings.folder))
    words = how_chosen(best, read(best))
    assert best.name == "best.pt" and words.endswith(
        ", the best in validation up to then" if held_out else ", the best on the test data up to then"
    )
    results = trainer.evaluate()
    assert (results.test is None) == without_test and (results.validation is None) == (not held_out)


def test_the_bar_and_the_lines_name_what_they_show(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    settings = runs.config(
        runs=str(tmp_path), name="a", data={"validation_samples": 20}, log={"progress": "lines"}, train={"epochs": 1}
    )
    caplog.set_level("INFO")
    trained(settings, dataclasses.replace(built(settings), test=None))
    line = next(message for message in caplog.messages if message.startswith("epoch 1/1"))
    assert "validation" in line and "test" not in line


def test_a_resume_is_evaluated_on_the_same_samples(tmp_path: Path) -> None:
    """Its best epoch would otherwise be chosen on other samples than it says."""
    settings = runs.config(runs=str(tmp_path), name="a", data={"validation_samples": 20}, train={"epochs": 1})
    data = built(settings)
    trained(settings, data)
    saved = read(settings.folder / "checkpoints" / "latest.pt")
    fewer = built(runs.config(data={"validation_samples": 20, "test_samples": 49})).test
    for changed, words in [
        (dataclasses.replace(data, test=None), "evaluated on certain test samples, this run has none"),
        (dataclasses.replace(data, test=fewer), "evaluated on certain test samples, this run has others"),
        (dataclasses.replace(data, validation=None), "evaluated on certain validation samples, this run has none"),
    ]:
        network = build_network(settings, torch.device("cpu"))
        trainer = Trainer(settings, network, changed, Worker(), stop_requested=bool)
        with pytest.raises(UserError, match=words):
            trainer.load(saved)
    network = build_network(settings, torch.device("cpu"))
    trainer = Trainer(settings, network, data, Worker(), stop_requested=bool)
    trainer.load({key: value for key, value in saved.items() if key != "evaluated_on"})
    assert trainer.progress.epoch == 1, "an older checkpoint does not say, and is resumed"


def test_check_and_start_refuse_other_test_samples_alike(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 1})
    path = runs.write_config(tmp_path, settings)
    assert runs.dist_train("--config", path).returncode == 0
    asked = ("--config", path, "--resume", "auto", "train.epochs=2", "data.test_samples=40")
    for result in (runs.dist_train(*asked, "--check"), runs.dist_train(*asked)):
        assert result.returncode == 2
        assert "evaluated on certain test samples, this run has others" in result.stderr


def test_classes_of_other_names_are_refused_in_evaluation() -> None:
    data = dataclasses.replace(built(runs.config()), class_names=("ape", "bee"))
    saved = {"input": {"class_names": ["ape", "cow"]}}
    with pytest.raises(UserError, match="class 1 is bee, and cow where the checkpoint was trained"):
        require_same_classes(saved, data)
    require_same_classes({}, data)
    require_same_classes({"input": {"class_names": []}}, data)
    numbered = dataclasses.replace(data, class_names=("0", "1"))
    require_same_classes(saved, numbered)  # Shards without a list of names have numbers.
    require_same_classes({"input": {"class_names": ["0", "1"]}}, data)


def test_images_of_another_normalisation_are_refused_in_evaluation() -> None:
    data = dataclasses.replace(built(runs.config()), normalisation=Normalisation((1.0,), (2.0,)))
    require_same_normalisation({"input": {"mean": [1.0], "std": [2.0]}}, data)
    require_same_normalisation({"input": {"mean": None, "std": None}}, data)
    require_same_normalisation({}, data)
    with pytest.raises(UserError, match=r"normalised with .* where the checkpoint was trained"):
        require_same_normalisation({"input": {"mean": [1.0], "std": [3.0]}}, data)


def test_a_check_of_an_evaluation_refuses_classes_of_other_names(tmp_path: Path) -> None:
    folder = pictures.numbered_folder(tmp_path / "images", train=12, val=3)
    settings = runs.config(data=pictures.settings(folder).model_dump())
    require_data_of({"input": {"class_names": ["ape", "bee", "cat"]}}, settings, Worker())
    with pytest.raises(UserError, match="class 2 is cat, and cow where the checkpoint was trained"):
        require_data_of({"input": {"class_names": ["ape", "bee", "cow"]}}, settings, Worker())
