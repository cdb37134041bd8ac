"""First masks from trained weights: exact counts, the largest units, ties by index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.magnitude import largest_units

tied_weights = st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, -3.0]), min_size=1, max_size=30)


def test_worked_by_hand() -> None:
    """Units of two weights: means 2, 1.5, 2 and 0.5. Of the equal ones the first is taken."""
    spec = LayerSpec("w", "conv", (2, 2, 2), 2)
    weight = torch.tensor([[[1.0, -3], [1, 2]], [[-2, 2], [0, 1]]])
    assert largest_units([spec], {"w": 1}, {"w": weight})["w"].tolist() == [0]
    assert largest_units([spec], {"w": 3}, {"w": weight})["w"].tolist() == [0, 1, 2]


@given(tied_weights, st.data())
def test_as_sorting_would_choose(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    spec = LayerSpec("w", "fc", (1, len(values)), 2)
    found = largest_units([spec], {"w": count}, {"w": torch.tensor([values])})["w"]
    if count == len(values):
        assert found == count, "all of them: no index"
    else:
        assert isinstance(found, torch.Tensor)
        assert found.tolist() == sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:count])


def test_the_memory_layout_does_not_matter() -> None:
    spec = LayerSpec("w", "conv", (4, 3, 2, 2), 4)
    weight = torch.randn(spec.shape, generator=torch.Generator().manual_seed(0))
    lying = weight.to(memory_format=torch.channels_last)
    found = [largest_units([spec], {"w": 7}, {"w": one})["w"].tolist() for one in (weight, lying)]
    assert found[0] == found[1]


def test_weights_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match=r"^w holds NaN or inf, and the masks are to follow its weights"):
        largest_units([LayerSpec("w", "fc", (1, 2), 2)], {"w": 1}, {"w": torch.tensor([[1.0, float("nan")]])})
