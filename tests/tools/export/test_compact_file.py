"""python -m dynsparse export --format compact, and --compact with other formats."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from dynsparse.config.schema import RunConfig
from dynsparse.shrinking import compact
from pipelines.common.extras import install_command
from tests.tools.trained import assert_one_line, call, images_for, network_of, train

ROOT = Path(__file__).parents[3]
LOADER = """
import sys, numpy, torch
program = torch.export.load(sys.argv[1])
images = torch.from_numpy(numpy.load("images.npy"))
numpy.save("logits.npy", program.module()(images).detach().numpy())
assert "dynsparse" not in sys.modules
"""
CNN = {"model": {"name": "small_cnn"}, "data": {"shape": [3, 8, 8]}, "sparsity": {"conv": 0.95, "fc": 0.95}}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return train(tmp_path, "sparse", **CNN)


def test_torch_alone_loads_it(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """The process has no dynsparse, and gives it another number of images."""
    code, out, err = call(capsys, "export", run.folder, "--format", "compact")
    assert (code, err) == (0, "")
    assert "layers are smaller, 0." in out
    assert 'torch.export.load("sparse.pt2").module()(images)' in out
    images, ours = images_for(run, 5), network_of(run.folder / "checkpoints" / "best.pt", run)
    np.save("images.npy", images.numpy())
    subprocess.run([sys.executable, "-c", LOADER, "sparse.pt2"], check=True)
    with torch.no_grad():
        np.testing.assert_allclose(np.load("logits.npy"), ours(images).numpy(), atol=1e-5)


def test_other_formats_have_the_smaller_tensors(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    for file_format, name in (("safetensors", "sparse.safetensors"), ("torch", "sparse.pt")):
        sizes = []
        for more in ([], ["--compact", "--overwrite"]):
            code, _, err = call(capsys, "export", run.folder, "--format", file_format, *more)
            assert (code, err) == (0, "")
            sizes.append(Path(name).stat().st_size)
        assert sizes[1] < sizes[0]
    with safetensors.safe_open("sparse.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["settings"])["name"] == "small_cnn"
        shapes = json.loads(file.metadata()["shapes"])
        assert any(name.endswith(".bias") for name in shapes)
        for layer, shape in shapes.items():
            assert list(file.get_tensor(layer).shape) == shape


def test_tensors_load_as_the_page_says(tmp_path: Path) -> None:
    """Depthwise convolutions, norms without parameters, and layers that get a bias."""
    torch.manual_seed(0)
    block = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8, affine=False), nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *block, nn.Conv2d(8, 6, 1, bias=False), nn.Flatten(), nn.Linear(96, 4))
    model.eval()[0].weight.data[2:4] = 0
    model[4].weight.data[:, 5:] = 0
    whole = copy.deepcopy(model)
    compact(model, (3, 4, 4))
    assert model[0].weight.shape[0] < 8
    path = tmp_path / "small.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    page = (ROOT / "docs" / "export.md").read_text()
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "load_smaller" in part)
    names: dict[str, Any] = {}
    exec(code, names)
    loaded = names["load_smaller"](copy.deepcopy(whole), str(path))
    images = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(loaded(images), whole(images))
    assert {name: one.shape for name, one in loaded.state_dict().items()} == {
        name: one.shape for name, one in model.state_dict().items()
    }


@pytest.mark.slow  # test_onnx.py has the format, and the tests above what is written.
def test_onnx_gives_the_same_outputs(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert call(capsys, "export", run.folder, "--format", "onnx", "--compact")[0] == 0
    images, ours = images_for(run, 5), network_of(run.folder / "checkpoints" / "best.pt", run)
    (logits,) = onnxruntime.InferenceSession("sparse.onnx").run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, ours(images).numpy(), atol=1e-5)


def test_csr_keeps_every_channel(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, "export", run.folder, "--format", "csr", "--compact")
    assert_one_line(result, "--compact: the format csr keeps every channel; use compact, onnx, safetensors or torch")


def test_without_the_library(
    run: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    result = call(capsys, "export", run.folder, "--format", "compact")
    assert_one_line(result, f"needs torch_pruning, which is not installed; {install_command('export')}")
