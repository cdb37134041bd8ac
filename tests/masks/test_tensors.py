"""The memory of tensors."""

from __future__ import annotations

import torch

from dynsparse.masks.tensors import copy_


def test_bits_are_chosen_as_they_are() -> None:
    """NaN, infinities, -0 and integers at the ends of their range, into each other and back."""
    wild = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 3e38, -3e38, 1e-45])
    whole = torch.tensor([2**63 - 1, -(2**63), 0, -1])
    ours = [wild.clone(), wild.flip(0).double(), whole.clone(), torch.tensor(torch.nan)]
    theirs = [wild.roll(3), wild.double(), whole.flip(0), torch.tensor(-0.0)]
    for flag, expected in ((False, ours), (True, theirs)):
        tensors = [one.clone() for one in ours]
        copy_(tensors, theirs, torch.tensor(flag))
        for one, other in zip(tensors, expected, strict=True):
            assert one.numpy().tobytes() == other.numpy().tobytes()
