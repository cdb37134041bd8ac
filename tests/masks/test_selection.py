from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dynsparse.masks.selection import Cut, chosen, cuts_below, cuts_smallest

# Few distinct values, so that ties are the rule.
tied_scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=40)


@given(tied_scores, st.data())
def test_cut_takes_exactly_the_k_smallest_with_ties_by_index(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    scores = torch.tensor(values)
    (cut,) = cuts_smallest([scores], [k])
    expected = sorted(range(len(values)), key=lambda i: (values[i], i))[:k]
    assert chosen(scores, cut).nonzero().squeeze(1).tolist() == sorted(expected)
    assert cut.count == k


@given(tied_scores, st.sampled_from([-1.0, 0.0, 0.25, 0.3, 3.0, 9.0]))
def test_cut_below_takes_what_is_strictly_below(values: list[float], threshold: float) -> None:
    scores = torch.tensor(values)
    (cut,) = cuts_below([scores], threshold)
    taken = chosen(scores, cut)
    assert taken.tolist() == [v < threshold for v in values]
    assert cut.count == int(taken.sum())


def test_cuts_of_several_layers_do_not_mix() -> None:
    scores = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([5.0]), torch.tensor([7.0, 7.0])]
    cuts = cuts_smallest(scores, [2, 0, 1])
    assert cuts == [Cut(2.0, 1, 2), Cut(float("-inf"), 0, 0), Cut(7.0, 1, 1)]
    assert [chosen(s, c).tolist() for s, c in zip(scores, cuts, strict=True)] == [
        [False, True, True],
        [False],
        [True, False],
    ]
