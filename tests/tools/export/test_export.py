"""python -m dynsparse export: what every format shares, the plain state_dict and safetensors."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from dynsparse.config.schema import RunConfig
from dynsparse.tools.export import FORMATS
from pipelines.common.extras import install_command
from pipelines.common.torchvision_ops import import_torchvision
from tests.tools.trained import assert_one_line, call, changed, images_for, network_of, train
from tests.training import runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return train(tmp_path_factory.mktemp("runs"), "sparse")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


NETWORKS: dict[str, Any] = {
    "mlp": {},
    "tied": {"method": {"name": "tied"}},
    "channels last": {
        "model": {"name": "small_cnn"},
        "data": {"shape": [3, 8, 8]},
        "sparsity": {"granularity": 2},
        "train": {"channels_last": True, "epochs": 1},
    },
    "torchvision": {
        "model": {"name": "torchvision/mobilenet_v3_small"},
        "data": {"shape": [3, 32, 32], "samples": 24, "test_samples": 4},
        "train": {"epochs": 1},
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dicts_give_the_plain_network_the_same_outputs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights are equal to the bit, with the names and memory layout of a network that knows nothing of us."""
    settings = train(tmp_path, "run", **NETWORKS[name])
    path, images = settings.folder / "checkpoints" / "latest.pt", images_for(settings, 5)
    ours = network_of(path, settings).to(memory_format=torch.contiguous_format)
    loaders = {"torch": lambda file: torch.load(file, weights_only=True), "safetensors": safetensors.torch.load_file}
    for file_format, load in loaders.items():
        code, out, err = call(capsys, "export", path, "--format", file_format, "--out", file_format)
        assert (code, err) == (0, "")
        assert f"{file_format}, {Path(file_format).stat().st_size:,} bytes" in out
        state = load(file_format)
        assert all(value.is_contiguous() for value in state.values())
        model = settings.model.build(settings.data.image_shape, settings.data.classes).eval()
        model.load_state_dict(state, strict=True)
        with torch.no_grad():
            assert torch.equal(model(images), ours(images))


@pytest.mark.slow
def test_safetensors_load_into_torchvisions_resnet50(resnet50: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Strictly, and it gives the outputs of our network to the bit."""
    settings = resnet50
    code, out, err = call(capsys, "export", settings.folder, "--format", "safetensors")
    assert (code, err) == (0, "")
    assert "r50.safetensors" in out
    import_torchvision()
    import torchvision

    model = torchvision.models.resnet50(num_classes=7).eval()
    model.load_state_dict(safetensors.torch.load_file("r50.safetensors"), strict=True)
    ours, images = network_of(settings.folder / "checkpoints" / "best.pt", settings), images_for(settings, 3)
    with torch.no_grad():
        logits = model(images)
        assert torch.equal(logits, ours(images))
    assert logits.shape == (3, 7) and bool(logits.isfinite().all())
    sparse = model.layer3[2].conv2.weight
    assert 0.8 < float((sparse == 0).float().mean()) < 0.97
    with safetensors.safe_open("r50.safetensors", framework="pt") as file:
        facts, summary = file.metadata(), runs.summary(settings.folder)
    assert facts["format"] == "pt"
    assert facts["model"] == "imagenet_resnet50"
    assert (facts["mask_digest"], facts["weight_digest"]) == (summary["mask_digest"], summary["weight_digest"])
    assert float(facts["sparsity"]) == pytest.approx(summary["sparsity"], abs=1e-6)


def test_of_a_runs_folder_the_best_is_taken(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.folder / "checkpoints"
    for source, name in ((run.folder, "best.pt"), (folder / "initial.pt", "initial.pt")):
        code, out, _ = call(capsys, "export", source, "--format", "torch", "--overwrite")
        assert code == 0
        assert f"of {folder / name}: epoch " in out
        state, ours = torch.load("sparse.pt", weights_only=True), network_of(folder / name, run).state_dict()
        assert all(torch.equal(value, ours[key]) for key, value in state.items())
    assert not list(Path().glob("*.partial"))


def test_what_may_not_be_written(run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def export(*arguments: Any) -> tuple[int, str, str]:
        return call(capsys, "export", run.folder, "--format", "torch", *arguments)

    old, best = tmp_path / "old", run.folder / "checkpoints" / "best.pt"
    old.write_text("mine")
    before = best.read_bytes()
    assert_one_line(export("--out", old), f"{old} exists; replace it with --overwrite")
    assert_one_line(export("--out", best, "--overwrite"), "is the checkpoint itself")
    assert_one_line(export("--out", tmp_path, "--overwrite"), "is no file")
    assert_one_line(export("--out", tmp_path / "no" / "a"), "cannot be written (No such file or directory)")
    assert_one_line(export("--out", old / "a"), "cannot be written (Not a directory)")
    assert_one_line(export("--out", "/dev/null", "--overwrite"), "is no file")
    assert old.read_text() == "mine" and best.read_bytes() == before
    assert export("--out", old, "--overwrite")[0] == 0
    assert torch.load(old, weights_only=True)


def test_what_may_not_be_looked_up(
    run: RunConfig,
    locked: Path,
    as_another: Callable[[], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = Path(shutil.copy(run.folder / "checkpoints" / "best.pt", locked.parents[1]))
    assert call(capsys, "export", source, "--format", "torch")[0] == 0  # Imports what nobody else may read.
    with as_another():
        result = call(capsys, "export", source, "--format", "torch", "--out", locked / "a.pt")
        assert_one_line(result, f"--out: {locked}/a.pt cannot be looked up (Permission denied); name another file")
        result = call(capsys, "export", source, "--format", "torch", "--out", locked.parents[1] / "a.pt")
        assert_one_line(result, "a.pt cannot be written (Permission denied)")
        result = call(capsys, "export", locked, "--format", "torch")
        assert_one_line(result, f"checkpoint {locked}: cannot be read (Permission denied)")


def test_line_ends_in_names_are_escaped(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "export", run.folder, "--format", "torch", "--out", "a\nb.pt")
    assert code == 0 and Path("a\nb.pt").is_file()
    assert r"file          a\nb.pt, " in out and out.count("\n") == 8


def test_of_the_checkpoints_folder_the_best(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "export", run.folder / "checkpoints", "--format", "torch")
    assert code == 0
    assert f"of {run.folder / 'checkpoints' / 'best.pt'}: epoch " in out


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files beyond 2 kB cannot be written, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(
    run: RunConfig, tmp_path: Path, small_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").write_text("mine")
    result = call(capsys, "export", run.folder, "--format", "torch", "--out", "old", "--overwrite")
    assert_one_line(result, "old cannot be written (File too large)")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "mine"


def test_bad_input(run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = run.folder / "checkpoints" / "best.pt"
    assert_one_line(call(capsys, "export", best, "--format", "onx"), "unknown format 'onx'; did you mean 'onnx'?")
    assert_one_line(call(capsys, "export", best, "--format", "zip"), "there are compact, csr, onnx, safetensors, torch")
    assert_one_line(call(capsys, "export", "no.pt", "--format", "torch"), "checkpoint no.pt: does not exist")
    assert_one_line(call(capsys, "export", tmp_path, "--format", "torch"), "does not exist")
    Path("cut.pt").write_bytes(best.read_bytes()[:3000])
    assert_one_line(
        call(capsys, "export", "cut.pt", "--format", "torch"),
        "checkpoint cut.pt: damaged or no checkpoint (is no archive: cut short",
    )
    path = changed(best, tmp_path / "budget.pt", lambda state: state["masks"].update(budget=1))
    assert_one_line(call(capsys, "export", path, "--format", "torch"), "budget.pt: masks:", "the budget is 1")
    assert_one_line(
        call(capsys, "export", best),
        "the following arguments are required: --format; see python -m dynsparse export --help",
    )
    assert_one_line(call(capsys, "export", "", "--format", "torch"), "CKPT is empty; name a checkpoint")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["budget.pt", "cut.pt"]


@pytest.mark.parametrize(
    ("file_format", "library"), [("safetensors", "safetensors.torch"), ("onnx", "onnx"), ("onnx", "onnxscript")]
)
def test_a_library_that_is_missing(
    file_format: str,
    library: str,
    run: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    result = call(capsys, "export", run.folder, "--format", file_format)
    assert_one_line(result, f"--format {file_format} needs {library}", install_command("export"))
    assert list(tmp_path.iterdir()) == []


def test_help_knows_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "export", "--help")
    assert code == 0
    for name in FORMATS:
        assert f"\n  {name} " in out
