"""python -m dynsparse speed-up: tables of a run's network, and of a file of weights."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from dynsparse.config.schema import RunConfig
from dynsparse.models.mnist_mlp import MnistMlpSettings
from tests.tools.trained import call, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return train(tmp_path_factory.mktemp("runs"), "sparse", sparsity={"fc": 0.95})


def test_a_table_for_each_batch(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "speed-up", run.folder, "--batch", 1, 4, "--rounds", 3)
    assert (code, err) == (0, "")
    shape = "x".join(map(str, run.data.image_shape))
    heads = re.findall(r"^input (\S+), through torch, \d+ threads?: (.*)$", out, re.MULTILINE)
    assert [head[0] for head in heads] == [f"1x{shape}", f"4x{shape}"]
    assert out.startswith(f"mnist_mlp, of {run.folder / 'checkpoints' / 'best.pt'}: epoch ")
    assert len(re.findall(r"^dense +\d+\.\d{3}  1\.00 \(1\.00 to 1\.00\)", out, re.MULTILINE)) == 2


def test_a_file_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(MnistMlpSettings(name="mnist_mlp").build((1, 8, 8), 10).state_dict(), tmp_path / "a.pt")
    options = ("--model", "mnist_mlp", "--classes", 10, "--image-size", "1x8x8", "--rounds", 3)
    code, out, err = call(capsys, "speed-up", tmp_path / "a.pt", *options)
    assert (code, err) == (0, "")
    assert out.startswith(f"mnist_mlp, of {tmp_path / 'a.pt'}\n\ninput 1x1x8x8, through torch, ")


def test_refusals(run: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for options, message in {
        ("--through", "tensorrt"): "speed_up: through is 'tensorrt'; there are inductor, onnxruntime, openvino, torch",
        ("--rounds", "2"): "speed_up: rounds is 2; it must be at least 3",
        ("--through", "openvino"): "speed_up: through='openvino' needs openvino, which is not installed; "
        "pip install --constraint constraints.txt '.[openvino]'",
        ("--batch", "0"): "argument --batch: is '0'; it must be a whole number of at least 1; see python -m dynsparse "
        "speed-up --help",
    }.items():
        code, _, err = call(capsys, "speed-up", run.folder, *options)
        assert (code, err) == (2, f"error: {message}\n")
