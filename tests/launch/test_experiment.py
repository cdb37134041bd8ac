"""The paper's lists of experiments, and running jobs of a list."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dynsparse.cli import train
from dynsparse.cli.experiments import command, launching
from dynsparse.cli.experiments.jobs import read_jobs
from dynsparse.cli.experiments.listed import Experiments, Options, sparsity
from dynsparse.config.schema import RunConfig
from dynsparse.errors import StopRequested, UserError
from dynsparse.training.network import require_layers
from dynsparse.training.trainer import Trainer
from tests.training import runs

SCRIPT = runs.ROOT / "launch/experiment.sh"
LISTS = {name: runs.ROOT / f"configs/experiments/{name}.yaml" for name in ("resnet", "wrnet")}

# -- the paper's lists -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper() -> dict[str, Experiments]:
    return {name: Experiments(str(path), read_jobs(str(path)), Options()) for name, path in LISTS.items()}


def raw(name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = yaml.safe_load(LISTS[name].read_text())
    return entries


def test_the_lists_hold_the_papers_jobs(paper: dict[str, Experiments]) -> None:
    """Facts of the paper's own lists, restated."""
    assert list(paper["resnet"].jobs) == list(range(21))
    assert list(paper["wrnet"].jobs) == list(range(83))
    groups = Counter(entry["group"].split(".")[0][:54] for entry in raw("wrnet"))
    assert groups == {
        "Baseline dense model training": 1,
        "Pruning from full model experiments": 5,
        "dynamic sparse": 5,
        "static sparse": 5,
        "equivalent size thin and dense network": 5,
        "DeepR": 5,
        "SET": 5,
        "Dynamic sparse with 3x3 kernel slice re-allocation gra": 5,
        "hash nets": 5,
        "Dynamic sparse with parameter re-allocation stopped mi": 38,
        "Static sparse but with structure copied from trained d": 4,
    }
    assert Counter(entry["group"][:20] for entry in raw("resnet")) == {
        "Baseline dense model": 1,
        "Thin dense model": 2,
        "dynamic sparse": 2,
        "Hash nets": 2,
        "static sparse": 2,
        "Prune from dense mod": 2,
        "DeepR": 2,
        "SET": 2,
        "Dynamic sparse with ": 2,
        "Static sparse but wi": 4,
    }


def test_some_full_rows() -> None:
    wrnet, resnet = raw("wrnet"), raw("resnet")
    common = {"model": "cifar10_WideResNet", "initial-sparsity-fc": 0, "widen-factor": 2, "no-validate-train": True}
    assert wrnet[6] == common | {
        "job-idx": 6,
        "group": "dynamic sparse",
        "schedule-file": "wrnet_schedule.yaml",
        "initial-sparsity-conv": 0.9,
        "weight-decay": 5e-4,
        "sub-kernel-granularity": 4,
        "epochs": 200,
        "rewire": True,
        "threshold-prune": True,
        "n-prune-params": 20000,
        "rewire-scaling": True,
        "stop-rewire-epoch": 190,
    }
    assert wrnet[1] == common | {
        "job-idx": 1,
        "group": "Pruning from full model experiments",
        "schedule-file": "wrnet_prune_schedule.yaml",
        "initial-sparsity-conv": 0,
        "sub-kernel-granularity": 4,
        "resume": "runs/cifar10_WideResNet_0",
        "prune-target-sparsity-fc": 0,
        "prune-target-sparsity-conv": 0.9,
        "prune-iterations": 20,
        "post-prune-epochs": 10,
        "prune": True,
        "start-pruning-after-epoch": 0,
        "cubic-prune-schedule": True,
    }
    assert resnet[16] == {
        "job-idx": 16,
        "group": "DeepR",
        "model": "imagenet_resnet50",
        "schedule-file": "resnet_schedule.yaml",
        "initial-sparsity-fc": 0.9,
        "initial-sparsity-conv": 0.9,
        "batch-size": 256,
        "widen-factor": 1,
        "no-validate-train": True,
        "sub-kernel-granularity": 4,
        "stop-rewire-epoch": 95,
        "DeepR": True,
        "DeepR_eta": 0.01,
        "L1-loss-coeff": 1e-5,
    }
    assert [row["rewire-fraction"] for row in wrnet[26:31]] == [0.138, 0.07, 0.046, 0.034, 0.028]
    assert [resnet[number]["rewire-fraction"] for number in (7, 17)] == [0.089, 0.14]
    assert [row["widen-factor"] for row in wrnet[16:21]] == [0.75, 0.98, 1.15, 1.33, 1.47]
    assert [resnet[number]["widen-factor"] for number in (1, 11)] == [0.54, 0.46]
    assert [row["stop-rewire-epoch"] for row in wrnet[41:79:2]] == list(range(190, 0, -10))
    assert [row["initial-sparsity-conv"] for row in wrnet[41:79]] == [0.9, 0.8] * 19


def test_every_job_is_a_config_with_layers(paper: dict[str, Experiments]) -> None:
    """Each of the 104 passes the checks of --dry-run; each different network is built once."""
    built: dict[str, RunConfig] = {}
    methods: Counter[str] = Counter()
    for listed in paper.values():
        for job in listed.jobs.values():
            config = listed.config(job)
            methods[config.method.name] += 1
            built.setdefault(repr((config.model, config.sparsity.granularity)), config)
    assert methods == {"dense": 9, "dsr": 52, "static": 15, "tied": 7, "pruning": 7, "deepr": 7, "set": 7}
    for config in built.values():
        require_layers(config)
    assert len(built) == 11


def test_what_the_jobs_mean(paper: dict[str, Experiments]) -> None:
    resnet, wrnet = paper["resnet"], paper["wrnet"]
    job = resnet.config(resnet.jobs[5])
    assert (job.train.epochs, job.method.name, job.start.weights_from) == (49, "pruning", "runs/imagenet_resnet50_0")
    job = wrnet.config(wrnet.jobs[81])
    assert (job.start.weights_from, job.start.masks_from) == (
        "runs/cifar10_WideResNet_6_initial",
        "runs/cifar10_WideResNet_6",
    )
    assert (job.method.name, job.sparsity.conv, job.train.epochs) == ("static", 0.9, 400)
    assert [sparsity(wrnet.config(wrnet.jobs[number])) for number in (0, 1, 6, 16)] == ["0", "0.9", "0.9", "0"]
    assert all(
        str(other.config(job).folder) == f"runs/{job.run_name}"
        for other in (resnet, wrnet)
        for job in other.jobs.values()
    )


@pytest.mark.parametrize(
    ("name", "number"), [("wrnet", 36), pytest.param("wrnet", 81, marks=pytest.mark.slow), ("resnet", 5)]
)
def test_a_dry_run_as_a_process(paper: dict[str, Experiments], name: str, number: int, tmp_path: Path) -> None:
    listed = Experiments(str(LISTS[name]), paper[name].jobs, Options(overrides=(f"runs={tmp_path}",), dry_run=True))
    result = runs.dist_train(*listed.arguments(listed.jobs[number]))
    assert result.returncode == 0, result.stderr
    assert not [line for line in result.stderr.splitlines() if line.startswith(("warning", "error"))]
    assert "whole model" in result.stdout
    assert ("is not there yet" in result.stdout) == (number != 36)
    assert not list(tmp_path.iterdir())


# -- a list of small jobs --------------------------------------------------------------------------

DENSE = {"initial-sparsity-conv": 0, "initial-sparsity-fc": 0}
SMALL: list[dict[str, Any]] = [
    {"job-idx": 0, "group": "dense", "epochs": 1, "no-validate-train": True, **DENSE},
    {"job-idx": 1, "group": "pruned", "prune": True, "resume": "runs/mnist_mlp_0", "start-pruning-after-epoch": 0}
    | {"post-prune-epochs": 1, "prune-target-sparsity-fc": 0.8, "no-validate-train": True},
    {"job-idx": 2, "group": "moving", "epochs": 2, "rewire": True, "threshold-prune": True}
    | {"initial-sparsity-fc": 0.9, "batch-size": 100, "no-validate-train": True},
    {"job-idx": 3, "group": "copied", "epochs": 1, "initial-sparsity-fc": 0.9, "no-validate-train": True}
    | {"copy-mask-from": "runs/mnist_mlp_2", "resume": "runs/mnist_mlp_2_initial"},
    {"job-idx": 5, "group": "foreign", "epochs": 1, "copy-mask-from": "elsewhere/run_initial"},
]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL, sort_keys=False))
    return path


class Here:
    """Runs jobs in this process instead of through launch/local.sh."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runs_folder: Path) -> None:
        self.monkeypatch = monkeypatch
        self.rest = ["--", "data={name: digits, threads: 1}", "log.progress=none", f"runs={runs_folder}"]
        self.commands: list[list[str]] = []

    def launch(self, command: list[str]) -> int:
        launcher, words = command[:4], command[5:]
        assert launcher == ["bash", str(runs.ROOT / "launch/local.sh"), "--workers", "auto"]
        self.commands.append(words)
        return train.main(words)

    def __call__(self, *words: Any) -> int:
        self.commands.clear()
        return command.main([*map(str, words), *self.rest])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Here]:
    handlers = {number: signal.getsignal(number) for number in launching.FORWARDED}
    caller = Here(monkeypatch, tmp_path / "runs")
    monkeypatch.setattr(launching, "launch", caller.launch)
    yield caller
    for number, handler in handlers.items():
        signal.signal(number, handler)


def states(output: str) -> dict[str, str]:
    """The state of each job, from what --list prints."""
    head, *lines = output.splitlines()
    start, end = head.index("state"), head.index("needs")
    return {line.split()[0]: line[start:end].strip() for line in lines}


def fail_in_the_second_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.train_step

    def failing(self: Trainer, batches: Any) -> Any:
        if self.progress.epoch == 1:
            raise KeyError("as if the power failed")
        return step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", failing)


def test_from_the_first_job_to_the_last(
    small: Path, here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert here(small, "--list") == 0
    out = capsys.readouterr().out
    assert states(out) == {
        "0": "not begun",
        "1": "needs job 0",
        "2": "not begun",
        "3": "needs job 2",
        "5": "needs elsewhere/run",
    }
    assert out.splitlines()[2].split() == ["1", "0.8", "needs", "job", "0", "job", "0", "pruned"]

    assert here(small, 1) == 2
    assert capsys.readouterr().err == "error: job 1 needs job 0 to be done; run that first\n"
    assert here(small, 5) == 2
    assert capsys.readouterr().err == "error: job 5 needs elsewhere/run to be done; run that first\n"
    assert not here.commands

    assert here(small, 0) == 0
    assert runs.summary(tmp_path / "runs/mnist_mlp_0")["status"] == "done"
    capsys.readouterr()
    assert here(small, 0) == 0
    assert (
        capsys.readouterr().out
        == f"job 0: done already, see {tmp_path}/runs/mnist_mlp_0; -- --overwrite runs it anew\n"
    )
    assert not here.commands

    with pytest.MonkeyPatch.context() as patch:
        fail_in_the_second_epoch(patch)
        assert here(small, "0-1", 2, 3) == 1
        assert "job 1 ended with code 1; not run: 2 3\n" in capsys.readouterr().err
        assert here(small, 2, 3) == 1
        capsys.readouterr()
    assert here(small, "--list") == 0
    assert states(capsys.readouterr().out) == {
        "0": "done",
        "1": "part done",
        "2": "part done",
        "3": "needs job 2",
        "5": "needs elsewhere/run",
    }
    assert here(small, 3) == 2, "half of job 2 is not enough"

    caplog.clear()
    assert here(small, "0-3") == 0
    assert [words[words.index("--job-idx") + 1] for words in here.commands] == ["1", "2", "3"]
    for number in (1, 2):
        folder = tmp_path / f"runs/mnist_mlp_{number}"
        assert f"resuming from {folder}/checkpoints/step-000000014.pt (step 14)" in caplog.text
        summary = runs.summary(folder)
        assert (summary["status"], summary["epochs"]) == ("done", 2)
    pruned, moving, copied = (runs.summary(tmp_path / f"runs/mnist_mlp_{number}") for number in (1, 2, 3))
    assert pruned["sparsity"] == pytest.approx(0.8, abs=0.001)
    assert copied["mask_digest"] == moving["mask_digest"]


def stop_in_the_second_epoch_of_job_2(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.train_step

    def stopping(self: Trainer, batches: Any) -> Any:
        if self.progress.epoch == 1 and self.config.run_name == "mnist_mlp_2":
            raise StopRequested
        return step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", stopping)


def test_a_list_that_overwrites_says_how_it_goes_on(
    small: Path, here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The very words are run: what the jobs have done stays, and those after them replace their older runs."""
    caplog.set_level("INFO")
    assert here(small, 0, 2, 3) == 0
    rest = list(here.rest)
    here.rest = [*rest, "--overwrite"]
    with pytest.MonkeyPatch.context() as patch:
        stop_in_the_second_epoch_of_job_2(patch)
        assert here(small, 0, 2, 3) == 75
    last = capsys.readouterr().err.splitlines()[-1]
    script = os.path.relpath(SCRIPT)
    resume, anew = [script, str(small), "2", *rest], [script, str(small), "3", *rest, "--overwrite"]
    said = f"{shlex.join(resume)} && {shlex.join(anew)}"
    assert last == f"job 2 was stopped; not run: 3; this goes on: {said}"
    first = (tmp_path / "runs/mnist_mlp_0/history.jsonl").read_bytes()
    caplog.clear()
    for line in said.split(" && "):
        assert command.main(shlex.split(line)[1:]) == 0
    assert f"resuming from {tmp_path}/runs/mnist_mlp_2/checkpoints/step-000000014.pt (step 14)" in caplog.text
    assert (tmp_path / "runs/mnist_mlp_0/history.jsonl").read_bytes() == first
    copied = (tmp_path / "runs/mnist_mlp_3/history.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in copied] == ["start", "end"], "begun anew"


@pytest.mark.parametrize("begun", [True, False], ids=["in the run", "before it"])
@pytest.mark.parametrize("code", [2, 75, 1])
def test_what_is_left_of_a_list_that_overwrites(
    small: Path, here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: bool, code: int
) -> None:
    """A job that ended before it took its folder has its older run there, which is to be replaced."""
    folder = tmp_path / "runs/mnist_mlp_0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("older")

    def launch(_: list[str]) -> int:
        if begun:
            (folder / "written").write_text("this")
            (folder / "written").replace(folder / "config.yaml")
        return code

    here.monkeypatch.setattr(launching, "launch", launch)
    rest, script = list(here.rest), os.path.relpath(SCRIPT)
    here.rest = ["--workers", "2", *rest, "--overwrite"]
    assert here(small, 0, 2) == code
    head = [script, str(small)]
    tail = ["--workers", "2", *rest]
    again = [[*head, "0", *tail], [*head, "2", *tail, "--overwrite"]] if begun else [[*head, "0", "2", *here.rest]]
    said = " && ".join(map(shlex.join, again))
    endings = {2: f"has bad input; not run: 2; mend it: this goes on: {said}", 1: "ended with code 1; not run: 2"}
    ending = endings.get(code, f"was stopped; not run: 2; this goes on: {said}")
    assert capsys.readouterr().err.splitlines()[-1] == f"job 0 {ending}"


def test_the_command_of_a_job(small: Path, tmp_path: Path) -> None:
    """Settings after -- replace those of the list. Runs that a job needs are found where runs are."""
    jobs = read_jobs(str(small))
    options = Options.parse(["--epochs", "9", "runs=/there", "sparsity.fc=0.7", "-j", "2"], dry_run=False)
    listed = Experiments(str(small), jobs, options)
    assert listed.arguments(jobs[3]) == [
        *["--job-idx", "3", "--epochs", "1", "--no-validate-train"],  # and not --initial-sparsity-fc
        *["--copy-mask-from", "/there/mnist_mlp_2", "--resume", "/there/mnist_mlp_2_initial"],
        *["--epochs", "9", "-j", "2", "runs=/there", "sparsity.fc=0.7", "--resume", "auto"],
    ]
    config = listed.config(jobs[3])
    assert (config.train.epochs, config.sparsity.fc, config.start.masks_from) == (9, 0.7, "/there/mnist_mlp_2")
    assert listed.arguments(jobs[5])[3:7] == ["1", "--copy-mask-from", "elsewhere/run_initial", "--epochs"]
    plain = Experiments(str(small), jobs, Options.parse(["--overwrite", "method={name: rigl}"], dry_run=False))
    assert plain.arguments(jobs[2])[-2:] == ["method={name: rigl}", "--overwrite"]
    assert "--rewire" not in plain.arguments(jobs[2])
    assert plain.config(jobs[2]).method.name == "rigl"
    assert Experiments("", jobs, Options(dry_run=True)).arguments(jobs[0])[-1] == "--dry-run"


def test_a_dry_run_needs_nothing_and_leaves_nothing(
    small: Path, here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(small, "--dry-run", 1, 3) == 0
    out = capsys.readouterr().out
    assert out.count("whole model") == 2
    assert f"start.weights_from: {tmp_path}/runs/mnist_mlp_0 is not there yet" in out
    assert not (tmp_path / "runs").exists()


BAD_CALLS: list[tuple[list[str], str]] = [
    (["nowhere.yaml", "1"], "list nowhere.yaml: cannot be read (No such file or directory); give a YAML file such as"),
    (["SMALL"], "no job to run; give numbers, such as 3 5-8, or --list"),
    (["SMALL", "4"], "SMALL has no job 4; it has 0 to 5, see --list"),
    (["SMALL", "2-9"], "SMALL has no job 4; it has 0 to 5, see --list"),
    (["SMALL", "3-1"], "'3-1' holds no job; the first number of a range is the lower one"),
    (["SMALL", "all"], "'all' is no job; give numbers and ranges, such as 3 5-8, or --list"),
    (["SMALL", "-1"], "'-1' is no job"),
    (["SMALL", "0-9999999999"], "SMALL has no job 4; it has 0 to 5, see --list"),
    (["SMALL", "0-99999999999"], "'0-99999999999' is no job"),
    (["SMALL", "9" * 5000], "'9999"),
    (["$NOT_SET/a.yaml", "1"], "argument LIST: is '$NOT_SET/a.yaml'; the variable NOT_SET is not set"),
    (["SMALL", "0", "--", "runs=$NOT_SET"], "SMALL: job 0: command line: runs: is '$NOT_SET'; the variable NOT_SET is"),
    (["SMALL", "--list", "--", "runs=$NOT_SET"], "SMALL: job 0: command line: runs: is '$NOT_SET'; the variable"),
    (["SMALL", "1", "--", "name=x"], "job 1 would be x; it must be mnist_mlp_1: set runs= instead"),
    (["SMALL", "1", "--", "--resume", "x"], "unrecognized arguments: --resume"),
    (["SMALL", "1", "--", "--config", "x"], "unrecognized arguments: --config"),
    (["SMALL", "1", "--", "sparsity.fcc=1"], "SMALL: job 1: command line: sparsity.fcc: unknown key"),
    (["SMALL", "1", "--", "--epochs", "9"], "SMALL: job 1: --epochs 9 and --prune contradict each other"),
    (["SMALL", "--rewire"], "unrecognized arguments: --rewire; see launch/experiment.sh --help"),
    ([], "the following arguments are required: LIST"),
]


@pytest.mark.parametrize(("words", "message"), BAD_CALLS, ids=[" ".join(words)[:60] for words, _ in BAD_CALLS])
def test_bad_calls(small: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([word.replace("SMALL", str(small)) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message.replace('SMALL', str(small))}")
    assert err.count("\n") == 1


def test_runs_in_a_folder_that_may_not_be_entered(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o000)
    options = Options.parse([f"runs={tmp_path}/locked"], dry_run=False)
    listed = Experiments(str(small), read_jobs(str(small)), options)
    with runs.nobody_if_root(), pytest.raises(UserError, match=r"cannot be read \(Permission denied\); set runs="):
        listed.state(listed.jobs[0])


BAD_LISTS: list[tuple[Any, list[str]]] = [
    ({"job-idx": 0}, ["FILE: holds no list of jobs; write '- {job-idx: 0, model: ..., FLAG: VALUE}' for each"]),
    ([], ["FILE: holds no list of jobs"]),
    (["text"], ["FILE: entry 1: is no mapping"]),
    ([{"model": "mnist_mlp"}], ["FILE: entry 1: job-idx is None; it must be a whole number from 0 to 2147483647"]),
    ([{"job-idx": "1"}], ["FILE: entry 1: job-idx is '1'"]),
    ([{"job-idx": 2**31}], ["FILE: entry 1: job-idx is 2147483648; it must be a whole number from 0 to 2147483647"]),
    ([{"job-idx": 10**90}], ["FILE: entry 1: job-idx is 1000000"]),
    ([{"job-idx": 1, "epochs": [1] * 9999}], ["FILE: entry 1: epochs is [1, 1, 1, 1, 1, 1"]),
    ([{"job-idx": 1, "a" * 900: 1}], ["FILE: entry 1: 'aaaaaaaaaa"]),
    ([{"job-idx": 1}, {"job-idx": 1}], ["FILE: entry 2: job-idx 1 is given twice"]),
    ([{"job-idx": 1, "rewirre": True}], ["FILE: entry 1: 'rewirre' is no flag; did you mean 'rewire'?"]),
    ([{"job-idx": 1, "rewire": "sometimes"}], ["FILE: entry 1: rewire is 'sometimes'; it is a switch: write yes"]),
    ([{"job-idx": 1, "epochs": [1]}], ["FILE: entry 1: epochs is [1]; it needs one value"]),
    ([{"job-idx": 1, "epochs": True}], ["FILE: entry 1: epochs is True; it needs one value"]),
    ([{"job-idx": 1, "epochs": 0.5, "lr": -1}], ["FILE: job 1: --epochs: is '0.5'", "FILE: job 1: --lr: is '-1'"]),
    ([{"job-idx": 1, "a": 1}, 5], ["FILE: entry 1: 'a' is no flag", "FILE: entry 2: is no mapping"]),
]


@pytest.mark.parametrize(("content", "expected"), BAD_LISTS, ids=[str(content)[:60] for content, _ in BAD_LISTS])
def test_bad_lists(tmp_path: Path, content: Any, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(content))
    assert command.main([str(path), "1"]) == 2
    lines = capsys.readouterr().err.replace(str(path), "FILE").splitlines()
    assert len(lines) == len(expected), lines
    for line, part in zip(lines, expected, strict=True):
        assert line.startswith(f"error: {part}")


def test_switches_that_are_off_and_values_that_are_booleans(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("- {job-idx: 1, rewire: no, nesterov: no, wd: 1.0e-3}\n")
    jobs = read_jobs(str(path))
    assert jobs[1].flags == {"--job-idx": "1", "--nesterov": "False", "--weight-decay": "0.001"}


def test_names_and_paths_are_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("- {job-idx: 1, group: 2019, data: 2026-11-05, copy-mask-from: 007, resume: on}\n")
    job = read_jobs(str(path))[1]
    assert job.group == "2019"
    assert job.flags == {"--job-idx": "1", "--data": "2026-11-05", "--copy-mask-from": "007", "--resume": "on"}


# -- as processes ----------------------------------------------------------------------------------


def script(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, words)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        **options,
    )


@pytest.mark.slow
def test_the_script_trains_from_anywhere(small: Path, tmp_path: Path) -> None:
    """Two workers, and runs/ where it is called."""
    rest = ["--", "data={name: digits, threads: 1}", "log.progress=none"]
    done = script("small.yaml", 0, "--workers", 2, *rest, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert runs.summary(tmp_path / "runs/mnist_mlp_0")["world_size"] == 2
    refused = script("small.yaml", "0", "3", "--workers", 2, *rest, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stdout == "job 0: done already, see runs/mnist_mlp_0; -- --overwrite runs it anew\n"
    assert refused.stderr == "error: job 3 needs job 2 to be done; run that first\n"


def pictures(folder: Path) -> Path:
    """Two classes; one training image is damaged, which only the workers find."""
    for part in ("train", "val"):
        for number in range(8):
            path = folder / part / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (30 * number, 0, 0)).save(path)
    (folder / "train/class0/0.png").write_bytes(b"no image")
    return folder


@pytest.mark.slow
def test_bad_input_is_said_once_and_ends_the_list(tmp_path: Path) -> None:
    """Bad input is not tried again, as a fault would be: the second job does not start."""
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump([{"job-idx": number, "epochs": 1, "batch-size": 4} for number in range(2)]))
    data = f"path: {pictures(tmp_path / 'images')}, image_size: 16, evaluation_resize: 16, number_of_classes: 2"
    rest = [
        "--",
        f"data={{name: imagenet, loader: torch, threads: 1, {data}}}",
        "log.progress=none",
        f"runs={tmp_path}",
    ]
    ended = script(path, "0-1", "--workers", 1, *rest)
    assert ended.returncode == 2, ended.stderr
    *_, error, last = ended.stderr.splitlines()
    assert error.startswith("error: data.path: ")
    assert ended.stderr.count("error: ") == 1
    assert last == "job 0 has bad input; not run: 1; mend it: the same command resumes"
    assert not (tmp_path / "mnist_mlp_1").exists()
    history = (tmp_path / "mnist_mlp_0/history.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in history] == ["start", "end"]


@pytest.mark.slow
def test_a_request_to_stop_ends_the_list(tmp_path: Path) -> None:
    """The job saves, the next one is not begun, and the same command resumes."""
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump([{"job-idx": number, "epochs": 500} for number in range(2)]))
    rest = ["--", "data={name: digits, threads: 1}", "log.progress=lines", f"runs={tmp_path}"]
    process = runs.start(["bash", SCRIPT, path, "0-1", "--workers", "1", *rest], PYTHON=sys.executable)
    try:
        assert process.stderr is not None
        assert any("epoch 2/500" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=200)
    finally:
        runs.kill(process)
    assert process.returncode == 75, err
    assert err.splitlines()[-1] == "job 0 was stopped; not run: 1; the same command resumes"
    assert runs.summary(tmp_path / "mnist_mlp_0")["status"] == "stopped"
    assert not (tmp_path / "mnist_mlp_1").exists()


def test_help() -> None:
    result = script("--help")
    assert result.returncode == 0
    for word in ("launch/experiment.sh LIST [N ...]", "--list", "--workers", "--dry-run", "--overwrite"):
        assert word in result.stdout


def test_a_signal_reaches_the_job_and_ends_the_list() -> None:
    """The command asks for the signal itself, once it is ready for it."""
    waits = "kill -TERM $PPID; while :; do sleep 0.05; done"
    assert launching.launch(["bash", "-c", f"trap 'exit 75' TERM; {waits}"]) == 75
    assert launching.launch(["bash", "-c", f"trap 'exit 0' TERM; {waits}"]) == 75, "done, but not those after it"
    assert launching.launch(["bash", "-c", "exit 3"]) == 3
    assert launching.launch(["bash", "-c", "kill -KILL $$"]) == 137


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)
