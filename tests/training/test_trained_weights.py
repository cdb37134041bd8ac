"""Fine-tuning from a trained network: whose weights, a head of other classes, what does not fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.fitting import plain_names
from dynsparse.training.network import build_network, build_without_weights
from dynsparse.training.sources import read_sources
from tests.tools.trained import train
from tests.training import runs

CPU = torch.device("cpu")
SQUEEZENET: dict[str, Any] = {
    "model": {"name": "torchvision/squeezenet1_1"},
    "data": {"name": "synthetic", "shape": [3, 32, 32], "number_of_classes": 4, "samples": 12, "threads": 1},
    "method": {"name": "dense"},
}


def model_of(config: RunConfig) -> nn.Module:
    return build_network(config, CPU, read_sources(config)).model


def tuning(weights: object, **sections: Any) -> RunConfig:
    """A dense run of another seed that starts from these weights."""
    model = {**runs.BASE["model"], **sections.pop("model", {}), "weights": str(weights)}
    return runs.config(**{"seed": 9, "method": {"name": "dense"}, **sections, "model": model})


def network(config: RunConfig | None = None) -> nn.Module:
    """The network of a seed, with BatchNorm statistics that are not those of the start."""
    config = config or runs.config(method={"name": "dense"})
    torch.manual_seed(77)
    model = config.model.build(config.data.image_shape, config.data.classes)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    return model


def assert_same(model: nn.Module, state: dict[str, Tensor]) -> None:
    ours = model.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in ours.items())


def test_a_run_gives_its_best_and_a_file_what_is_in_it(tmp_path: Path) -> None:
    """The masks are other ones, as of any run: the weights outside the source's are 0."""
    run = train(tmp_path, "source")
    latest = run.folder / "checkpoints" / "latest.pt"
    for source, start in ((latest, latest), (run.folder, run.folder / "checkpoints" / "best.pt")):
        expected = model_of(runs.config(seed=9, method={"name": "dense"}, start={"weights_from": str(start)}))
        assert_same(model_of(tuning(source)), expected.state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_a_plain_state_dict_of_any_wrapper(prefix: str, tmp_path: Path) -> None:
    model = network()
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    assert_same(model_of(tuning(tmp_path / "net.pth")), model.state_dict())


def test_files_of_other_programs(tmp_path: Path) -> None:
    """A module's own state_dict, in half precision, of AveragedModel, and as safetensors."""
    model = network()
    torch.save(model.state_dict(), tmp_path / "own.pt")
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), tmp_path / "averaged.pt")
    safetensors.torch.save_file(dict(model.state_dict()), tmp_path / "net.safetensors")
    torch.save({name: value.double() for name, value in model.state_dict().items()}, tmp_path / "double.pt")
    old = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pt")
    for name in ("own.pt", "averaged.pt", "net.safetensors", "double.pt", "old.pt"):
        assert_same(model_of(tuning(tmp_path / name)), model.state_dict())


def test_a_head_of_other_classes_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is that of a fresh run of this seed; all else is the file's. The log says so, and of the same head nothing."""
    config = runs.config(data={"number_of_classes": 4})
    model = network(config)
    torch.save(model.state_dict(), tmp_path / "four.pt")
    caplog.set_level(logging.INFO)
    ten = tuning(tmp_path / "four.pt", data={"number_of_classes": 10})
    fresh = build_network(ten, CPU).model.state_dict()
    for name, value in model_of(ten).state_dict().items():
        theirs = fresh if name.startswith(("fc3.", "bn3.")) else model.state_dict()
        assert torch.equal(value, theirs[name]), name
    assert "four.pt has 4 outputs in its head (fc3, bn3), this run 10 classes" in caplog.text
    caplog.clear()
    assert_same(model_of(tuning(tmp_path / "four.pt", data={"number_of_classes": 4})), model.state_dict())
    assert "head" not in caplog.text


@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("densenet121", lambda name: re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name)),
        ("vit_b_16", lambda name: name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")),
        ("googlenet", lambda name: name),
    ],
)
def test_files_of_torchvision_have_older_names(name: str, older: Callable[[str], str]) -> None:
    """Their networks rename them as they load, which nothing here relies on. Auxiliary heads are left out."""
    data = {"name": "synthetic", "shape": [3, 224, 224]}
    model = build_without_weights(runs.config(model={"name": f"torchvision/{name}"}, data=data))
    ours = model.state_dict()
    theirs = {older(key): value for key, value in ours.items()}
    assert (theirs.keys() == ours.keys()) == (name == "googlenet")
    auxiliary = {"aux1.conv.bn.weight": torch.ones(1)} if name == "googlenet" else {}
    found = plain_names({f"module.{key}": value for key, value in (theirs | auxiliary).items()}, model)
    assert found.keys() == ours.keys()
    assert all(found[key] is value for key, value in ours.items())


def test_the_head_alone_may_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SqueezeNet's head is a convolution with a bias."""
    caplog.set_level(logging.INFO)
    config = runs.config(**SQUEEZENET, seed=9)
    theirs = network(runs.config(**{**SQUEEZENET, "data": {**SQUEEZENET["data"], "number_of_classes": 7}})).state_dict()
    torch.save(theirs, tmp_path / "seven.pt")
    tuned = runs.config(
        **{**SQUEEZENET, "model": {**SQUEEZENET["model"], "weights": str(tmp_path / "seven.pt")}}, seed=9
    )
    ours = model_of(tuned)
    assert (
        "seven.pt has 7 outputs in its head (classifier.1), this run 4 classes: the head starts from new weights"
        in caplog.text
    )
    fresh = build_network(config, CPU).model.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, fresh[name] if name.startswith("classifier.1.") else theirs[name]), name


def test_all_heads_of_a_network_with_several_start_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A distilled transformer has one for the labels and one for its teacher. All else is the file's."""
    pytest.importorskip("timm", exc_type=ImportError)
    caplog.set_level(logging.INFO)
    sections: dict[str, Any] = {
        **SQUEEZENET,
        "model": {"name": "timm/deit_tiny_distilled_patch16_224", "options": {"depth": 1}},
    }
    theirs = network(runs.config(**{**sections, "data": {**SQUEEZENET["data"], "number_of_classes": 7}})).state_dict()
    torch.save(theirs, tmp_path / "seven.pt")
    ours = model_of(
        runs.config(**{**sections, "model": {**sections["model"], "weights": str(tmp_path / "seven.pt")}}, seed=9)
    )
    fresh = build_network(runs.config(**sections, seed=9), CPU).model.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, fresh[name] if name.startswith("head") else theirs[name]), name
    assert "seven.pt has 7 outputs in its head (head, head_dist), this run 4 classes" in caplog.text


def test_a_layer_inside_that_differs_as_the_head_does_is_another_networks(tmp_path: Path) -> None:
    """Its outputs are inputs of the next layer, which differs otherwise."""
    four = runs.config(model={"hidden": [4, 12]}, data={"number_of_classes": 4}, method={"name": "dense"})
    torch.save(network(four).state_dict(), tmp_path / "four.pt")
    said = refused(tuning(tmp_path / "four.pt", model={"hidden": [10, 12]}, data={"number_of_classes": 10}))
    assert "fc2.weight is 12x4 there, 12x10 here" in said


def refused(config: RunConfig) -> str:
    with pytest.raises(UserError) as caught:
        model_of(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_network_is_refused_with_its_layers(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "net.pt")
    said = refused(tuning(tmp_path / "net.pt", model={"hidden": [24, 13]}))
    assert said == (
        f"model.weights: {tmp_path}/net.pt is of another network: fc2.weight is 12x24 there, 13x24 here; bn2.weight is "
        "12 there, 13 here; bn2.bias is 12 there, 13 here; and 3 more differ; name weights of the same model"
    )
    said = refused(tuning(tmp_path / "net.pt", model={"hidden": [24, 12, 12]}))
    assert "fc3.weight is 10x12 there, 12x12 here" in said
    assert "fc4.weight" not in said, "the first few alone are named"


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"nothing")
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "nested.pt")
    torch.save(network(), tmp_path / "module.pt")
    state = network().state_dict()
    state["fc2.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    for name, changed in {
        "float8": torch.ones_like(state["fc2.weight"]).to(torch.float8_e5m2),
        "complex": state["fc2.weight"].to(torch.complex64),
        "int8": torch.ones_like(state["fc2.weight"], dtype=torch.int8),
        "1e99": torch.full_like(state["fc2.weight"], 1e99, dtype=torch.float64),
    }.items():
        safetensors.torch.save_file({**state, "fc2.weight": changed}, tmp_path / f"{name}.safetensors")
    for name, words in {
        "junk.pt": "no file of weights, or damaged (is no archive",
        "nested.pt": "holds other things than weights; give a file of `python -m dynsparse export`, or of torch.save(",
        "module.pt": "holds other than plain data and dense tensors",
        "nan.pt": "fc2.weight holds NaN or inf",
        "float8.safetensors": "fc2.weight is float8_e5m2 there, float32 here; give a file of float16, bfloat16, ",
        "complex.safetensors": "fc2.weight is complex64 there, float32 here",
        "int8.safetensors": "fc2.weight is int8 there, float32 here",
        "1e99.safetensors": "fc2.weight holds numbers beyond float32",
    }.items():
        assert words in refused(tuning(tmp_path / name))
    pruning = {"name": "pruning", "after_epoch": 0}
    said = refused(tuning(tmp_path / "float8.safetensors", method=pruning))
    assert "fc2.weight is float8_e5m2 there" in said


def test_pruning_starts_from_them(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "net.pt")
    pruning = {"name": "pruning", "after_epoch": 0}
    assert_same(model_of(tuning(tmp_path / "net.pt", method=pruning)), network().state_dict())
    with pytest.raises(UserError, match=r"set start\.weights_from to its run, or model\.weights to a file"):
        runs.config(method=pruning)


def test_weights_from_two_places_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.weights and start\.weights_from both name the weights"):
        tuning("a.pt", start={"weights_from": "b"})


def published(version: str, **sections: Any) -> RunConfig:
    return runs.config(
        **{**SQUEEZENET, "model": {**SQUEEZENET["model"], "weights": f"torchvision/{version}"}, **sections}
    )


def test_published_weights_are_those_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = network(runs.config(**{**SQUEEZENET, "data": {**SQUEEZENET["data"], "number_of_classes": 7}})).state_dict()
    (folder := tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs, folder / "squeezenet1_1-b8a52dc0.pth")
    for version in ("IMAGENET1K_V1", "DEFAULT"):
        ours = model_of(published(version)).state_dict()
        assert all(
            torch.equal(value, theirs[name]) for name, value in ours.items() if not name.startswith("classifier.1.")
        )
    (folder / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"cut")
    assert f"{folder}/squeezenet1_1-b8a52dc0.pth is damaged or cannot be read" in refused(published("IMAGENET1K_V1"))


def test_without_internet_the_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    said = refused(published("IMAGENET1K_V1"))
    assert "torchvision/IMAGENET1K_V1 is not in torch's hub cache and cannot be downloaded" in said
    assert f"to {tmp_path}/hub/checkpoints/squeezenet1_1-b8a52dc0.pth, or name a file" in said


def test_unknown_versions_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"has no 'IMAGENET1K_V7'; did you mean 'IMAGENET1K_V1'\?"):
        published("IMAGENET1K_V7")
    with pytest.raises(UserError, match=r"torchvision publishes weights of its own networks; set model\.name"):
        tuning("torchvision/IMAGENET1K_V1")


def test_from_the_command_line(tmp_path: Path) -> None:
    """Two workers start from one file. A run that goes on does not look at it; a dry run notes that it lacks."""
    torch.save(network().state_dict(), tmp_path / "net.pt")
    config = tuning(tmp_path / "net.pt", runs=str(tmp_path), name="tuned", method=runs.BASE["method"])
    path = runs.write_config(tmp_path, config)
    done = runs.dist_train("--config", path, "train.epochs=1", workers=2)
    assert done.returncode == 0, done.stderr
    (tmp_path / "net.pt").rename(tmp_path / "away.pt")
    done = runs.dist_train("--config", path, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    missing = runs.dist_train("--config", path, "name=other")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1), missing.stderr
    assert f"model.weights: {tmp_path}/net.pt is not there yet; run it first" in missing.stderr
    dry = runs.dist_train("--config", path, "--dry-run", "name=other")
    assert (dry.returncode, "note: model.weights: " in dry.stdout) == (0, True)
