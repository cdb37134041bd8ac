"""Kinds of values that flags take, and the models of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MLP, WRN, RESNET = "mnist_mlp", "cifar10_WideResNet", "imagenet_resnet50"
DATA = {MLP: "mnist", WRN: "cifar10", RESNET: "imagenet"}
"""The data set of each model."""


@dataclass(frozen=True)
class Kind:
    """A kind of value: how its text is read, and the rule that it must fit."""

    rule: str
    read: Callable[[str], Any]
    fits: Callable[[Any], bool] = lambda value: True


def _boolean(text: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]


COUNT = Kind("a whole number of at least 0", int, lambda value: value >= 0)
SIZE = Kind("a whole number of at least 1", int, lambda value: value >= 1)
AMOUNT = Kind("a number of at least 0", float, lambda value: 0 <= value < math.inf)
FACTOR = Kind("a number above 0", float, lambda value: 0 < value < math.inf)
SHARE = Kind("a number from 0 to 1", float, lambda value: 0 <= value <= 1)
PART = Kind("a number of at least 0 and below 1", float, lambda value: 0 <= value < 1)
UNIT = Kind("4 (element), 3 (kernel row), 2 (kernel slice) or 1 (filter)", int, lambda value: 1 <= value <= 4)
BOOLEAN = Kind("true, yes or 1, or false, no or 0", _boolean)
TEXT = Kind("some text", str, bool)
MODEL = Kind(f"{MLP}, {WRN} or {RESNET}; for others set model={{name: ...}} in a config", str, DATA.__contains__)
