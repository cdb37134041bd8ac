"""ONNX files give the network's outputs in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dynsparse.config.schema import RunConfig
from dynsparse.tools.export import onnx_file
from dynsparse.tools.export.network import take_network
from tests.tools.trained import assert_one_line, call, images_for, network_of, train

TOLERANCE = 1e-5
"""Tolerance relative to the largest logit. BatchNorm is multiplied into weights, and sums are in another order:
1.1e-6 is the most that was measured, through ResNet-50 without sparsity."""

IMAGES = {"shape": [3, 32, 32], "number_of_classes": 7, "samples": 8, "test_samples": 4}
SMALL = {"epochs": 1, "global_batch_size": 4}
NETWORKS: dict[str, Any] = {
    "mlp": {},
    "tied mlp": {"method": {"name": "tied"}},
    "small_cnn, channels last": {
        "model": {"name": "small_cnn"},
        "data": {"shape": [3, 8, 8]},
        "train": {"epochs": 1, "channels_last": True},
    },
    "WideResNet": {"model": {"name": "cifar10_WideResNet", "depth": 10}, "data": IMAGES, "train": SMALL},
}


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("WideResNet", "ResNet-50")]


@pytest.mark.parametrize("name", ["mlp", "tied mlp", "small_cnn, channels last", *LARGE])
def test_same_outputs(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """The batch size is free, and zeros stay zeros: as many as the network has."""
    settings: RunConfig
    if name == "ResNet-50":
        settings = request.getfixturevalue("resnet50")
    else:
        settings = train(tmp_path, "run", **NETWORKS[name])
    path, out = settings.folder / "checkpoints" / "latest.pt", tmp_path / "a.onnx"
    code, said, err = call(capsys, "export", path, "--format", "onnx", "--out", out)
    assert (code, err) == (0, "")
    assert f"{out}, {out.stat().st_size:,} bytes" in said
    session, ours = onnxruntime.InferenceSession(out), network_of(path, settings)
    for batch in (1, 5):
        images = images_for(settings, batch)
        logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        with torch.no_grad():
            expected = ours(images)
        assert logits.shape == expected.shape
        assert float((logits - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())
    network, graph = take_network(path), onnx.load(out)
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.graph.initializer}
    for layer, mask in network.masks.items():
        assert np.count_nonzero(values[layer]) == int(network.state_dict()[layer].count_nonzero()), layer
        assert np.count_nonzero(values[layer]) <= int(mask.count_nonzero())
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    assert facts["weight_digest"] == network.facts["weight_digest"]
    assert facts["tied"] == str(name.startswith("tied")).lower()


def test_more_than_a_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = train(tmp_path, "run")
    monkeypatch.setattr(onnx_file, "_MOST_BYTES", 1000)
    result = call(capsys, "export", settings.folder, "--format", "onnx", "--out", tmp_path / "a")
    assert_one_line(result, "bytes of weights; a file holds 2 GiB: use safetensors")
    assert not (tmp_path / "a").exists()
