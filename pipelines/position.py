"""The position of training in the order of its samples: all the state that a data set has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.common.epochs import EpochTable
from pipelines.common.errors import UserError
from pipelines.order import Indices, SampleOrder
from pipelines.phases import Phase, Phases, batches_begun, phase_at
from pipelines.sources.base import Numbered, digest

_NO_REPEATS = {"repeated_augmentation": 1}
"""Part of the position that is not written: it is the rule, and older checkpoints lack it."""


class Position:
    """An epoch and a batch in the order of some of a source's samples, int64 [n]. It begins at the first batch.

    Needs no images. `repeats`: times that a global batch has each of its samples. Raises UserError as SampleOrder, for
    the global batch of any phase.
    """

    def __init__(self, source: Numbered, samples: Indices, seed: int, phases: Phases, repeats: int = 1) -> None:
        self._phases = phases
        self._orders = {phase: SampleOrder(seed, len(samples), phase.global_batch, repeats) for phase in phases}
        self.epochs = EpochTable(tuple((phase.first, order.batches_per_epoch) for phase, order in self._orders.items()))
        self.epoch, self.batch = 0, 0
        self._listing = source.listing
        self._earlier_listing = getattr(source, "earlier_listing", None)
        self._split = digest(samples.tobytes())

    @property
    def phase(self) -> Phase:
        """The phase of the current epoch."""
        return phase_at(self._phases, self.epoch)

    @property
    def order(self) -> SampleOrder:
        """The order of samples in the current epoch's phase."""
        return self.order_in(self.epoch)

    def order_in(self, epoch: int) -> SampleOrder:
        """Return the order of samples in an epoch's phase."""
        return self._orders[phase_at(self._phases, epoch)]

    def next_epoch(self) -> None:
        """Go to the first batch of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what must be equal for it to mean the same samples."""
        return self._state(self.epoch, self.batch)

    def _state(self, epoch: int, batch: int) -> dict[str, Any]:
        """Return the state of a position. Global batches of epochs before it count steps, so they belong to it."""
        order = self._orders[phase_at(self._phases, epoch)]
        begun = batches_begun(self._phases, epoch)
        data: dict[str, Any] = {"seed": order.seed, "samples": order.size, "global_batch": order.global_batch}
        if order.repeats > 1:
            data["repeated_augmentation"] = order.repeats
        if len(begun) > 1:
            data["batches"] = begun
        return {**data, "listing": self._listing, "split": self._split, "epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a saved position. Raises UserError if it means other samples."""
        ours = self._state(state["epoch"], state["batch"])
        # Older checkpoints lack these keys.
        theirs = {"listing": ours["listing"], "split": ours["split"], **state}
        if self._earlier_listing is not None and theirs["listing"] == self._earlier_listing:
            theirs["listing"] = ours["listing"]
        before, now = _begun(theirs), _begun(ours)
        if ours["listing"] is not None and theirs["listing"] != ours["listing"]:
            raise UserError(
                f"the data have changed since the checkpoint was made ({theirs['samples']} training samples then, "
                f"{ours['samples']} now; the names of files are compared, less those of data.exclude); its position "
                f"means other samples: restore the data, or start a new run"
            )
        theirs, ours = ({**_NO_REPEATS, **found, "global_batch": _latest_batch(found)} for found in (theirs, ours))
        for key in ("seed", "samples", "global_batch", *_NO_REPEATS):
            if theirs[key] != (here := ours[key]):
                raise UserError(
                    f"the checkpoint was made with {key} {theirs[key]}, this run has {here}; "
                    f"the position in an epoch means other samples: resume with the same"
                )
        if ours["listing"] is not None and theirs["split"] != ours["split"]:
            raise UserError(
                "the checkpoint was made with other samples held out than data.split_seed and data.validation_samples "
                "hold out now; it has trained on samples of this validation set: resume with the same"
            )
        if before != now:
            raise UserError(
                f"the checkpoint was made with the global batches {_by_epoch(before)}, this run has {_by_epoch(now)}; "
                f"its steps make other epochs: resume with the same train.global_batch_size up to epoch "
                f"{_last_begun(ours)}"
            )
        self.seek(state["epoch"], state["batch"])

    def seek(self, epoch: int, batch: int) -> None:
        """Go to a batch of an epoch, both counted from 0; the epoch's number of steps is its end."""
        self.epoch, self.batch = epoch, batch


def _last_begun(state: Mapping[str, Any]) -> int:
    """Return the last epoch of which a batch is trained at a position; -1 for none."""
    return int(state["epoch"]) - int(state["batch"] == 0)


def _begun(state: Mapping[str, Any]) -> list[list[int]]:
    """Return [first epoch, global batch] wherever it changes, of the epochs of which a batch is trained.

    The epoch that is about to begin may have another: no position in it means anything yet.
    """
    changes = state.get("batches") or [[0, state["global_batch"]]]
    return [change for change in changes if change[0] <= _last_begun(state)]


def _latest_batch(state: Mapping[str, Any]) -> int | None:
    """Return the global batch of the last epoch that has begun; None for a run that is about to begin."""
    return next((batch for _, batch in reversed(_begun(state))), None)


def _by_epoch(changes: list[list[int]]) -> str:
    """Return global batches by their first epochs, as a config has them."""
    return "{" + ", ".join(f"{first}: {batch}" for first, batch in changes) + "}"
