"""dist_train.py, with a rank that is killed (SIGKILL) in the middle of a step. Started by test_resume.py.

KILL_RANK and KILL_STEP say which rank, and in which step: after the gradients
are there, before the weights move.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import dist_train
from dynsparse.masks import MaskSet
from dynsparse.training.loop import Trainer

mask_gradients = MaskSet.mask_gradients
fit = Trainer.fit
trainers: list[Trainer] = []


def remember(self: Trainer) -> Any:
    trainers.append(self)
    return fit(self)


def kill_in_the_middle(self: MaskSet) -> None:
    trainer = trainers[0]
    if trainer.progress.step == int(os.environ["KILL_STEP"]) and trainer.worker.rank == int(os.environ["KILL_RANK"]):
        os.kill(os.getpid(), signal.SIGKILL)
    mask_gradients(self)


Trainer.fit = remember  # type: ignore[method-assign]
MaskSet.mask_gradients = kill_in_the_middle  # type: ignore[method-assign]

if __name__ == "__main__":
    dist_train.main()
