"""Bad training samples: every rank is told at the end of an epoch."""

from __future__ import annotations

import logging

from dynsparse.distributed import sync
from dynsparse.training.state import RunState

log = logging.getLogger(__name__)


def share_bad_samples(run: RunState) -> None:
    """Tell all ranks which samples any has found bad, so that none needs to find them again. A collective."""
    if not run.config.data.skips_bad_files:
        return
    before = run.progress.bad_files_told
    bad = {sample: fault for known in sync.all_of(run.train_data.bad_samples) for sample, fault in known.items()}
    run.train_data.avoid(bad)
    run.shared_bad_samples = bad
    run.progress.bad_files_told = len(bad)
    if len(bad) > before:
        log.warning(
            "%d of the training files are bad, %d of them found in this epoch; others of their classes come in their "
            "place",
            len(bad),
            len(bad) - before,
        )
