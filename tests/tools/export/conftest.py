"""Runs that take long to train, made once."""

from __future__ import annotations

import pytest

from dynsparse.config.schema import RunConfig
from tests.tools.trained import train


@pytest.fixture(scope="session")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of ResNet-50 at width 1 that has ended, with BatchNorm statistics of two steps."""
    return train(
        tmp_path_factory.mktemp("runs"),
        "r50",
        model={"name": "imagenet_resnet50"},
        sparsity={"conv": 0.9, "fc": 0.9},
        data={"shape": [3, 32, 32], "number_of_classes": 7, "samples": 4, "test_samples": 2},
        train={"epochs": 1, "global_batch_size": 2},
    )
