"""The command line: what works, and every bad input that ends in one line and exit code 2."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from dynsparse.cli import train
from dynsparse.config.schema import RunConfig
from dynsparse.training.checkpoint import read, write
from dynsparse.training.trainer import Trainer
from tests.pipelines.pictures import numbered_folder
from tests.training import runs

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Run the command line in this process: (exit code, standard output, standard error)."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run(*arguments: Any) -> tuple[Any, str, str]:
        capsys.readouterr()
        code = train.main([*map(str, arguments)], "dist_train.py")
        out, err = capsys.readouterr()
        return code, out, err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def settings(tmp_path: Path) -> RunConfig:
    return runs.config(runs=str(tmp_path / "runs"), name="a")


@pytest.fixture
def config(tmp_path: Path, settings: RunConfig) -> Path:
    return runs.write_config(tmp_path, settings)


def test_help_says_all_of_it(call: Any) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for word in ("--config", "section.key=value", "--resume auto|CKPT", "--overwrite", "--evaluate", "--dry-run", "75"):
        assert word in out


def test_print_schema_is_the_shipped_one(call: Any) -> None:
    code, out, _ = call("--print-schema")
    assert code == 0
    assert out == (runs.ROOT / "configs/schema.json").read_text()


def test_dry_run(call: Any, config: Path, settings: RunConfig) -> None:
    code, out, _ = call("--config", config, "--dry-run", "sparsity.fc=0.9", "data.path=/nowhere", "data.name=mnist")
    assert code == 2
    code, out, _ = call("--config", config, "--dry-run", "sparsity.fc=0.9", "data={name: mnist, path: /nowhere}")
    assert code == 0, "data need not be there"
    assert "24x784" in out
    code, out, _ = call("--config", config, "--dry-run", "sparsity.fc=0.9")
    assert code == 0
    assert "fc: 0.9" in out
    *_, table, dense, in_all = [part.splitlines() for part in out.split("\n\n")]
    table = [line.split() for line in table[-6:]]
    assert table == [
        ["layer", "shape", "unit", "sparsity", "active", "weights", "FLOPs"],
        ["fc1.weight", "24x36", "1", "90.05", "%", "86", "864", "172"],
        ["fc2.weight", "12x24", "1", "89.93", "%", "29", "288", "58"],
        ["fc3.weight", "10x12", "1", "90.00", "%", "12", "120", "24"],
        ["sparse", "layers", "90.02", "%", "127", "1,272", "254"],
        ["whole", "model", "83.94", "%", "219", "1,364", "254"],
    ]
    assert dense[1].split() == ["6", "biases", "and", "norms", "92", "one", "number", "an", "output"]
    assert in_all == [
        (
            "asked for 90 % zeros: the 3 sparse layers have 90.02 %, all 1,364 parameters together 83.94 %, "
            "for 92 stay dense"
        ),
        "FLOPs of an image: 254, 0.100 of the dense network's 2.54 k; of training at these densities: 0.100 of dense",
        (
            "explores about 100 % of the sparse weights in 666 events (how much each layer moves is not known before), "
            "at 1,000 steps an epoch, as the data are not looked at"
        ),
        "weight decay 0.0001: 1,364 of 1,364 parameters, in 9 of 9 tensors",
    ]
    assert not settings.folder.exists()


def passed(result: tuple[int, str, str], warning: str = "") -> str:
    """Output of --check for a start that it would not refuse."""
    code, out, err = result
    assert (code, err) == (0, warning), result
    assert out.startswith("check passed: ") and out.count("\n") == 1
    return out.removeprefix("check passed: ").rstrip("\n")


def test_check_says_what_a_start_would_refuse(call: Any, config: Path, settings: RunConfig, tmp_path: Path) -> None:
    assert passed(call("--config", config, "--check")) == f"a start would begin in {settings.folder}"
    assert not settings.folder.exists()
    code, out, err = call("--config", config, "--check", "sparsity.fc=2", "data={name: mnist, path: /nowhere}")
    assert (code, out) == (2, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error"] * err.count("\n")
    assert "sparsity.fc" in err
    code, _, err = call("--config", config, "--check", "data={name: mnist, path: /nowhere}")
    assert code == 2
    assert "/nowhere" in err and err.count("\n") == 1
    settings.folder.mkdir(parents=True)
    (settings.folder / "notes.txt").touch()
    code, _, err = call("--config", config, "--check")
    assert code == 2
    assert "exists; resume it with --resume auto" in err
    code, _, err = call("--config", config, "--check", "--overwrite")
    assert "holds no run of dynsparse and is not replaced" in err
    assert passed(call("--config", config, "--check", "--dry-run"))
    assert [path.name for path in settings.folder.iterdir()] == ["notes.txt"], "nothing is changed"


def test_train_evaluate_resume_and_overwrite(call: Any, config: Path, settings: RunConfig) -> None:
    assert call("--config", config)[0] == 0
    assert runs.summary(settings.folder)["status"] == "done"
    top1 = runs.summary(settings.folder)["test_top1"]

    checkpoint = settings.folder / "checkpoints" / "latest.pt"
    code, out, _ = call("--evaluate", checkpoint)
    assert code == 0
    assert f"top-1 {top1:.2f} %" in out

    code, _, err = call("--config", config)
    assert code == 2
    assert err.startswith(f"error: {settings.folder} exists; resume it with --resume auto")
    assert err.count("\n") == 1

    assert call("--resume", checkpoint, "train.epochs=3")[0] == 0
    assert runs.summary(settings.folder)["epochs"] == 3
    before = (settings.folder / "summary.json").read_text()
    code, out, _ = call("--config", config, "--resume", "auto")
    assert code == 0
    assert "has all 2 epochs behind it; set train.epochs= to train on" in out
    assert (settings.folder / "summary.json").read_text() == before
    (settings.folder / "summary.json").unlink()  # as if killed between the last save and the end
    assert call("--config", config, "--resume", "auto")[0] == 0
    assert runs.summary(settings.folder)["weight_digest"] in before
    assert call("--config", config, "--overwrite")[0] == 0
    assert runs.summary(settings.folder)["epochs"] == 2


def test_another_attempt_needs_the_checkpoint_no_more_that_the_launch_began_with(
    call: Any, config: Path, settings: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has saved so often since that it is not kept; the config, its changes included, is in the folder."""
    assert call("--config", config, "checkpoint.keep=1", "checkpoint.every_epochs=1")[0] == 0
    checkpoint = settings.folder / "checkpoints" / "step-000000016.pt"
    command = ("--resume", checkpoint, "train.epochs=3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    assert call(*command)[0] == 0
    assert not checkpoint.exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    code, out, err = call(*command)
    assert code == 0, err
    assert "has all 3 epochs behind it" in out
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-2")
    assert_one_line(call(*command), f"checkpoint {checkpoint}: does not exist")


def assert_one_line(result: tuple[Any, str, str], *parts: str) -> None:
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0]


def test_bad_configs(call: Any, config: Path, tmp_path: Path) -> None:
    assert_one_line(call(), "--config is missing; give a YAML file")
    assert_one_line(call("--config", tmp_path / "no.yaml"), "no.yaml: cannot be read (No such file or directory)")
    assert_one_line(call("--config", config, "sparsity.fc=1.5"), "sparsity.fc: is 1.5; input should be less than 1")
    assert_one_line(call("--config", config, "train.epoch=1"), "train.epoch: unknown key; did you mean 'epochs'?")
    assert_one_line(call("--config", config, "sparsity.exclude=[nothing]"), "'nothing' matches no")
    assert_one_line(call("--config", config, "data={name: mnist, path: /nowhere}"), "data.path: /nowhere", "download")
    assert_one_line(call("--config", config, "data.samples=5"), "global_batch_size is 12, the data set has 5 samples")
    assert_one_line(call("--config", config, "train.micro_batches=13"), "global_batch_size is 12", "take 13 or more")
    assert_one_line(
        call("--config", config, "train.micro_batches=12"), "one sample at a time", "BatchNorm needs at least"
    )
    code, _, err = call("--config", config, "--resume", "auto", "--overwrite")
    assert code == 2
    assert "--overwrite: not allowed with argument --resume" in err


def test_everything_wrong_is_listed_at_once(call: Any, config: Path) -> None:
    bad = ["train.micro_batches=13", "data={name: mnist, path: /nowhere}", "sparsity.exclude=[nothing]"]
    code, _, err = call("--config", config, *bad)
    assert code == 2
    first_words = [line.split(" ")[1] for line in err.splitlines()]
    assert first_words == ["sparsity.exclude:", "train.global_batch_size", "data.path:"]
    code, _, err = call("--config", config, "foo", "sparsity.fc=3", "trainn.x=3")
    assert code == 2
    assert err.count("error: ") == 3


def assert_refused_beforehand(call: Any, folder: Path, *arguments: Any, parts: Sequence[str]) -> None:
    """Assert that --check and a start refuse in the same line, and that --check changes nothing under `folder`."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    looked = call(*arguments, "--check")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    started = call(*arguments)
    assert_one_line(looked, *parts)
    assert_one_line(started, *parts)
    assert looked[2] == "".join(f"{line}\n" for line in started[2].splitlines() if line.startswith("error: "))


@pytest.fixture
def checkpoint(call: Any, config: Path, settings: RunConfig) -> Path:
    assert call("--config", config)[0] == 0
    return settings.folder / "checkpoints" / "latest.pt"


FRESH = [
    (["train.global_batch_size=1"], ["global_batch_size is 1: one sample at a time", "BatchNorm needs at least 2"]),
    (["train.micro_batches=7"], ["global_batch_size is 12: one sample at a time for each of 1 workers x 7 micro-"]),
    (["data.samples=5"], ["global_batch_size is 12, the data set has 5 samples", "lower it to 5 or less"]),
    (["data.validation_samples=90"], ["global_batch_size is 12, the data set has 10 samples"]),
    (["data.validation_samples=100"], ["validation_samples is 100, the training set has 100 samples"]),
    (["start.weights_from=FOLDER/nowhere", "--resume", "auto"], ["start.weights_from: checkpoint", "does not exist"]),
    (["start.weights_from=FOLDER/bad.pt"], ["start.weights_from: checkpoint", "damaged or no checkpoint"]),
    (
        ["start.weights_from=FOLDER/runs/a", "model.hidden=[24, 13]"],
        ["of another network: fc2.weight is 12x24 there"],
    ),
    (
        ["start.masks_from=FOLDER/runs/a", "sparsity.exclude=[fc3.*]"],
        ["fc3.weight is 10x12 in units of 1 there"],
    ),
    (["start.weights_from=FOLDER/runs/a", "method={name: pruning, after_epoch: 0}"], ["is sparse in fc1.weight"]),
    (
        ["start.masks_from=FOLDER/runs/a", "method.target_moves=256"],
        ["target_moves is 256; the network has 255 ac"],
    ),
    (["runs=FOLDER/bad.pt"], ["bad.pt/b", "not a folder; set name= or runs="]),
]


def test_check_refuses_what_a_fresh_start_refuses(call: Any, config: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    for overrides, parts in FRESH:
        words = [word.replace("FOLDER", str(tmp_path)) for word in overrides]
        assert_refused_beforehand(call, tmp_path, "--config", config, "name=b", *words, parts=parts)


def test_check_refuses_files_that_a_start_refuses(call: Any, config: Path, tmp_path: Path) -> None:
    images = numbered_folder(tmp_path / "images", train=30, val=6)
    (tmp_path / "bad.txt").write_text("train/ape/absent.png\n")
    size = "image_size: 16, evaluation_resize: 16, number_of_classes: 3, threads: 1"
    asked = ("--config", config, f"data={{name: imagenet, path: {images}, {size}}}")
    assert passed(call(*asked, "--check"))
    for overrides, parts in (
        (["train.global_batch_size=31"], ["global_batch_size is 31, the data set has 30 samples"]),
        (["data.validation_samples=30"], ["validation_samples is 30, the training set has 30 samples"]),
        ([f"data.exclude={tmp_path / 'bad.txt'}"], ["data.exclude: ", "names 1 files that", "scan the folder again"]),
        (["data.number_of_classes=4"], ["number_of_classes is 4", "has 3 class folders"]),
    ):
        assert_refused_beforehand(call, tmp_path, *asked, *overrides, parts=parts)
        assert_refused_beforehand(call, tmp_path, *asked, *overrides, "--preview", "5", parts=parts)


def test_check_refuses_what_a_dry_run_refuses(call: Any, config: Path, checkpoint: Path, tmp_path: Path) -> None:
    asked = ("--config", config, "--dry-run", f"start.weights_from={checkpoint}")
    assert passed(call(*asked, "--check"))
    parts = ["of another network: fc2.weight"]
    assert_refused_beforehand(call, tmp_path, *asked, "model.hidden=[24, 13]", parts=parts)
    assert passed(call("--config", config, "--dry-run", "start.weights_from=nowhere", "--check"))


def test_check_counts_the_workers(config: Path) -> None:
    """The launchers say how many workers there will be."""
    launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "7", "LOCAL_WORLD_SIZE": "7"}
    result = runs.dist_train("--config", config, "--check", "distributed.backend=gloo", **launch)
    assert result.returncode == 2
    assert "one sample at a time for each of 7 workers x 1 micro-batches" in result.stderr
    assert result.stderr.count("\n") == 1


def test_check_refuses_more_moves_than_weights(call: Any, config: Path, tmp_path: Path) -> None:
    asked = ("--config", config, "method.target_moves=256")
    assert_refused_beforehand(call, tmp_path, *asked, parts=["target_moves is 256; the network has 255 active units"])


def test_check_lists_all_that_a_start_would_find(call: Any, config: Path, tmp_path: Path) -> None:
    bad = ["start.weights_from=nowhere", "--resume", "auto", "data.samples=5"]
    code, _, err = call("--config", config, *bad, "--check")
    assert code == 2
    assert [line.split(" ")[1] for line in err.splitlines()] == ["start.weights_from:", "train.global_batch_size"]


def test_checkpoints_that_do_not_fit(call: Any, config: Path, checkpoint: Path, tmp_path: Path) -> None:
    resume = ("--config", config, "train.epochs=3", "--resume", checkpoint)
    for override, *parts in (
        ("model.hidden=[24, 13]", "of another model: fc2.weight is 12x24 there, 13x24 here"),
        ("model.hidden=[24]", "of another model: fc2.weight is 12x24 there, 10x24 here"),
        ("sparsity.exclude=[fc3.*]", "other sparse layers: fc3.weight"),
        ("method={name: static}", "made with method dsr, this run has static"),
        ("train.optimizer={name: adamw}", "made with optimizer sgd, this run has adamw"),
        ("sparsity.fc=0.7", "made with sparsity.fc 0.8, this run has 0.7"),
        ("data.samples=99", "the data have changed", "100 training samples then, 99 now"),
        ("data.validation_samples=10", "made with samples 100, this run has 90"),
        ("train.global_batch_size=24", "made with global_batch 12, this run has 24"),
        ("seed=4", "made with seed 3, this run has 4"),
    ):
        assert_refused_beforehand(call, tmp_path, *resume, override, parts=parts)
    resume = ("--config", config, "train.epochs=3", "--resume", "auto", "method={name: static}")
    assert_refused_beforehand(call, tmp_path, *resume, parts=["made with method dsr, this run has static"])
    evaluate = ("--evaluate", checkpoint, "model.hidden=[24, 13]")
    assert_refused_beforehand(call, tmp_path, *evaluate, parts=["of another model"])


def test_check_of_a_finished_run_is_as_a_start_of_it(call: Any, config: Path, checkpoint: Path) -> None:
    """The finished run has nothing to do, so that nothing needs to fit."""
    asked = ("--config", config, "--resume", "auto", "data.samples=99", "model.hidden=[24, 13]")
    assert passed(call(*asked, "--check"))
    assert call(*asked)[0] == 0
    assert passed(call("--config", config, "--resume", "auto", "train.epochs=3", "--check"))
    assert passed(call("--evaluate", checkpoint, "--check"))


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        ("{name: rigl, period: 100000}", 16),
        ("{name: set, period: 3, stop_epoch: 0}", 16),
        ("{name: dsr, period: 9, stop_epoch: 1, target_moves: 30}", 16),
    ],
)
def test_a_method_that_will_move_nothing_is_warned_of(
    call: Any, config: Path, method: str, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning comes from --check and from a start, in the same words."""
    name = method.split(",")[0].removeprefix("{name: ")
    expected = (
        f"method {name} will move nothing in the {steps} steps to come (8 an epoch): see its period and stop_epoch"
    )
    asked = ("--config", config, f"method={method}")
    assert passed(call(*asked, "--check"), f"warning: {expected}\n").startswith("a start would begin in ")
    assert call(*asked)[0] == 0
    assert expected in caplog.messages
    longer = call(*asked, "train.epochs=3", "--resume", "auto", "--check")
    assert "resume from" in passed(longer, f"warning: {expected.replace(str(steps), '8')}\n")


def test_a_method_that_will_move_weights_is_not_warned_of(call: Any, config: Path) -> None:
    for method in ("{name: rigl, period: 8, until: 1.0}", "{name: static}", "{name: set, period: 8, stop_epoch: 2}"):
        assert passed(call("--config", config, f"method={method}", "--check"))


def test_damaged_and_absent_checkpoints(call: Any, config: Path, checkpoint: Path, settings: RunConfig) -> None:
    assert_one_line(call("--config", config, "--resume", "nowhere.pt"), "checkpoint nowhere.pt: does not exist")
    assert_one_line(call("--evaluate", config), "damaged or no checkpoint")
    for path in (settings.folder / "checkpoints").glob("step-*.pt"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    assert_one_line(call("--config", config, "--resume", checkpoint), "damaged or no checkpoint", "use an earlier one")
    code, _, err = call("--config", config, "--resume", "auto")
    assert code == 2
    assert "holds a run that has trained (summary.json), and no checkpoint of it" in err.splitlines()[-1]


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(
    call: Any, config: Path, checkpoint: Path, settings: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    expected = runs.summary(settings.folder)["weight_digest"]
    caplog.set_level("INFO")
    newest, before = sorted((settings.folder / "checkpoints").glob("step-*.pt"), reverse=True)
    state = read(newest)
    state["weights"]["fc1.weight"][0] += 1
    whole = torch.load(newest, weights_only=True)
    torch.save({**whole, "state": state}, newest)
    assert call("--config", config, "--resume", "auto")[0] == 0
    assert f"{newest}: damaged (its checksum differs)" in caplog.text
    assert f"resuming from {before} (step 8)" in caplog.text
    assert runs.summary(settings.folder)["weight_digest"] == expected


def test_the_initial_state_can_be_resumed_from(call: Any, config: Path, checkpoint: Path, settings: RunConfig) -> None:
    expected = runs.summary(settings.folder)["weight_digest"]
    assert call("--config", config, "--resume", checkpoint.with_name("initial.pt"))[0] == 0
    assert runs.summary(settings.folder)["weight_digest"] == expected


def test_a_fault_is_no_bad_input(call: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a fault in the program")

    monkeypatch.setattr(Trainer, "train_step", broken)
    code, _, err = call("--config", config)
    assert code == 1
    assert "Traceback" in err


# -- as processes, under torchrun ------------------------------------------------------------------


def worker_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def exit_code(folder: Path, *arguments: Any, workers: int, **options: Any) -> tuple[int, Any]:
    """Exit code of launch/local.sh, and the finished process."""
    file = folder / "exit"
    result = runs.dist_train(*arguments, workers=workers, DYNSPARSE_EXIT_FILE=str(file), **options)
    return int(file.read_text()), result


def test_two_workers_agree_to_the_bit(tmp_path: Path, config: Path, settings: RunConfig) -> None:
    code, result = exit_code(tmp_path, "--config", config, workers=2)
    assert (code, result.returncode) == (0, 0), result.stderr
    summary = runs.summary(settings.folder)
    assert summary["world_size"] == 2
    assert [rank["rank"] for rank in summary["rank_digests"]] == [0, 1]
    for key in ("mask_digest", "weight_digest"):
        assert {rank[key] for rank in summary["rank_digests"]} == {summary[key]}


def test_bad_input_under_torchrun_is_said_once_and_no_worker_hangs(tmp_path: Path, config: Path) -> None:
    """Before the process group (fewer samples than workers) and after it (a run that exists)."""
    code, result = exit_code(tmp_path, "--config", config, "train.global_batch_size=1", workers=2)
    assert code == 2
    (line,) = worker_lines(result)
    assert line.startswith("error: train.global_batch_size is 1; each of 2 workers x 1 micro-batches needs a sample")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "something").write_text("")
    code, result = exit_code(tmp_path, "--config", config, workers=2)
    assert code == 2
    assert len(worker_lines(result)) == 1
    assert "exists; resume it with --resume auto" in worker_lines(result)[0]


def test_a_checkpoint_of_two_workers_works_for_one(tmp_path: Path, config: Path, settings: RunConfig) -> None:
    assert runs.dist_train("--config", config, workers=2).returncode == 0
    result = runs.dist_train("--config", config, "--resume", "auto", "train.epochs=3")
    assert result.returncode == 0
    assert (
        "\nwarning: the checkpoint was made by 2 workers, this run has 1: masks, weights, optimizer and sample order "
        "continue exactly" in f"\n{result.stderr}"
    )
    assert "\nresuming from " in result.stderr, "what is no warning is not called one"
    assert runs.summary(settings.folder)["epochs"] == 3


def script_that(folder: Path, name: str, body: str) -> Path:
    """dist_train.py, with `body` run at the start of every training step (as `self`, the Trainer)."""
    path = folder / f"{name}.py"
    path.write_text(
        "import os\n"
        "import sys\n"
        "from dynsparse.cli.main import train\n"
        "from dynsparse.training.trainer import Trainer\n"
        "step = Trainer.train_step\n"
        "def changed(self, batches):\n"
        f"    {body}\n"
        "    return step(self, batches)\n"
        "Trainer.train_step = changed\n"
        "if __name__ == '__main__':\n"
        "    train(sys.argv[1:], 'dist_train.py')\n"
    )
    return path


def on_rank_1_at_step_5(act: str) -> str:
    return f"if self.worker.rank == 1 and self.progress.step == 4: {act}"


ALTER = "self.model.fc2.weight.data.view(-1)[self.masks.layers[1].active[0]] += 0.5"


def test_an_altered_weight_aborts_the_run(tmp_path: Path, config: Path) -> None:
    """Altered before step 5 on rank 1, caught by the reallocation after step 6: one line that names the layer."""
    script = script_that(tmp_path, "altered", on_rank_1_at_step_5(ALTER))
    result = runs.dist_train("--config", config, workers=2, script=script)
    assert result.returncode == 1
    (line,) = worker_lines(result)
    assert line.startswith("error: ranks differ at step 6 in fc2.weight; masks and weights must be equal on all ranks")


def test_an_altered_weight_is_mended(tmp_path: Path, config: Path, settings: RunConfig) -> None:
    script = script_that(tmp_path, "altered", on_rank_1_at_step_5(ALTER))
    result = runs.dist_train("--config", config, "distributed.on_desync=repair", workers=2, script=script)
    assert result.returncode == 0
    assert "ranks differ at step 6 in fc2.weight; repaired from rank 0" in result.stderr
    summary = runs.summary(settings.folder)
    assert summary["desyncs_repaired"] == 1
    assert len({rank["weight_digest"] for rank in summary["rank_digests"]}) == 1
    repaired = [line["repaired"] for line in runs.metrics(settings.folder) if line["kind"] == "reallocation"]
    assert repaired == [[], ["fc2.weight"], [], [], []]


def test_a_second_interrupt_waits_for_nothing(tmp_path: Path, config: Path) -> None:
    """A second signal ends it at once, even while a save does not end."""
    begin = "import threading; self.saving.checkpoints.begin(threading.Event().wait, 5)"
    script = script_that(tmp_path, "interrupted", f"{begin}; os.kill(os.getpid(), 2); os.kill(os.getpid(), 2)")
    code, result = exit_code(tmp_path, "--config", config, workers=1, script=script)
    assert (code, result.returncode) == (130, 1), result.stderr
    assert "KeyboardInterrupt" not in result.stderr


def test_nothing_is_left_behind_by_a_rank_that_fails_alone(tmp_path: Path, config: Path) -> None:
    """Rank 1 raises in the middle of a step while rank 0 waits for its gradients."""
    script = script_that(tmp_path, "broken", on_rank_1_at_step_5("raise KeyError('only here')"))
    result = runs.dist_train("--config", config, workers=2, script=script)
    assert result.returncode == 1
    assert "only here" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_stopped_by_a_signal_and_resumed(tmp_path: Path, config: Path, settings: RunConfig, number: int) -> None:
    """Both ranks leave at the same step with exit code 75; the resumed run equals one that was never stopped."""
    whole = runs.config(runs=str(tmp_path / "runs"), name="whole")
    script = script_that(tmp_path, "signalled", on_rank_1_at_step_5(f"os.kill(os.getpid(), {int(number)})"))
    file = tmp_path / "exit"
    runs.dist_train("--config", config, workers=2, script=script, DYNSPARSE_EXIT_FILE=str(file))
    assert file.read_text() == "75\n"
    stopped = runs.summary(settings.folder)
    assert (stopped["status"], stopped["steps"]) == ("stopped", 5)
    assert runs.dist_train("--config", config, "--resume", "auto", workers=2).returncode == 0
    assert runs.dist_train("--config", config, "name=whole", workers=2).returncode == 0
    assert runs.summary(settings.folder)["weight_digest"] == runs.summary(whole.folder)["weight_digest"]
    assert runs.metrics(settings.folder) == runs.metrics(whole.folder)


def test_a_checkpoint_written_by_hand_is_checked(tmp_path: Path, call: Any, config: Path) -> None:
    write(tmp_path / "b.pt", {"config": {}, "weights": {}})
    for option in ("--resume", "--evaluate"):
        assert_one_line(call("--config", config, option, tmp_path / "b.pt"), "b.pt: lacks versions, progress, masks")


def test_an_empty_checkpoint_begins_no_run(call: Any, config: Path, settings: RunConfig) -> None:
    """A shell's variable that is not set gives one."""
    for option in ("--resume", "--evaluate"):
        assert_one_line(call("--config", config, option, ""), "CKPT is empty; name a checkpoint")
    assert not settings.folder.exists()


def test_files_in_a_folder_that_may_not_be_read_are_refused(call: Any, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o000)
    file = tmp_path / "locked" / "a"
    asked = [
        ["--config", file],
        ["--resume", file],
        ["--evaluate", file],
        ["--model", "mnist_mlp", "--schedule-file", file],
    ]
    asked += [["--model", "mnist_mlp", "--dry-run", f"start.weights_from={file}"]]
    for words in asked:
        with runs.nobody_if_root():
            assert_one_line(call(*words), f"{file}: cannot be read (Permission denied)")


def test_preview_is_a_picture_of_the_first_samples(call: Any, config: Path) -> None:
    """24 of 100 samples, of three steps of 12; enlarged to be seen, each over its label. No run is begun."""
    code, out, err = call("--config", config, "--preview", "24")
    assert code == 0, err
    path = Path(out.split(" in ")[1].strip())
    assert out == f"24 training samples in {path}\n"
    assert (
        path.parent == config.parent / "runs"
        and path.name == f"{yaml.safe_load(config.read_text())['name']}_preview.png"
    )
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        assert picture.size == (5 * (96 + 4), 5 * (96 + 18))
        assert len(picture.getcolors(1 << 24)) > 100
    assert not (config.parent / "runs" / path.name.removesuffix("_preview.png")).exists()


@pytest.mark.parametrize("number", ["0", "-1", "2.5", "x"])
def test_previews_of_no_number_are_refused(call: Any, config: Path, number: str) -> None:
    assert_one_line(
        call("--config", config, f"--preview={number}"), f"--preview: is '{number}'; it must be a whole number"
    )


def test_half_precision_images_need_autocast(call: Any, config: Path) -> None:
    asked = ("--config", config, "data.dtype=float16")
    assert_one_line(call(*asked), "data.dtype is float16", "train.precision=bf16")
    code, _, err = call(*asked, "train.precision=bf16", "train.channels_last=true", "train.epochs=1", "name=half")
    assert code == 0, err


def test_deterministic_algorithms_are_on_while_it_trains_and_evaluates(
    call: Any, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    found: list[bool] = []
    original = Trainer.evaluate

    def noting(self: Trainer, *tally: Any) -> Any:
        found.append(torch.are_deterministic_algorithms_enabled())
        return original(self, *tally)

    monkeypatch.setattr(Trainer, "evaluate", noting)
    assert call("--config", config, "train.deterministic=true", "train.epochs=1")[0] == 0
    folder = RunConfig.model_validate(yaml.safe_load(config.read_text())).folder
    assert call("--evaluate", folder, "train.deterministic=true")[0] == 0
    assert found == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    code, _, err = call("--config", config, "train.deterministic=true", "distributed.gradients=auto", "--dry-run")
    assert code == 2
    assert "distributed.gradients is auto, which chooses by the clock: set it to dense or active" in err
