"""Facts for the pages of tables, of a few runs with known answers."""

from __future__ import annotations

from typing import Any

from benchmarks.parts.reproduce.telling import empty, ends, ordered, times

TITLES = {"dsr": "dynamic", "set": "SET", "static": "static"}


def run(method: str, seed: int, top1: float = 90.0, sparsity: float = 0.9, **more: object) -> dict[str, Any]:
    return {"method": method, "sparsity": sparsity, "seed": seed, "test_top1": top1, "seconds": 10.0 + seed, **more}


def test_the_papers_order_is_counted_by_seed() -> None:
    values = {"dsr": (98.0, 97.0, 99.0), "set": (97.0, 97.0, 98.0), "static": (96.0, 95.0)}
    runs = [run(method, seed, top1) for method, seeds in values.items() for seed, top1 in enumerate(seeds)]
    runs += [run("dense", 0, sparsity=0.0), run("dsr", 0, sparsity=0.99)]
    assert ordered(runs) == [{"sparsity": 0.9, "seeds": 2, "holds": 1}], "a tie is no order; seed 2 has no static run"


def test_outputs_without_a_weight_are_means_over_the_seeds() -> None:
    runs = [
        run("set", 0, dead_outputs={"fc1.weight": 3, "fc2.weight": 2}),
        run("set", 1, dead_outputs={"fc2.weight": 4}),
        run("static", 0, sparsity=0.99, dead_outputs={}),
        run("dsr", 0),
    ]
    found = empty(runs, TITLES)
    assert found["sparsities"] == [0.9, 0.99]
    rows = {row["title"]: row["cells"] for row in found["rows"]}
    assert rows == {
        "SET": [{"sum": 4.5, "layer": "fc2", "in_layer": 3.0}, None],
        "static": [None, {"sum": 0, "layer": "", "in_layer": 0.0}],
    }
    assert empty(runs[2:], TITLES) == {}, "no output is without a weight"
    assert empty(runs[3:], TITLES) == {}, "nobody has counted"


def test_densities_at_the_end_are_means_over_the_seeds() -> None:
    runs = [
        run("dsr", 0, densities={"fc1.weight": [0.1, 0.08], "fc2.weight": [0.1, 0.3]}),
        run("dsr", 1, densities={"fc1.weight": [0.1, 0.10], "fc2.weight": [0.1, 0.5]}),
        run("sparse_momentum", 0, densities={"fc1.weight": [0.0], "fc2.weight": [0.0]}),
    ]
    found = ends(runs)
    assert found["sparsities"] == [0.9]
    assert [(row["title"], [round(cell, 6) for cell in row["cells"]]) for row in found["rows"]] == [
        ("fc1", [0.09]),
        ("fc2", [0.4]),
    ]
    assert ends(runs[2:]) == {"sparsities": [], "rows": []}


def test_times_are_by_method_in_the_order_of_the_rows() -> None:
    found = times([run("static", 3), run("dsr", 5), run("dsr", 1), run("dsr", 2)], TITLES)
    assert [(row["title"], row["runs"], row["median"], row["all"][0], row["all"][-1]) for row in found] == [
        ("dynamic", 3, 12.0, 11.0, 15.0),
        ("static", 1, 13.0, 13.0, 13.0),
    ]
