"""ONNX files give the network's outputs in ONNX Runtime."""

from __future__ import annotations

import json
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


def sums_over(graph: onnx.GraphProto) -> dict[str, np.ndarray[Any, Any]]:
    """Weights of convolutions and matrix products by name, the dimension that is summed first."""
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        transposed = {entry.name: entry.i for entry in node.attribute}.get("transB", 0)
        axis = 1 if node.op_type == "Conv" or transposed else 0
        found[node.input[1]] = np.moveaxis(values[node.input[1]], axis, 0)
    return found


def test_layers_of_2_of_4_are_told_and_are_so_in_the_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """BatchNorm is multiplied in, matrices may be transposed: 2 of 4 stay along the summed dimension."""
    settings = train(
        tmp_path,
        "run",
        model={"name": "small_cnn"},
        data={"shape": [3, 8, 8]},
        method={"name": "nm", "period": 2},
        sparsity={"conv": 0.5, "fc": 0.5, "structure": "2:4", "exclude": ["conv1.weight"]},
        train={"epochs": 1},
    )
    out = tmp_path / "a.onnx"
    code, said, err = call(capsys, "export", settings.folder, "--format", "onnx", "--out", out)
    assert (code, err) == (0, "")
    model = onnx.load(out)
    told = json.loads({entry.key: entry.value for entry in model.metadata_props}["two_of_four"])
    assert told["layers"] and set(told["others"]) == {"conv1.weight"}
    assert f"2:4           {', '.join(told['layers'])}; not conv1.weight (3 inputs, which 4 does not divide)" in said
    weights = sums_over(model.graph)
    assert set(told["layers"]) <= set(weights)
    for name, weight in weights.items():
        fits = len(weight) % 4 == 0 and (np.add.reduceat(weight != 0, range(0, len(weight), 4), axis=0) <= 2).all()
        assert fits == (name in told["layers"]), name


def test_a_network_without_2_of_4_says_nothing_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = train(tmp_path, "run")
    code, said, _ = call(capsys, "export", settings.folder, "--format", "torch", "--out", tmp_path / "a")
    assert code == 0 and "2:4" not in said
    assert "two_of_four" not in json.loads((tmp_path / "a.json").read_text())


def test_more_than_a_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = train(tmp_path, "run")
    monkeypatch.setattr(onnx_file, "_MOST_BYTES", 1000)
    result = call(capsys, "export", settings.folder, "--format", "onnx", "--out", tmp_path / "a")
    assert_one_line(result, "bytes of weights; a file holds 2 GiB: use safetensors")
    assert not (tmp_path / "a").exists()
