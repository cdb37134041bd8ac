"""Structure, counts and bytes of `benchmarks.scaling`, and what it computes: times, only a quiet machine can say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks import scaling
from benchmarks.harness.calls import Watch
from benchmarks.parts.scaling import computed, sizes, traffic, worker
from benchmarks.parts.scaling.counting import connections, counted
from benchmarks.parts.scaling.worker import settings
from dynsparse.distributed import sync
from dynsparse.runtime import Worker
from tests.ranks import run_distributed

SLOW = computed.Link("slow", latency=1.0, bandwidth=8.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("scaling")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scaling", "--tiny", "--output", str(folder)])
        scaling.main()
    return folder


@pytest.fixture(scope="module")
def content(written: Path) -> Any:
    return json.loads((written / "scaling.json").read_text())


MESSAGES = {2: [1, 1], 3: [2, 1, 1], 4: [2, 2, 2, 2]}
"""Messages of a comparison: log2(n) from each of n ranks. The third of three asks the first, who answers."""


@pytest.mark.slow
def test_traffic_is_the_plan_and_two_comparisons(content: Any) -> None:
    """48 x (1 + layers) bytes, and twice the messages of 16, whatever the weights; alone, nothing. No all-reduce."""
    assert [(case["layers"], case["weights"]) for case in content["cases"]] == [(3, 48), (7, 112), (3, 192)]
    for case in content["cases"]:
        plan = [48 * (1 + case["layers"])]
        assert {ranks: found["sent"] for ranks, found in case["ranks"].items()} == {
            "1": [{}],
            **{str(ranks): [{"broadcast": plan, "send": [16] * 2 * n} for n in MESSAGES[ranks]] for ranks in MESSAGES},
        }


def test_flags_by_doubling_and_by_the_ring(content: Any) -> None:
    for way, sent in (
        ("doubling", {ranks: [{"send": [computed.FLAGS] * n} for n in MESSAGES[ranks]] for ranks in MESSAGES}),
        ("ring", {ranks: [{"all_reduce": [computed.FLAGS]}] * ranks for ranks in MESSAGES}),
    ):
        expected = {"1": [{}], **{str(ranks): of_each for ranks, of_each in sent.items()}}
        assert {ranks: found[way]["sent"] for ranks, found in content["flags"].items()} == expected
    for found in content["flags"].values():
        assert found["ring_to_doubling"]["min"] > 0


def test_each_process_is_connected_with_every_other(content: Any) -> None:
    assert content["connections"] == {"1": [0], "2": [1], "3": [2], "4": [3]}


def test_training_has_all_numbers_of_ranks(content: Any) -> None:
    (network,) = content["training"].values()
    assert network["layers"] == 6
    assert network["dropped"]["min"] > 0
    assert set(network["ranks"]) == {"1", "2"}
    for found in network["ranks"].values():
        for clock in worker.CLOCKS:
            times = {name: value["median"] for name, value in found[clock].items()}
            assert 0 < times["masking_ms"] < times["step_ms"]
            assert times["share"] == pytest.approx(times["share_masking"] + times["share_reallocation"])
            assert 0 <= times["verify_ms"] < times["reallocation_ms"]
    for ratios in network["ranks"]["1"]["ratio_to_one_rank"].values():
        assert {ratio["median"] for ratio in ratios.values()} == {1}


def test_what_a_rank_hands_over_at_a_save_is_what_is_computed(content: Any) -> None:
    (network,) = content["training"].values()
    assert network["ranks"]["1"]["gathered_bytes"] == 0
    (subject,) = scaling.TINY.subjects.values()
    config = settings(subject, 4, 2)
    state = sizes.rank_state(config.model.build(config.data.image_shape, config.data.classes))
    assert network["ranks"]["2"]["gathered_bytes"] == pytest.approx(len(state), rel=0.01)


def test_sizes_of_resnet50(content: Any) -> None:
    """53 BatchNorms of 26,560 channels: a mean and a variance each, 4 bytes, and a count of 8 bytes."""
    counts = content["resnet50"]
    assert (counts["layers"], counts["layers_if_all"]) == (49, 54)
    assert (counts["parameters"], counts["parameter_tensors"]) == (25_557_032, 161)
    assert counts["buffer_bytes"] == 26_560 * 2 * 4 + 53 * 8 == 212_904
    assert counts["buffer_bytes"] < counts["rank_state_bytes"] < 1.5 * counts["buffer_bytes"]
    assert counts["active_share"] == pytest.approx(0.1997, abs=1e-4)


def test_the_page_comes_from_the_json(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = written / "scaling.md"
    text = page.read_text()
    assert text.count("\n## ") == len(scaling.PARTS)
    assert "Made with `--tiny`" in text
    page.unlink()
    monkeypatch.setattr(sys, "argv", ["scaling", "--page", "--output", str(written)])
    scaling.main()
    assert page.read_text() == text
    assert sorted(path.name for path in written.iterdir()) == ["scaling.json", "scaling.md"]


def test_hops() -> None:
    """1 s a hop and 1 s for 8 bytes: 2 s a hop."""
    assert [computed.tree(ranks, 8, SLOW) for ranks in (1, 2, 3, 4, 5, 8, 1024)] == [0, 2, 4, 4, 6, 6, 20]
    assert [computed.ring(ranks, 8, SLOW) for ranks in (1, 2, 4, 1024)] == [0, 4, 12, 2 * 1023 * 2]
    assert [computed.doubling(ranks, 8, SLOW) for ranks in (1, 2, 3, 4, 7, 8, 1024)] == [0, 2, 6, 4, 8, 6, 20]


def test_messages_of_a_doubling() -> None:
    assert computed.messages(0, 1) == 0
    assert {ranks: [computed.messages(rank, ranks) for rank in range(ranks)] for ranks in MESSAGES} == MESSAGES
    assert [computed.messages(rank, 6) for rank in range(6)] == [3, 3, 2, 2, 1, 1]
    assert {computed.messages(rank, 1024) for rank in range(1024)} == {10}


def test_digests_and_flags_at_1024_gpus() -> None:
    """10 hops of 50 µs each, or 2046 around the ring; bytes hardly count."""
    ethernet, _ = computed.LINKS
    assert computed.doubling(1024, computed.FLAGS, ethernet) == pytest.approx(0.5e-3, rel=1e-3)
    assert computed.ring(1024, computed.FLAGS, ethernet) == pytest.approx(102.3e-3, rel=1e-3)


def case(layers: int, width: int, broadcast: int, digests: tuple[int, ...] = (16, 16)) -> dict[str, Any]:
    ranks = {
        str(ranks): {
            "sent": [
                {"broadcast": [broadcast], "send": [size for size in digests for _ in range(n)]}
                for n in MESSAGES[ranks]
            ]
        }
        for ranks in (2, 4)
    }
    return {"layers": layers, "width": width, "ranks": {"1": {"sent": [{}]}, **ranks}}


def test_the_plan_is_read_off_what_was_counted() -> None:
    cases = [case(10, 4, 528), case(50, 4, 2448), case(50, 16, 2448)]
    plan = computed.plan_of(cases)
    assert plan == computed.Plan(head=48, layer=48, digests=(16, 16))
    assert plan.bytes(54) == 2640
    for wrong in (case(20, 4, 1009), case(20, 16, 1008, (16, 24))):
        with pytest.raises(RuntimeError, match="20 layers"):
            computed.plan_of([*cases, wrong])
    one_silent = case(20, 4, 1008)
    one_silent["ranks"]["4"]["sent"][3]["send"].pop()
    with pytest.raises(RuntimeError, match="20 layers"):
        computed.plan_of([*cases, one_silent])


def test_extrapolation_by_hand() -> None:
    """8 GPUs, 1 s a hop, 8 bytes a second, 54 layers: a plan of 2640 bytes takes 331 s a hop, digests of 16 take 3 s.

    The plan makes 3 hops. Two digests make 3 hops each by doubling, 14 around the ring.
    """
    found = computed.extrapolated([case(10, 4, 528), case(50, 4, 2448)], 54, 8, SLOW)
    assert found == {
        "broadcast": 3 * 331,
        "digests_doubling": 2 * 3 * 3,
        "digests_ring": 2 * 14 * 3,
        "share_doubling": pytest.approx((993 + 18) / 100),
        "share_ring": pytest.approx((993 + 84) / 100),
        "share_every_step_doubling": pytest.approx((993 + 18) / 0.1),
        "share_every_step_ring": pytest.approx((993 + 84) / 0.1),
    }


def test_growth_by_hand() -> None:
    """4 GPUs, 1 s a hop, 8 bytes a second: 40 bytes of gradients, 16 of state, 2 rows of 8."""
    counts = {
        "parameters": 10,
        "active_share": 0.5,
        "rank_state_bytes": 16,
        "layers_if_all": 1,
        "parameter_tensors": 1,
    }
    assert [seconds(4, SLOW) for seconds in computed.growing(counts).values()] == [
        2 * (1 + 3),  # 24 bytes of flags, exchanged twice
        6 * (1 + 3),  # around the ring twice
        2 * 3 / 4 * 5,
        2 * 3 / 4 * 2.5,
        6,
        4 + 3 * 2,  # sizes around the ring, then three ranks' state to the first
        2 * (1 + 4 * 2),
        3 * (1 + 2),
    ]


def test_a_call_within_another_is_counted_once() -> None:
    class Act:
        def outer(self) -> str:
            return self.inner()

        def inner(self) -> str:
            return "done"

    act, parts = Act(), Watch(worker.now)
    parts.on(act, "outer")
    parts.on(act, "inner")
    assert act.outer() == "done"
    taken = parts.take()
    assert set(taken) == {"outer", "inner", "every"}
    assert taken["every"] == taken["outer"] >= taken["inner"]
    assert parts.take() == {}


def count(worker: Worker) -> Any:
    with counted() as sent:
        sync.gather(worker.rank)
        sync.all_of(worker.rank)
        sync.any_of(True, False)
        sync.sum_(torch.zeros(3))
        if worker.rank == 0:  # `send`, which the flags of two ranks do not use, may call `isend`.
            dist.send(torch.zeros(5), 1)
        else:
            dist.recv(torch.zeros(5), 0)
    return sent, connections(), (dist.all_reduce.__name__, dist.send.__name__, dist.isend.__name__)


def test_counting_sees_the_calls_within_calls_and_ends() -> None:
    """An object's size and its pickle, flags of 8 bytes each, 3 summed floats, 5 sent by the first rank."""
    for (sent, others, names), sends in zip(run_distributed(count, 2), ([16, 20], [16]), strict=True):
        pickled = sent["gather"][0]
        assert sent == {"all_gather": [8, 8, pickled], "gather": [pickled], "send": sends, "all_reduce": [12]}
        assert (others, names) == (1, ("all_reduce", "send", "isend"))


def test_a_rank_that_hands_over_other_bytes_another_time_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="differ"):
        traffic.always_sent([{"broadcast": [8]}, {"broadcast": [16]}])
