"""The chart of operations: a row each, with the picture itself where there is none of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.__main__ import PROGRAM
from pipelines.pixels.tables import Operation
from pipelines.tools.operations_chart import COLUMNS, row
from tests.pipelines.pixels.photographs import crops

SMALL = ["--train", "1", "--val", "1", "--size", "20", "30", "--workers", "1"]


def test_a_row_goes_from_one_end_of_the_magnitudes_to_the_other() -> None:
    image = torch.from_numpy(crops()[0].copy()).permute(2, 0, 1)
    captions = {operation: [caption for _, caption in row(image, operation)] for operation in Operation if operation}
    assert all(len(found) == COLUMNS for found in captions.values()) and len(captions) == 14
    assert captions[Operation.ROTATE] == [f"rotate {m}" for m in ("-135.00", "-67.50", "0.00", "67.50", "135.00")]
    assert (
        captions[Operation.POSTERIZE][0] == "posterize 8.00" and captions[Operation.POSTERIZE][-1] == "posterize 2.00"
    )
    pictures = [picture for picture, _ in row(image, Operation.CONTRAST)]
    assert torch.equal(pictures[2], image)
    spread = [float(picture.float().std()) for picture in pictures]
    assert spread == sorted(spread)


def test_the_chart_is_written_beside_the_images(tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    assert PROGRAM.run(["sample_images", str(tmp_path / "images"), *SMALL, "--operations", str(chart)]) == 0
    pixels = np.asarray(Image.open(chart))
    assert pixels.shape[0] > 2 * pixels.shape[1] and pixels.std() > 50
    assert (tmp_path / "images" / "train").is_dir()


@pytest.mark.parametrize("name", ["chart.docx", "absent/chart.png"])
def test_a_chart_that_cannot_be_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and nothing is written."""
    chart = tmp_path / name
    assert PROGRAM.run(["sample_images", str(tmp_path / "images"), *SMALL, "--operations", str(chart)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --operations is {chart}, which cannot be written (") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
