"""summary.json, as far as the page shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from dynsparse.training.run.log_lines import BadLineError, number, whole_number, word

WORDS = ("gradients", "mask_digest", "weight_digest")
COUNTS = (
    "epochs", "steps", "reallocations", "active_weights", "sparse_layer_weights", "total_parameters", "world_size",
    "desyncs_repaired", "bad_files", "skipped_steps",
)  # fmt: skip
NUMBERS = (
    "test_top1", "test_top5", "validation_top1", "best_top1", "test_top1_at_best", "sparsity", "model_sparsity",
    "images_per_second", "seconds",
)  # fmt: skip


def checked_summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is null or no finite number. Older runs may lack keys. BadLineError names a key of a wrong kind."""
    known = {"status": _of("status", found.get("status"), word)}
    for names, check in ((WORDS, word), (COUNTS, whole_number), (NUMBERS, number)):
        known |= {name: _of(name, found[name], check) for name in names if found.get(name) is not None}
    known["versions"] = found.get("versions", {})
    if not isinstance(known["versions"], dict):
        raise BadLineError("versions")
    return {name: value for name, value in known.items() if not (isinstance(value, float) and math.isnan(value))}


def _of(name: str, value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except BadLineError:
        raise BadLineError(name) from None
