"""The position of training in the order of its samples: all the state that a data set has."""

from __future__ import annotations

from typing import Any

from pipelines.common.errors import UserError
from pipelines.order import Indices, SampleOrder
from pipelines.sources.base import Numbered, digest


class Position:
    """An epoch and a batch in the order of some of a source's samples, int64 [n]. It begins at the first batch.

    Needs no images. Raises UserError if there are fewer samples than in a global batch.
    """

    def __init__(self, source: Numbered, samples: Indices, seed: int, global_batch: int) -> None:
        self.order = SampleOrder(seed, len(samples), global_batch)
        self.epoch, self.batch = 0, 0
        self._listing = source.listing
        self._split = digest(samples.tobytes())

    @property
    def steps_per_epoch(self) -> int:
        return self.order.batches_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what must be equal for it to mean the same samples."""
        order = self.order
        data = {"seed": order.seed, "samples": order.size, "global_batch": order.global_batch}
        return {**data, "listing": self._listing, "split": self._split, "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a saved position. Raises UserError if it means other samples."""
        ours = self.state_dict()
        # Older checkpoints lack these keys.
        theirs = {"listing": ours["listing"], "split": ours["split"], **state}
        if ours["listing"] is not None and theirs["listing"] != ours["listing"]:
            raise UserError(
                f"the data have changed since the checkpoint was made ({theirs['samples']} training samples then, "
                f"{ours['samples']} now; the names of files are compared, less those of data.exclude); its position "
                f"means other samples: restore the data, or start a new run"
            )
        for key in ("seed", "samples", "global_batch"):
            if theirs[key] != ours[key]:
                raise UserError(
                    f"the checkpoint was made with {key} {theirs[key]}, this run has {ours[key]}; "
                    f"the position in an epoch means other samples: resume with the same"
                )
        if ours["listing"] is not None and theirs["split"] != ours["split"]:
            raise UserError(
                "the checkpoint was made with other samples held out than data.split_seed and data.validation_samples "
                "hold out now; it has trained on samples of this validation set: resume with the same"
            )
        self.seek(state["epoch"], state["batch"])

    def seek(self, epoch: int, batch: int) -> None:
        """Go to a batch of an epoch, both counted from 0; `steps_per_epoch` is the end of the epoch."""
        self.epoch, self.batch = epoch, batch
