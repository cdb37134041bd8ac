from __future__ import annotations

import copy
import logging
import os
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dynsparse.errors import UserError
from dynsparse.masks.bits import pack_bits
from dynsparse.training import checkpoint
from dynsparse.training.checkpoint import CheckpointFolder, checksum, kept, read, set_aside_after, write, zip_writer
from dynsparse.training.trainer import Trainer
from tests.training import runs


def state(step: int = 0, n: int = 1000) -> dict[str, Any]:
    return {
        "progress": {"step": step, "best": None, "name": "a"},
        "weights": {"a": torch.arange(n).float() + step, "b": torch.zeros(0)},
        "ranks": [{"random": torch.arange(5, dtype=torch.uint8)}],
    }


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "a.pt", state())
    loaded = read(tmp_path / "a.pt")
    assert checksum(loaded) == checksum(state())
    assert torch.equal(loaded["weights"]["a"], state()["weights"]["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_loads_with_torch_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.pt", state())
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert torch.equal(content["state"]["weights"]["a"], state()["weights"]["a"])


def test_a_file_is_an_archive_that_other_tools_open(tmp_path: Path) -> None:
    noise = torch.randn(100_000)
    write(tmp_path / "a.pt", {**state(), "noise": [noise, noise + 1], "mask": pack_bits(noise > 1.3)})
    assert (tmp_path / "a.pt").stat().st_size < 2 * 400_000 + 0.6 * 12_500
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def test_large_archives_are_read_by_others_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and offsets from 4 GiB on stand in fields of zip64: here from 1,000 bytes on."""
    monkeypatch.setattr(zip_writer, "_LARGE", 1000)
    write(tmp_path / "a.pt", {**state(), "mask": pack_bits(torch.arange(100_000) % 16 == 0)})
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        assert {entry.create_version for entry in archive.infolist()} == {20, 45}
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert torch.equal(content["state"]["weights"]["a"], state()["weights"]["a"])
    assert checksum(read(tmp_path / "a.pt")) == content["sha256"]


def test_checkpoints_of_before_are_read(tmp_path: Path) -> None:
    """Format 1: not deflated, and a bit for each position that was explored, active ones among them."""
    trainer = runs.trainer(runs.config())
    trainer.fit()
    now = trainer.run.save([trainer.run.of_this_rank()])
    before = copy.deepcopy(now)
    for layer in trainer.masks:
        saved = before["masks"]["layers"][layer.name]
        del saved["explored_inactive"]
        saved["explored"] = pack_bits(layer.explored)
        assert layer.explored.count_nonzero() > layer.active_units
    torch.save({"format": 1, "sha256": checksum(before), "state": before}, tmp_path / "a.pt")
    other = runs.trainer(runs.config())
    other.load(read(tmp_path / "a.pt"))
    assert checksum(other.run.save([other.run.of_this_rank()])) == checksum(now)


def test_every_part_counts_in_the_checksum() -> None:
    whole = checksum(state())
    changes: list[Any] = [
        {**state(), "progress": {"step": 1, "best": None, "name": "a"}},
        {**state(), "progress": {"step": 0, "best": None, "name": "b"}},
        {**state(), "progress": {"step": 0, "best": 0.0, "name": "a"}},
        {**state(), "weights": {"a": state()["weights"]["a"].double(), "b": torch.zeros(0)}},
        {**state(), "weights": {"a": state()["weights"]["a"].view(10, 100), "b": torch.zeros(0)}},
        {**state(), "ranks": [*state()["ranks"], {}]},
    ]
    assert len({whole, *map(checksum, changes)}) == 7
    assert checksum(state()) == whole


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    """Over the whole file, 1,500 places: damaged files raise a UserError that names them; padding may be harmless."""
    path = tmp_path / "a.pt"
    write(path, state())
    good = path.read_bytes()
    found = 0
    for place in range(0, len(good), max(1, len(good) // 1500)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        try:
            loaded = read(path)
        except UserError as error:
            found += str(path) in str(error)
        else:
            assert checksum(loaded) == checksum(state()), f"damage at {place} went unnoticed"
    assert found > 750


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.pt"
    write(path, state())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"a\.pt: damaged or no checkpoint \(is .*\); use an earlier one"):
        read(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pt: does not exist"):
        read(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is a folder; give a file in it, or --resume auto"):
        read(tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt: not written by dynsparse"):
        read(tmp_path / "model.pt")
    torch.save({"format": 99, "sha256": "", "state": {}}, tmp_path / "future.pt")
    with pytest.raises(UserError, match=r"future\.pt: format 99, this version reads 1 to 2; use the version"):
        read(tmp_path / "future.pt")


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/never",)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"format": 1, "sha256": "", "state": Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="damaged or no checkpoint"):
        read(tmp_path / "bad.pt")


def test_the_last_k_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (0, 5, 10, 15):
        folder.save(state(step), step, best=step == 5, initial=step == 0)
    assert [path.name for path in folder.files()] == ["step-000000015.pt", "step-000000010.pt"]
    steps = {name: read(tmp_path / f"{name}.pt")["progress"]["step"] for name in ("initial", "best", "latest")}
    assert steps == {"initial": 0, "best": 5, "latest": 15}
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = CheckpointFolder(tmp_path, keep=3)
    for step in (5, 10):
        folder.save(state(step), step)
    newest = tmp_path / "step-000000010.pt"
    newest.write_bytes(newest.read_bytes()[:-200])
    (tmp_path / "step-000000011.partial").write_bytes(b"half a file")
    found = folder.newest()
    assert found is not None
    assert found[1]["progress"]["step"] == 5
    assert "step-000000010.pt: damaged" in caplog.text


def test_only_damaged_ones_is_an_error_that_names_them(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=3)
    assert folder.newest() is None
    for step in (5, 10):
        folder.save(state(step), step)
        (tmp_path / f"step-{step:09d}.pt").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        folder.newest()
    assert len(caught.value.lines) == 3
    assert "step-000000010.pt" in caught.value.lines[0]
    assert "no valid checkpoint" in caught.value.lines[2]


def test_later_checkpoints_are_set_aside_not_deleted(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=3)
    for step in (5, 10, 15):
        folder.save(state(step), step)
    set_aside_after(tmp_path, 5)
    assert [path.name for path in folder.files()] == ["step-000000005.pt"]
    assert sorted(path.name for path in tmp_path.glob("*.stale")) == [
        "step-000000010.pt.stale",
        "step-000000015.pt.stale",
    ]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files beyond 20 kB cannot be written, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, small_disk: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state(5), 5)
    assert folder.failure is None
    folder.save(state(10, n=100_000), 10)
    assert folder.failure is not None
    assert "step-000000010.pt: cannot be written" in folder.failure
    assert folder.failure in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pt", "step-000000005.pt"]
    assert read(tmp_path / "latest.pt")["progress"]["step"] == 5
    folder.save(state(15), 15)
    assert folder.failure is None, "space was freed: the next save succeeds"


def test_a_lost_initial_state_is_not_forgotten(tmp_path: Path, small_disk: None) -> None:
    """No later save holds it."""
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state(0, n=100_000), 0, initial=True)
    folder.save(state(5), 5, best=True)
    assert folder.failure is not None
    assert "initial.pt: could not be written" in folder.failure
    assert "\n" not in folder.failure
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "latest.pt", "step-000000005.pt"]


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Path, int], bool]) -> list[tuple[str, int]]:
    """Let writing fail where `fails` says so, of file and step. Returns what is written."""
    write, written = checkpoint.write, []

    def tried(path: Path, content: Any, before: Callable[[], None]) -> None:
        if fails(path, content["progress"]["step"]):
            raise OSError("disk full")
        write(path, content, before)
        written.append((path.name, content["progress"]["step"]))

    monkeypatch.setattr(kept, "write", tried)
    return written


def test_a_run_without_its_initial_state_ends_with_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = failing(monkeypatch, lambda path, step: step == 0)
    trainer = runs.trainer(runs.config(), checkpoints=CheckpointFolder(tmp_path, keep=2))
    with pytest.raises(UserError, match=r"initial\.pt: could not be written .*start anew with --overwrite"):
        trainer.fit()
    assert [step for _, step in written] == [8, 16]


def test_what_could_not_be_written_is_written_with_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best state as it was then, not that of the next save."""
    folder, full = CheckpointFolder(tmp_path, keep=1), {0, 5}
    written = failing(monkeypatch, lambda path, step: step in full)
    folder.save(state(0), 0, initial=True)
    folder.save(state(5), 5, best=True)
    assert folder.failure is not None
    assert (written, list(tmp_path.iterdir())) == ([], [])
    full.clear()
    folder.save(state(10), 10)
    assert folder.failure is None
    steps = {name: read(tmp_path / f"{name}.pt")["progress"]["step"] for name in ("initial", "best", "latest")}
    assert steps == {"initial": 0, "best": 5, "latest": 10}
    assert written == [("step-000000010.pt", 10), ("best.pt", 5), ("initial.pt", 0)]
    assert folder._unwritten.snapshots == {}, "nothing is kept in memory"


def test_what_could_not_be_written_is_tried_again_without_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later of two best states is written. The file of its step is best.pt too; an older save after it is not."""
    folder, full = CheckpointFolder(tmp_path, keep=3), {5, 10}
    written = failing(monkeypatch, lambda path, step: step in full)
    folder.save(state(5), 5, best=True)
    folder.save(state(10), 10, best=True)
    folder.retry()
    folder.wait()
    assert not written, "not before its time"
    full.clear()
    folder.retry(now=True)
    folder.wait()
    assert folder.failure is None
    assert written == [("step-000000010.pt", 10)]
    assert (tmp_path / "best.pt").samefile(tmp_path / "step-000000010.pt")
    assert (tmp_path / "latest.pt").samefile(tmp_path / "step-000000010.pt")


def test_two_saves_after_one_step_are_two_states(tmp_path: Path) -> None:
    """Both are due at the end of an epoch: one by steps, one by epochs."""
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save({**state(8), "epoch": 0}, 8)
    folder.save({**state(8), "epoch": 1}, 8, best=True)
    assert [read(tmp_path / f"{name}.pt")["epoch"] for name in ("step-000000008", "latest", "best")] == [1, 1, 1]


def test_the_guard_is_asked_before_each_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes once the guard has said, at any of its calls, that the storage is gone.

    The partial file, which has a name of its own, does not count.
    """
    asked: list[int] = []
    fails_at: list[int] = []

    def guard() -> None:
        asked.append(0)
        if len(asked) in fails_at:
            raise OSError("gone")

    def watched(act: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, *others: Any, **options: Any) -> Any:
            if act is not os_unlink or not str(path).endswith(".partial"):
                assert asked.pop() == 0
                asked.append(1)
            return act(path, *others, **options)

        return call

    os_unlink = Path.unlink
    for owner, name in ((os, "link"), (os, "replace"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    folder = CheckpointFolder(tmp_path, keep=1, guard=guard)
    folder.save(state(5), 5, best=True)
    asked.clear()
    folder.save(state(10), 10, best=True)
    assert len(asked) == 9, "two starts, a new file begun and named, two names of two changes each, an old file removed"
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    # Of the newest and the best: before anything, before the file is begun, and before it has its name.
    for calls in ([1, 2], [2, 4], [3, 6]):
        fails_at[:] = calls
        asked.clear()
        folder.save(state(15), 15, best=True)
        assert folder.failure is not None
        assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == before


THINGS: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: (path / "full").mkdir(parents=True),
    "pipe": lambda path: os.mkfifo(path),
    "link": lambda path: path.symlink_to(path.parent.parent / "target"),
}


@pytest.mark.parametrize("thing", THINGS)
def test_things_in_the_way_are_moved_aside(tmp_path: Path, thing: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "target").write_text("not ours")
    place = tmp_path / "checkpoints"
    place.mkdir()
    names = ("step-000000005.pt", "latest.pt", "best.pt", "initial.pt", "step-000000001.pt", "step-000000009.pt")
    for name in (*names, "latest.partial", "step-000000005.pt.partial"):
        THINGS[thing](place / name)
    folder = CheckpointFolder(place, keep=2)
    folder.save(state(5), 5, best=True, initial=True)
    folder.save(state(10), 10)
    assert folder.failure is None
    steps = {name: read(place / f"{name}.pt")["progress"]["step"] for name in ("initial", "best", "latest")}
    assert steps == {"initial": 5, "best": 5, "latest": 10}
    assert "latest.pt is a " in caplog.text
    assert "moved to latest.pt.aside" in caplog.text
    assert (tmp_path / "target").read_text() == "not ours"


def test_a_file_reaches_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut could otherwise leave the name without the content. Files are told by number and size."""
    calls: list[tuple[str, int, int]] = []

    def recorded(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, *others: Any) -> Any:
            status = os.stat(file)
            calls.append((name, status.st_ino, status.st_size))
            return act(file, *others)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name, getattr(os, name)))
    write(tmp_path / "a.pt", state())
    whole = ((tmp_path / "a.pt").stat().st_ino, (tmp_path / "a.pt").stat().st_size)
    assert calls[:2] == [("fsync", *whole), ("replace", *whole)]
    assert [(name, number) for name, number, _ in calls[2:]] == [("fsync", tmp_path.stat().st_ino)]


@pytest.mark.parametrize("hard_links", [True, False], ids=["hard links", "copies"])
def test_names_lead_to_whole_files_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    """Before and after each thing that a save does to the folder, to either state and never to nothing."""
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state(5), 5, best=True)
    seen: list[int] = []

    def look() -> None:
        for name in ("latest", "best"):
            seen.append(read(tmp_path / f"{name}.pt")["progress"]["step"])

    def watched(act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            look()
            result = act(*arguments, **options)
            look()
            return result

        return call

    def no_links(*_: Any) -> None:
        raise OSError("not here")

    if not hard_links:
        monkeypatch.setattr(os, "link", no_links)
    for owner, names in ((os, ("link", "replace", "fsync")), (Path, ("unlink",)), (shutil, ("copyfileobj",))):
        for name in names:
            monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    folder.save(state(10), 10, best=True)
    assert folder.failure is None
    assert set(seen) == {5, 10}
    assert len(seen) > 30


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    """A tmpfs of 64 kB: ENOSPC from the kernel."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no right to mount: {mounted.stderr.decode().strip()}")
    try:
        folder = CheckpointFolder(disk, keep=3)
        folder.save(state(5), 5)
        folder.save(state(10, n=50_000), 10)
        assert folder.failure is not None
        found = folder.newest()
        assert found is not None
        assert found[1]["progress"]["step"] == 5
        assert not list(disk.glob("*.partial"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_training_goes_on_and_ends_with_the_error(
    tmp_path: Path, small_disk: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Saves fail from the first on; training reaches its end, then says so."""
    settings = runs.config(model={"name": "mnist_mlp", "hidden": [200, 100]})
    trainer = runs.trainer(settings, checkpoints=CheckpointFolder(tmp_path, keep=2))
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=r"cannot be written .*free space"):
        trainer.fit()
    assert trainer.progress.epoch == 2
    assert list(tmp_path.iterdir()) == []


def formula(trainer: Trainer, stored: int) -> float:
    """Return the bytes that a checkpoint may take: 5 % over those of its content.

    That is `stored` values of 4 bytes for each active weight, a bit for each position, and dense tensors as they are.
    """
    masks = trainer.masks
    dense = sum(p.numel() for p in trainer.model.parameters()) - masks.weights
    buffers = sum(b.numel() * b.element_size() for b in trainer.model.buffers())
    return 1.05 * (4 * stored * masks.active_weights + masks.weights / 8) + 4 * stored * dense + buffers


@pytest.mark.parametrize("sparsity", [0.5, 0.99, *(pytest.param(one, marks=pytest.mark.slow) for one in (0.9, 0.95))])
@pytest.mark.parametrize(("optimizer", "stored"), [({"name": "sgd", "momentum": 0.9}, 2), ({"name": "adamw"}, 3)])
@pytest.mark.parametrize("explored", [0.0, 0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_sparse_layers_cost_what_is_active(
    tmp_path: Path, sparsity: float, optimizer: dict[str, Any], stored: int, explored: float
) -> None:
    """However many inactive positions were explored: a random half of them cannot be told in less than a bit each."""
    settings = runs.config(
        data={"shape": [1, 32, 32]},
        model={"name": "mnist_mlp", "hidden": [600, 400]},
        sparsity={"fc": sparsity},
        train={"optimizer": optimizer, "epochs": 1},
    )
    trainer = runs.trainer(settings)
    trainer.fit()
    for layer in trainer.masks:
        layer.explored |= torch.rand(layer.spec.units, generator=torch.Generator().manual_seed(1)) < explored
    write(tmp_path / "a.pt", trainer.run.save([trainer.run.of_this_rank()]))
    random_state_and_table_of_contents = 12_000
    size = (tmp_path / "a.pt").stat().st_size
    assert size < formula(trainer, stored) + random_state_and_table_of_contents
