"""python -m dynsparse export of a file of weights alone, whoever wrote it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dynsparse.models.mnist_mlp import MnistMlpSettings
from dynsparse.tools.export import csr
from pipelines.common.torchvision_ops import import_torchvision
from tests.tools.export.test_compact_file import LOADER
from tests.tools.trained import assert_one_line, call, train

MLP = ("--model", "mnist_mlp", "--classes", "10", "--image-size", "1x8x8")
IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pruned(model: nn.Module) -> nn.Module:
    """A dense network of which most weights, and some neurons as a whole, are 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.data *= torch.rand_like(module.weight) < 0.1
    return model.eval()


@pytest.fixture
def mlp() -> nn.Module:
    torch.manual_seed(0)
    return pruned(MnistMlpSettings(name="mnist_mlp").build((1, 8, 8), 10))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_files_of_others_become_state_dicts(
    prefix: str, suffix: str, mlp: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights are equal to the bit, without the prefixes of DDP and compile."""
    state = {f"{prefix}{name}": value for name, value in mlp.state_dict().items()}
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(state, f"theirs{suffix}")
    code, out, err = call(capsys, "export", f"theirs{suffix}", *MLP, "--format", "torch", "--out", "ours.pt")
    assert (code, err) == (0, "")
    assert f"network       mnist_mlp, of theirs{suffix}\n" in out
    found = torch.load("ours.pt", weights_only=True)
    assert found.keys() == mlp.state_dict().keys()
    assert all(torch.equal(value, found[name]) for name, value in mlp.state_dict().items())
    about = json.loads(Path("ours.pt.json").read_text())
    assert about["input"] == {"shape": [1, 8, 8], "number_of_classes": 10}
    weights = [value for value in mlp.parameters() if value.dim() == 2]
    zeros = sum(int((value == 0).sum()) for value in weights)
    assert float(about["sparsity"]) == pytest.approx(zeros / sum(value.numel() for value in weights), abs=1e-6)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_checkpoints_of_other_programs(key: str, mlp: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, key: mlp.state_dict()}, "theirs.pth")
    assert call(capsys, "export", "theirs.pth", *MLP, "--format", "safetensors")[0] == 0
    found = safetensors.torch.load_file("theirs.safetensors")
    assert torch.equal(found["fc1.weight"], mlp.get_parameter("fc1.weight"))


@pytest.mark.slow  # Their loading without dynsparse: test_compact_file.py.
def test_compact_files(mlp: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(mlp.state_dict(), "theirs.pt")
    code, out, err = call(capsys, "export", "theirs.pt", *MLP, "--format", "compact")
    assert (code, err) == (0, "")
    assert "layers are smaller, 0." in out
    np.save("images.npy", IMAGES.numpy())
    subprocess.run([sys.executable, "-c", LOADER, "theirs.pt2"], check=True)
    np.testing.assert_allclose(np.load("logits.npy"), mlp(IMAGES).detach().numpy(), atol=1e-5)


def test_csr_files(mlp: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    """Every weight that is not 0 has its entry."""
    torch.save(mlp.state_dict(), "theirs.pt")
    assert call(capsys, "export", "theirs.pt", *MLP, "--format", "csr")[0] == 0
    torch.testing.assert_close(csr.load("theirs.csr.pt")(IMAGES), mlp(IMAGES).detach(), atol=1e-5, rtol=1e-4)
    sparse = torch.load("theirs.csr.pt", weights_only=True)["sparse"]
    assert len(sparse["fc1.weight"][2]) == int(mlp.get_parameter("fc1.weight").count_nonzero())


def test_networks_of_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    """Options say classes and image size; half precision becomes float32."""
    import_torchvision()
    import torchvision

    torch.manual_seed(0)
    model = pruned(torchvision.models.squeezenet1_1(num_classes=7))
    torch.save(model.half().state_dict(), "theirs.pt")
    options = ("--model", "torchvision/squeezenet1_1", "--classes", "7", "--image-size", "32x48")
    code, out, err = call(capsys, "export", "theirs.pt", *options, "--format", "torch", "--out", "ours.pt")
    assert (code, err) == (0, "")
    assert "input         3x32x48, 7 classes\n" in out
    found = torch.load("ours.pt", weights_only=True)
    assert all(torch.equal(value.float(), found[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_of_weights_are_taken(mlp: nn.Module, capsys: pytest.CaptureFixture[str], dtype: torch.dtype) -> None:
    """The counter of batches is an integer, and nobody reads it."""
    state = {name: value.to(dtype) for name, value in mlp.state_dict().items()}
    torch.save(state, "theirs.pt")
    assert call(capsys, "export", "theirs.pt", *MLP, "--format", "torch", "--out", "ours.pt")[0] == 0
    found = torch.load("ours.pt", weights_only=True)
    assert all(torch.equal(found[name], value.float()) for name, value in state.items() if "num_batches" not in name)
    assert found["fc3.weight"].dtype == torch.float32


REFUSED: dict[str, tuple[tuple[str, ...], Any]] = {
    "theirs.pt is of another network: fc9.weight is 2x2 there, absent here; name the network by --model, and its sizes "
    "by --classes and --image-size": (MLP, lambda state: {**state, "fc9.weight": torch.ones(2, 2)}),
    "theirs.pt is of another network: bn3.bias is absent there, 10 here; name the network by --model, and its sizes by "
    "--classes and --image-size": (MLP, lambda state: {k: v for k, v in state.items() if k != "bn3.bias"}),
    "theirs.pt is of another network: fc3.weight is 10x100 there, 7x100 here; bn3.weight is 10 there, 7 here; bn3.bias "
    "is 10 there, 7 here; and 2 more differ; name the network by --model, and its sizes by --classes and "
    "--image-size": (
        ("--model", "mnist_mlp", "--classes", "7", "--image-size", "1x8x8"),
        dict,
    ),
    "theirs.pt: bn3.bias holds NaN or inf; take another checkpoint, or export one": (
        MLP,
        lambda state: {**state, "bn3.bias": torch.full((10,), float("nan"))},
    ),
    "theirs.pt: fc3.weight holds numbers beyond float32; take another checkpoint, or export one": (
        MLP,
        lambda state: {**state, "fc3.weight": state["fc3.weight"].double() * 1e200},
    ),
    "theirs.pt: holds other things than weights; give a file of `python -m dynsparse export`, or of "
    "torch.save(model.state_dict(), FILE)": (MLP, lambda state: {"weights": state}),
    "--image-size is missing: mnist_mlp is for images of any size; give one such as 1x28x28 or 3x32x32": (
        ("--model", "mnist_mlp"),
        dict,
    ),
    "--model: torchvision has no classifier 'resnet51'; did you mean 'resnet50'?": (
        ("--model", "torchvision/resnet51"),
        dict,
    ),
    "--model: unknown model 'mnist_mpl'; did you mean 'mnist_mlp'?": (("--model", "mnist_mpl"), dict),
    "--ema: not with --model; a file of weights has no average of them beside": ((*MLP, "--ema"), dict),
    "--classes: only with --model; a run knows its own": (("--classes", "10"), dict),
    "--image-size: only with --model; a run knows its own": (("--image-size", "28"), dict),
    "theirs.pt: holds weights without a network; name it, such as --model torchvision/resnet50": ((), dict),
    "argument --classes: is '0'; it must be a whole number of at least 1; see python -m dynsparse export --help": (
        ("--model", "mnist_mlp", "--classes", "0"),
        dict,
    ),
    **{
        f"argument --image-size: is '{size}'; it must be like 224, 224x192 (height, width) or 1x28x28 (channels "
        "first); see python -m dynsparse export --help": (("--model", "mnist_mlp", "--image-size", size), dict)
        for size in ("0", "1x2x3x4", "99999", "x", "28X28")
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message: str, mlp: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    options, change = REFUSED[message]
    torch.save(change(dict(mlp.state_dict())), "theirs.pt")
    result = call(capsys, "export", "theirs.pt", *options, "--format", "torch", "--out", "ours.pt")
    assert result == (2, "", f"error: {message}\n")
    assert not Path("ours.pt").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.int8, torch.bool])
def test_numbers_that_are_no_weights_are_refused(
    dtype: torch.dtype, mlp: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quantised weights are codes; of complex ones half would be lost."""
    state = {**mlp.state_dict(), "fc3.weight": mlp.get_parameter("fc3.weight").detach().to(dtype)}
    safetensors.torch.save_file(state, "theirs.safetensors")
    result = call(capsys, "export", "theirs.safetensors", *MLP, "--format", "torch", "--out", "ours.pt")
    there = str(dtype).removeprefix("torch.")
    types = f"{there} there, float32 here; give a file of float16, bfloat16, float32, float64"
    assert result == (2, "", f"error: theirs.safetensors: fc3.weight is {types}\n")
    assert not Path("ours.pt").exists()


def test_files_that_are_none_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    Path("cut.safetensors").write_bytes((100).to_bytes(8, "little") + b"{")
    export = ("--format", "torch", "--out", "ours.pt")
    for name, message in {
        "folder": "--model: 'folder' is no file of weights; name one, or leave --model out",
        "no.pt": "no.pt: cannot be read (No such file or directory); give an exported file",
    }.items():
        assert call(capsys, "export", name, *MLP, *export) == (2, "", f"error: {message}\n")
    assert_one_line(call(capsys, "export", "cut.safetensors", *MLP, *export), "cut.safetensors: damaged (")
    settings = train(tmp_path, "run")
    best = settings.folder / "checkpoints" / "best.pt"
    assert_one_line(call(capsys, "export", best, *MLP, *export), f"{best}: holds other things than weights")


def test_the_file_itself_is_not_replaced(mlp: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(mlp.state_dict(), "theirs.pt")
    result = call(capsys, "export", "theirs.pt", *MLP, "--format", "torch", "--overwrite")
    assert_one_line(result, "--out: theirs.pt is the checkpoint itself; name another file")
