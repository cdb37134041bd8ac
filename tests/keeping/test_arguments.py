"""Texts of arguments are of their values alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from dynsparse.keeping.arguments import canonical
from dynsparse.methods.rigl import RiglSettings


@dataclass
class Point:
    x: int
    of: object = None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (0.1, "0.1"),
        ("a, b", "'a, b'"),
        (np.float64(0.5), "0.5"),
        ({"b": 1, "a": [True, 2]}, "['a': [True, 2], 'b': 1]"),
        ({3, 1, 2}, "[1, 2, 3]"),
        (torch.float16, "torch.float16"),
        (Point(1, {"y"}), "Point['of': ['y'], 'x': 1]"),
        (object(), "..."),
        ([lambda: 0, 1], "[..., 1]"),
    ],
)
def test_texts(value: Any, text: str) -> None:
    assert canonical(value) == text


def test_settings_differ_by_their_values() -> None:
    first, same, other = (RiglSettings(name="rigl", fraction=share) for share in (0.3, 0.3, 0.2))
    assert canonical(first) == canonical(same) != canonical(other)
    assert canonical(first).startswith("RiglSettings[")
    assert "..." not in canonical(first)
