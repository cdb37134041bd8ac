"""Layers of networks that people train today: what is sparse at 90 %, what stays dense and why, and the whole model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.masks.usual import LEAST_FAN_IN, usually_dense
from dynsparse.training.layer_table import LayerTable
from dynsparse.training.network import table_without_weights
from tests.training import runs


def config(name: str, **sparsity: Any) -> RunConfig:
    return loading.parse(
        {
            "model": {"name": f"torchvision/{name}"},
            "sparsity": {"conv": 0.9, "fc": 0.9, **sparsity},
            "method": {"name": "static"},
            "data": {"name": "synthetic", "shape": [3, 224, 224], "number_of_classes": 1000},
        }
    )


def reasons(table: LayerTable) -> Counter[str]:
    return Counter(" ".join(one.reason.split()[:2]) for one in table.dense)


@pytest.mark.parametrize(
    ("name", "layers", "active", "weights", "total", "model_sparsity", "dense"),
    [
        (
            "vit_b_16",
            72,
            8_493_456,
            84_934_656,
            86_567_656,
            88.30,
            {"patch embedding": 1, "classification head": 1, "embedding or": 2, "one number": 1},
        ),
        (
            "convnext_tiny",
            39,
            2_742_677,
            27_426_816,
            28_589_128,
            86.34,
            {
                "patch embedding": 1,
                "classification head": 1,
                "depthwise convolution": 18,
                "embedding or": 18,
                "one number": 1,
            },
        ),
        (
            "efficientnet_b0",
            49,
            367_243,
            3_672_448,
            5_288_548,
            62.50,
            {
                "first convolution,": 1,
                "classification head": 1,
                "depthwise convolution": 16,
                **{f"fan-in {n}": count for n, count in ((8, 1), (16, 1), (4, 1), (24, 2), (6, 2), (10, 2))},
                **{f"fan-in {n}": count for n, count in ((20, 3), (28, 3))},
                "one number": 1,
            },
        ),
    ],
)
def test_tables_at_90_percent(
    name: str, layers: int, active: int, weights: int, total: int, model_sparsity: float, dense: dict[str, int]
) -> None:
    table = table_without_weights(config(name))
    assert (len(table.layers), table.active, table.weights, table.total) == (layers, active, weights, total)
    assert round(100 * table.model_sparsity, 2) == model_sparsity
    assert reasons(table) == dense
    assert sum(one.weights for one in table.dense) == total - weights
    last = str(table).splitlines()[-1]
    assert last.startswith(f"asked for 90 % zeros: the {layers} sparse layers have 90.00 %, all {total:,} parameters")
    assert f"together {model_sparsity:.2f} %" in last


def test_erk_divides_by_the_shape_of_each_part() -> None:
    """The three parts of attention are square; as one layer of 3 E rows they would have had fewer weights each."""
    table = table_without_weights(config("vit_b_16", allocation="erk"))
    density = {spec.name.partition("layer_0.")[2]: active / spec.weights for spec, active in table.layers[:6]}
    parts = [density[f"self_attention.in_proj_weight.{part}"] for part in "qkv"]
    out, mlp = density["self_attention.out_proj.weight"], density["mlp.0.weight"]
    assert max(abs(part - out) for part in parts) < 1e-5
    assert mlp / out == pytest.approx((768 + 3072) / (768 * 3072) / (2 / 768), rel=1e-4)
    whole = table_without_weights(config("vit_b_16", allocation="erk", split={"*.in_proj_weight": 1}))
    assert whole.layers[0][1] / whole.layers[0][0].weights < parts[0]
    assert abs(whole.active - table.active) <= 3 * len(table.layers)


def test_include_overrules_what_stays_dense() -> None:
    table = table_without_weights(config("efficientnet_b0", include=["features.1.*", "classifier.*"], conv=0.5))
    names = [spec.name for spec, _ in table.layers]
    assert "features.1.0.block.0.0.weight" in names and "classifier.1.weight" in names
    assert "asked for 50 % of convolutions and 90 % of linear layers zeros" in str(table)
    assert {one.reason for one in table.dense} == {"not in sparsity.include", "one number an output"}


def test_resnets_keep_all_layers() -> None:
    table = table_without_weights(config("resnet18"))
    assert len(table.layers) == 21 and [one.reason for one in table.dense] == ["one number an output"]
    table = table_without_weights(config("resnet18", fc=0.0, exclude=["conv1.*"]))
    assert len(table.layers) == 19
    assert {one.name: one.reason for one in table.dense[:2]} == {
        "conv1.weight": "sparsity.exclude",
        "fc.weight": "sparsity.fc is 0",
    }


@pytest.mark.parametrize("said", [{"conv": 0.0, "fc": 0.0}, {"conv": 0.9, "fc": 0.9}])
def test_a_dense_run_has_the_reasons_of_a_sparse_one(said: dict[str, float]) -> None:
    """Its layers are in the upper table. What the model leaves out is left out for that reason."""
    method = {"name": "static" if said["conv"] else "dense"}
    table = table_without_weights(runs.config(model={"name": "imagenet_resnet50"}, sparsity=said, method=method))
    assert len(table.layers) == 49
    assert {one.name: one.reason for one in table.dense}["layer4.0.downsample.0.weight"] == (
        "imagenet_resnet50 leaves it out"
    )


def test_fan_in_at_the_limit_is_sparse() -> None:
    body = [nn.Linear(LEAST_FAN_IN - 1, 8), nn.Linear(LEAST_FAN_IN, 8), nn.ConvTranspose2d(8, 4, 2)]
    model = nn.Sequential(*body, nn.Linear(64, 4))
    assert usually_dense(model) == {"0.weight": "fan-in 31 is below 32", "3.weight": "classification head"}


def test_heads_that_a_network_names() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.head_dist, self.body = nn.Linear(64, 4), nn.Linear(64, 4), nn.Linear(64, 64)

        def get_classifier(self) -> tuple[nn.Module, nn.Module]:
            return self.head, self.head_dist

    assert usually_dense(Named()) == dict.fromkeys(["head.weight", "head_dist.weight"], "classification head")
    assert list(usually_dense(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)))) == ["0.weight", "1.weight"]
    grey = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 8, 3), torch.nn.Flatten(), nn.Linear(64, 4))
    assert usually_dense(grey) == {"0.weight": "depthwise convolution", "3.weight": "classification head"}
