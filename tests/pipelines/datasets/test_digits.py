"""The digits are those of scikit-learn, in the order that its split gave them."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pipelines.common.errors import UserError
from pipelines.datasets import digits


def test_images_and_split_are_scikit_learns() -> None:
    expected = load_digits()
    images = np.round(expected.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = expected.target.astype(np.int64)
    numbers = train_test_split(np.arange(1797), test_size=0.2, stratify=labels, random_state=20190609)
    for found, of in zip(digits.load(), numbers, strict=True):
        assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(found.images, images[of])
        np.testing.assert_array_equal(found.labels, labels[of])
        assert found.class_names == tuple("0123456789")


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, package: str | None = None) -> ModuleSpec | None:
        assert name == "sklearn"
        return None

    monkeypatch.setattr(digits, "find_spec", nothing)
    with pytest.raises(UserError, match=r"data\.name: digits needs scikit-learn; pip install scikit-learn"):
        digits.load()


@pytest.mark.parametrize("content", [None, b"", b"no archive"], ids=["absent", "empty", "damaged"])
def test_without_its_file(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version may have it elsewhere, and an install may be damaged."""
    path = tmp_path / "datasets/data/digits.csv.gz"
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    spec = ModuleSpec("sklearn", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(digits, "find_spec", lambda name: spec)
    with pytest.raises(UserError) as caught:
        digits.load()
    assert str(caught.value).startswith(f"data.name: {path}, the digits of scikit-learn, cannot be read (")


def test_scikit_learn_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # An import of it fails now.
    assert len(digits.load()[0]) == 1437
