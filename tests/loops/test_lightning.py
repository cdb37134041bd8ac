"""The run of tests/loops/lightning_loop.py, straight and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.common.torchvision_ops import import_torchvision
from tests.loops.small import BY_GRADIENT, KEEP_LAYERS, METHODS
from tests.ranks import run_distributed


def test_lightning_keeps_what_is_sparse(tmp_path: Path) -> None:
    import_torchvision()  # Lightning's metrics import it where it is there.
    pytest.importorskip("lightning.pytorch")  # Only here: it takes seconds.
    from tests.loops.lightning_loop import EPOCHS, STEPS_PER_EPOCH, STOP, straight_and_resumed

    ranks = run_distributed(straight_and_resumed, 2, tmp_path)
    for method in METHODS:
        (straight, average), (resumed, average_resumed) = ranks[0][method]
        assert (straight.steps, resumed.steps) == (EPOCHS * STEPS_PER_EPOCH, (EPOCHS - STOP) * STEPS_PER_EPOCH)
        for count, reallocations in ((straight, 4), (resumed, 1)):
            assert not count.faults(layers_keep=method in KEEP_LAYERS, reallocations=reallocations), method
            assert count.copies_seen == 2 * count.steps + 1, "seen at each step, when it has followed, at the end"
        assert straight.growths_judged == (straight.reallocations if method in BY_GRADIENT else 0)
        assert resumed.budget == straight.budget
        assert resumed.digest == straight.digest, f"{method}: a resumed run ends elsewhere"
        assert torch.equal(average, average_resumed)
        assert [run[0].digest for run in ranks[1][method]] == [straight.digest, resumed.digest], "ranks differ"


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_the_guides_module_learns_from_gradients_of_their_true_size(fused: bool) -> None:
    import_torchvision()
    pytest.importorskip("lightning.pytorch")
    from tests.loops.lightning_loop import as_printed

    (ends,) = run_distributed(as_printed, 1, fused)
    for method, by_scale in ends.items():
        assert all(map(torch.equal, by_scale[1.0], by_scale[65536.0])), method
