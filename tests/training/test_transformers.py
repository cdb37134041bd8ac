"""A small ViT through the trainer, its checkpoints and the tools: query, key and value are layers of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynsparse.config.schema import RunConfig
from dynsparse.errors import StopRequested, UserError
from dynsparse.runtime import Worker
from dynsparse.tools.opening import open_checkpoint
from dynsparse.training.banner import dense_lines
from dynsparse.training.checkpoint import CheckpointFolder, read, write
from dynsparse.training.network import build_network
from dynsparse.training.older import with_layers_of
from dynsparse.training.sources import whole_weights
from tests.methods.test_contract import REGISTRY, sparsity_section
from tests.models.tiny_vit import LAYERS, NAME, SHAPE, attention
from tests.ranks import run_distributed
from tests.tools.trained import call, changed, train
from tests.training import runs
from tests.training.test_every_method import BUSY, stopped_and_resumed
from tests.training.test_resume import assert_same, state_after

QUICK = ("rigl",)
"""Methods in every run of the tests; the others take the same path."""
DATA = {"name": "synthetic", "shape": list(SHAPE), "samples": 60, "test_samples": 20, "threads": 1}
PACKED = f"{attention(0)}.in_proj_weight"


def sections(method: str = "rigl", **others: Any) -> dict[str, Any]:
    start = {"weights_from": "unread"} if method == "pruning" else {}
    optimizer = {"name": "adamw", "weight_decay": 0.05}
    return {
        "model": {"name": NAME},
        "data": DATA,
        "method": {"name": method, **BUSY.get(method, {})},
        "start": start,
        **others,
        "sparsity": {**sparsity_section(method), **others.get("sparsity", {})},
        "train": {"global_batch_size": 8, "optimizer": optimizer, **others.get("train", {})},
    }


def halves(worker: Worker, config: RunConfig) -> tuple[Any, Any]:
    """`stopped_and_resumed`, in a module that makes the network known to a rank."""
    return stopped_and_resumed(worker, config)


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow) for one in sorted(REGISTRY)]
)
def test_stopped_and_resumed(name: str) -> None:
    """Two ranks: all that a checkpoint would hold is equal in the end."""
    whole, resumed = run_distributed(halves, 2, runs.config(**sections(name)))[0]
    assert_same(resumed, whole)
    assert (whole["progress"]["reallocations"] > 0) == (name not in ("dense", "static", "tied"))
    assert list(whole["masks"]["layers"]) == ([] if name == "tied" else LAYERS)


def last_state(worker: Worker, config: RunConfig) -> Any:
    return state_after(worker, config, None, None)


def test_active_gradients_are_those_of_all() -> None:
    """Two ranks get the same bits, with one of the three parts dense."""
    exclude = {"sparsity": {"exclude": [f"{PACKED}.k"]}}
    dense, active = (
        run_distributed(last_state, 2, runs.config(**sections(distributed={"gradients": sends}, **exclude)))[0]
        for sends in ("dense", "active")
    )
    assert_same(active["weights"], dense["weights"])
    assert_same(active["masks"], dense["masks"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run in which the first block's key is dense."""
    return train(tmp_path_factory.mktemp("runs"), "vit", **sections(sparsity={"fc": 0.9, "exclude": [f"{PACKED}.k"]}))


def test_a_checkpoint_stores_active_values_alone(run: RunConfig) -> None:
    saved = read(run.folder / "checkpoints" / "latest.pt")
    active = {name: round(0.1 * 32 * 32) for name in ("q", "v")}
    stored = active["q"] + 32 * 32 + active["v"]
    assert saved["weights"][PACKED].shape == (stored,)
    assert {value.shape for key, value in saved["optimizer"][PACKED].items() if key != "step"} == {(stored,)}
    other = f"{attention(1)}.in_proj_weight"
    assert saved["weights"][other].numel() == 3 * active["q"]
    opened = open_checkpoint(run.folder / "checkpoints" / "latest.pt")
    parameters = dict(opened.network.model.named_parameters())
    whole = whole_weights(saved)
    assert all(torch.equal(parameters[name], whole[name]) for name in parameters)
    assert int((whole[other] == 0).sum()) == 3 * (1024 - active["q"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda block: block.update(start=16), "its layers do not lie in its rows side by side"),
        (lambda block: block.update(rows=128), "its layers do not lie in its rows side by side"),
        (lambda block: block.update(parameter="heads.head.weight"), "values are stored, its mask has"),
        (lambda block: block.update(start=-1), "masks.layers"),
        (lambda block: block.pop("rows"), "rows is missing"),
    ],
)
def test_blocks_that_do_not_fit_are_damage(
    run: RunConfig, tmp_path: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    source = run.folder / "checkpoints" / "latest.pt"
    bad = changed(source, tmp_path / "bad.pt", lambda state: change(state["masks"]["layers"][f"{PACKED}.v"]["block"]))
    with pytest.raises(UserError) as caught:
        open_checkpoint(bad)
    (line,) = caught.value.lines
    assert problem in line and "use an earlier one of the run" in line


def test_tools_show_and_write_the_parts(run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "inspect", run.folder, "--json")
    layers = json.loads(out)["layers"]
    assert code == 0 and list(layers) == [name for name in LAYERS if name != f"{PACKED}.k"]
    assert layers[f"{PACKED}.q"]["shape"] == [32, 32] and layers[f"{PACKED}.q"]["active"] == 102
    network = open_checkpoint(run.folder / "checkpoints" / "latest.pt").network
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        expected = network.model.eval()(x)
    for kind in ("safetensors", "csr"):
        path = tmp_path / f"vit.{kind}"
        code, out, err = call(
            capsys, "export", run.folder / "checkpoints" / "latest.pt", "--format", kind, "--out", path
        )
        assert code == 0, err
        model = _load(kind, path, run)
        with torch.no_grad():
            assert torch.allclose(model(x), expected, atol=1e-6)
        zeros = dict(model.named_parameters())[PACKED].detach().chunk(3)
        assert [int((part == 0).sum()) for part in zeros] == [1024 - 102, 0, 1024 - 102]


def _load(kind: str, path: Path, run: RunConfig) -> torch.nn.Module:
    if kind == "csr":
        from dynsparse.tools.export import csr  # as its users do

        return csr.load(path)
    from safetensors.torch import load_file  # an optional extra

    model = run.model.build(SHAPE, run.data.classes).eval()
    model.load_state_dict(load_file(path))
    return model


def test_dry_run_lists_what_stays_dense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = runs.write_config(tmp_path, runs.config(**sections(sparsity={"fc": 0.9, "exclude": ["*.mlp.0.*"]})))
    code, out, err = call(capsys, "train", "--config", config, "--dry-run")
    assert code == 0, err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(line.startswith(f"{PACKED}.q 32x32 1 90.04 % 102 1,024 ") for line in lines), "and its FLOPs"
    for line in (
        "class_token 1x1x32 32 embedding or scale, no layer's weight",
        "conv_proj.weight 32x3x4x4 1,536 patch embedding",
        "encoder.layers.encoder_layer_0.mlp.0.weight 64x32 2,048 sparsity.exclude",
        "heads.head.weight 10x32 320 classification head",
    ):
        assert line in lines
    assert any(line.startswith("asked for 90 % zeros: the 10 sparse layers have 90.0") for line in lines)


def test_a_start_says_what_stays_dense_and_the_summary_keeps_it(run: RunConfig) -> None:
    network = open_checkpoint(run.folder / "checkpoints" / "latest.pt").network
    assert dense_lines(network) == [
        (
            "stay dense: class_token, encoder.pos_embedding (embedding or scale, no layer's weight); conv_proj.weight "
            f"(patch embedding); {PACKED}.k (sparsity.exclude); heads.head.weight (classification head)"
        )
    ]
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["asked"] == "90 %" and summary["dense"]["conv_proj.weight"]["reason"] == "patch embedding"
    total = sum(one["weights"] for one in summary["dense"].values())
    assert total + summary["sparse_layer_weights"] == summary["total_parameters"]


# Checkpoints of versions that had no parts: in_proj_weight was one layer, and more layers were sparse by default.

OLD = {"include": ["*weight"], "split": {"*.in_proj_weight": 1}}


def as_then(saved: dict[str, Any]) -> None:
    """Make the state of a run that names its layers that of an older one, to which they were the default."""
    saved["config"]["sparsity"] |= {"include": None, "exclude": []}
    del saved["config"]["sparsity"]["split"]
    assert not any("block" in layer for layer in saved["masks"]["layers"].values())


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of an older run, in the middle of its first epoch."""
    folder = tmp_path_factory.mktemp("old")
    settings = runs.config(name="old", runs=str(folder), **sections(sparsity={"fc": 0.9, "conv": 0.5, **OLD}))
    trainer = runs.trainer(settings, checkpoints=CheckpointFolder(settings.folder / "checkpoints", keep=2))
    trainer.stop_requested = lambda: trainer.progress.step == 5
    (settings.folder / "checkpoints").mkdir(parents=True)
    with pytest.raises(StopRequested):
        trainer.fit()
    state = read(settings.folder / "checkpoints" / "latest.pt")
    as_then(state)
    write(folder / "old.pt", state)
    return folder / "old.pt"


def test_older_checkpoints_keep_their_layers(old: Path) -> None:
    saved = read(old)
    opened = open_checkpoint(old)
    assert [layer.name for layer in opened.network.masks] == list(saved["masks"]["layers"])
    assert PACKED in saved["masks"]["layers"] and "heads.head.weight" in saved["masks"]["layers"]


def test_an_older_run_goes_on_with_its_layers(old: Path) -> None:
    """It may be resumed a second time, from a checkpoint of this version and with the config of then."""
    saved = read(old)
    settings = runs.config(**sections(sparsity={"fc": 0.9, "conv": 0.5}))
    for _ in range(2):
        config = with_layers_of(settings, saved)
        trainer = runs.trainer(config)
        trainer.load(saved)
        saved = trainer.run.save([trainer.run.of_this_rank()])
        assert list(saved["masks"]["layers"]) == list(read(old)["masks"]["layers"])
    other = runs.config(**sections(sparsity={"fc": 0.9, "conv": 0.5, "exclude": ["*.mlp.0.*"]}))
    assert with_layers_of(other, read(old)) is other


def test_a_resume_under_other_layers_is_refused(run: RunConfig) -> None:
    saved = read(run.folder / "checkpoints" / "latest.pt")
    for split in ({}, {"*.in_proj_weight": 1}):
        other = runs.config(**sections(sparsity={"fc": 0.9, "split": split}))
        assert with_layers_of(other, saved) is other
        with pytest.raises(UserError, match=r"the checkpoint has other sparse layers: .*in_proj_weight"):
            runs.trainer(other).load(saved)


def test_shipped_resnets_keep_their_layers() -> None:
    from dynsparse.config.loading import load  # slow where no test asks for it

    config = load(Path("configs/sample_images_resnet.yaml"))
    names = [layer.name for layer in build_network(config, torch.device("cpu")).masks]
    assert len(names) == 19 and not {"conv1.weight", "fc.weight"} & set(names)
