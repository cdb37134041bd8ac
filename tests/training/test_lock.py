"""Real processes hold locks here, in containers of their own where it matters, and die."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dynsparse.errors import UserError
from dynsparse.training.run import collective, lock_file, timing
from dynsparse.training.run.collective import holding
from dynsparse.training.run.holder import Holder
from dynsparse.training.run.lock import LostError, RunLock
from dynsparse.training.run.storage import StorageCheck
from dynsparse.training.run.watch import Watch
from tests.training import runs

OTHER = """
import sys
from dynsparse.training.run import lock, timing
timing.BEAT_SECONDS = 0.05
held = lock.RunLock(__import__("pathlib").Path(sys.argv[1]), launch=sys.argv[2] or None)
held.acquire()
print("held", flush=True)
sys.stdin.readline()
try:
    held.require()
except lock.LostError as error:
    print(error.strerror, flush=True)
held.release()
"""
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
in_a_container = pytest.mark.skipif(
    os.geteuid() != 0
    or shutil.which("unshare") is None
    or subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode != 0,
    reason="process namespaces are not allowed here",
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


@pytest.fixture
def held(folder: Path) -> Iterator[Start]:
    """Start another process that holds the lock; it gives it back when its standard input is closed."""
    processes = []

    def start(*prefix: str, launch: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", OTHER, str(folder), launch],
            cwd=runs.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than that many seconds of silence from a holder that cannot be looked up."""
    monkeypatch.setattr(timing, "STALE_SECONDS", 1.0)


@pytest.fixture
def mine(folder: Path) -> Iterator[RunLock]:
    one = RunLock(folder)
    yield one
    one.release()


def of_another_machine(**changes: Any) -> bytes:
    """A lock whose holder can only be watched."""
    holder = {**json.loads(Holder.myself("a launch").encode("")), "host": "elsewhere", "space": "its own", **changes}
    return json.dumps(holder).encode()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


MINE = {"host": Holder.myself(None).host, "space": Holder.myself(None).space}
NOBODYS = 2**22
"""One more than the largest number that Linux gives a process."""


def test_a_folder_has_one_run_at_a_time(folder: Path, held: Start, mine: RunLock) -> None:
    process = held()
    with pytest.raises(UserError, match=rf"is in use by process {process.pid} on \S+ \(since .*\); wait until it ends"):
        mine.acquire()
    with pytest.raises(UserError, match="in use"):
        mine.require_free(within=0)
    process.communicate()
    assert not folder.exists(), "a lock leaves nothing"
    mine.require_free(within=0)
    assert mine.acquire()


def test_what_it_says_of_the_holder(folder: Path, mine: RunLock) -> None:
    mine.acquire()
    content = json.loads((folder / "lock.json").read_text())
    assert content["process"] == os.getpid()
    assert content["host"] == os.uname().nodename
    assert content["alive"] >= content["since"]


def test_a_killed_holder_is_noticed_at_once(held: Start, mine: RunLock, caplog: pytest.LogCaptureFixture) -> None:
    process = held()
    process.kill()
    process.wait()
    assert mine.acquire(within=0), "no watching: the process can be looked up"
    assert f"left by process {process.pid}" in caplog.text


def test_a_holder_that_waits_for_its_parent_is_dead(held: Start, mine: RunLock) -> None:
    """A zombie has its number still."""
    process = held()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert mine.acquire(within=0)


def test_a_number_given_again_is_not_the_holder(folder: Path, mine: RunLock) -> None:
    """This very process has the number that the lock tells of, but has not begun when that one did."""
    folder.mkdir(parents=True)
    content = json.loads(Holder.myself(None).encode(""))
    (folder / "lock.json").write_text(json.dumps({**content, "started": content["started"] - 1}))
    assert mine.acquire(within=0)


@in_a_container
def test_a_container_is_watched_while_it_lives(folder: Path, held: Start, mine: RunLock) -> None:
    held(*CONTAINER, launch="7")
    with pytest.raises(UserError, match="launch '7'"):
        RunLock(folder, launch="8").require_free(within=30)
    RunLock(folder, launch="7").require_free(within=3)  # Not a reason to refuse a node that joins.
    assert mine.acquire(within=0) is False, "its process cannot be looked up: a first look tells nothing"
    with pytest.raises(UserError, match=r"in use by process \d+ on"):
        mine.acquire()


@in_a_container
@pytest.mark.usefixtures("impatient")
def test_a_container_that_died_is_noticed_by_its_silence(
    held: Start, mine: RunLock, caplog: pytest.LogCaptureFixture
) -> None:
    container = held(*CONTAINER)
    container.kill()
    container.wait()
    assert mine.acquire(within=0) is False
    assert mine.acquire()
    assert "taken over" in caplog.text


@in_a_container
def test_an_attempt_of_the_same_launch_is_waited_for(folder: Path, held: Start) -> None:
    """Rank 0 has moved to another machine, and the one before is about to end."""
    container = held(*CONTAINER, launch="7")
    next_one = RunLock(folder, launch="7", grace=60)
    assert next_one.acquire(within=1) is False
    waiting = threading.Thread(target=next_one.acquire)
    waiting.start()
    container.communicate()
    waiting.join()
    assert json.loads((folder / "lock.json").read_text())["process"] == os.getpid()
    next_one.release()


@in_a_container
def test_it_is_not_waited_for_without_end(folder: Path, held: Start) -> None:
    """Somebody has started a launch twice under one id."""
    held(*CONTAINER, launch="7")
    with pytest.raises(UserError, match="launch '7'"):
        RunLock(folder, launch="7", grace=0.5).acquire()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"host": "a"}',
        of_another_machine(),
        *(of_another_machine(process=process) for process in ("7", None, 2**70, 0, -1, True)),
        of_another_machine(started="1"),
        of_another_machine(space=1),
        of_another_machine(since=None),
    ],
    ids=range(14),
)
def test_silent_locks_are_taken_over_whatever_they_hold(folder: Path, mine: RunLock, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "lock.json").write_bytes(content)
    mine.require_free(within=0.5)  # Silence is no reason to refuse, before it is long enough to take over.
    assert mine.acquire(within=0) is False
    assert mine.acquire()
    assert names_in(folder) == ["lock.json", "owner.json"]


@pytest.mark.slow
def test_of_many_that_find_a_dead_holder_one_takes_over(folder: Path) -> None:
    """All try at the same moment, again and again."""
    dead = of_another_machine(**MINE, process=NOBODYS)
    for _ in range(8):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock.json").write_bytes(dead)
        locks, took, refused = [RunLock(folder) for _ in range(4)], [], []
        together = threading.Barrier(len(locks))

        def take(one: RunLock, took: list[RunLock] = took, refused: list[Any] = refused, at: Any = together) -> None:
            at.wait()
            try:
                one.acquire()
                took.append(one)
            except UserError as error:
                refused.append(error)

        threads = [threading.Thread(target=take, args=(one,)) for one in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(took), len(refused)) == (1, 3)
        took[0].release()
        assert not list(folder.glob("*")), "nothing is left over"


@pytest.mark.usefixtures("impatient")
def test_a_start_that_died_as_it_took_over_is_no_hindrance(folder: Path, mine: RunLock) -> None:
    folder.mkdir(parents=True)
    dead = of_another_machine(**MINE, process=NOBODYS)
    (folder / "lock.json").write_bytes(dead)
    (folder / f"lock-{sha256(dead).hexdigest()[:16]}.partial").touch()
    assert mine.acquire(within=20)
    assert names_in(folder) == ["lock.json", "owner.json"]


def test_a_start_that_is_taking_over_is_given_its_time(folder: Path, mine: RunLock) -> None:
    folder.mkdir(parents=True)
    dead = of_another_machine(**MINE, process=NOBODYS)
    (folder / "lock.json").write_bytes(dead)
    claim = folder / f"lock-{sha256(dead).hexdigest()[:16]}.partial"
    claim.touch()
    taking = threading.Thread(target=mine.acquire)
    taking.start()
    taking.join(1)
    assert taking.is_alive(), "it waits for the other"
    assert (folder / "lock.json").read_bytes() == dead
    claim.unlink()
    taking.join()
    assert Holder.decode((folder / "lock.json").read_bytes()) == mine._me


def test_silence_is_what_looks_have_seen() -> None:
    """Storage that stands still for an hour keeps the holder from writing too: that counts as one look."""
    now = [0.0]
    watch = Watch(clock=lambda: now[0])

    def look(at: float, content: bytes) -> tuple[bool, float]:
        now[0] = at
        return watch.look(content), watch.silent

    assert look(100, b"a") == (False, 0)
    assert look(100.5, b"a") == (False, 0.5)
    assert look(3700, b"a") == (False, 1.5)
    assert look(3700.2, b"b") == (True, 0)
    assert look(3701, b"b") == (False, pytest.approx(0.8))


def test_who_can_be_looked_up() -> None:
    me = Holder.myself(None)
    assert me.lives() is True
    assert me.space is not None
    boot, space = me.space.split()
    for changed in ({"space": f"{boot[:-1]}x {space}"}, {"space": f"{boot} pid:[1]"}, {"host": "its clone"}):
        assert replace(me, **changed).lives() is None, changed
    assert replace(me, process=NOBODYS).lives() is False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_users_process_lives() -> None:
    """It may be seen, but not be signalled."""
    root = Holder.myself(None)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        os._exit(42 if root.lives() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def test_a_sign_of_life_that_fails_is_not_the_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that was away for a moment."""
    monkeypatch.setattr(timing, "BEAT_SECONDS", 0.02)
    signs, write = [], RunLock._write

    def failing_at_first(self: RunLock, file: int) -> None:
        signs.append(file)
        if len(signs) in (2, 3):
            raise OSError(errno.EIO, "away")
        write(self, file)

    monkeypatch.setattr(RunLock, "_write", failing_at_first)
    one = RunLock(folder)
    one.acquire()
    until(lambda: len(signs) > 4)
    one.release()
    assert not folder.exists()


def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunLock, file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunLock, "_write", full)
    with (
        pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"),
        holding(RunLock(folder), patience=1),
    ):
        pass
    assert not folder.parent.exists()


def test_it_is_given_back_where_ranks_do_not_agree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank dies, or gets no answer, at the moment when rank 0 has taken the lock."""

    def lost(produce: Callable[[], bool]) -> bool:
        assert produce()
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(collective.sync, "from_rank_0", lost)
    with pytest.raises(RuntimeError, match="closed by peer"), holding(RunLock(folder), patience=1):
        pass
    assert not folder.exists()


def test_a_holder_that_stood_still_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspended for so long that another has taken over, it learns of it and keeps its hands off."""
    monkeypatch.setattr(timing, "BEAT_SECONDS", 0.02)
    lost = threading.Event()
    said: list[str] = []
    first = RunLock(folder, on_loss=lambda reason, same: (said.append(reason), lost.set()))
    first.acquire()
    others = of_another_machine(process=77)
    os.replace(write(folder / "other", others), folder / "lock.json")
    assert lost.wait(30)
    assert "taken over by process 77 on elsewhere" in said[0]
    first.release()
    assert (folder / "lock.json").read_bytes() == others


@in_a_container
@pytest.mark.usefixtures("impatient")
def test_a_suspended_holder_learns_that_another_has_been_there(folder: Path, held: Start, mine: RunLock) -> None:
    """The other is gone when the first wakes: there is no lock any more, and the folder is not its own."""
    container = held(*CONTAINER)
    inside = runs.children(container.pid)[0]
    os.kill(inside, signal.SIGSTOP)
    assert mine.acquire()
    (folder / "summary.json").touch()
    mine.release()
    assert names_in(folder) == ["owner.json", "summary.json"]
    os.kill(inside, signal.SIGCONT)
    out, _ = container.communicate("\n")
    assert f"was taken over by process {os.getpid()} on" in out
    assert names_in(folder) == ["owner.json", "summary.json"]


@pytest.mark.parametrize("kind", ["missing", "garbled", "link", "pipe", "copy", "owner missing", "owner garbled"])
def test_a_spoilt_lock_is_mended_by_its_holder(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It does not take its own for another's."""
    monkeypatch.setattr(timing, "BEAT_SECONDS", 0.02)
    one = RunLock(folder, on_loss=lambda reason, same: pytest.fail(reason))
    one.acquire()
    path = folder / ("owner.json" if "owner" in kind else "lock.json")
    content = path.read_bytes()
    path.unlink()
    if "garbled" in kind:
        path.write_bytes(b"{" * 100_000)
    elif kind == "link":
        path.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "copy":
        path.write_bytes(content)
    until(lambda: not path.is_symlink() and path.is_file() and Holder.decode(path.read_bytes()) == one._me)

    def is_held_open() -> bool:
        with contextlib.suppress(OSError):  # It may be between two files.
            return one._is_my_file()
        return False

    until(is_held_open)
    one.require()
    one.release()
    assert not folder.exists()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["dangling link", "link", "pipe", "device", "gigabytes", "claim"])
def test_things_that_are_no_lock_are_no_hindrance(folder: Path, mine: RunLock, tmp_path: Path, kind: str) -> None:
    """Nothing spins, waits for ever, fills the memory, or is written through a link."""
    folder.mkdir(parents=True)
    (tmp_path / "others").write_text("kept")
    path = folder / "lock.json"
    if "link" in kind or kind == "device":
        path.symlink_to({"link": tmp_path / "others", "device": "/dev/zero"}.get(kind, "nowhere"))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "gigabytes":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.write_bytes(of_another_machine(**MINE, process=NOBODYS))
        (folder / f"lock-{sha256(path.read_bytes()).hexdigest()[:16]}.partial").mkdir()
    mine.require_free(within=0.5)
    assert mine.acquire()
    assert names_in(folder) == ["lock.json", "owner.json"]
    assert (tmp_path / "others").read_text() == "kept"


def test_a_full_folder_under_a_claims_name_is_said(
    folder: Path, mine: RunLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "STALE_SECONDS", 0.3)
    folder.mkdir(parents=True)
    dead = of_another_machine(**MINE, process=NOBODYS)
    (folder / "lock.json").write_bytes(dead)
    (folder / f"lock-{sha256(dead).hexdigest()[:16]}.partial" / "notes").mkdir(parents=True)
    with pytest.raises(UserError, match=r"lock-\w+\.partial: is a folder; remove it, or set name="):
        mine.acquire()


def test_storage_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """A folder that is missing may come back: it is made anew after a while, if it was not a file system of its own."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    now = [0.0]
    storage = StorageCheck(tmp_path / "runs" / "a", clock=lambda: now[0])
    storage.remember()
    storage.require(30)
    (tmp_path / "runs").rename(tmp_path / "away")
    for seconds in (0, 20, 30):
        now[0] = seconds
        with pytest.raises(OSError, match="is gone, or its storage is away"):
            storage.require(30)
    now[0] = 31
    storage.require(30)
    (tmp_path / "away").rename(tmp_path / "runs")
    storage.require(30)
    storage._device = -1
    (tmp_path / "runs").rename(tmp_path / "away")
    for seconds in (100, 1000):
        now[0] = seconds
        with pytest.raises(OSError, match="is gone"):
            storage.require(30)


def test_a_removed_folder_comes_back_with_its_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user has removed it while the run goes on: its next checkpoint makes it anew."""
    monkeypatch.setattr(timing, "BEAT_SECONDS", 0.02)
    one = RunLock(folder, on_loss=lambda reason, same: pytest.fail(reason))
    one.acquire()
    shutil.rmtree(folder)
    folder.mkdir(parents=True)
    until(lambda: (folder / "lock.json").exists() and (folder / "lock.json").stat().st_size > 0)
    with pytest.raises(UserError, match="in use"):
        RunLock(folder).acquire()
    one.release()
    assert not (folder / "lock.json").exists()


def test_signs_of_life_change_no_length(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader at any moment sees a whole lock."""
    monkeypatch.setattr(timing, "BEAT_SECONDS", 0.001)
    one = RunLock(folder)
    one.acquire()
    sizes, signs = set(), set()

    def seen() -> bool:
        content = (folder / "lock.json").read_bytes()
        sizes.add(len(content))
        signs.add(json.loads(content)["alive"])
        return len(signs) > 1

    until(seen)
    one.release()
    assert len(sizes) == 1


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(UserError, match="not a folder; set name= or runs="):
            RunLock(folder).acquire()
    with pytest.raises(UserError, match=r"cannot be written \(.*\); set runs= to a folder that can"):
        RunLock(Path("/proc/runs/a")).acquire()
    (tmp_path / "a" / "lock.json").mkdir(parents=True)
    for act in (RunLock(tmp_path / "a").acquire, lambda: RunLock(tmp_path / "a").require_free(0)):
        with pytest.raises(UserError, match=r"lock.json: is a folder; remove it, or set name="):
            act()


def test_a_release_leaves_what_is_there(folder: Path, mine: RunLock) -> None:
    one = RunLock(folder)
    one.acquire()
    (folder / "metrics.jsonl").touch()
    one.release()
    one.release()
    one.require()  # A save that is still being written is the last owner's.
    assert names_in(folder) == ["metrics.jsonl", "owner.json"], "and who had it last"
    assert mine.acquire()
    with pytest.raises(LostError):
        one.require()


def test_a_second_start_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """dist_train.py, for real: one line, exit code 2, with --check as without."""
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 100_000}, log={"progress": "lines"})
    path = runs.write_config(tmp_path, settings)
    first = runs.start([sys.executable, "dist_train.py", "--config", path])
    try:
        assert first.stderr is not None
        until(lambda: first.stderr.readline().startswith("epoch 1/"))
        for more in (["--overwrite"], ["--resume", "auto", "--check"]):
            second = runs.dist_train("--config", path, *more)
            assert second.returncode == 2
            assert second.stderr.startswith(f"error: {settings.folder} is in use by process {first.pid} on ")
            assert second.stderr.count("\n") == 1
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=100)
        assert first.returncode == 75
    finally:
        runs.kill(first)
    assert not (settings.folder / "lock.json").exists()
    again = runs.dist_train("--config", path, "--resume", "auto", "--check")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("check passed: a start would resume from ")


def test_a_run_whose_folder_is_taken_ends_and_writes_nothing(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 100_000}, log={"progress": "lines"})
    first = runs.start([sys.executable, "dist_train.py", "--config", runs.write_config(tmp_path, settings)])
    try:
        assert first.stderr is not None
        until(lambda: first.stderr.readline().startswith("epoch 1/"))
        os.replace(write(tmp_path / "other", of_another_machine(process=77)), settings.folder / "lock.json")
        _, said = first.communicate(timeout=100)
    finally:
        runs.kill(first)
    assert first.returncode == 1
    assert f"error: {settings.folder} was taken over by process 77 on elsewhere" in said
    assert not (settings.folder / "summary.json").exists()
    assert (settings.folder / "lock.json").exists()


@pytest.mark.parametrize("moment", ["it makes the lock", "it removes a dead one's", "it gives the lock back"])
def test_another_comes_while_it_stands_still_as(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str, mine: RunLock
) -> None:
    """It stands still between a look and the act that follows. The other keeps its lock and its folder."""
    monkeypatch.setattr(timing, "STALE_SECONDS", 0.5)
    first = RunLock(folder)
    first._me = replace(first._me, host="elsewhere", space="its own")  # Seen from there it can only be watched.
    acts: dict[str, tuple[Any, str]] = {
        "it makes the lock": (RunLock, "_own"),
        "it removes a dead one's": (lock_file, "take_away"),
        "it gives the lock back": (RunLock, "_unlock"),
    }
    owner, name = acts[moment]
    act = getattr(owner, name)

    def stand_still(*arguments: Any) -> Any:
        monkeypatch.undo()
        monkeypatch.setattr(timing, "STALE_SECONDS", 0.5)
        assert mine.acquire()
        return act(*arguments)

    folder.mkdir(parents=True)
    if moment == "it gives the lock back":
        first.acquire()
        monkeypatch.setattr(owner, name, stand_still)
        first.release()
    else:
        if moment == "it removes a dead one's":
            (folder / "lock.json").write_bytes(of_another_machine(**MINE, process=NOBODYS))
        monkeypatch.setattr(owner, name, stand_still)
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            first.acquire()
    for path in folder.iterdir():
        assert Holder.decode(path.read_bytes()) == mine._me, path
    assert names_in(folder) == ["lock.json", "owner.json"]
    mine.require()


IMPATIENT = """
import sys
from dynsparse.training.run import timing
timing.BEAT_SECONDS, timing.STALE_SECONDS = 0.1, 1.0
from dynsparse.cli.main import train
train(sys.argv[1:], "dist_train.py")
"""


@pytest.mark.slow
@in_a_container
def test_a_suspended_run_leaves_the_one_that_took_its_place_alone(tmp_path: Path) -> None:
    """The other has finished since: no checkpoint, no summary and no line of its logs is overwritten."""
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 100_000}, log={"progress": "lines"})
    command = [sys.executable, "-c", IMPATIENT, "--config", runs.write_config(tmp_path, settings), "--resume", "auto"]
    first = runs.start([*CONTAINER, *command])
    try:
        assert first.stderr is not None
        until(lambda: first.stderr.readline().startswith("epoch 1/"))
        inside = runs.children(first.pid)[0]
        os.kill(inside, signal.SIGSTOP)
        epochs = len([line for line in runs.metrics(settings.folder) if line["kind"] == "epoch"]) + 3
        second = runs.start([*command, f"train.epochs={epochs}"])
        try:
            _, said = second.communicate(timeout=100)
        finally:
            runs.kill(second)
        assert second.returncode == 0, said
        assert runs.summary(settings.folder)["status"] == "done"
        before = {path: path.read_bytes() for path in settings.folder.rglob("*") if path.is_file()}
        os.kill(inside, signal.SIGCONT)
        _, said = first.communicate(timeout=100)
    finally:
        runs.kill(first)
    assert first.returncode == 1
    assert f"error: {settings.folder} was taken over by process {second.pid} on" in said
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in settings.folder.rglob("*") if path.is_file()} == before


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def until(ready: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "never so"
