"""Starting from an exported file: the same weights as from its run; what is none is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dynsparse.cli.main import main
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.exported import read_weights
from dynsparse.training.network import build_network
from dynsparse.training.sources import read_sources
from tests.tools.trained import train
from tests.training import runs

LARGE: dict[str, Any] = {"model": {"name": "mnist_mlp", "hidden": [60, 30]}, "sparsity": {"fc": 0.8}}
SUFFIXES = {"torch": "pt", "safetensors": "safetensors", "csr": "csr.pt"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return train(tmp_path_factory.mktemp("runs"), "source", **LARGE)


@pytest.fixture(scope="module")
def files(run: RunConfig) -> dict[str, Path]:
    found = {}
    for name, suffix in SUFFIXES.items():
        found[name] = run.folder.parent / f"exported.{suffix}"
        source = str(run.folder / "checkpoints" / "latest.pt")
        assert main(["export", source, "--format", name, "--out", str(found[name])]) == 0
    return found


def starting(**start: str) -> RunConfig:
    return runs.config(name="next", start=start, method={"name": "dense"}, model=LARGE["model"])


@pytest.mark.parametrize("name", SUFFIXES)
def test_the_weights_are_those_of_the_run_to_the_bit(name: str, run: RunConfig, files: dict[str, Path]) -> None:
    """BatchNorm's statistics are too."""
    models = []
    for source in (files[name], run.folder):
        settings = starting(weights_from=str(source))
        models.append(build_network(settings, torch.device("cpu"), read_sources(settings)).model.state_dict())
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


@pytest.mark.parametrize("name", SUFFIXES)
def test_what_they_cannot_serve_is_refused(name: str, files: dict[str, Path]) -> None:
    source = str(files[name])
    with pytest.raises(UserError, match=r"masks_from: .* holds weights without masks"):
        read_sources(runs.config(start={"masks_from": source}, method={"name": "static"}))
    with pytest.raises(UserError, match=r"is sparse in fc1\.weight; pruning starts from a dense"):
        read_sources(runs.config(start={"weights_from": source}, method={"name": "pruning"}, train={"epochs": 50}))
    other = runs.config(start={"weights_from": source}, method={"name": "dense"})
    with pytest.raises(UserError, match=r"is of another network: fc1\.weight is 60x36 there, 24x36 here"):
        build_network(other, torch.device("cpu"), read_sources(other))


def crafted(tmp_path: Path, **change: Any) -> Path:
    """A CSR file of one layer with something changed."""
    parts = [torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32), torch.ones(1)]
    content = {"format": "dynsparse csr 2", "sparse": {"w": parts}, "shapes": {"w": [1, 2]}, "dense": {}, **change}
    torch.save(content, tmp_path / "crafted.csr.pt")
    return tmp_path / "crafted.csr.pt"


I32 = torch.int32
CRAFTED: dict[str, tuple[dict[str, Any], str]] = {
    "huge": ({"shapes": {"w": [1, 2**31 - 1, 2**31 - 1]}}, "claims 18,446,744,056,529,682,436 bytes"),
    "no shapes": ({"shapes": None}, "lacks a part"),
    "other layers": ({"shapes": {"v": [1, 2]}}, "do not go together"),
    "wrong types": ({"sparse": {"w": [torch.zeros(2), torch.zeros(1), torch.ones(1)]}}, "other types"),
    "column outside": (
        {"sparse": {"w": [torch.tensor([0, 1], dtype=I32), torch.tensor([7], dtype=I32), torch.ones(1)]}},
        "no CSR matrix",
    ),
    "no tensors": ({"sparse": {"w": [1, 2, 3]}}, "no CSR matrix"),
    "no sizes": ({"shapes": {"w": ["a", True]}}, "no CSR matrix"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused_in_words(name: str, tmp_path: Path) -> None:
    change, words = CRAFTED[name]
    with pytest.raises(UserError, match=words):
        read_weights(crafted(tmp_path, **change))
    assert read_weights(crafted(tmp_path))["w"].tolist() == [[1, 0]], "without the change it is whole"


def test_odd_files_are_refused_in_words(tmp_path: Path, files: dict[str, Path]) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "cut.safetensors").write_bytes(files["safetensors"].read_bytes()[:500])
    (tmp_path / "header.safetensors").write_bytes((50 << 20).to_bytes(8, "little") + b"{")
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "nested.pt")
    for name, words in {
        "pipe.pt": "is a pipe, not a file",
        "cut.safetensors": "damaged",
        "header.safetensors": "damaged",
        "nested.pt": "holds other things than weights",
        "no.pt": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=words):
            read_weights(tmp_path / name)


def test_safetensors_of_others_are_read(tmp_path: Path) -> None:
    """They may fit by their names."""
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "theirs.safetensors")
    assert read_weights(tmp_path / "theirs.safetensors")["w"].tolist() == [1, 1]


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    """Every step would be skipped, and the run would end well."""
    weights = read_weights(files["torch"])
    weights["fc2.weight"][0, 0] = float("inf")
    torch.save(weights, tmp_path / "inf.pt")
    settings = starting(weights_from=str(tmp_path / "inf.pt"))
    with pytest.raises(UserError, match=r"fc2\.weight holds NaN or inf"):
        build_network(settings, torch.device("cpu"), read_sources(settings))
