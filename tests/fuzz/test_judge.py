"""The judge sees each kind of failure: commands that fail on purpose, each in its own way."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forks import CONTEXT
from tests.fuzz import children
from tests.fuzz.commands import Command
from tests.fuzz.limits import Limits
from tests.fuzz.outcomes import Before, faults
from tests.fuzz.scene import Scene, Subject, build, of_file

WRITES = Command("writes", lambda rng, scene: [], writes=None, same_end=True)
READS = Command("reads", lambda rng, scene: [])
DIGESTS = {"mask_digest": "1", "weight_digest": "2"}


def finish(scene: Scene, **changed: str) -> int:
    (scene.run / "summary.json").unlink()
    (scene.run / "summary.json").write_text(json.dumps(DIGESTS | changed))
    return 0


def say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def fail_in_a_thread(scene: Scene) -> int:
    from threading import Thread

    thread = Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    return finish(scene)


def leave_a_process(scene: Scene) -> int:
    if os.fork() == 0:
        time.sleep(100)
    return finish(scene)


def close_what_watches(scene: Scene) -> int:
    os.kill(os.getpid(), signal.SIGABRT)
    return 0


def lose_checkpoints(scene: Scene) -> int:
    for path in scene.checkpoints.iterdir():
        path.unlink()
    return say("error: the disk is full", 2)


def set_one_aside(scene: Scene) -> int:
    path = scene.checkpoints / "step-000000004.pt"
    path.rename(path.with_suffix(".pt.stale"))
    return say("error: the disk is full", 2)


def write_through_a_link(scene: Scene) -> int:
    (scene.run / "link").write_text("changed")
    return finish(scene)


def make_what_a_link_names(scene: Scene) -> int:
    (scene.run / "dangling").write_text("made")
    return finish(scene)


def remove_a_stranger(scene: Scene) -> int:
    (scene.run / "notes.txt").unlink()
    return finish(scene)


PLANTED: dict[str, tuple[Callable[[Scene], object], Command, list[str]]] = {
    "success": (finish, WRITES, []),
    "bad input": (lambda scene: say("warning: a\nerror: b", 2), READS, []),
    "a checkpoint set aside": (set_one_aside, WRITES, []),
    "an exception": (lambda scene: [][0], READS, ["exit", "traceback"]),
    "an exception in a thread": (fail_in_a_thread, WRITES, ["traceback"]),
    "exit code 1": (lambda scene: say("error: x", 1), READS, ["exit"]),
    "exit code 75": (lambda scene: 75, READS, ["exit"]),
    "bad input without a word": (lambda scene: 2, READS, ["words"]),
    "bad input with a warning alone": (lambda scene: say("warning: x", 2), READS, ["words"]),
    "bad input and another line": (lambda scene: say("x\nerror: y", 2), READS, ["words"]),
    "bad input and an empty line": (lambda scene: say("error: x\n", 2), READS, ["words"]),
    "a sea of words": (lambda scene: say("error: x\n" * 50_000, 2), READS, ["words", "words"]),
    "a hang": (lambda scene: time.sleep(100), READS, ["hang"]),
    "memory, little by little": (lambda scene: [bytearray(1 << 20) for _ in iter(int, 1)], READS, ["memory"]),
    "memory": (lambda scene: len(bytearray(700 << 20)) and finish(scene), WRITES, ["memory"]),
    "a signal": (close_what_watches, READS, ["signal"]),
    "a process left": (leave_a_process, WRITES, ["process"]),
    "lost checkpoints": (lose_checkpoints, WRITES, ["lost"]),
    "a link followed": (write_through_a_link, WRITES, ["outside"]),
    "a dangling link followed": (make_what_a_link_names, WRITES, ["outside"]),
    "a stranger removed": (remove_a_stranger, WRITES, ["strangers"]),
    "a file beside the run": (lambda scene: (scene.home / "x").touch() or finish(scene), WRITES, ["outside"]),
    "a refusal to go on": (lambda scene: say("error: x", 2), WRITES, ["refused"]),
    "another end": (lambda scene: finish(scene, mask_digest="3"), WRITES, ["end"]),
    "no end": (lambda scene: (scene.run / "summary.json").unlink(), WRITES, ["summary"]),
    "a run that had ended": (lambda scene: 0, WRITES, []),
    "a write by what only reads": (lambda scene: (scene.run / "metrics.jsonl").touch(), READS, ["changed"]),
}


def judge(folder: Path, name: str) -> None:
    """Write the judge's findings to a file, in a process without other threads."""
    source = folder / "source"
    (source / "checkpoints").mkdir(parents=True)
    for step in (4, 8):
        (source / "checkpoints" / f"step-{step:09d}.pt").write_text(f"whole {step}")
    (source / "summary.json").write_text("{}")
    known = frozenset(of_file(path) for path in (source / "checkpoints").iterdir())
    subject = Subject("planted", source, "", DIGESTS, known)
    scene = build(folder / "home", subject, source)
    (scene.run / "link").symlink_to(scene.outside / "file.txt")
    (scene.run / "dangling").symlink_to(scene.outside / "made.txt")
    scene.stranger(scene.run / "notes.txt")
    act, command, _ = PLANTED[name]
    before = Before.of(scene, known, resumes=name == "a refusal to go on")
    seconds = 1 if name == "a hang" else 60
    outcome = children.run(lambda: act(scene), folder, Limits(seconds, memory=600 << 20))
    (folder / "found.json").write_text(json.dumps(faults(outcome, scene, command, before, subject)))


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str, tmp_path: Path) -> None:
    process = CONTEXT.Process(target=judge, args=(tmp_path, name))
    process.start()
    process.join()
    assert process.exitcode == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [line.partition(":")[0] for line in found] == PLANTED[name][2], found


def watch_a_sleeper(folder: Path) -> None:
    def sleep() -> None:
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(100)

    children.run(sleep, folder, Limits(100))


def test_a_command_does_not_outlive_what_watches_it(tmp_path: Path) -> None:
    process = CONTEXT.Process(target=watch_a_sleeper, args=(tmp_path,))
    process.start()
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.01)
    process.kill()
    process.join()
    while alive(int(pid.read_text())):  # Else the suite's time limit ends this test.
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Tell whether a process runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
