"""The examples of docs/export.md work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dynsparse.tools.export import FORMATS
from tests.tools.trained import call, network_of, train
from tests.training import runs


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every format loads as it says there, one block after the other, and gives the same network."""
    monkeypatch.chdir(tmp_path)
    settings = train(Path("runs"), "digits_dsr")
    runs.write_config(settings.folder, settings)
    for name in FORMATS:
        assert call(capsys, "export", "runs/digits_dsr", "--format", name)[0] == 0
    blocks = re.findall(r"```python\n(.*?)```", (runs.ROOT / "docs/export.md").read_text(), re.DOTALL)
    ours, state = network_of(settings.folder / "checkpoints" / "best.pt", settings), dict[str, Any]()
    loaded = 0
    for block in blocks:
        if any(
            word in block for word in ("torchvision", "speed_up", "semi_structured", "load_smaller")
        ):  # Tests of their own have it.
            continue
        exec(block, state)
        with torch.no_grad():
            expected = ours(torch.zeros(5, *settings.data.image_shape))
            for found in (state["model"](torch.zeros(5, *settings.data.image_shape)), state.get("logits", expected)):
                torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-5, atol=1e-5)
        loaded += 1
    assert loaded == len(FORMATS)
