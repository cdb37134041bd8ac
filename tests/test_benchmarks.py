"""Each script of benchmarks/ runs, tiny, so that none can rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as every
from benchmarks import allreduce, hostile_configs, hostile_shards, passes, reproduce, soak
from benchmarks.harness import record
from tests.hosts import why_not
from tests.pipelines.datasets.test_cifar10 import folder as folder  # fixtures
from tests.pipelines.test_pipelines import mnist_folder as mnist_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "benchmarks" / "results")
    (tmp_path / "benchmarks").mkdir()
    return record.RESULTS


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()


def test_reproduce(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method, one epoch; pruning finds the dense network of its seed."""
    run(
        reproduce,
        monkeypatch,
        *("--seeds", "2", "--sparsity", "0.9", "0.98", "--processes", "2", "--out", str(tmp_path / "out")),
        *("--epochs", "2", "data.image_size=8"),
    )
    content = json.loads((tmp_path / "out" / "reproduce_digits.json").read_text())
    assert len(content["runs"]) == 2 + 2 * 2 * (len(reproduce.METHODS) - 1)
    assert {row["method"] for row in content["results"]} == set(reproduce.METHODS)
    assert content["versions"]["torch"]
    assert content["machine"]["cores"] > 0
    assert content["command"].endswith("--epochs 2 data.image_size=8")
    assert not (results / "reproduce_digits.json").exists(), "a quick look replaces no figures"
    page = (tmp_path / "out" / "digits.md").read_text()
    assert page.count("\n| ") == 2 + len(reproduce.METHODS), "a row a method"
    for plot in ("digits_accuracy.svg", "digits_layers.svg"):
        assert plot in page
        assert (tmp_path / "out" / plot).read_text().rstrip().endswith("</svg>")


@pytest.mark.slow
@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_reproduce_on_other_data(
    data: str, results: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data are small files in the real format. Where there is internet the real ones are fetched."""
    path = request.getfixturevalue({"mnist": "mnist_folder", "cifar10": "folder"}[data])
    arguments = ["--data", data, "--methods", "pruning", "dsr", "thin", "--seeds", "1", "--sparsity", "0.9"]
    arguments += ["--epochs", "1", "--processes", "1", "--out", str(tmp_path / "out")]
    overrides = [f"data.path={path}", "data.download=false", "train.global_batch_size=20"]
    run(reproduce, monkeypatch, *arguments, *overrides)
    found = {
        run["method"]: run for run in json.loads((tmp_path / "out" / f"reproduce_{data}.json").read_text())["runs"]
    }
    assert set(found) == {"dense", "pruning", "dsr", "thin"}
    for method in ("pruning", "dsr"):
        assert found[method]["active_weights"] == pytest.approx(0.1 * reproduce.RECIPES[data].sparse_weights, rel=1e-3)
    ratio = found["thin"]["parameters"] / found["dsr"]["parameters"]
    assert ratio == pytest.approx(1, abs=0.1), "as many parameters"


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
    """`make bench` leaves out what needs a GPU, trains to accuracy, kills processes, attacks, or compares two trees."""
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def main()" in path.read_text()}
    parts = {"__main__", "plots", "readme"}
    attacks = {"hostile_configs", "hostile_images", "hostile_shards"}
    looked_at = {"digests", "gpu", "image_reading", "reproduce", "soak", *attacks}
    assert scripts - parts == {*every.FULL, *every.SHORT, *looked_at}


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
