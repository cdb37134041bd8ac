"""Tensors that are made when they are asked for."""

from __future__ import annotations

import pytest
import torch

from dynsparse.masks.costs import Costs
from dynsparse.masks.made import MadeAnew


def test_entries_are_made_each_time() -> None:
    made: list[int] = []
    squares = MadeAnew(lambda i: made.append(i) or i * i, 4)  # type: ignore[func-returns-value]
    assert made == []
    assert list(squares) == [0, 1, 4, 9]
    assert squares[1:3] == [1, 4]
    assert made == [0, 1, 2, 3, 1, 2]
    assert squares[-1] == 9
    for place in (4, -5):
        with pytest.raises(IndexError):
            squares[place]


def test_errors_of_what_makes_entries_are_seen() -> None:
    """An IndexError is no end, and a KeyError no absent name."""

    def fails(error: Exception) -> torch.Tensor:
        raise error

    with pytest.raises(IndexError, match="mine"):
        list(MadeAnew(lambda i: fails(IndexError("mine")), 2))
    costs = Costs({"a": lambda: fails(KeyError("mine"))})
    assert costs.get("b") is None
    with pytest.raises(KeyError, match="mine"):
        costs.get("a")


def test_costs_are_made_when_asked_for() -> None:
    one, two = Costs({"a": lambda: torch.ones(2)}), Costs({"b": lambda: torch.zeros(1)})
    both = one.adding(two).then(lambda name, cost: cost + len(name))
    assert list(both) == ["a", "b"]
    assert both["a"].tolist() == [2.0, 2.0]
    assert list(both.of({"b"})) == ["b"]
    assert both["a"] is not both["a"]
    held = both.held()
    assert held["a"] is held["a"] and held["a"].tolist() == [2.0, 2.0]
