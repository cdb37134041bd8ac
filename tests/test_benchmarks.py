"""Each script of benchmarks/ runs, tiny, so that none can rot."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as every
from benchmarks import (
    allreduce,
    deepr_rules,
    fine_tuning,
    hostile_configs,
    hostile_shards,
    mask_memory,
    passes,
    rigl_neurons,
    rigl_rules,
    shrinking,
    soak,
)
from benchmarks.harness import record
from benchmarks.parts.pieces import METHODS, without_values
from tests.hosts import why_not
from tests.pipelines.pictures import picture

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "benchmarks" / "results")
    (tmp_path / "benchmarks").mkdir()
    return record.RESULTS


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()


def test_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(passes, monkeypatch, "--tiny", "--output", str(tmp_path))
    content = json.loads((tmp_path / "passes.json").read_text())
    assert list(content["masks"]) == [str(density) for density in passes.DENSITIES]
    assert all(len(found["ms"]) == 4 for found in content["masks"].values())
    for part in ("infinities", "SGD", "AdamW"):
        assert len(content[part]["ms"]) == 3
        assert passes.USED[part] in content[part]["ms"]
    assert (tmp_path / "passes.md").read_text().count("\n## ") == len(passes.DENSITIES) + 3


def test_every_benchmark_is_run_or_looked_at() -> None:
    """`make bench` leaves out what needs a GPU or an extra, is long, kills, attacks, compares trees, or carries."""
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def main(" in path.read_text()}
    parts = {"__main__", "jpeg_cifar10", "plots", "readme", "shrink"}
    attacks = {"hostile_configs", "hostile_images", "hostile_shards"}
    looked_at = {
        "carry",
        "digests",
        "fine_tuning",
        "gpu",
        "image_reading",
        "mask_memory",
        "method_seconds",
        "parquet_reading",
        "pixel_operations",
        "rehearsals",
        "reproduce",
        "rigl_neurons",
        "deepr_rules",
        "rigl_rules",
        "shrinking",
        "soak",
        "speed_up",
        *attacks,
    }
    assert scripts - parts == {*every.FULL, *every.SHORT, *looked_at}


def test_mask_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First masks, an event and a digest hold more at a higher density."""
    run(mask_memory, monkeypatch, "--tiny", "--output", str(tmp_path))
    assert (tmp_path / "mask_memory.md").read_text().count("\n| tiny, 0.0 million weights | 0.5 | ") == 11
    found = json.loads((tmp_path / "mask_memory.json").read_text())["bytes"]["tiny"]
    thin, thick = found["0.1"], found["0.5"]
    assert thin.keys() == thick.keys() and thin["weights"] == thick["weights"]
    for kind in ("first masks, at random", "event of set", "digest of masks"):
        assert 0 < thin[kind] < thick[kind], kind
    assert found["0.1"]["noise of deepr, each step"] > 0
    content = json.loads((tmp_path / "mask_memory.json").read_text())
    assert set(content["methods"]) == set(METHODS)
    assert all(one["extra"] > 0 for one in content["methods"].values())
    kept = content["kept"]["tiny"]
    for density, one in kept.items():  # A byte a weight, eight an active one, a bit for what was ever active.
        assert one["contiguous"] == pytest.approx((1.125 + 8 * float(density)) * one["weights"], rel=0.02)
        assert one["channels_last"] > one["contiguous"]
    with torch.device("meta"):
        model = mask_memory.NETWORKS["tiny"]()
    assert without_values(model, 0.5)["kept"] == kept["0.5"]["contiguous"], "the same without values"


@pytest.mark.slow
def test_shrinking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that shrinks has as many active weights as one that does not, in fewer parameters. Parts add up."""
    run(shrinking, monkeypatch, "--tiny", "--output", str(tmp_path), "--parts", "resnet18", "workers", "families")
    run(shrinking, monkeypatch, "--tiny", "--output", str(tmp_path), "--parts", "resnet18", "--seeds", "1")
    content = json.loads((tmp_path / "shrinking.json").read_text())
    assert set(content["resnet18"]) == {"0", "1"}
    for one in content["resnet18"].values():
        found = one["runs"]
        assert found["Chase, shrunk"]["active_weights"] == found["Chase"]["active_weights"] > 0
        assert found["Chase, shrunk"]["parameters"] < found["Chase"]["parameters"] == found["dense"]["parameters"]
        assert list(found["Chase, shrunk"]["shrinks"]) == ["1", "2", "3"]
        assert [len(run["seconds"]) for run in found.values()] == [4] * 4
    (workers,) = content["workers"].values()
    assert workers["workers"] == 2 and len(workers["shrinks"]) == 3
    (family,) = content["families"].values()
    assert family["largest_difference"] <= 1e-5 * family["largest_output"]
    assert family["active_weights"][0] == family["active_weights"][1]
    assert family["parameters"][1] < family["parameters"][0]
    assert (tmp_path / "shrinking.md").read_text().count("\n## ") == 4


@pytest.mark.slow
def test_fine_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of ten classes; what it says of accuracy, only a long run can."""
    for part in ("train", "val"):
        for i in range(10):
            (folder := tmp_path / "images" / part / f"class {i}").mkdir(parents=True)
            for j in range(3):
                picture(50, 40, seed=3 * i + j).save(folder / f"{j}.png")
    run(fine_tuning, monkeypatch, "--tiny", "--images", str(tmp_path / "images"), "--output", str(tmp_path))
    content = json.loads((tmp_path / "fine_tuning.json").read_text())
    assert [set(one) for one in content["seeds"]] == [{"seed", *fine_tuning.WAYS}]
    assert not set(content["classes"]["source"]) & set(content["classes"]["other"])


@pytest.mark.slow
def test_allreduce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are what the link counts, even of a small network; times, only a long run on a quiet machine can say."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    run(allreduce, monkeypatch, "--tiny", "--output", str(tmp_path))
    content = json.loads((tmp_path / "allreduce.json").read_text())
    assert set(content["layers"]) == set(allreduce.LAYERS)
    for found in content["layers"].values():
        ways = found["ways"]
        assert set(ways) == set(allreduce.TITLES)
        assert found["counted_bytes"] == pytest.approx(4 * found["parameters"] * found["share_sent"])
        assert ways["active"]["ratios"]["step_bytes"]["median"] == pytest.approx(found["share_sent"], rel=0.1)
        assert ways["fp16"]["ratios"]["step_bytes"]["median"] == pytest.approx(0.5, rel=0.1)
        assert ways["active"]["largest_difference"] == 0 < ways["fp16"]["largest_difference"]
    page = (tmp_path / "allreduce.md").read_text()
    assert page.count("\n| ") == 2 * (2 + len(allreduce.TITLES))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of each kind, and the same run as without."""
    if (reason := soak.why_not()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(soak, "unmount_when_stopped", lambda: None)  # It belongs to a process of its own.
    run(soak, monkeypatch, "--faults", str(len(soak.KINDS)), "--epochs", "12", "--output", str(tmp_path))
    content = json.loads((tmp_path / "soak.json").read_text())
    assert sorted(fault["kind"] for fault in content["faults"]) == sorted(soak.KINDS)
    assert not any(fault["broken"] for fault in content["faults"])
    assert content["exit_codes"] == [0, 0]
    assert all(content["equal"].values())
    assert content["resumes"] >= 5


@pytest.mark.slow
def test_pipelines(tmp_path: Path) -> None:
    """It runs in a process of its own, as it restricts itself to some cores, and forks. Speed is not asserted."""
    command = [sys.executable, "-m", "benchmarks.pipelines", "--tiny", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "pipelines.json").read_text())
    ways = {"dali", "torch", "torchvision", "dali, shards"}
    assert set(content["speed"]["images_per_second"]) == set(content["speed"]["cpu_ms_per_image"]) == ways
    assert {"dali / torch", "dali / torchvision"} <= set(content["speed"]["ratios"])
    assert set(content["agreement"]["tensors"]) == {"JPEG", "PNG"}
    assert content["agreement"]["tensors"]["PNG"]["images"] == content["agreement"]["network"]["dali"]["images"] == 24
    assert {len(content["memory"][loader]["by_epoch"]) for loader in ("dali", "torch")} == {3}
    assert set(content["feed"]["images_per_second"]) == {"fed by DALI", "fixed batch"}
    for part in ("speed", "agreement", "memory", "feed"):
        assert content[part]["load_before"] >= 0
    page = (tmp_path / "pipelines.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")][:4] == [
        "## Speed",
        "## Agreement",
        "## Memory",
        "## Feeding a training step",
    ]
    assert (tmp_path / "pipeline-memory.svg").read_text().rstrip().endswith("</svg>")


@pytest.mark.slow
def test_checkpoints(tmp_path: Path) -> None:
    """It runs in a process of its own, as it replaces the writing of checkpoints."""
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--tiny", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "checkpoints.json").read_text())
    assert set(content["time"]["ratio_to_no_save"]) == {
        "none",
        "background",
        "foreground",
        "foreground, not deflated",
    }
    assert content["time"]["ratio_to_no_save"]["none"]["median"] == 1
    assert content["time"]["write_in_background_ms"]["min"] > 0
    assert len(content["size"]) == 4 * 2 * 2
    early, late = content["size"][:2]
    assert early["file"] < late["file"] < late["dense_checkpoint"]
    page = (tmp_path / "checkpoints.md").read_text()
    assert page.count("\n| 0.") == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints.json", "checkpoints.md"]


@pytest.mark.slow
def test_hostile_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(hostile_configs, monkeypatch, "--only", "a thousand laughs", "--output", str(tmp_path))
    content = json.loads((tmp_path / "hostile_configs.json").read_text())
    assert [case["exit_code"] for case in content["cases"].values()] == [0, 2]
    assert content["above"]["processor_seconds"] < 10 and content["above"]["peak_mb"] < 1000


@pytest.mark.slow
def test_hostile_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(hostile_shards, monkeypatch, "--only", "a name of 100 GB", "--output", str(tmp_path))
    content = json.loads((tmp_path / "hostile_shards.json").read_text())
    assert [case["exit_code"] for case in content["cases"].values()] == [0, 2]
    assert content["above"]["seconds"] < 60 and content["above"]["peak_mb"] < 1000


def test_rigl_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(rigl_rules, monkeypatch, "--tiny", "--output", str(tmp_path))
    content = json.loads((tmp_path / "rigl_rules.json").read_text())
    for [found] in content["runs"].values():
        assert 0 <= found["accuracy"] <= 100
        assert sum(found["weights_of_classes"]) == 2, "1 % of 200"


@pytest.mark.slow
def test_deepr_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain loop replaces about as many weights as `dynsparse`, and keeps each layer's number."""
    run(deepr_rules, monkeypatch, "--tiny", "--output", str(tmp_path))
    runs = json.loads((tmp_path / "deepr_rules.json").read_text())["runs"]
    every = [(name, sparsity) for name, way in deepr_rules.WAYS.items() for sparsity in way.sparsities]
    assert [(one["way"], one["sparsity"]) for one in runs] == every
    for found in runs:
        assert 0 <= found["accuracy"] <= 100
        assert sum(found["weights_of_classes"]) <= round((1 - found["sparsity"]) * 200)
    ours, plain = (next(one["moved"] for one in runs if one["way"] == way) for way in ("dynsparse", "paper"))
    assert sum(ours) == pytest.approx(sum(plain), rel=0.2)
    run(deepr_rules, monkeypatch, "--tiny", "--output", str(tmp_path), "--only", "code", "--sparsities", "0.98")
    again = json.loads((tmp_path / "deepr_rules.json").read_text())["runs"]
    assert [{**one, "commit": ""} for one in again] == [{**one, "commit": ""} for one in runs], "the same runs"


def test_rigl_neurons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ways on the digits; the second run keeps the first one's figures."""
    monkeypatch.setattr(rigl_neurons, "WAYS", {name: _soon(way) for name, way in rigl_neurons.WAYS.items()})
    run(rigl_neurons, monkeypatch, "--tiny", "--output", str(tmp_path), "--only", "rigl", "undone")
    run(rigl_neurons, monkeypatch, "--tiny", "--output", str(tmp_path), "--only", "static")
    ways = json.loads((tmp_path / "rigl_neurons.json").read_text())["ways"]
    assert list(ways) == ["rigl", "undone", "static"] and not ways["static"]["events"]
    assert ways["rigl"]["events"][0]["layers"][0]["grown"]
    for event in ways["rigl"]["events"] + ways["undone"]["events"]:
        assert all(0 <= layer["part_of_most"] <= 1 >= layer["part_of_empty"] for layer in event["layers"])
        assert all((layer["grown"] > 0) == (layer["neurons_that_grew"] > 0) for layer in event["layers"])


def _soon(way: rigl_neurons.Way) -> rigl_neurons.Way:
    """Return a way with an event every two steps, as the digits have few."""
    moves = way.method["name"] != "static"
    return dataclasses.replace(way, method={**way.method, "period": 2} if moves else way.method)
