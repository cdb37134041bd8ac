"""python -m dynsparse inspect: what it says of whole checkpoints, and that no violated invariant passes."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from dynsparse.config.schema import RunConfig
from dynsparse.inference.csr_layers import to_csr
from dynsparse.masks.bits import pack_bits
from dynsparse.tools.inspection import bytes_by_part
from dynsparse.training.checkpoint import read
from dynsparse.training.exported import CSR_FORMAT
from tests.tools.trained import assert_one_line, call, changed, train
from tests.training import runs

State = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return train(tmp_path_factory.mktemp("runs"), "sparse")


@pytest.fixture(scope="module")
def latest(run: RunConfig) -> Path:
    return run.folder / "checkpoints" / "latest.pt"


def test_what_is_printed(run: RunConfig, latest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "inspect", latest)
    assert (code, err) == (0, "")
    summary = runs.summary(run.folder)
    assert f"{latest}\n" in out
    assert "sparse: mnist_mlp by dsr on synthetic, seed 3" in out
    assert "step 16, 2 of 2 epochs" in out
    assert (
        f"test {summary['test_top1']:.2f} %; highest so far {summary['best_top1']:.2f} %, chosen on the test data"
        in out
    )
    assert summary["mask_digest"] in out and summary["weight_digest"] in out
    table = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("fc")}
    assert list(table) == ["fc1.weight", "fc2.weight", "fc3.weight"]
    active = summary["layers"]["fc2.weight"]["active_weights"]
    assert table["fc2.weight"][1:5] == ["12x24", "1", "288", str(active)]
    whole = next(line for line in out.splitlines() if line.startswith("whole model"))
    assert f"{100 * summary['model_sparsity']:.2f} %" in whole
    assert f"training so far {summary['training_flops_of_dense']:.3f} of dense" in out
    assert "holds: masks and weights are those of summary.json" in out
    assert call(capsys, "inspect", run.folder) == (code, out, err), "of a run's folder, the latest"


def test_json_has_what_the_run_says_of_itself(run: RunConfig, latest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, summary, saved = (
        json.loads(call(capsys, "inspect", latest, "--json")[1]),
        runs.summary(run.folder),
        read(latest),
    )
    for key in ("mask_digest", "weight_digest", "active_weights", "sparse_layer_weights", "total_parameters"):
        assert found[key] == summary[key]
    for key in ("ever_active", "dense_flops", "inference_flops", "inference_flops_of_dense", "training_flops_of_dense"):
        assert found[key] == summary[key] is not None
    for key in ("sparsity", "model_sparsity", "world_size", "reallocations", "versions"):
        assert found[key] == summary[key]
    assert found["summary_agrees"] is True
    for name, layer in found["layers"].items():
        assert layer["active"] == summary["layers"][name]["active_weights"]
        assert layer["sparsity"] == summary["layers"][name]["sparsity_after"]
        stored = saved["weights"][name].abs()
        assert layer["magnitude"]["max"] == float(stored.max())
        assert layer["magnitude"]["min"] == float(stored.min())
        assert layer["at_zero"] == int((stored == 0).sum())
    best = run.folder / "checkpoints" / "initial.pt"
    assert json.loads(call(capsys, "inspect", best, "--json")[1])["summary_agrees"] is None, "another step"


def test_what_the_file_takes_is_all_accounted_for(run: RunConfig, latest: Path, tmp_path: Path) -> None:
    """Values that cannot be deflated are found in their part, to the byte."""
    content = torch.randint(-(2**62), 2**62, (3, 10_000), generator=torch.Generator().manual_seed(0))

    def put(state: State) -> None:
        state["weights"]["more"] = content[0].clone()
        state["masks"]["layers"]["more"] = {"explored_inactive": content[1].clone(), "mask": content[2, :5_000].clone()}
        state["optimizer"]["more"] = {"momentum_buffer": content[2].clone()}

    before, path = bytes_by_part(latest, read(latest)), changed(latest, tmp_path / "more.pt", put)
    after = bytes_by_part(path, read(path))
    for part, size in {"weights": 80_000, "explored": 80_000, "masks": 40_000, "optimizer state": 80_000}.items():
        assert size <= after[part] - before[part] < 1.01 * size + 100, part
    assert sum(after.values()) == path.stat().st_size
    assert before["initial weights"] == 0
    initial = run.folder / "checkpoints" / "initial.pt"
    assert bytes_by_part(initial, read(initial))["initial weights"] > 4 * 1_000
    assert bytes_by_part(initial, read(latest)) == {}, "another file"


@pytest.mark.parametrize(
    ("sections", "row"),
    [
        ({"method": {"name": "dense"}}, r"fc1\.weight +24x36 +1 +864 +864 +0\.00 %"),
        ({"method": {"name": "tied"}}, r"fc1\.weight +24x36 +1 +864 +173 +79\.98 %"),
        (
            {"model": {"name": "small_cnn"}, "sparsity": {"granularity": 2}, "data": {"shape": [3, 8, 8]}},
            r"conv\S* +\d+x\d+x3x3 +3x3 ",
        ),
    ],
    ids=["dense", "tied", "kernel slices"],
)
def test_other_networks(sections: Any, row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "a", train={"epochs": 1}, **sections)
    code, out, err = call(capsys, "inspect", run.folder)
    assert code == 0, err
    assert re.search(row, out), out
    assert "are those of summary.json" in out


def test_files_that_are_no_checkpoint(latest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, whole = tmp_path / "a.pt", latest.read_bytes()

    def inspect(content: bytes) -> tuple[int, str, str]:
        path.write_bytes(content)
        return call(capsys, "inspect", path)

    assert_one_line(call(capsys, "inspect", path), f"checkpoint {path}: does not exist")
    assert_one_line(inspect(b""), "is empty")
    assert_one_line(inspect(b"seed: 3\n"), "is no archive")
    assert_one_line(inspect(whole[: len(whole) // 2]), "is no archive: cut short", "use an earlier one")
    with zipfile.ZipFile(latest) as archive:  # Not in what pads an entry, which nothing depends on.
        largest = max(archive.infolist(), key=lambda entry: entry.compress_size)
    middle = largest.header_offset + 100 + largest.compress_size // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 0x10]) + whole[middle + 1 :]
    assert_one_line(inspect(flipped), "is damaged")
    torch.save({"weights": torch.ones(3)}, path)
    assert_one_line(call(capsys, "inspect", path), "not written by dynsparse")
    content = torch.load(latest, weights_only=True)
    torch.save({**content, "format": 9}, path)
    assert_one_line(call(capsys, "inspect", path), "format 9, this version reads")
    content["state"]["weights"]["fc1.weight"][0] += 1
    torch.save(content, path)
    assert_one_line(call(capsys, "inspect", path), "damaged (its checksum differs)")
    assert_one_line(call(capsys, "inspect", tmp_path), "checkpoints/latest.pt: does not exist")


def test_a_flipped_bit_is_told_by_its_entry(latest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bit is flipped in the values of the first layer, stored or deflated. Both have a CRC."""
    stored, path = read(latest)["weights"]["fc1.weight"].numpy().tobytes(), tmp_path / "a.pt"
    torch.save(torch.load(latest, weights_only=True), path)  # Not deflated.
    content = bytearray(path.read_bytes())
    content[content.index(stored) + 5] ^= 1
    path.write_bytes(content)
    assert_one_line(call(capsys, "inspect", path), "is damaged in its entry", "/data/")


def test_of_another_version(latest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def later(state: State) -> None:
        state["versions"]["dynsparse"] = "9.9"
        state["config"]["method"]["momentum"] = 3

    path = changed(latest, tmp_path / "a.pt", later)
    code, _, err = call(capsys, "inspect", path)
    assert code == 2
    lines = err.splitlines()
    assert "method.momentum: unknown key" in lines[0]
    assert "written by dynsparse 9.9" in lines[1] and "use that version" in lines[1]


def _mask(state: State, name: str) -> State:
    mask: State = state["masks"]["layers"][name]
    return mask


def _unset(state: State) -> None:
    """One bit less: all bits in turn until an active one is met."""
    packed = _mask(state, "fc2.weight")["mask"]
    byte = int(packed.nonzero()[0])
    packed[byte] &= packed[byte] - 1


def _beyond(state: State) -> None:
    """A bit where the last byte has none of a unit."""
    for name, values in state["weights"].items():
        if name in state["masks"]["layers"]:
            mask = _mask(state, name)
            if (math.prod(mask["shape"]) - len(values)) % 8:
                mask["explored_inactive"][-1] |= 1
                return
    raise AssertionError("every layer's bits fill their bytes")


def _swap(state: State) -> None:
    """Two stored values of a layer, where they differ: nothing but the digest can tell."""
    values = state["weights"]["fc1.weight"]
    values[[0, 1]] = values[[1, 0]]
    assert values[0] != values[1]


def _empty(state: State) -> None:
    _mask(state, "fc3.weight")["mask"].zero_()
    _mask(state, "fc3.weight")["explored_inactive"] = pack_bits(torch.zeros(120, dtype=torch.bool))
    for part in (state["weights"], state["optimizer"]["fc3.weight"]):
        part.update({key: torch.zeros(0, 1) for key in part if key in ("fc3.weight", "momentum_buffer")})


def _nan(values: torch.Tensor) -> None:
    values.view(-1)[0] = torch.nan


VIOLATIONS: dict[str, tuple[Callable[[State], object], tuple[str, ...]]] = {
    "a mask's bit": (_unset, ("fc2.weight", "values are stored, its mask has", "active")),
    "a bit beyond": (_beyond, ("what it explored has bits set beyond its last (1)",)),
    "a mask too short": (
        lambda s: _mask(s, "fc1.weight").update(mask=_mask(s, "fc1.weight")["mask"][:-1].clone()),
        ("fc1.weight: its mask takes 107 bytes, 864 bits take 108",),
    ),
    "an empty layer": (_empty, ("fc3.weight: its mask has no active unit",)),
    "explored": (
        lambda s: _mask(s, "fc2.weight").update(explored_inactive=torch.zeros(2, dtype=torch.uint8)),
        ("fc2.weight: what it explored takes 2 bytes",),
    ),
    "another shape": (
        lambda s: _mask(s, "fc1.weight").update(shape=[36, 24]),
        ("of another model: fc1.weight is 36x24 there, 24x36 here",),
    ),
    "a value more": (
        lambda s: s["weights"].update({"fc1.weight": torch.ones(400, 1)}),
        ("fc1.weight: weights: 400 values are stored",),
    ),
    "not a number": (lambda s: _nan(s["weights"]["fc3.weight"]), ("fc3.weight: weights: 1 of",)),
    "not a number in a dense layer": (lambda s: _nan(s["weights"]["bn2.bias"]), ("bn2.bias: weights: 1 of 12",)),
    "an infinite moment": (
        lambda s: s["optimizer"]["fc2.weight"]["momentum_buffer"].fill_(torch.inf),
        ("fc2.weight: momentum_buffer:", "values are NaN or inf"),
    ),
    "a statistic": (lambda s: _nan(s["ranks"][0]["buffers"]["bn1.running_var"]), ("bn1.running_var: of rank 0",)),
    "no statistic": (
        lambda s: s["ranks"][0]["buffers"].pop("bn1.running_var"),
        ("of another model: bn1.running_var of rank 0 is absent there, 24 here",),
    ),
    "the budget": (lambda s: s["masks"].update(budget=1), ("masks:", "the budget is 1")),
    "a layer less": (lambda s: s["weights"].pop("fc2.weight"), ("fc2.weight: has no weights",)),
    "a layer more": (
        lambda s: s["weights"].update(more=torch.ones(3)),
        ("more: has no optimizer state",),
    ),
    "a dense shape": (
        lambda s: s["weights"].update({"bn1.bias": torch.ones(3)}),
        ("bn1.bias: momentum_buffer: [24] is stored, its weights are [3]",),
    ),
    "of another run": (_swap, ("its weight digest is", "that of summary.json")),
    "another kind of state": (lambda s: s.update(masks=[1]), ("masks is [1]: input should be a valid dictionary",)),
}


@pytest.mark.parametrize("what", VIOLATIONS)
def test_violated_invariants_are_named(
    what: str, run: RunConfig, latest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, parts = VIOLATIONS[what]
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(run.folder / "summary.json", tmp_path)
    path = changed(latest, tmp_path / "checkpoints" / "a.pt", change)
    code, out, err = call(capsys, "inspect", path)
    assert (code, out) == (2, "")
    assert all(line.startswith(f"error: checkpoint {path}: ") for line in err.splitlines()), err
    for part in parts:
        assert part in err.splitlines()[0], err


def test_initial_weights_are_looked_at(run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    initial = run.folder / "checkpoints" / "initial.pt"
    assert call(capsys, "inspect", initial)[0] == 0
    path = changed(initial, tmp_path / "a.pt", lambda s: _nan(s["initial_weights"]["fc1.weight"]))
    assert_one_line(call(capsys, "inspect", path), "fc1.weight: initial weights: 1 of 864")


def test_a_network_that_shrank_after_its_best_epoch_is_not_held_against_it(
    run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that stops before the first step after a shrink has the smaller network's digests, of the same step."""
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    summary = runs.summary(folder)
    (folder / "summary.json").write_text(
        json.dumps({**summary, "parameters": summary["parameters"] - 1, "mask_digest": "0" * 16})
    )
    best = folder / "checkpoints" / "latest.pt"
    assert json.loads(call(capsys, "inspect", best, "--json")[1])["summary_agrees"] is None
    (folder / "summary.json").write_text(json.dumps({**summary, "mask_digest": "0" * 16}))
    assert_one_line(call(capsys, "inspect", best), "its mask digest is", "that of summary.json")


def test_what_was_set_aside_is_not_held_against_the_summary(
    run: RunConfig, latest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that went back and ended at the same step has other weights there, and is right."""
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(run.folder / "summary.json", tmp_path)
    stale = tmp_path / "checkpoints" / "step-000000016.pt.stale"
    changed(latest, tmp_path / "checkpoints" / "a.pt", _swap).rename(stale)
    code, out, _ = call(capsys, "inspect", stale)
    assert code == 0
    assert "are those of summary.json" not in out


def test_the_checkpoints_folder_itself(
    run: RunConfig, latest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "inspect", latest.parent) == call(capsys, "inspect", run.folder)
    monkeypatch.chdir(latest.parent)
    assert f"{latest}\n" in call(capsys, "inspect", ".")[1]


def test_a_run_named_as_the_folder(run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run.folder, tmp_path / "checkpoints")
    code, out, _ = call(capsys, "inspect", copy)
    assert code == 0 and f"{copy}/checkpoints/latest.pt\n" in out


def test_what_may_not_be_read(
    latest: Path,
    locked: Path,
    as_another: Callable[[], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed = Path(shutil.copy(latest, locked.parents[1]))
    closed.chmod(0)
    with as_another():
        for path in (locked, locked / "a.pt", closed):
            result = call(capsys, "inspect", path)
            assert_one_line(result, f"checkpoint {path}: cannot be read (Permission denied); allow it, or copy the run")


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    see = "; see python -m dynsparse inspect --help"
    assert_one_line(call(capsys, "inspect"), f"the following arguments are required: CKPT{see}")
    assert_one_line(call(capsys, "inspect", "a", "--jsn"), f"unrecognized arguments: --jsn{see}")
    assert_one_line(call(capsys, "inspect", ""), "CKPT is empty; name a checkpoint, or a run's folder")


def test_line_ends_in_a_name_are_escaped(latest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shutil.copy(latest, tmp_path / "a\n\x1b[2Jb.pt")
    assert call(capsys, "inspect", path)[1].splitlines()[0] == rf"{tmp_path}/a\n\x1b[2Jb.pt"


def test_a_csr_file_is_refused_in_one_line(tmp_path: Path) -> None:
    """It runs in a process of its own, as torch warns of CSR once in each."""
    path = tmp_path / "a.csr.pt"
    matrix = to_csr(torch.eye(3), torch.eye(3, dtype=torch.bool))
    torch.save({"format": CSR_FORMAT, "sparse": {"fc.weight": matrix}}, path)
    assert_one_line(inspect_in_a_process(path), f"checkpoint {path}: damaged or no checkpoint (holds other than plain")


def inspect_in_a_process(path: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "dynsparse", "inspect", str(path)]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow  # test_the_command_line has the rest in this process.
def test_as_a_command(tmp_path: Path) -> None:
    """Exit code and streams as a shell has them, without a traceback."""
    assert_one_line(inspect_in_a_process(tmp_path / "no.pt"), "no.pt: does not exist")
