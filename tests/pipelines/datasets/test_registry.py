"""The registry: every data set in it builds, and importing it is light."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import Any, get_args

import pytest

from pipelines.datasets.registry import DataSettings
from pipelines.settings import DataSetSettings

UNION, _ = get_args(DataSettings)
KINDS: tuple[type[DataSetSettings], ...] = get_args(UNION)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_module_of_the_settings_builds_them(kind: type[DataSetSettings]) -> None:
    module: Any = import_module(kind.__module__)
    assert callable(module.build) and callable(module.listed)
    assert get_args(kind.model_fields["name"].annotation) == (kind.__module__.rpartition(".")[2],)


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        # The registry is imported by it.
        ("dynsparse.config.schema", {"nvidia.dali", "timm", "torchvision", "sklearn", "PIL", "pyarrow"}),
        ("pipelines.common.programs", {"torch", "numpy", "pydantic"}),
        ("pipelines.common.settings", {"torch", "numpy"}),
    ],
)
def test_what_is_not_imported(imported: str, absent: set[str]) -> None:
    code = f"import sys, {imported}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not absent & set(ended.stdout.split())
