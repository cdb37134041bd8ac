"""python -m dynsparse export --format compact, and --compact with other formats."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

from dynsparse.config.schema import RunConfig
from tests.tools.trained import assert_one_line, call, images_for, network_of, train

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
    assert_one_line(result, "needs torch_pruning, which is not installed; pip install 'dynsparse[export]'")
