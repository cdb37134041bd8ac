"""Runs whose networks lose channels: the same function, the same budget, and a resume that goes on bit for bit."""

from __future__ import annotations

import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from dynsparse.cli.main import main
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.methods.chase import Chase
from dynsparse.runtime import Worker
from dynsparse.shrinking.kept import shrinkages_in
from dynsparse.tools.opening import open_checkpoint
from dynsparse.training.callbacks import Callback, ShrinkReport
from dynsparse.training.callbacks.metrics_file import MetricsFile
from dynsparse.training.callbacks.summary_file import SummaryFile
from dynsparse.training.callbacks.tensorboard import TensorBoard
from dynsparse.training.checkpoint import CheckpointFolder, read_run
from dynsparse.training.checkpoint.agreement import first_problem
from dynsparse.training.network import build_network, build_without_weights
from dynsparse.training.shrinking import require_shrinkable
from dynsparse.training.sources import read_sources
from dynsparse.training.trainer import Trainer
from pipelines.common.extras import install_command
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_resume import assert_same, state_after

FAULTY_RUN = Path(__file__).with_name("faulty_run.py")
CNN = {"name": "small_cnn", "channels": [8, 12, 16]}
METHODS = {
    "static": {"name": "static"},
    "rigl": {"name": "rigl", "period": 3, "fraction": 0.3},
    "set": {"name": "set", "period": 2, "fraction": 0.3},
    "dsr": {"name": "dsr", "period": 3, "target_moves": 20},
    "chase": {"name": "chase", "period": 2, "channels_until": 0.6, "channel_sparsity": 0.5},
}


def config(method: str = "static", shrink: Any = (1,), **sections: Any) -> RunConfig:
    """Three epochs of eight steps; at 95 % zeros some channels have no active weight."""
    train = {"epochs": 3, "shrink": {"at": list(shrink)} if shrink else None, **sections.pop("train", {})}
    data = {"name": "synthetic", "shape": [1, 8, 8], "samples": 100, "test_samples": 50, "threads": 1}
    sections = {"sparsity": {"conv": 0.95, "fc": 0.5}, "data": data, **sections}
    return runs.config(model=CNN, method=METHODS[method], train=train, **sections)


def at_shrink(trainer: Trainer) -> None:
    """Train up to the first shrink, which is still to come."""
    epoch = trainer.config.train.shrink.at[0]  # type: ignore[union-attr]
    trainer._start()
    while trainer.progress.epoch < epoch:
        trainer._train_epoch()
        trainer._finish_epoch()


def outputs(model: torch.nn.Module, images: Tensor) -> Tensor:
    """Compute as in evaluation, and leave the modes as they are."""
    training = model.training
    with torch.no_grad():
        found: Tensor = model.eval()(images)
    model.train(training)
    return found


@pytest.mark.parametrize(
    "method", ["rigl", "chase", *(pytest.param(one, marks=pytest.mark.slow) for one in ("static", "set", "dsr"))]
)
def test_the_same_function_and_budget_in_a_smaller_network(method: str) -> None:
    trainer = runs.trainer(config(method, train={"ema": {"decay": 0.7}, "optimizer": {"name": "adamw"}}))
    at_shrink(trainer)
    images = torch.randn(5, 1, 8, 8)
    ema = trainer.ema
    assert ema is not None
    before, parameters = [outputs(m, images) for m in (trainer.model, ema.model)], trainer.network.parameters
    active, total = trainer.network.active_weights, trainer.network.total_parameters
    trainer._shrink_if_due()
    for model, expected in zip((trainer.model, ema.model), before, strict=True):
        torch.testing.assert_close(outputs(model, images), expected, atol=1e-6, rtol=1e-5)
    assert trainer.network.parameters < parameters
    assert trainer.network.active_weights == trainer.masks.budget == active
    assert trainer.network.total_parameters == total
    trainer.masks.check()
    shapes = {name: value.shape for name, value in trainer.model.named_parameters()}
    for name, parameter in trainer.model.named_parameters():
        moments = [v for v in trainer.optimizer.state[parameter].values() if v.dim() > 0]
        assert len(moments) == 2 and all(moment.shape == shapes[name] for moment in moments)
    trainer._train_epoch()
    trainer.masks.check()


def test_the_process_keeps_its_memory_while_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding what goes together may take much. It is limited before a run alone: later, other threads would fail."""
    trainer = runs.trainer(config("chase"))
    at_shrink(trainer)

    def limit(*_: Any) -> None:
        raise AssertionError("the whole process was limited")

    monkeypatch.setattr(resource, "setrlimit", limit)
    trainer._shrink_if_due()
    assert trainer.network.shrinkages[0].modules


def test_what_is_told_of_a_shrunk_network(caplog: pytest.LogCaptureFixture) -> None:
    """The goal of Chase is that of the start. Reasons are told once."""
    caplog.set_level(logging.INFO)
    trainer = runs.trainer(config("chase", shrink=(1, 2), sparsity={"conv": 0.8, "fc": 0.5}))
    at_shrink(trainer)
    notes = trainer.sparse.method.notes
    trainer.fit()
    assert trainer.sparse.method.notes == notes
    told = [line for line in caplog.messages if "alone" in line]
    assert told == ["train.shrink leaves 10 channels alone: they are the network's outputs"]


def test_weights_that_stay_dense_are_told_as_they_are() -> None:
    trainer = runs.trainer(config(sparsity={"conv": 0.99, "fc": 0.5, "exclude": ["conv1*"]}))
    trainer.fit()
    (first,) = (one for one in trainer.network.dense if one.name.startswith("conv1"))
    shape = trainer.model.conv1.weight.shape
    assert first.shape == tuple(shape) and first.weights == shape.numel() and shape[0] < 8


def test_channels_go_on_to_die_when_others_were_taken_out() -> None:
    """Half of all channels are dead in the end, those that went with a shrink among them."""
    trainer = runs.trainer(config("chase", shrink=(1, 2), sparsity={"conv": 0.8, "fc": 0.5}))
    trainer.fit()
    method = trainer.sparse.method
    assert isinstance(method, Chase)
    first = sum(method.channels.first_sizes)
    assert sum(method.channels.gone) > 0
    assert method.channels.count + sum(method.channels.gone) == first
    assert method.channels.lost == round(0.5 * first)
    assert method.scalars() == {"channel_sparsity": method.channels.lost / first}
    for layer in trainer.masks:
        if (closed := method.closed(layer)) is not None:
            assert not closed[layer.active].any()


SETTINGS: dict[str, dict[str, Any]] = {
    "static, momentum": {},
    "rigl, adamw, ema": {"method": "rigl", "train": {"optimizer": {"name": "adamw"}, "ema": {"decay": 0.7}}},
    "chase, two shrinks": {"method": "chase", "shrink": (1, 2)},
    "dsr, fp16, two shrinks": {"method": "dsr", "shrink": (1, 2), "train": {"precision": "fp16"}},
    "rigl, parts, clipped, frozen": {
        "method": "rigl",
        "train": {
            "micro_batches": 2,
            "clip": {"norm": 0.5},
            "freeze": ["bn1.*"],
            "penalty": {"l1": 1e-4},
            "parameters": {"decay_norms_and_biases": False},
            "optimizer": {"name": "adamw", "weight_decay": 0.1},
        },
    },
    "set, channels_last, adagrad": {
        "method": "set",
        "train": {"channels_last": True, "optimizer": {"name": "torch/Adagrad"}},
    },
}


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("rigl, adamw, ema", [8, 11]),
        *(pytest.param(name, [5, 8, 9, 16, 20], marks=pytest.mark.slow) for name in SETTINGS),
    ],
)
def test_resumed_before_and_after_a_shrink(name: str, stops: list[int]) -> None:
    """Steps 8 and 16 end epochs: a shrink comes at once after a resume from there."""
    settings, alone = config(**SETTINGS[name]), Worker()
    whole = state_after(alone, settings, None, None)
    assert any(one["modules"] for one in whole["shrinkages"])
    for stop in stops:
        half = state_after(alone, settings, None, stop)
        half["progress"]["seconds"] = 0.0
        assert_same(state_after(alone, settings, half, None), whole, f"{name}, step {stop}")


@pytest.mark.parametrize(
    ("world_size", "sections"),
    [
        (2, {"method": "rigl", "train": {"ema": {"decay": 0.7}}, "distributed": {"gradients": "active"}}),
        pytest.param(3, {"method": "dsr", "train": {"optimizer": {"name": "adamw"}}}, marks=pytest.mark.slow),
    ],
)
def test_resumed_on_several_ranks(world_size: int, sections: dict[str, Any]) -> None:
    settings = config(**sections)
    whole = run_distributed(state_after, world_size, settings, None, None)[0]
    assert any(one["modules"] for one in whole["shrinkages"])
    for stop in (8, 11) if world_size > 2 else (11,):
        half = run_distributed(state_after, world_size, settings, None, stop)[0]
        half["progress"]["seconds"] = 0.0
        assert_same(run_distributed(state_after, world_size, settings, half, None)[0], whole)


@pytest.mark.parametrize(
    ("workers", "faults"),
    [
        (0, ["kill 0 in the shrink"]),
        pytest.param(
            2,
            ["kill 0 before the shrink", "kill 1 in the shrink", "kill 0 after the shrink"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["one worker, no torchrun", "two workers"],
)
def test_killed_at_a_shrink(tmp_path: Path, workers: int, faults: list[str]) -> None:
    """SIGKILL of one worker, once an attempt. The run goes on as one that was never killed."""
    options = {"runs": str(tmp_path), "distributed": {"gradients": "active"}}
    whole, killed = (config("rigl", name=name, **options) for name in ("whole", "killed"))
    assert runs.dist_train("--config", runs.write_config(tmp_path, whole), workers=workers).returncode == 0
    arguments = ["--config", runs.write_config(tmp_path, killed)]
    if not workers:
        assert runs.dist_train(*arguments, script=FAULTY_RUN, FAULTS=faults.pop()).returncode != 0
        arguments += ["--resume", "auto"]
    done = runs.dist_train(
        *arguments, workers=workers, max_restarts=3 if workers else 0, script=FAULTY_RUN, FAULTS=", ".join(faults)
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("resuming from") == max(1, len(faults))
    expected, actual = runs.summary(whole.folder), runs.summary(killed.folder)
    for key in ("weight_digest", "mask_digest", "rank_digests", "parameters", "test_top1", "training_flops"):
        assert actual[key] == expected[key], key
    assert runs.metrics(killed.folder) == runs.metrics(whole.folder)
    assert [line["epoch"] for line in runs.metrics(killed.folder) if line["kind"] == "shrink"] == [1]


def test_resumed_by_another_number_of_workers() -> None:
    settings = config("rigl")
    half = run_distributed(state_after, 2, settings, None, 11)[0]
    half["progress"]["seconds"] = 0.0
    done = state_after(Worker(), settings, half, None)
    assert done["progress"]["step"] == 24
    assert done["masks"]["budget"] == half["masks"]["budget"]
    assert_same(done["shrinkages"], half["shrinkages"])


class Seen(Callback):
    def __init__(self) -> None:
        self.shrinks: list[ShrinkReport] = []

    def on_shrink(self, report: ShrinkReport) -> None:
        self.shrinks.append(report)


def finished(folder: Path, settings: RunConfig) -> tuple[Trainer, Seen]:
    """Train to the end, with checkpoints and logs."""
    settings.folder.mkdir(parents=True)
    seen = Seen()
    observers = [
        seen,
        MetricsFile(settings.folder / "metrics.jsonl"),
        SummaryFile(settings.folder / "summary.json"),
        TensorBoard(settings.folder),
    ]
    checkpoints = CheckpointFolder(settings.folder / "checkpoints", keep=3)
    trainer = runs.trainer(settings, observers=observers, checkpoints=checkpoints)
    trainer.fit()
    return trainer, seen


def test_told_against_the_network_of_the_start(tmp_path: Path) -> None:
    """Sparsity, FLOPs, logs; and every reader of the checkpoint builds the smaller network."""
    settings = config(name="a", runs=str(tmp_path))
    first = runs.trainer(settings).network
    assert first.costs is not None
    trainer, seen = finished(tmp_path, settings)
    summary = runs.summary(settings.folder)
    (report,) = seen.shrinks
    parameters = sum(one.numel() for one in trainer.model.parameters())
    assert parameters == summary["parameters"] == report.after.parameters < report.before.parameters
    assert summary["total_parameters"] == report.before.parameters == first.total_parameters
    assert summary["sparse_layer_weights"] == first.sparse_layer_weights
    assert summary["sparsity"] == first.sparsity and summary["model_sparsity"] == first.model_sparsity
    assert summary["dense_flops"] == first.costs.dense == report.before.dense_flops
    assert trainer.network.costs is not None and trainer.network.costs.dense == report.after.dense_flops
    assert summary["inference_flops_of_dense"] == summary["inference_flops"] / first.costs.dense
    lines = [line for line in runs.metrics(settings.folder) if line["kind"] == "shrink"]
    channels = {name: [one["inputs"], one["outputs"]] for name, one in lines[0]["channels"].items()}
    changed = {name: list(now) for name, now in report.after.layers.items() if now != report.before.layers[name]}
    assert channels == changed
    events = EventAccumulator(str(settings.folder)).Reload()
    (found,) = events.Scalars("channels/outputs/conv1")
    assert (found.step, found.value) == (8, trainer.model.conv1.out_channels)


def test_its_checkpoint_is_opened_inspected_exported_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(name="a", runs=str(tmp_path), train={"ema": {"decay": 0.5}})
    trainer, _ = finished(tmp_path, settings)
    folder = str(settings.folder)
    opened = open_checkpoint(settings.folder / "checkpoints" / "latest.pt")
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(opened.network.model(images), outputs(trainer.model, images))
    weights = tmp_path / "weights.pt"
    assert main(["export", folder, "--format", "csr", "--out", str(tmp_path / "a.csr.pt")]) == 2
    assert capsys.readouterr().err == (
        "error: --format csr: the run has shrunk, and the file is loaded into the whole network; use compact, onnx, "
        "safetensors or torch\n"
    )
    for words in (
        ["inspect", folder],
        ["export", folder, "--format", "torch", "--out", str(weights)],
        ["export", folder, "--format", "safetensors", "--ema", "--out", str(tmp_path / "average")],
        ["report", folder, "--out", str(tmp_path / "page.html")],
        ["train", "--evaluate", folder],
    ):
        assert main(words) in (0, None), words
    said = capsys.readouterr().out
    left = f"{trainer.network.parameters:,} of {trainer.network.total_parameters:,} parameters are left"
    assert said.count(left) == 3
    assert said.count("load it with  code that builds layers of these shapes; --format compact is a program that") == 2
    assert f"top-1 {runs.summary(settings.folder)['test_top1']:.2f} %" in said
    assert "Channels lost" in (tmp_path / "page.html").read_text()
    shapes = json.loads(json.loads(Path(f"{weights}.json").read_text())["shapes"])
    assert shapes["conv1.weight"] == list(trainer.model.conv1.weight.shape)


def test_another_run_cannot_start_from_it(tmp_path: Path) -> None:
    settings = config(name="a", runs=str(tmp_path))
    finished(tmp_path, settings)
    path = settings.folder / "checkpoints" / "latest.pt"
    with pytest.raises(UserError) as caught:
        read_sources(config(start={"weights_from": str(path)}))
    assert str(caught.value) == (
        f"start.weights_from: {path} is of a network that has lost channels (train.shrink), which fits no whole one; "
        f"name a checkpoint from before its first shrink"
    )
    half = read_run(path)
    for change, problem in (
        ({"epoch": 1}, "shrinkages: their epochs are [1, 1], not in rising order"),
        ({"epoch": 2, "modules": {"fc": {"inputs": torch.tensor([3, 1])}}}, RISING),
        ({"epoch": 2, "modules": {"fc": {"inputs": torch.tensor([], dtype=torch.int64)}}}, RISING),
    ):
        more = [*half["shrinkages"], {"modules": {}, **change}]
        assert first_problem({**half, "shrinkages": more}) == problem
    assert [one.epoch for one in shrinkages_in(half)] == [1]


RISING = "shrinkages.1.fc keeps channels that are not numbered in rising order"


def test_a_shrink_that_is_past_is_refused() -> None:
    settings, alone = config(shrink=()), Worker()
    for stop, late in ((9, 1), (16, 1), (17, 2)):
        half = state_after(alone, settings, None, stop)
        half["progress"]["seconds"] = 0.0
        with pytest.raises(UserError) as caught:
            state_after(alone, config(shrink=(late,)), half, None)
        assert str(caught.value) == (
            f"train.shrink.at names epoch {late}, which the checkpoint has trained in without a shrink; name epochs to "
            f"come, or resume from an earlier checkpoint"
        )
    half = state_after(alone, settings, None, 16)
    half["progress"]["seconds"] = 0.0
    assert state_after(alone, config(shrink=(2,)), half, None)["shrinkages"][0]["epoch"] == 2


def test_a_shrink_that_finds_nothing_is_noted() -> None:
    whole = state_after(Worker(), config(sparsity={"conv": 0.1, "fc": 0.1}), None, None)
    assert whole["shrinkages"] == [{"epoch": 1, "modules": {}}]
    settings = config(sparsity={"conv": 0.1, "fc": 0.1})
    network = build_network(settings, torch.device("cpu"), shrinkages=shrinkages_in(whole))
    assert network.shrunk_line == "" and network.start is None
    assert [one.epoch for one in network.shrinkages] == [1]


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"method": {"name": "tied"}},
            "config: train.shrink does not go with method tied, whose weights are tied: leave it out",
        ),
        (
            {"method": {"name": "dense"}, "sparsity": {"conv": None, "fc": None}},
            "config: train.shrink does not go with method dense, which uses every channel: leave it out",
        ),
        (
            {"sparsity": {"structure": "fan_in"}},
            (
                "config: train.shrink does not go with sparsity.structure fan_in, whose pattern breaks as inputs go: "
                "set the structure to free, or leave train.shrink out"
            ),
        ),
        (
            {"train": {"optimizer": {"name": "torch/Adafactor"}}},
            (
                "config: train.shrink does not go with train.optimizer torch/Adafactor, whose state mixes channels: "
                "take another optimizer, or leave train.shrink out"
            ),
        ),
        (
            {"train": {"shrink": {"at": [0]}}},
            (
                "config: train: shrink.at names epoch 0, and the run begins with epoch 0 and has 3: a shrink comes "
                "between two of them, take one above 0 and below 3"
            ),
        ),
        (
            {"train": {"shrink": {"at": [1, 3]}}},
            (
                "config: train: shrink.at names epoch 3, and the run begins with epoch 0 and has 3: a shrink comes "
                "between two of them, take one above 0 and below 3"
            ),
        ),
        (
            {"train": {"shrink": {"at": [2, 1]}}},
            "config: train.shrink.at: is [2, 1]; name each epoch once, in rising order",
        ),
    ],
)
def test_configs_that_cannot_shrink(sections: dict[str, Any], line: str) -> None:
    asked = {"model": CNN, "method": {"name": "static"}, **sections}
    asked["train"] = {"epochs": 3, "shrink": {"at": [1]}, **sections.get("train", {})}
    with pytest.raises(UserError) as caught:
        runs.config(**asked)
    assert list(caught.value.lines) == [line]


CUBIC = {"name": "cubic", "start": 0.5}


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"name": "deepr"}, "keeps state of the layers' shapes"),
        ({"name": "sparse_momentum"}, "keeps state of the layers' shapes"),
        ({"name": "topkast", "reserve": 0.1}, "keeps state of the layers' shapes"),
        ({"name": "granet", "period": 2}, "takes each layer's budget from its size (method.density)"),
        ({"name": "dsr", "density": CUBIC}, "takes each layer's budget from its size (method.density)"),
        ({"name": "set", "exploration": 0.5}, "takes its period from the layers' sizes (method.exploration)"),
        ({"name": "gmp", "period": 2}, "takes each layer's budget from its size (method.density)"),
    ],
)
def test_methods_that_cannot_shrink(method: dict[str, Any], reason: str) -> None:
    settings = runs.config(model=CNN, method=method, train={"epochs": 3, "shrink": {"at": [1]}})
    with pytest.raises(UserError) as caught:
        require_shrinkable(settings)
    name = method["name"]
    assert str(caught.value) == f"train.shrink does not go with method {name}, which {reason}: leave train.shrink out"


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--check"]])
def test_refused_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    settings = runs.config(model=CNN, method={"name": "deepr"}, train={"epochs": 2, "shrink": {"at": [1]}})
    assert main(["train", "--config", str(runs.write_config(tmp_path, settings)), f"runs={tmp_path}/runs", *words]) == 2
    assert "error: train.shrink does not go with method deepr, which keeps state" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_networks_that_cannot_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        require_shrinkable(runs.config(model={"name": "mnist_mlp", "hidden": []}, **SHRINKS))
    assert str(caught.value) == (
        "train.shrink: no channel of mnist_mlp can go (fc1: they are the network's outputs); leave train.shrink out"
    )
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UserError) as caught:
        require_shrinkable(runs.config(model=CNN, **SHRINKS))
    assert str(caught.value) == (
        f"train.shrink needs torch_pruning, which is not installed; {install_command('export')}, or make setup"
    )


PICTURES = {"name": "synthetic", "shape": [3, 32, 32], "samples": 20, "test_samples": 10, "threads": 1}


@pytest.mark.parametrize(
    "model",
    [
        {"name": "torchvision/mobilenet_v3_small"},
        {"name": "timm/resnet18", "options": {"channels": [8, 8, 16, 16]}},
        pytest.param({"name": "torchvision/densenet121"}, marks=pytest.mark.slow),
        pytest.param({"name": "torchvision/convnext_tiny"}, marks=pytest.mark.slow),
        pytest.param({"name": "timm/efficientnet_b0"}, marks=pytest.mark.slow),
        pytest.param({"name": "timm/convnext_atto"}, marks=pytest.mark.slow),
    ],
    ids=lambda model: model["name"],
)
def test_networks_of_others_shrink(model: dict[str, Any]) -> None:
    """Built without weights, they keep buffers apart from them."""
    settings = runs.config(model=model, data=PICTURES, **SHRINKS)
    require_shrinkable(settings)
    assert {tensor.device.type for tensor in build_without_weights(settings).state_dict().values()} == {"meta"}


@pytest.mark.slow
def test_a_network_that_cannot_be_followed() -> None:
    data = {"name": "synthetic", "shape": [3, 64, 64], "samples": 20, "test_samples": 10, "threads": 1}
    model = {"name": "torchvision/shufflenet_v2_x0_5"}
    with pytest.raises(UserError, match=r"^train\.shrink: torch-pruning cannot follow the network \(integer division "):
        require_shrinkable(runs.config(model=model, data=data, **SHRINKS))


SHRINKS: dict[str, Any] = {"method": {"name": "static"}, "train": {"epochs": 3, "shrink": {"at": [1]}}}


@pytest.mark.slow
def test_compiled_anew_for_the_smaller_network() -> None:
    """A resume in the epoch after the shrink compiles for that network alone, and comes to the same bits."""
    settings = config("rigl", train={"epochs": 2, "compile": True})

    def trained(half: Any, stop: int | None) -> Any:
        torch._dynamo.reset()  # As in a process of its own.
        return state_after(Worker(), settings, half, stop)

    whole, half = trained(None, None), trained(None, 11)
    half["progress"]["seconds"] = 0.0
    assert_same(trained(half, None), whole)
