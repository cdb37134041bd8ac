"""A signal that asks to stop, at any moment: all ranks leave at the same step, and a resume goes on as if not."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.errors import StopRequested
from dynsparse.runtime import Worker
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.stopping import StopFlag
from dynsparse.training.trainer import Trainer
from tests.ranks import run_distributed
from tests.training import runs

TEST_SAMPLES, BATCH = 50, 8
STEPS_PER_EPOCH = 8


def settings(folder: Path) -> RunConfig:
    return runs.config(
        name="a",
        runs=str(folder),
        model={"name": "small_cnn", "channels": [6, 8]},
        train={"evaluation_batch_size": BATCH},
        data={"test_samples": TEST_SAMPLES},
        checkpoint={"every_epochs": 10},
    )


def trainer_of(config: RunConfig, worker: Worker, stop: StopFlag) -> Trainer:
    checkpoints = CheckpointFolder(config.folder / "checkpoints", 2) if worker.is_main else None
    return runs.trainer(config, worker, checkpoints=checkpoints, stop_requested=stop)


def signalled(worker: Worker, folder: Path, number: int, mode: str, passes: int) -> tuple[int, bool, bool]:
    """Send it to the last rank; resume. Returns the step left at, and whether weights and results are undisturbed."""
    whole = trainer_of(settings(folder / "whole"), worker, StopFlag())
    whole.fit()

    config, stop = settings(folder), StopFlag()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # It is ignored where the tests run under nohup.
    stop.install()
    trainer = trainer_of(config, worker, stop)
    left = passes

    def count(module: Any, *_: Any) -> None:
        nonlocal left
        if module.training == (mode == "train") and worker.rank == worker.world_size - 1:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

    trainer.model.register_forward_hook(count)
    with pytest.raises(StopRequested):
        trainer.fit()
    saved = sync.from_rank_0(lambda: CheckpointFolder(config.folder / "checkpoints", 2).newest())
    rest = trainer_of(config, worker, StopFlag())
    rest.load(saved[1])
    rest.fit()
    same_results = vars(rest.progress) | {"seconds": 0} == vars(whole.progress) | {"seconds": 0}
    weights = zip(rest.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    return trainer.progress.step, all(torch.equal(a, b) for a, b in weights), same_results


def evaluation_batches(world_size: int) -> int:
    """Number of batches of the last rank, where it has as many samples as the others."""
    return math.ceil(TEST_SAMPLES / world_size / BATCH)


@pytest.mark.parametrize(
    ("number", "world_size", "mode", "passes", "step"),
    [
        pytest.param(signal.SIGTERM, 2, "train", 1, 0, id="in the throw-away pass before step 0"),
        pytest.param(signal.SIGINT, 1, "train", 2, 1, id="in the first batch"),
        pytest.param(signal.SIGUSR1, 2, "train", 2, 1, id="in the first batch of two ranks", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 3, "train", 7, 6, id="in a later batch"),
        pytest.param(
            signal.SIGTERM, 1, "test", 2, STEPS_PER_EPOCH, id="in the first evaluation, alone", marks=pytest.mark.slow
        ),
        pytest.param(signal.SIGUSR1, 3, "test", 2, STEPS_PER_EPOCH, id="in the first evaluation"),
        pytest.param(signal.SIGINT, 2, "test", 2 + evaluation_batches(2), 2 * STEPS_PER_EPOCH, id="in the last"),
    ],
)
def test_all_ranks_leave_together_and_go_on_as_if_nothing_had_been(
    tmp_path: Path, number: int, world_size: int, mode: str, passes: int, step: int
) -> None:
    """`mode` and `passes`: in which forward pass of the last rank it comes; `step`: where all leave."""
    results = run_distributed(signalled, world_size, tmp_path, int(number), mode, passes)
    assert results == [(step, True, True)] * world_size


def test_a_rank_with_fewer_evaluation_batches_waits_for_the_others() -> None:
    """17, 17 and 16 samples in batches of 8: the last rank has two, the others three."""
    for samples in run_distributed(evaluated, 3):
        assert samples == TEST_SAMPLES


def evaluated(worker: Worker) -> int:
    config = runs.config(train={"evaluation_batch_size": BATCH}, data={"test_samples": TEST_SAMPLES})
    trainer = runs.trainer(config, worker)
    return trainer.evaluate().test.samples


def test_interrupted_while_torch_is_imported(tmp_path: Path) -> None:
    """Before anything listens to signals: it ends without a traceback."""
    process = runs.start([sys.executable, "dist_train.py", "--config", runs.write_config(tmp_path, runs.config())])
    try:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=100)
    finally:
        runs.kill(process)
    assert process.returncode != 0
    assert said == ""
