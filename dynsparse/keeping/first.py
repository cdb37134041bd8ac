"""First masks by score in the front door: what was given for them, and the units that follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dynsparse.distributed import sync
from dynsparse.errors import UserError
from dynsparse.explain import explain_all
from dynsparse.first_masks import Example, FirstMasks, Loss, ScoredMasks, Scoring, SynflowMasks
from dynsparse.first_masks.settings import IN_A_CALL, NAMES, Beside, contradiction
from dynsparse.masks import LayerSpec
from dynsparse.seeds import seed_for
from pipelines.common.settings import Settings

SOURCE = "SparseTraining"


class _Masks(Settings):
    masks: FirstMasks


def by_score(masks: object) -> ScoredMasks | None:
    """Validate the settings of masks by score, or their name. None for other masks. UserError for what is wrong."""
    named = isinstance(masks, Mapping) and isinstance(masks.get("name"), str)
    if not named and not (isinstance(masks, str) and masks in NAMES):
        return None
    try:
        found = _Masks.model_validate({"masks": masks}).masks
    except ValidationError as error:
        raise UserError(*explain_all(error, _Masks, SOURCE)) from None
    if named and not isinstance(found, ScoredMasks):
        raise UserError(f"masks is {masks!r}; it has no settings: give '{found.name}'")
    if "batches" in found.model_fields_set:
        raise UserError("masks: batches is for configs; here all of batches= are used: leave it out")
    return found if isinstance(found, ScoredMasks) else None


@dataclass(frozen=True)
class Given:
    """Batches and loss for masks by score, of this rank."""

    batches: Iterable[Any] | None
    loss: Loss | None
    seed: int
    group: sync.Group

    def require_for(self, first: ScoredMasks) -> None:
        """Raise UserError for what is missing."""
        if isinstance(first, SynflowMasks):
            if self.batches is None:
                raise UserError("masks is synflow: give batches=, of which the shape of the first inputs is looked at")
        elif self.batches is None or self.loss is None:
            raise UserError(
                f"masks is {first.name}: give batches=, pairs of inputs and targets, and loss=, which makes a number "
                f"of outputs and targets"
            )
        elif not callable(self.loss):
            raise UserError(f"loss= is {type(self.loss).__name__}; give a function of the model's outputs and targets")

    def units(
        self,
        first: ScoredMasks,
        model: nn.Module,
        specs: Sequence[LayerSpec],
        counts: Mapping[str, int],
        beside: Beside,
    ) -> dict[str, Tensor]:
        """Return the first units of each layer, int64, the same on all ranks. UserError for contradictions."""
        if line := contradiction(first, beside, IN_A_CALL):
            raise UserError(line)
        batches = sync.together(self._pairs, self.group)
        share = 1 / int(sync.sum_(_count(batches), self.group))
        shape = sync.together(lambda: _shape(batches[0][0]), self.group) if isinstance(first, SynflowMasks) else ()
        rank = sync.rank(self.group)
        examples = [
            Example(inputs, targets, share, seed_for(self.seed, "first masks", rank, k))
            for k, (inputs, targets) in enumerate(batches)
        ]
        return Scoring(
            first, model, specs, counts, f"masks: {first.name}", lambda: examples, self.loss, shape, self.group
        ).units()

    def _pairs(self) -> list[tuple[Any, Any]]:
        pairs = list(self.batches) if isinstance(self.batches, Iterable) else []
        if not pairs or not all(isinstance(one, (tuple, list)) and len(one) == 2 for one in pairs):
            raise UserError("batches= has none, or one that is no pair of inputs and targets: give [(inputs, targets)]")
        return [(inputs, targets) for inputs, targets in pairs]


def _count(batches: Sequence[Any]) -> Tensor:
    return torch.tensor(len(batches))


def _shape(inputs: Any) -> tuple[int, ...]:
    """Shape of one input. UserError where a model has several."""
    if not isinstance(inputs, Tensor):
        raise UserError(
            f"masks is synflow, and the inputs of the first batch are {type(inputs).__name__}: it needs one tensor"
        )
    return tuple(inputs.shape[1:])
