"""An exponential moving average of the weights, which is sparse as the model is."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.config.recipe import EmaSettings
from dynsparse.distributed import sync
from dynsparse.masks import MaskSet
from dynsparse.masks.tensors import copy_, flat_view
from dynsparse.shrinking.kept import Shrinkage
from dynsparse.training import packing
from pipelines.common.epochs import EpochTable

log = logging.getLogger(__name__)


class Ema:
    """Averages a model's parameters and buffers: a <- decay a + (1 - decay) w, in the masks.

    Outside the masks the average is 0 at every moment, so its budget is the model's. A dropped weight is cut from it. A
    grown one begins at 0, which was the weight's value for as long as it was inactive: the average stays that of the
    weight's own course. A dropped and regrown weight keeps nothing of its earlier life.

    Floating point buffers, BatchNorm's statistics, are averaged as the parameters are, and others copied: as timm does,
    and torch.optim.swa_utils with `use_buffers`. Parameters are equal on all ranks, for the weights are. Buffers are a
    rank's own, as the model's are.
    """

    def __init__(self, settings: EmaSettings, model: nn.Module, masks: MaskSet, epochs: EpochTable) -> None:
        """Begin as a copy of the model, whose weights are masked already. `epochs`: their lengths in steps."""
        self.settings = settings
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.updates = 0
        self._masks = masks
        epoch, part = divmod(settings.start_epoch, 1)
        self._copies_until = epochs.before(int(epoch)) + part * epochs.steps(int(epoch))
        self._pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))

    @torch.no_grad()
    def follow(self, step: int, unless: Tensor | None = None) -> None:
        """Take in the weights after a step with this number, counted from 1, if an update is due.

        Where a flag on the device says that the step was skipped, the average stays: `forget` follows some time later.
        """
        if step % self.settings.every_steps:
            return
        floating = [pair for pair in self._pairs if pair[1].is_floating_point()]
        averages, values = zip(*floating, strict=True)
        if unless is None:
            torch._foreach_lerp_(averages, values, 1 - self._decay(step))
        else:
            copy_(averages, torch._foreach_lerp(averages, values, 1 - self._decay(step)), where=~unless)
        counters = [pair for pair in self._pairs if not pair[1].is_floating_point()]
        copy_([one for one, _ in counters], [one for _, one in counters], None if unless is None else ~unless)
        self.updates += self._counts(step)

    def forget(self, step: int) -> None:
        """Take an update after the step with this number off the count, if one was due: the step was skipped."""
        self.updates -= self._counts(step)

    def _counts(self, step: int) -> bool:
        return step % self.settings.every_steps == 0 and step > self._copies_until

    def _decay(self, step: int) -> float:
        if step <= self._copies_until:
            return 0.0
        ramp = (1 + self.updates) / (10 + self.updates) if self.settings.ramp else 1.0
        return min(self.settings.decay, ramp)

    @torch.no_grad()
    def follow_masks(self, *, repaired: bool = False) -> None:
        """Set the average to 0 outside the masks, which have moved.

        If ranks held different weights and were `repaired`, each takes rank 0's average first: a collective.
        """
        if repaired:
            for parameter in self.model.parameters():
                sync.broadcast_(flat_view(parameter))
        weights = dict(self.model.named_parameters())
        for layer in self._masks:
            layer.mask_(layer.part(weights[layer.spec.parameter]))

    def shrink(self, shrinkage: Shrinkage, model: nn.Module, masks: MaskSet) -> None:
        """Lose the channels that the model, whose masks are new, has lost."""
        shrinkage.apply(self.model)
        self._masks = masks
        self._pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return what is the same on every rank: parameters, the active weights alone, and the number of updates."""
        return {"updates": self.updates, "weights": packing.pack_weights(self.model, self._masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave. The masks must be loaded already."""
        self.updates = state["updates"]
        packing.unpack_weights(self.model, self._masks, state["weights"])

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Become a copy of the model as it is now."""
        self.updates = 0
        for average, value in self._pairs:
            average.copy_(value)

    def warn_if_slow(self, first: int, last: int) -> None:
        """Warn of an average that stays near the first weights, in a run from step `first` to `last`.

        It is never updated, or reaches further back than the run is long.
        """
        every, steps = self.settings.every_steps, last - first
        reach = every / (1 - self.settings.decay)
        if last // every == first // every:
            log.warning(
                "train.ema.every_steps is %d, and the run has %d steps: the average would stay at the first weights; "
                "lower it",
                every,
                steps,
            )
        elif reach > steps and not self.settings.ramp:
            log.warning(
                "train.ema averages over about %.0f steps, and the run has %d: it would stay near the first weights; "
                "lower train.ema.decay, or set train.ema.ramp=true",
                reach,
                steps,
            )


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, not copies of them."""
    return [*(parameter.detach() for parameter in model.parameters()), *packing.buffers(model).values()]
