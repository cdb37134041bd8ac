"""Part of `benchmarks.gpu`: runs that are resumed, bit for bit."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.parts.gpu.bench import FAST, MOVING, Bench, Found, make_trainer, settings, steps, wrn
from dynsparse.determinism import deterministic
from dynsparse.distributed.digest import mask_digest
from dynsparse.training import checkpoint
from dynsparse.training.trainer import Trainer


def checkpoints(bench: Bench, found: Found) -> None:
    """Take ten steps with reallocations, and the same with a save after five, loaded by another trainer."""
    case = wrn(bench)
    for asked in (True, False):  # In this order: cuBLAS reads its setting once, as it starts.
        with deterministic(asked):
            config = settings(case, MOVING["dsr"], train=FAST)
            whole, again, first, second = (make_trainer(config, bench.device) for _ in range(4))
            for trainer, count in ((whole, 10), (again, 10), (first, 5)):
                steps(trainer, count)
            with TemporaryDirectory() as folder:
                path = Path(folder) / "saved.pt"
                checkpoint.write(path, first.run.save([first.run.of_this_rank()]))
                second.load(checkpoint.read(path))
            found.check("what was loaded is what was saved, bit for bit", _same_state(first, second))
            steps(second, 5)
        twice, resumed = _same_state(whole, again), _same_state(whole, second)
        title = "deterministic" if asked else "as it likes"
        found.figures[title] = {"two_runs_agree": twice, "resumed_agrees": resumed}
        if asked:
            found.check(f"{title}: two runs give the same bits", twice)
        else:
            found.say(f"{title}: two runs give the same bits", "yes" if twice else "no")
        if twice:
            found.check(f"{title}: so does one that was resumed", resumed)
        else:
            found.say(f"{title}: so does one that was resumed", "cannot be asked")


def _same_state(ours: Trainer, theirs: Trainer) -> bool:
    """Compare masks, weights, buffers, moments."""
    if mask_digest(ours.masks) != mask_digest(theirs.masks):
        return False
    pairs = [*zip(ours.model.state_dict().values(), theirs.model.state_dict().values(), strict=True)]
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        mine, its = ours.optimizer.state[one], theirs.optimizer.state[other]
        pairs += [(mine[key], its[key]) for key in mine if isinstance(mine[key], Tensor)]
    return all(torch.equal(one, other) for one, other in pairs)
