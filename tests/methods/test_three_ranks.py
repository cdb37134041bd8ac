"""Methods with options of their own hold the same masks on three ranks, whose samples differ."""

from __future__ import annotations

from typing import Any

from tests.methods.stepping import assert_ranks_agree
from tests.methods.test_chase import SOFT
from tests.methods.test_chts import SIGMOID
from tests.methods.test_mest import BOUND

CASES: list[tuple[str, dict[str, Any]]] = [("chase", SOFT), ("chts", SIGMOID), ("mest", BOUND)]


def test_ranks_agree() -> None:
    assert_ranks_agree(CASES, workers=3)
