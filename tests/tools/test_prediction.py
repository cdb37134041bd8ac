"""`predict`: classes of image files, by the very input that an evaluation gives the network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pipelines
from dynsparse.config.schema import RunConfig
from pipelines.base import Request
from pipelines.datasets import digits
from pipelines.order import Share
from tests.pipelines.pictures import CLASSES, DAMAGE, damage, picture
from tests.tools.trained import assert_one_line, call, network_of, train
from tests.training import runs

SMALL: dict[str, Any] = {"model": {"name": "small_cnn", "channels": [4, 4]}, "train": {"epochs": 1}}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run on images of many sizes in folders."""
    root = tmp_path_factory.mktemp("photographs")
    for part, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture(30 + 7 * i, 40 - 3 * label, seed=10 * i + label).save(root / part / name / f"{i}.png")
    data = {"name": "imagenet", "path": str(root), "number_of_classes": 3, "image_size": 16, "threads": 1}
    return train(root, "run", data=data, **SMALL)


def evaluated(config: RunConfig) -> Iterator[list[float]]:
    """Yield the probabilities that an evaluation has of each test image, in its order. DALI's pixels differ by 1."""
    model = network_of(config.folder / "checkpoints" / "best.pt", config)
    data = pipelines.build(config.data.model_copy(update={"loader": "torch"}), Request(0, 12, Share(0, 1, 1), 64, None))
    try:
        assert data.test is not None
        for images, _ in data.test.batches():
            with torch.no_grad():
                yield from model(images).softmax(1).tolist()
    finally:
        data.close()


def predicted(capsys: Any, config: RunConfig, *images: object) -> list[list[float]]:
    """The probabilities that `predict` prints, by class."""
    code, out, err = call(capsys, "predict", config.folder, *images, "--top", 99, "--json")
    assert code == 0, err
    rows = [json.loads(line)["classes"] for line in out.splitlines()]
    return [[one["probability"] for one in sorted(row, key=lambda one: one["class"])] for row in rows]


def test_they_are_the_evaluations_of_photographs(photographs: RunConfig, capsys: Any) -> None:
    """A folder's images are in order, with class names, the likeliest first."""
    folder = Path(photographs.data.path) / "val"
    ours, theirs = predicted(capsys, photographs, folder), list(evaluated(photographs))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-6)
    code, out, _ = call(capsys, "predict", photographs.folder, folder / "bee" / "1.png")
    best = max(range(3), key=lambda i: theirs[4][i])
    assert (code, out.startswith(f"{folder}/bee/1.png: {CLASSES[best]} {100 * theirs[4][best]:.2f} %, ")) == (0, True)
    assert out.count("%") == 3, "five, or as many as there are"


def test_they_are_the_evaluations_of_small_grey_images(tmp_path: Path, capsys: Any) -> None:
    config = train(
        tmp_path, "digits", data={"name": "digits", "image_size": 12, "threads": 1, "loader": "torch"}, **SMALL
    )
    _, test = digits.load()
    for i, image in enumerate(test.images[:20]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i:02}.png")
    ours = predicted(capsys, config, *sorted(tmp_path.glob("*.png")))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(list(evaluated(config))[:20]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", DAMAGE[:-1])
def test_an_image_that_cannot_be_read_has_a_line(
    kind: str, photographs: RunConfig, tmp_path: Path, capsys: Any
) -> None:
    """The others are predicted all the same, and the exit code is 2."""
    for name in ("a", "b", "c"):
        picture(20, 20, seed=1).save(tmp_path / f"{name}.png")
    damage(tmp_path / "b.png", kind)
    code, out, err = call(capsys, "predict", photographs.folder, *(tmp_path / f"{name}.png" for name in "abc"))
    assert (code, out.count("\n"), err.count("\n")) == (2, 2, 1)
    assert err.startswith(f"error: {tmp_path}/b.png: ")
    (tmp_path / "within").mkdir()
    code, out, _ = call(capsys, "predict", photographs.folder, tmp_path / "within" / "..", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [("error" in row) for row in rows]) == (2, [False, True, False])


def test_what_cannot_be_done_is_refused(photographs: RunConfig, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_line(call(capsys, "predict", photographs.folder, tmp_path / "empty"), "empty holds no image (jpg, ")
    assert_one_line(call(capsys, "predict", tmp_path / "none", "a.png"), "none: does not exist")
    assert_one_line(call(capsys, "predict", photographs.folder), "the following arguments are required: IMAGE")
    assert_one_line(call(capsys, "predict", photographs.folder, "a.png", "--top", "0"), "at least 1")
    data = {"name": "synthetic", "shape": [2, 6, 6], "samples": 24, "test_samples": 5, "threads": 1}
    made_up = train(tmp_path, "made_up", train={"epochs": 1}, data=data)
    assert_one_line(call(capsys, "predict", made_up.folder, "a.png"), "takes 2 channels; image files have 1 or 3")


def test_other_data_are_evaluated_and_the_matrix_counts_what_is_predicted(
    photographs: RunConfig, tmp_path: Path, capsys: Any
) -> None:
    """Another folder of the same classes; its evaluation and `predict` take each image for the same class."""
    for part, count in (("train", 1), ("test", 4)):
        for label, name in enumerate(CLASSES):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                picture(25, 30 + i, seed=90 + 10 * i + label).save(tmp_path / part / name / f"{i}.png")
    other = [f"data.path={tmp_path}", "data.loader=torch", "--confusion", tmp_path / "matrix.csv"]
    done = runs.dist_train("--evaluate", photographs.folder, *other)
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in (tmp_path / "matrix.csv").read_text().splitlines()[1:]]
    for name, row in zip(CLASSES, rows, strict=True):
        found = predicted(capsys, photographs, tmp_path / "test" / name)
        taken_for = [max(range(3), key=one.__getitem__) for one in found]
        assert [name, *(str(taken_for.count(i)) for i in range(3)), "4"] == row[:5]
    damage(tmp_path / "test" / "bee" / "0.png", "empty")
    fewer = runs.dist_train("--evaluate", photographs.folder, *other[:2], "data.on_bad_file=skip")
    assert "  without 1 bad samples of 12\n" in fewer.stdout, fewer.stderr
    (tmp_path / "train" / "bee").rename(tmp_path / "train" / "wasp")
    (tmp_path / "test" / "bee").rename(tmp_path / "test" / "wasp")
    refused = runs.dist_train("--evaluate", photographs.folder, *other)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "give data of the same classes" in refused.stderr
