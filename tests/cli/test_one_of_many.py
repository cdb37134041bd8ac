"""`--rehearse`: one of many workers, on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynsparse.cli.actions.one_of_many import MEMORY, lines
from dynsparse.cli.asking import action_of
from dynsparse.cli.options import parse
from dynsparse.distributed.rehearsing import Sent
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.rehearsal import Rehearsal
from tests.training import runs


def test_a_table_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = runs.config(runs=str(tmp_path / "runs"), name="a", train={"global_batch_size": 64})
    path = runs.write_config(tmp_path, settings)
    action = action_of(parse(["--config", str(path), "--rehearse", "3/16"], "dist_train.py"))
    action.run(Worker())
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "worker 3 of 16, alone on this machine: no message was sent"
    numbers = [line.split(" | ")[1].split(", ") for line in said if line.startswith("| its first samples, ")]
    assert list(map(len, numbers)) == [4, 4], "four samples in each of two epochs"
    assert "| samples of each global batch | 4 of 64 (places 12 to 15); each worker 4 |" in said
    assert "| connections of gloo | 15 |" in said
    assert not (tmp_path / "runs").exists()


def test_all_lines() -> None:
    found = Rehearsal(
        rank=0,
        world_size=1024,
        global_batch=2050,
        share=((0, 1), (1, 1)),
        fewest=2,
        most=3,
        steps_per_epoch=1250,
        samples=(tuple(range(100, 109)), (7, 5)),
        memory={"weights": 102_000_000, "average": 0},
        activations="the network does not run on shapes alone (no)",
        step=(Sent("send", 24), Sent("send", 24), Sent("all_reduce", 1_500)),
        gradients={"active": 1_500, "dense": 2_000_000_000},
        chosen="auto",
        event=(Sent("broadcast", 2640),),
        event_step=1000,
        state=268_870,
    )
    assert lines(found) == [
        "worker 0 of 1,024, alone on this machine: no message was sent",
        MEMORY,
        "",
        "| what | size |",
        "| --- | --- |",
        "| samples of each global batch | 2 of 2,050 (places 0 to 0, 1 to 1); workers 2 to 3 |",
        "| its first samples, first epoch | 100, 101, 102, 103, 104, 105, 106, 107, ... |",
        "| its first samples, second epoch | 7, 5 |",
        "| steps of an epoch | 1,250 |",
        "| memory: weights | 102 MB |",
        "| memory: kept by a forward pass | cannot be counted: the network does not run on shapes alone (no) |",
        "| gradients of a step, active | 1.5 kB |",
        "| gradients of a step, all | 2 GB |",
        "| distributed.gradients | auto, here as active |",
        "| a step without an event | 2 x send (48 bytes), 1 x all_reduce (1.5 kB) |",
        "| an event | first at step 1,000 |",
        "| its plan | 2.64 kB |",
        "| a step with an event | 1 x broadcast (2.64 kB) |",
        "| a save | 269 kB to worker 0, which gets 275 MB |",
        "| connections of gloo | 1,023 |",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rehearse", "1"], "argument --rehearse: is '1'; WORLD must be 2 to 4,096"),
        (["--rehearse", "5000"], "argument --rehearse: is '5000'; WORLD must be 2 to 4,096"),
        (
            ["--rehearse", "4/4"],
            "argument --rehearse: is '4/4'; it must be WORLD or RANK/WORLD, such as 1024 or 3/1024",
        ),
        (
            ["--rehearse", "all"],
            "argument --rehearse: is 'all'; it must be WORLD or RANK/WORLD, such as 1024 or 3/1024",
        ),
        (["--rehearse", "8", "--dry-run"], "argument --dry-run: not allowed with argument --rehearse"),
        (["--rehearse", "8", "--resume", "auto"], "argument --rehearse: not allowed with argument --resume"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path) -> None:
    path = runs.write_config(tmp_path, runs.config(runs=str(tmp_path), name="a"))
    with pytest.raises(UserError, match="argument") as raised:
        action_of(parse(["--config", str(path), *words], "dist_train.py"))
    assert str(raised.value).startswith(message)


def test_a_batch_too_small_and_torchrun_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", train={"global_batch_size": 64})
    action = action_of(parse(["--config", str(runs.write_config(tmp_path, settings)), "--rehearse", "65"], "x"))
    problems = []
    for rule in action.rules(Worker(0, 2, under_torchrun=True)):
        try:
            rule()
        except UserError as error:
            problems.append(str(error))
    assert problems[0] == "--rehearse is for one process; start it without torchrun"
    assert "train.global_batch_size is 64" in problems[1]
