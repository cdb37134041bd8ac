"""Warnings of what is likely not meant: weights that stay dense, filters without weights, a method that moves none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dynsparse.keeping.asked import Asked
from dynsparse.keeping.setup import Setup
from dynsparse.masks import MaskSet
from dynsparse.masks.candidates import candidates, matching
from dynsparse.masks.obstacles import listed
from dynsparse.methods import Method
from dynsparse.methods.base import idle_words
from dynsparse.reallocation import ReallocationReport

log = logging.getLogger(__name__)

_MANY = 0.01
"""Fraction of a model's parameters that may stay dense without a warning."""
_DEAD = 0.05
"""Fraction of a convolution's filters that may have no weight without a warning."""


@contextmanager
def without_notices() -> Iterator[None]:
    """Warn of nothing: where a network is only evaluated, all that concerns training is of no use."""
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


def warn_at_start(
    setup: Setup, asked: Asked, masks: MaskSet, *, steps: int, given_masks: bool, has_stepped: bool
) -> None:
    """Warn when a model has just become sparse, `steps` steps after the start of its run.

    `given_masks`: the user said what is active. `has_stepped`: the optimizer has moved these weights before.
    """
    if not masks.layers and setup.built is None:
        log.warning("no layer is sparse: every sparsity is 0, or there is no layer of a kind that is to be sparse")
    if not given_masks and (left := _left_dense(setup.model, setup, asked)):
        log.warning(
            "%s stays dense; name it in include= to make it sparse, or in exclude= to silence this warning",
            listed(left),
        )
    for name, dead, filters in _dead_filters(masks):
        log.warning(
            "%d of the %d filters of %s have no weight and give nothing but their bias: exclude it, or make it "
            "denser (allocation='erk')",
            dead,
            filters,
            name,
        )
    if setup.draws and has_stepped:
        log.warning(
            "the optimizer has stepped over these weights already, and the masks are drawn at random: most of what "
            "was trained is 0 now; masks='magnitude' and method pruning keep the largest weights"
        )
    for line in setup.method.notes:
        log.info("%s", line)
    if idle := idle_words(setup.method, setup.method_name, asked.schedule, steps):
        log.warning("%s", idle)


def warn_beyond(step: int, total_steps: int) -> None:
    """Warn of a step after those that the schedules were made for."""
    log.warning(
        "step %d goes beyond total_steps=%d: schedules are at their end; total_steps counts optimizer steps",
        step,
        total_steps,
    )


def warn_if_nothing_moved(method: Method, method_name: str, report: ReallocationReport) -> None:
    """Warn if a method that asks each layer for moves made none in its first event."""
    asks = not (method.every_step or method.trades)
    if asks and not any(report.dropped.values()):
        log.warning(
            "the reallocation after step %d moved no weight: what %s asks of a layer rounds to none, or "
            "none has free places",
            report.step,
            method_name,
        )


def _left_dense(model: nn.Module, setup: Setup, asked: Asked) -> list[str]:
    """Weights of two or more dimensions that no rule names and that stay dense, if they are many."""
    if asked.include is not None:
        return []
    known = candidates(model, asked.split)
    named = {spec.name for spec in setup.specs} | matching(model, asked.exclude, "exclude", known)
    others = {
        name: one.parameter
        for name, one in known.items()
        if name not in named and one.parameter is not None and not one.by_default
    }
    total = sum(one.numel() for one in model.parameters() if not nn.parameter.is_lazy(one))
    return list(others) if sum(one.numel() for one in others.values()) > _MANY * total else []


def _dead_filters(masks: MaskSet) -> list[tuple[str, int, int]]:
    """Convolutions with many filters that have no active weight: name, number of such filters, of all filters."""
    found = []
    for layer in masks:
        filters, spec = layer.spec.shape[0], layer.spec
        if spec.kind != "conv" or not spec.outputs_first or layer.is_full or spec.mask_dims == 1:
            continue
        alive = torch.unique_consecutive(layer.active // (spec.units // filters)).numel()
        if filters - alive > _DEAD * filters:
            found.append((spec.name, filters - alive, filters))
    return found
