from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dynsparse.distributed import agreement, digest, sync
from dynsparse.errors import DesyncError, UserError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.selection import Cut
from dynsparse.methods import Clock
from dynsparse.methods.dsr import DsrSettings
from dynsparse.reallocation import LayerPlan, Plan, Reallocator
from dynsparse.runtime import Worker
from tests.ranks import run_distributed


def build(granularity: int = 4, on_desync: str = "abort", **settings: Any) -> tuple[nn.Module, MaskSet, Reallocator]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 10))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    specs = sparse_layers(model, granularity=granularity)  # type: ignore[arg-type]
    masks = MaskSet(model, specs, {spec.name: max(1, spec.units // 4) for spec in specs}, seed=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = DsrSettings(name="dsr", initial_threshold=0.05, target_moves=10, **settings).build()
    reallocator = Reallocator(model, masks, method, optimizer, seed=3, on_desync=on_desync)  # type: ignore[arg-type]
    return model, masks, reallocator


def step(worker: Worker, model: nn.Module, masks: MaskSet, reallocator: Reallocator, number: int) -> None:
    """A step with gradients summed over the ranks, each of which has its own data."""
    generator = torch.Generator().manual_seed(100 * number + worker.rank)
    images = torch.randn(4, 2, 4, 4, generator=generator)
    nn.functional.cross_entropy(model(images), torch.randint(10, (4,), generator=generator)).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        sync.sum_(parameter.grad)
    masks.mask_gradients()
    reallocator.optimizers[0].step()
    reallocator.optimizers[0].zero_grad()


def digests(model: nn.Module, masks: MaskSet) -> tuple[int, int]:
    return digest.mask_digest(masks), digest.weight_digest(model, masks)


def events(worker: Worker, granularity: int, count: int) -> list[tuple[int, int]]:
    model, masks, reallocator = build(granularity)
    seen = []
    for number in range(1, count + 1):
        step(worker, model, masks, reallocator, number)
        reallocator(Clock(number, 0))
        seen.append(digests(model, masks))
    return seen


@pytest.mark.parametrize(("world_size", "granularity"), [(2, 4), (4, 4), (3, 2)])
def test_ranks_hold_the_same_bits_over_ten_reallocations(world_size: int, granularity: int) -> None:
    results = run_distributed(events, world_size, granularity, 10)
    assert all(result == results[0] for result in results)
    assert len({masks for masks, _ in results[0]}) == 10, "every reallocation moved something"


@pytest.mark.slow
def test_sixteen_ranks_over_twenty_reallocations() -> None:
    """Digests of masks and weights after each, and what travelled: the plan, and nothing that grows with the model."""
    results = run_distributed(events, 16, 4, 20)
    assert all(result == results[0] for result in results)
    assert len({masks for masks, _ in results[0]}) == 20
    _, masks, reallocator = build()
    plan = reallocator.plan(Clock(1, 0)).encode()
    assert plan.numel() * plan.element_size() == 48 * (1 + len(masks)) == 144


def altered(worker: Worker, on_desync: str, where: str) -> Any:
    """Alter one number on the last rank, then reallocate."""
    model, masks, reallocator = build(on_desync=on_desync)
    for number in (1, 2):
        step(worker, model, masks, reallocator, number)
    layer = masks.layers[1]
    if worker.rank == worker.world_size - 1:
        with torch.no_grad():
            if where == "active weight":
                layer.weight.view(-1)[layer.active[0]] += 1e-3
            elif where == "inactive weight":
                layer.weight.view(-1)[layer.inactive.view(-1).nonzero()[0]] = 1e-3
            elif where == "dense parameter":
                model[1].bias.add_(1e-6)  # type: ignore[operator, union-attr]
            elif where == "mask":
                masks.set_active(layer, torch.cat((layer.active[1:], torch.tensor([319]))).unique())
    try:
        report = reallocator(Clock(2, 0))
    except DesyncError as error:
        return str(error)
    step(worker, model, masks, reallocator, 3)
    masks.check()
    later = reallocator(Clock(3, 0))
    return report.repaired, later.repaired, digests(model, masks)


ALTERED = {
    "active weight": ["3.weight"],
    "inactive weight": ["3.weight"],
    "dense parameter": ["1.bias"],
    "mask": ["3.weight (mask)", "3.weight"],
}


@pytest.mark.parametrize("where", ALTERED)
def test_an_altered_number_aborts_with_the_layers_name(where: str) -> None:
    for message in run_distributed(altered, 2, "abort", where):
        assert f"at step 2 in {', '.join(ALTERED[where])};" in message


@pytest.mark.parametrize(("where", "world_size"), [*((where, 2) for where in ALTERED), ("mask", 3)])
def test_an_altered_number_is_repaired(where: str, world_size: int) -> None:
    results = run_distributed(altered, world_size, "repair", where)
    assert all(result == results[0] for result in results)
    repaired, later, _ = results[0]
    assert list(repaired) == ALTERED[where]
    assert later == ()


def repaired_optimizer(worker: Worker) -> list[float]:
    model, masks, reallocator = build(on_desync="repair")
    step(worker, model, masks, reallocator, 1)
    if worker.rank == 1:
        reallocator.method.load_state_dict({"threshold": 9.0})
        with torch.no_grad():
            model[0].weight.mul_(1.5)  # type: ignore[operator, union-attr]
        for state in reallocator.optimizers[0].state.values():
            state["momentum_buffer"].zero_()
    reallocator.verify(1)
    moments = [float(s["momentum_buffer"].double().square().sum()) for s in reallocator.optimizers[0].state.values()]
    return [*moments, reallocator.method.scalars()["threshold"]]


def test_repair_covers_optimizer_and_method_state() -> None:
    first, second = run_distributed(repaired_optimizer, 2)
    assert first == second
    assert first[-1] == 0.05
    assert all(moment > 0 for moment in first[:-1])


def failing_together(worker: Worker) -> Any:
    def act() -> int:
        if worker.rank == 1:
            raise UserError("first line", "second line")
        return worker.rank

    try:
        sync.together(act)
    except UserError as error:
        failed = error.lines
    from_first = sync.from_rank_0(lambda: {"rank": worker.rank})
    try:
        sync.from_rank_0(lambda: (_ for _ in ()).throw(UserError("no such file")))
    except UserError as error:
        return failed, from_first, error.lines
    return None


def test_a_users_error_on_one_rank_is_raised_on_all() -> None:
    expected = (("first line", "second line"), {"rank": 0}, ("no such file",))
    assert run_distributed(failing_together, 3) == [expected] * 3


def faulty_together(worker: Worker) -> str:
    def act() -> None:
        if worker.rank == 1:
            raise OSError("no space left")

    try:
        sync.together(act)
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_a_fault_on_one_rank_leaves_no_other_waiting() -> None:
    others = "RuntimeError: another rank failed: OSError: no space left"
    assert run_distributed(faulty_together, 3) == [others, "OSError: no space left", others]


def own_parameters(worker: Worker) -> Any:
    """Parameters that are a rank's own, of another shape on each, beside one that is to be repaired."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    model.register_parameter("own", nn.Parameter(torch.full((3 + worker.rank,), float(worker.rank))))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["own"])
    specs = sparse_layers(model)
    masks = MaskSet(model, specs, {spec.name: 4 for spec in specs}, seed=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model.own]["momentum_buffer"] = torch.full((3 + worker.rank,), float(worker.rank))
    method = DsrSettings(name="dsr", target_moves=2).build()
    reallocator = Reallocator(model, masks, method, optimizer, on_desync="repair")
    if worker.rank == 1:
        with torch.no_grad():
            model[1].bias.add_(1)  # type: ignore[operator]
    repaired = reallocator.verify(1)
    own = torch.cat((model.own.detach(), optimizer.state[model.own]["momentum_buffer"]))
    return repaired, own.tolist(), digest.weight_digest(model, masks)


def test_a_repair_leaves_each_rank_its_own_parameters() -> None:
    (first, zeros, before), (second, ones, after) = run_distributed(own_parameters, 2)
    assert first == second == ["1.bias"]
    assert (zeros, ones) == ([0.0] * 6, [1.0] * 8)
    assert before == after


def flags_and_buffers(worker: Worker) -> Any:
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(worker.rank)  # type: ignore[union-attr]
    model.num_batches_tracked.fill_(7)  # type: ignore[union-attr, operator]
    agreement.average_buffers(model)
    gathered = sync.gather(worker.rank * 10)
    return (
        sync.any_rank(worker.rank == 2),
        sync.any_rank(False),
        model.running_mean.tolist(),  # type: ignore[union-attr]
        int(model.num_batches_tracked),  # type: ignore[arg-type]
        gathered,
    )


def test_flags_buffers_and_gather() -> None:
    results = run_distributed(flags_and_buffers, 3)
    assert [result[:4] for result in results] == [(True, False, [1.0, 1.0], 7)] * 3
    assert [result[4] for result in results] == [[0, 10, 20], None, None]


def largest(worker: Worker) -> list[list[int]]:
    """Each entry largest on another rank, several times over: no message is taken for one of another round."""
    found = []
    for time in range(20):
        mine = torch.zeros(worker.world_size + 1, dtype=torch.int64)
        mine[worker.rank], mine[-1] = 100 * time + worker.rank, -worker.rank
        found.append(sync.largest_(mine).tolist())
    return found


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 7])
def test_the_largest_over_any_number_of_ranks(ranks: int) -> None:
    expected = [[*(100 * time + rank for rank in range(ranks)), 0] for time in range(20)]
    assert run_distributed(largest, ranks) == [expected] * ranks


def test_a_plan_survives_its_journey_and_stays_small() -> None:
    plan = Plan(
        step=2**40,
        seed=2**63 - 1,
        budget=2**40 + 1,
        layers=tuple(
            LayerPlan(Cut(float(torch.tensor(0.1) + i), i, 2**31 + i), Cut(float("-inf"), 0, i)) for i in range(54)
        ),
    )
    encoded = plan.encode()
    assert Plan.decode(encoded) == plan
    assert encoded.numel() * encoded.element_size() < 3000, "a few kilobytes, whatever the model's size"


def test_alone_everything_is_a_no_op() -> None:
    assert sync.together(lambda: 3) == 3
    assert sync.from_rank_0(lambda: 4) == 4
    assert sync.gather(5) == [5]
    assert sync.any_rank(True)
    assert agreement.all_agree(["a"], torch.tensor([1])) == []
