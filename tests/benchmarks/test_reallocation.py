"""The script runs, tiny; what it compares does the same work, and it notices where that is not so."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import reallocation
from benchmarks.full_scans import DenseLayer, in_torch, shared_out, with_numpy
from benchmarks.harness.rounds import in_rounds
from benchmarks.parts.reallocation.rivals import check_work, compare_work
from benchmarks.parts.reallocation.subject import METHODS, OURS, Subject
from benchmarks.reallocation import DENSITIES, PARTS, TINY, WAYS


def run(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reallocation", *arguments])
        reallocation.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the script has written to, tiny."""
    folder = tmp_path_factory.mktemp("reallocation")
    run("--tiny", "--output", str(folder))
    return folder


def test_tiny(folder: Path) -> None:
    content = json.loads((folder / "reallocation.json").read_text())
    assert content["command"] == f"python -m benchmarks.reallocation --tiny --output {folder}"
    assert content["load_before"] >= 0
    assert content["machine"]["threads"] == 2
    assert content["numpy"] == np.__version__

    for moves in TINY.moves:
        found = content["full_scans"][str(moves)]
        assert found["moved"] == moves
        assert (found["layers"], found["weights"], found["active"]) == (3, 1528, 153)
        assert set(found["ms"]) == set(found["ratio_to_ours"]) == set(WAYS)
        assert found["rounds"] == 3
        parts = content["parts"][str(moves)]
        assert set(parts["ms"]) == set(PARTS)
        for one in (found, parts):
            assert one["ratio_to_ours"][OURS]["min"] == one["ratio_to_ours"][OURS]["max"] == 1

    densities = content["densities"]
    names = [f"{density:g}" for density in DENSITIES]
    assert list(densities["active"]) == names
    for name in names:
        assert densities["active"][name] == pytest.approx(float(name) * 1528, abs=1.5)
        assert densities["moved"][name] == max(1, round(0.03 * densities["active"][name]))
    for what in ("reallocation", "digests"):
        assert list(densities[what]["ms"]) == names
        assert set(densities[what]["line"]) == {"constant_ms", "ms_per_million", "r_squared"}
    assert densities["dense_parameters"] == 2 * (8 + 16) + 10, "BatchNorm's, and the biases of the linear layer"

    methods = content["methods"]
    assert set(methods["alone"]["ms"]) == set(methods["moved"]) == set(METHODS) - {"static"}
    assert set(methods["event"]["ms"]) == set(METHODS)
    assert methods["moved"]["dsr"] == methods["moved"]["deepr"] == 5, "3 % of 153"
    assert set(content["making_masks"]["ms"]) == {OURS, "permutations"}


def test_page_is_made_from_the_json_alone(folder: Path) -> None:
    page = folder / "reallocation.md"
    text = page.read_text()
    page.unlink()
    run("--page", "--output", str(folder))
    assert page.read_text() == text
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    assert len(rows) == 4 + len(WAYS) + len(PARTS) + len(DENSITIES) + len(METHODS), "four tables, each with a head"
    assert sorted(path.name for path in folder.iterdir()) == ["reallocation.json", "reallocation.md"]


# The work that is compared


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(TINY, 0.9, moves=40)


def reallocated(subject: Subject) -> list[DenseLayer]:
    """Copies of the layers after ours."""
    subject.restore_to_step()
    assert subject.reallocate() == 40
    return [layer.copy(torch.bool) for layer in subject.layers()]


def test_exactly_as_many_lie_below_the_threshold(subject: Subject) -> None:
    subject.restore()
    below = sum(int((layer.gather(layer.weight).abs() < subject.threshold).sum()) for layer in subject.masks)
    assert below == 40


def test_a_subject_is_put_back_whole(subject: Subject) -> None:
    first = reallocated(subject)
    threshold = subject.method.state_dict()
    again = reallocated(subject)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.momentum, b.momentum)
    assert subject.method.state_dict() == threshold == {"threshold": subject.threshold}
    subject.restore()
    for now, start in zip(subject.layers(), subject.start, strict=True):
        assert torch.equal(now.mask, start.mask)
        assert torch.equal(now.weight, start.weight)
        assert start.momentum[start.mask].all(), "momenta are there to be cleared"
        assert not start.momentum[~start.mask].any()


@pytest.mark.parametrize("way", ["numpy", "numpy, unique", "torch"])
def test_full_scans_do_the_work_of_ours(subject: Subject, way: str) -> None:
    layers = [layer.copy(torch.bool if way == "torch" else torch.float32) for layer in subject.start]
    if way == "torch":
        in_torch(layers, subject.threshold, torch.Generator().manual_seed(0))
    else:
        draw = np.random.default_rng(0)
        with_numpy(layers, subject.threshold, draw, **({"assume_unique": True} if way == "numpy, unique" else {}))
    compare_work(subject, {OURS: reallocated(subject), way: layers})


@pytest.mark.parametrize("function", [with_numpy, in_torch])
def test_full_scans_by_hand(function: Callable[..., None]) -> None:
    """Layer 0 keeps 2 of 3 weights, layer 1 keeps 1 of 2: of 2 freed each gets 1, by the largest remainder."""
    weights = [[3.0, -2.0, 0.5, 0, 0, 0, 0, 0], [0.0, 0.0, 0.1, -4.0]]
    layers = []
    for values in weights:
        weight = torch.tensor(values)
        mask = weight != 0
        layers.append(DenseLayer(weight, mask if function is in_torch else mask.float(), mask.float()))
    function(layers, 1.0, torch.Generator() if function is in_torch else np.random.default_rng(0))
    assert [int(layer.mask.count_nonzero()) for layer in layers] == [3, 2]
    assert [layer.weight.tolist() for layer in layers] == [[3, -2, 0, 0, 0, 0, 0, 0], [0, 0, 0, -4]]
    assert [layer.momentum.tolist() for layer in layers] == [[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1]]
    assert [bool(layer.mask[2]) for layer in layers] == [False, False], "what was dropped has not come back"


def test_shared_out() -> None:
    assert shared_out(2, [2, 1]) == [1, 1]
    assert shared_out(10, [50, 30, 20]) == [5, 3, 2]
    assert shared_out(7, [1, 1, 1]) == [3, 2, 2]
    assert shared_out(0, [5, 6]) == [0, 0]


def regrow_a_dropped_one(layers: list[DenseLayer], subject: Subject) -> None:
    start = subject.start[1]
    dropped = torch.nonzero(start.mask & ~layers[1].mask)[0]
    grown = torch.nonzero(layers[1].mask & ~start.mask)[0]
    layers[1].mask[tuple(dropped)] = True
    layers[1].mask[tuple(grown)] = False


def forget_to_drop_the_weight(layers: list[DenseLayer], subject: Subject) -> None:
    at = tuple(torch.nonzero(subject.start[1].mask & ~layers[1].mask)[0])
    layers[1].weight[at] = subject.start[1].weight[at]


def forget_to_clear_the_momentum(layers: list[DenseLayer], subject: Subject) -> None:
    at = tuple(torch.nonzero(subject.start[1].mask & ~layers[1].mask)[0])
    layers[1].momentum[at] = subject.start[1].momentum[at]


def grow_one_less(layers: list[DenseLayer], subject: Subject) -> None:
    layers[1].mask[tuple(torch.nonzero(layers[1].mask & ~subject.start[1].mask)[0])] = False


def grow_in_another_layer(layers: list[DenseLayer], subject: Subject) -> None:
    grow_one_less(layers, subject)
    layers[0].mask[tuple(torch.nonzero(~layers[0].mask & ~subject.start[0].mask)[0])] = True


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (regrow_a_dropped_one, "other did not drop exactly"),
        (forget_to_drop_the_weight, "other left weights in"),
        (forget_to_clear_the_momentum, "other left momenta in"),
        (grow_one_less, "other grew 39 weights, and dropped 40"),
        (grow_in_another_layer, "other grew .* weights in the layers, ours"),
    ],
)
def test_other_work_is_noticed(subject: Subject, fault: Callable[[Any, Subject], None], says: str) -> None:
    ours = reallocated(subject)
    other = [layer.copy(torch.bool) for layer in ours]
    compare_work(subject, {OURS: ours, "other": other})
    fault(other, subject)
    with pytest.raises(RuntimeError, match=says):
        compare_work(subject, {OURS: ours, "other": other})


def test_deepr_finds_as_many_weights_of_the_wrong_sign() -> None:
    subject = Subject(TINY, 0.9, "deepr", moves=20)
    for _ in range(2):
        subject.restore_to_step()
        assert subject.reallocate() == 20


def test_growth_is_counted_by_layer(subject: Subject) -> None:
    assert sum(check_work(OURS, subject, reallocated(subject))) == 40


def test_rounds_prepare_before_each_turn() -> None:
    seen: list[str] = []
    ways = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    times = in_rounds(ways, 2, warm_up=1, before=lambda way: seen.append(f"before {way}"))
    turns = ["a", "b", "b", "a", "a", "b"]
    assert seen == [said for way in turns for said in (f"before {way}", way)]
    assert [len(found) for found in times.values()] == [2, 2]
