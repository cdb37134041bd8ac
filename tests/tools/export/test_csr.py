"""CSR files, and the network that is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.inference.csr_layers import SparseLinear, to_csr
from dynsparse.tools.export import csr
from dynsparse.tools.export.network import take_network
from tests.tools.trained import assert_one_line, call, images_for, network_of, train

TOLERANCE = 1e-5
"""Tolerance relative to the largest logit: sums are in another order."""
LARGE = {"model": {"name": "mnist_mlp", "hidden": [400, 30], "batch_norm": False}, "data": {"shape": [1, 20, 20]}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """400 to 400, which runs sparse, then two layers too small for that."""
    return train(tmp_path_factory.mktemp("runs"), "large", sparsity={"fc": 0.95}, **LARGE)


@pytest.fixture
def exported(run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "a.csr.pt"
    code, out, err = call(capsys, "export", run.folder, "--format", "csr", "--out", path)
    assert (code, err) == (0, "")
    assert f"{path}, {path.stat().st_size:,} bytes" in out
    return path


def best(run: RunConfig) -> Path:
    return run.folder / "checkpoints" / "best.pt"


def test_the_file_opens_without_us(run: RunConfig, exported: Path) -> None:
    """Plain data and tensors; every active weight has its entry, those at 0 too, so that the masks are there."""
    content, network = torch.load(exported, weights_only=True), take_network(best(run))
    assert content["facts"]["weight_digest"] == network.facts["weight_digest"]
    assert set(content["sparse"]) == set(network.masks) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    state = network.state_dict()
    for name, (starts, columns, values) in content["sparse"].items():
        assert starts.dtype == columns.dtype == torch.int32
        matrix = torch.sparse_csr_tensor(starts, columns, values, content["shapes"][name], check_invariants=True)
        assert torch.equal(matrix.to_dense(), state[name])
        matrix.values().fill_(1)
        assert torch.equal(matrix.to_dense().bool(), network.masks[name].flatten(1))
    assert set(content["dense"]) == set(state) - set(content["sparse"])
    assert exported.stat().st_size < 0.25 * network.dense_bytes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_loaded_it_gives_the_same_outputs(mode: Any, run: RunConfig, exported: Path) -> None:
    model, ours = csr.load(exported), network_of(best(run), run)
    layers = dict(model.named_children())
    assert isinstance(layers["fc1"], SparseLinear)
    assert type(layers["fc2"]) is nn.Linear and type(layers["fc3"]) is nn.Linear
    assert not model.training
    for batch in (1, 5):
        images = images_for(run, batch)
        with mode():
            logits, expected = model(images).detach(), ours(images).detach()
        assert logits.shape == expected.shape
        assert float((logits - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())
    dense = csr.load(exported, run_sparse=False)
    assert type(dense.get_submodule("fc1")) is nn.Linear
    with torch.no_grad():
        assert torch.equal(dense(images), ours(images))


def test_convolutions_are_matrices_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """[out, in x height x width]; a layer denser than a half is smaller dense."""
    settings = train(
        tmp_path,
        "a",
        model={"name": "small_cnn"},
        data={"shape": [3, 8, 8]},
        sparsity={"conv": 0.9, "fc": 0.3},
        method={"name": "static"},
        train={"epochs": 1, "channels_last": True},
    )
    path, checkpoint = tmp_path / "a.csr.pt", settings.folder / "checkpoints" / "best.pt"
    assert call(capsys, "export", checkpoint, "--format", "csr", "--out", path)[0] == 0
    content, network = torch.load(path, weights_only=True), take_network(checkpoint)
    shapes = {name: (tuple(network.state_dict()[name].shape), mask) for name, mask in network.masks.items()}
    for name, (shape, mask) in shapes.items():
        if len(shape) == 4:
            starts, columns, values = content["sparse"][name]
            assert len(starts) == shape[0] + 1 and content["shapes"][name] == list(shape)
            assert int(columns.max()) < shape[1] * shape[2] * shape[3]
            assert values.numel() == int(mask.count_nonzero())
        else:
            assert name in content["dense"]
    images, ours = images_for(settings, 3), network_of(checkpoint, settings).to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        assert torch.equal(csr.load(path)(images), ours(images))


@pytest.mark.parametrize(("method", "why"), [("dense", "no layer is sparser"), ("tied", "tied weights share values")])
def test_where_csr_is_no_use(method: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = train(tmp_path, "a", method={"name": method}, train={"epochs": 1})
    result = call(capsys, "export", settings.folder, "--format", "csr", "--out", tmp_path / "a.pt")
    assert_one_line(result, f"--format csr: {why}", "use torch or safetensors")
    assert not (tmp_path / "a.pt").exists()


def test_files_that_are_not_of_csr(run: RunConfig, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.pt: cannot be read"):
        csr.load(tmp_path / "no.pt")
    with pytest.raises(UserError, match="not of --format csr"):
        csr.load(best(run))
    cut = tmp_path / "cut.pt"
    cut.write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged or not of --format csr"):
        csr.load(cut)


def test_indices_that_point_out_of_the_matrix_are_refused(exported: Path, tmp_path: Path) -> None:
    """MKL would read memory that is not the matrix's."""
    content = torch.load(exported, weights_only=True)
    content["sparse"]["fc1.weight"][1][-1] = 1_000_000
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad\.pt: damaged"):
        csr.load(tmp_path / "bad.pt")


def test_rows_of_any_number_of_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(6, 9, generator=generator) < 0.3
    mask[2] = False
    weight, bias = torch.randn(6, 9, generator=generator) * mask, torch.randn(6, generator=generator)
    layer = SparseLinear(to_csr(weight, mask), bias)
    for shape in ((9,), (1, 9), (4, 9), (2, 3, 9)):
        x = torch.randn(shape, generator=generator)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, bias))
