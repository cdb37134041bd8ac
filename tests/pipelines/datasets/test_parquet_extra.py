"""Parquet is an extra: without pyarrow a config is validated, and its data are refused in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import pipelines
from pipelines.common.errors import UserError
from pipelines.datasets.parquet import ParquetSettings
from tests.pipelines.streams import request

ACTS: dict[str, Callable[[ParquetSettings], object]] = {
    "check": pipelines.check,
    "resolve": ParquetSettings.resolved,
    "list": lambda asked: pipelines.position_of(asked, request()),
    "build": lambda asked: pipelines.build(asked, request()),
}


@pytest.mark.parametrize("act", ACTS)
def test_without_pyarrow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    def found(name: str, package: str | None = None) -> Any:
        return None if name == "pyarrow" else find_spec(name, package)

    monkeypatch.setattr("pipelines.sources.parquet_parts.find_spec", found)
    asked = ParquetSettings.model_validate({"name": "parquet", "path": str(tmp_path)})
    with pytest.raises(
        UserError,
        match=r"^data\.name is parquet, .* not installed here; pip install .* '\.\[parq",
    ):
        ACTS[act](asked)


def test_a_config_is_validated_without_pyarrow() -> None:
    code = "import sys, dynsparse.config.schema; print('pyarrow' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
