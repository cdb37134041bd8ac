"""The paper's command line: what each flag sets, how flags, files and overrides mix, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dynsparse.cli.asking import load_config
from dynsparse.cli.options import parse
from dynsparse.cli.paper.flags import FLAGS
from dynsparse.cli.paper.schedule_files import read_tables
from dynsparse.cli.resuming import read_resume
from dynsparse.config import loading
from dynsparse.config.overrides import look
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.resume import differences
from tests.training import runs

MLP, WRN, RESNET = "mnist_mlp", "cifar10_WideResNet", "imagenet_resnet50"
SCHEDULES = runs.ROOT / "configs/schedules"

# As the paper's code documents them.
DOCUMENTED = """
--epochs --start-epoch --model -b --batch-size --lr --learning-rate --momentum --nesterov --weight-decay --wd
--L1-loss-coeff --print-freq -p --layers --start-pruning-after-epoch --prune-epoch-frequency --prune-target-sparsity-fc
--prune-target-sparsity-conv --prune-iterations --post-prune-epochs --n-prune-params --threshold-prune --prune
--validate-set --rewire-scaling --tied --rescale-tied-gradient --rewire --no-validate-train --DeepR --DeepR_eta
--stop-rewire-epoch --no-batch-norm --rewire-fraction --sub-kernel-granularity --cubic-prune-schedule
--sparse-resnet-downsample --conv-group-lasso --big-new-weights --widen-factor --initial-sparsity-conv
--initial-sparsity-fc --job-idx --no-augment --data -j --workers --copy-mask-from --resume --schedule-file --name
"""


@dataclass(frozen=True)
class Invocation:
    """Config that dist_train.py makes of a command line."""

    config: RunConfig
    resume: str | None
    warnings: Sequence[str]


@pytest.fixture
def read(caplog: pytest.LogCaptureFixture) -> Any:
    def invocation(*words: Any) -> Invocation:
        caplog.clear()
        asked = parse([*map(str, words)], "dist_train.py")
        resume = read_resume(asked)
        return Invocation(load_config(asked, resume), resume.go_on, caplog.messages)

    return invocation


@pytest.fixture
def refused(read: Any) -> Any:
    """The lines of its refusal."""

    def lines(*words: Any) -> tuple[str, ...]:
        with pytest.raises(UserError) as caught:
            read(*words)
        return caught.value.lines

    return lines


def value(invocation: Invocation, key: str) -> Any:
    return look(invocation.config.as_dict(), key)


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


# -- every flag ------------------------------------------------------------------------------------

DSR, SET, DEEPR, TIED = ["--rewire", "--threshold-prune"], ["--rewire"], ["--DeepR"], ["--tied"]
PRUNE = ["--prune", "--resume", "runs/dense"]

EFFECTS: list[tuple[list[str], list[str], str, Any, Any]] = [
    # with, flag, key, default, effect
    ([], ["--epochs", "7"], "train.epochs", 100, 7),
    ([], ["--start-epoch", "7"], "train.start_epoch", 0, 7),
    ([], ["--model", WRN], "model.name", MLP, WRN),
    ([], ["--model", WRN], "data.name", "mnist", "cifar10"),
    ([], ["--model", RESNET], "data.name", "mnist", "imagenet"),
    ([], ["-b", "64"], "train.global_batch_size", 100, 64),
    ([], ["--batch-size", "64"], "train.global_batch_size", 100, 64),
    ([], ["--lr", ".5"], "train.lr.table", 0.1, 0.5),
    ([], ["--learning-rate", "1e-3"], "train.lr.table", 0.1, 0.001),
    ([], ["--momentum", "0.5"], "train.optimizer.momentum", 0.9, 0.5),
    ([], ["--nesterov", "False"], "train.optimizer.nesterov", True, False),
    ([], ["--nesterov", "no"], "train.optimizer.nesterov", True, False),
    ([], ["--nesterov", "0"], "train.optimizer.nesterov", True, False),
    ([], ["--nesterov", "True"], "train.optimizer.nesterov", True, True),
    ([], ["--nesterov", "1"], "train.optimizer.nesterov", True, True),
    ([], ["--momentum", "0"], "train.optimizer.nesterov", True, False),
    ([], ["--weight-decay", "0"], "train.optimizer.weight_decay", 1e-4, 0.0),
    ([], ["--wd", "5e-4"], "train.optimizer.weight_decay", 1e-4, 5e-4),
    ([], ["--L1-loss-coeff", "1e-5"], "train.penalty.l1", 0.0, 1e-5),
    (["--L1-loss-coeff", "1"], ["--conv-group-lasso"], "train.penalty.group_lasso", False, True),
    ([], ["--print-freq", "10"], "log.every_steps", 50, 10),
    ([], ["-p", "10"], "log.every_steps", 50, 10),
    (["--model", WRN], ["--layers", "16"], "model.depth", 28, 16),
    (["--model", WRN], ["--widen-factor", "0.98"], "model.widen_factor", 10.0, 0.98),
    (["--model", RESNET], ["--widen-factor", "0.54"], "model.widen_factor", 1.0, 0.54),
    ([], ["--no-batch-norm"], "model.batch_norm", True, False),
    (["--model", RESNET], ["--sparse-resnet-downsample"], "model.sparse_downsample", False, True),
    (["--model", WRN], ["--sub-kernel-granularity", "4"], "sparsity.granularity", 2, 4),
    ([], ["--sub-kernel-granularity", "4"], "sparsity.granularity", 4, 4),
    (["--model", WRN], ["--initial-sparsity-conv", "0.9"], "sparsity.conv", 0.5, 0.9),
    ([], ["--initial-sparsity-fc", "0.9"], "sparsity.fc", 0.98, 0.9),
    ([], SET, "method.name", "static", "set"),
    ([], DEEPR, "method.name", "static", "deepr"),
    ([], TIED, "method.name", "static", "tied"),
    (["--resume", "runs/dense", "--resume", "auto"], ["--prune"], "method.name", "static", "pruning"),
    ([], ["--copy-mask-from", "runs/a"], "method.name", "static", "static"),
    (SET, ["--threshold-prune"], "method.name", "set", "dsr"),
    (DSR, ["--n-prune-params", "9"], "method.target_moves", 600, 9),
    (DSR, ["--rewire-scaling"], "method.scaling", False, True),
    (SET, ["--rewire-scaling"], "method.scaling", False, True),
    (SET, ["--rewire-fraction", "0.3"], "method.fraction", 0.1, 0.3),
    (SET, ["--stop-rewire-epoch", "9"], "method.stop_epoch", 1000, 9),
    (DSR, ["--stop-rewire-epoch", "9"], "method.stop_epoch", 1000, 9),
    (DEEPR, ["--stop-rewire-epoch", "9"], "method.stop_epoch", 1000, 9),
    (SET, ["--big-new-weights"], "method.new_weights", "zero", "initial"),
    (DSR, ["--big-new-weights"], "method.new_weights", "zero", "initial"),
    (DEEPR, ["--big-new-weights"], "method.new_weights", "zero", "initial"),
    (DEEPR, ["--DeepR_eta", "0.01"], "method.eta", 0.001, 0.01),
    (TIED, ["--rescale-tied-gradient"], "method.rescale_gradient", False, True),
    (PRUNE, ["--start-pruning-after-epoch", "0"], "method.after_epoch", 20, 0),
    (PRUNE, ["--prune-epoch-frequency", "1"], "method.every_epochs", 2, 1),
    (PRUNE, ["--prune-iterations", "20"], "method.iterations", 1, 20),
    (PRUNE, ["--post-prune-epochs", "0"], "train.epochs", 31, 21),
    ([*PRUNE, "--model", WRN], ["--prune-target-sparsity-conv", "0.8"], "method.target_conv", 0.5, 0.8),
    (PRUNE, ["--prune-target-sparsity-fc", "0.8"], "method.target_fc", 0.98, 0.8),
    (PRUNE, ["--cubic-prune-schedule"], "method.schedule", "exponential", "cubic"),
    (["--model", WRN], ["--validate-set"], "data.validation_samples", 0, 5000),
    ([], ["--validate-set"], "data.validation_samples", 0, 10000),
    (["--model", RESNET], ["--validate-set"], "data.validation_samples", 0, 10000),
    ([], ["--no-validate-train"], "train.evaluate_train", True, False),
    (["--model", WRN], ["--no-augment"], "data.augment", True, False),
    (["--model", RESNET], ["--no-augment"], "data.augment", True, False),
    ([], ["--data", "there"], "data.path", "data/mnist", "there"),
    (["--model", WRN], ["--data", "there"], "data.path", "data/cifar10", "there"),
    (["--model", RESNET], ["--data", "there"], "data.path", "data/imagenet", "there"),
    ([], ["--data", "there"], "data.download", True, False),
    ([], ["-j", "3"], "data.threads", 8, 3),
    ([], ["--workers", "3"], "data.threads", 8, 3),
    ([], ["--job-idx", "6"], "job_idx", 0, 6),
    ([], ["--name", "mine"], "name", None, "mine"),
    ([], ["--copy-mask-from", "runs/a"], "start.masks_from", None, "runs/a"),
    (["--copy-mask-from", "a"], ["--resume", "a_initial"], "start.weights_from", None, "a_initial"),
    (DSR, ["--schedule-file", "wrnet_schedule.yaml"], "method.period", 1000, {0: 100, 25: 200, 80: 400, 140: 800}),
    (
        [],
        ["--schedule-file", "wrnet_schedule.yaml"],
        "train.lr.table",
        0.1,
        {0: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008},
    ),
    (
        DEEPR,
        ["--schedule-file", "wrnet_schedule.yaml"],
        "method.temperature",
        1e-5,
        {0: 1e-5, 25: 1e-8, 80: 1e-12, 140: 1e-15},
    ),
    (DEEPR, ["--schedule-file", "wrnet_schedule.yaml"], "method.period", 1, 1),
]


@pytest.mark.parametrize(
    ("context", "flag", "key", "default", "effect"), EFFECTS, ids=[" ".join([*c, *f, k]) for c, f, k, *_ in EFFECTS]
)
def test_each_flag(read: Any, context: list[str], flag: list[str], key: str, default: Any, effect: Any) -> None:
    assert value(read("--job-idx", 0, *context), key) == default
    after = read(*context, *flag)
    assert value(after, key) == effect
    assert type(value(after, key)) is type(effect)
    assert not after.warnings


def test_all_flags_are_there_and_tested(read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tested = {words[0] for _, words, *_ in EFFECTS}
    assert set(DOCUMENTED.split()) - tested == set()
    assert {name for flag in FLAGS for name in (flag.name, *flag.also)} | {"--resume"} == set(DOCUMENTED.split())
    with pytest.raises(SystemExit):
        read("--help-paper")
    out = capsys.readouterr().out
    for name in DOCUMENTED.split():
        assert re.search(rf"^  .*{name}\b", out, re.MULTILINE), name
    assert "%%" not in out
    for words in ("(default: mnist_mlp)", "(default: 10 for cifar10_WideResNet, 1 for", "(default: 600)"):
        assert words in " ".join(out.split())


def test_the_page_for_users_of_the_papers_code_has_every_flag() -> None:
    """docs/from-the-paper-code.md: each flag's row names it, its key and, if it is a value, its default."""
    page = (runs.ROOT / "docs/from-the-paper-code.md").read_text()
    rows = [line for line in page.split("## A run's folder")[0].splitlines() if line.startswith("| ")]
    for flag in FLAGS:
        (row,) = [line for line in rows if re.match(rf"\| (`-\w`, )?`(--rewire )?{flag.name}`", line)]
        for name in flag.also:
            assert f"`{name}`" in row
        assert f"`{flag.key}" in row
        if isinstance(flag.default, (int, float)) and not isinstance(flag.default, bool):
            (default,) = re.findall(r"\| (\d[\d.e-]*)[^|]*\|$", row)
            assert float(default) == flag.default


@pytest.mark.parametrize("given", ["true", "True", "YES", "1"])
def test_a_true_nesterov(read: Any, given: str) -> None:
    assert value(read("--nesterov", given), "train.optimizer.nesterov") is True


def test_the_defaults_of_each_model_are_this_config(read: Any) -> None:
    sgd = {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    train = {
        "epochs": 100,
        "global_batch_size": 100,
        "optimizer": sgd,
        "lr": {"name": "steps", "table": 0.1},
        "evaluate_train": True,
    }
    expected: dict[str, Any] = {
        MLP: {
            "model": {"name": MLP},
            "sparsity": {"conv": 0.5, "fc": 0.98, "granularity": 4},
            "data": {"name": "mnist", "path": "data/mnist", "download": True, "threads": 8},
        },
        WRN: {
            "model": {"name": WRN, "depth": 28, "widen_factor": 10.0},
            "sparsity": {"conv": 0.5, "fc": 0.98, "granularity": 2},
            "data": {"name": "cifar10", "path": "data/cifar10", "download": True, "threads": 8},
        },
        RESNET: {
            "model": {"name": RESNET, "widen_factor": 1.0},
            "sparsity": {"conv": 0.5, "fc": 0.98, "granularity": 2},
            "data": {"name": "imagenet", "path": "data/imagenet", "threads": 8, "number_of_classes": 1000},
        },
    }
    for model, sections in expected.items():
        config = loading.parse({"method": {"name": "static"}, "train": train, "log": {"every_steps": 50}, **sections})
        assert read("--model", model) == Invocation(config, None, [])
    assert read("-j", 8).config == read("--model", MLP).config, "one flag is enough, and the model has a default"


# -- what several flags mean -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (["--initial-sparsity-conv", "0", "--initial-sparsity-fc", "0.0"], "dense"),
        (["--initial-sparsity-conv", "0"], "static"),
        (["--initial-sparsity-conv", "0", "--initial-sparsity-fc", "0", "--copy-mask-from", "a"], "static"),
        (["--initial-sparsity-conv", "0", "--initial-sparsity-fc", "0", "--rewire"], "set"),
    ],
)
def test_without_a_mode(read: Any, words: list[str], method: str) -> None:
    assert value(read("--model", WRN, *words), "method.name") == method


def test_pruning_says_how_long_it_takes(read: Any, refused: Any) -> None:
    paper = [*PRUNE, "--start-pruning-after-epoch", 0, "--prune-iterations", 20]
    assert value(read(*paper), "train.epochs") == 38 + 1 + 10
    assert value(read(*paper, "--epochs", 49), "train.epochs") == 49
    (line,) = refused(*paper, "--epochs", 100)
    assert line.startswith(
        "--epochs 100 and --prune contradict each other: the last prune ends epoch 38 (counted from 0)"
    )
    assert "make 49 epochs; leave --epochs out" in line
    longer = read(*paper, "--post-prune-epochs", 5, "train.epochs=60")
    assert value(longer, "train.epochs") == 60
    assert longer.warnings == ["--post-prune-epochs has no effect with train.epochs=60"]
    assert value(read(*PRUNE, "method.iterations=2"), "train.epochs") == 22 + 1 + 10
    (line,) = refused(*paper, "train.epochs=20")
    assert "the end of epoch 38 (counted from 0): train at least 39" in line


def test_pruning_starts_dense(read: Any, refused: Any) -> None:
    config = read(*PRUNE, "--model", WRN).config
    assert (config.sparsity.conv, config.sparsity.fc, config.start.weights_from) == (0.0, 0.0, "runs/dense")
    assert read(*PRUNE, "--initial-sparsity-conv", 0.0).config.sparsity.conv == 0
    (line,) = refused("--prune")
    assert line.startswith("--prune without --resume RUN: method.name is pruning, which starts from a trained dense")
    assert read("--prune", "start.weights_from=runs/dense").config.start.weights_from == "runs/dense"


RESUMES: list[tuple[list[str], str | None, str | None]] = [
    (["--resume", "auto"], "auto", None),
    ([*PRUNE], None, "runs/dense"),
    ([*PRUNE, "--resume", "auto"], "auto", "runs/dense"),
    (["--resume", "auto", *PRUNE], "auto", "runs/dense"),
    (["--resume", "a_initial", "--copy-mask-from", "a"], None, "a_initial"),
    (["--copy-mask-from", "a", "--resume", "auto"], "auto", None),
    (["--resume", "a", "--resume", "auto", "--rewire"], "auto", "a"),
    (["--resume", "a", "--resume", "a", "--prune"], None, "a"),
]


@pytest.mark.parametrize(("words", "resume", "weights"), RESUMES, ids=lambda item: str(item))
def test_what_resume_means(read: Any, words: list[str], resume: str | None, weights: str | None) -> None:
    invocation = read("--model", MLP, *words)
    assert invocation.resume == resume
    assert invocation.config.start.weights_from == weights


def test_two_runs_to_resume(refused: Any) -> None:
    assert refused("--prune", "--resume", "a", "--resume", "b") == (
        "--resume: names both a and b; give one run, and auto to resume if it can",
    )


# -- mixes -----------------------------------------------------------------------------------------

FILE: dict[str, Any] = {
    "model": {"name": WRN, "depth": 16, "widen_factor": 3},
    "sparsity": {"conv": 0.7},
    "method": {"name": "set", "fraction": 0.4, "period": 7, "stop_epoch": 5},
    "data": {"name": "synthetic", "shape": [3, 8, 8]},
    "train": {"epochs": 9, "lr": {"name": "cosine", "peak": 0.3}, "optimizer": {"name": "adamw"}},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "run.yaml", FILE)


def changed(file: Path, invocation: Invocation) -> set[str]:
    """The keys in which a config differs from its file."""
    return {line.split(" (")[0] for line in differences(loading.load(file).as_dict(), invocation.config.as_dict())}


MIXES: list[tuple[list[str], set[str]]] = [
    ([], set()),
    (["--rewire-fraction", "0.2"], {"method.fraction=0.2"}),
    (["--epochs", "4"], {"train.epochs=4"}),
    (["--rewire", "--rewire-fraction", "0.4"], {"method.period=1000", "method.stop_epoch=1000"}),
    (["--model", WRN, "--layers", "22"], {"model.depth=22"}),
    (
        ["--model", MLP],
        {
            "model.name=mnist_mlp",
            "model.depth=None",
            "model.drop_path_rate=None",
            "model.dropout=None",
            "model.widen_factor=None",
            "model.hidden=[300, 100]",
            "model.batch_norm=True",
        },
    ),
    (["--wd", "0.5"], {"train.optimizer.weight_decay=0.5"}),
    (["--lr", "0.5"], {"train.lr.name=steps", "train.lr.peak=None", "train.lr.final=None", "train.lr.table=0.5"}),
    (["--no-validate-train", "--initial-sparsity-conv", "0"], {"sparsity.conv=0.0"}),
    (
        ["--stop-rewire-epoch", "3", "train.epochs=5", "method.period=2"],
        {"method.stop_epoch=3", "train.epochs=5", "method.period=2"},
    ),
    (["--start-epoch", "3", "-b", "8"], {"train.start_epoch=3", "train.global_batch_size=8"}),
]


@pytest.mark.parametrize(("words", "expected"), MIXES, ids=[" ".join(words) for words, _ in MIXES])
def test_flags_change_a_file(read: Any, file: Path, words: list[str], expected: set[str]) -> None:
    invocation = read("--config", file, *words)
    assert changed(file, invocation) == expected
    assert not invocation.warnings


def test_a_mode_replaces_the_files_method(read: Any, file: Path) -> None:
    config = read("--config", file, *DSR, "--n-prune-params", 5).config
    assert (
        config.method == loading.parse({**FILE, "method": {"name": "dsr", "scaling": False, "target_moves": 5}}).method
    )
    pruning = read("--config", file, *PRUNE).config
    assert (pruning.method.name, pruning.train.epochs, pruning.sparsity.conv) == ("pruning", 31, 0.7)


def test_a_schedule_changes_a_file(read: Any, file: Path) -> None:
    config = read("--config", file, "--schedule-file", "wrnet_schedule.yaml").config.as_dict()
    assert look(config, "method.period") == {0: 100, 25: 200, 80: 400, 140: 800}
    assert look(config, "train.lr.name") == "steps"


def test_a_flag_keeps_what_stands_beside_it_in_a_file(read: Any, tmp_path: Path) -> None:
    lr = {"name": "steps", "table": 0.3, "warmup_epochs": 2}
    path = write(tmp_path / "a.yaml", {**FILE, "train": {"lr": lr}})
    assert changed(path, read("--config", path, "--lr", 0.5)) == {"train.lr.table=0.5"}
    assert changed(path, read("--config", path, "--momentum", 0)) == {
        "train.optimizer.momentum=0.0",
        "train.optimizer.nesterov=False",
    }


def test_overrides_win_over_defaults_and_schedules(read: Any) -> None:
    config = read("--model", WRN, "--schedule-file", "wrnet_schedule.yaml", "train.lr.table=3", "train.epochs=7").config
    assert (look(config.as_dict(), "train.lr.table"), config.train.epochs) == (3, 7)
    assert read("--model", MLP, "data={name: digits}").config.data.name == "digits"
    assert read("--model", MLP, "--epochs", 5, "train.epochs=5").config.train.epochs == 5


def test_names_and_paths_are_what_was_written(read: Any) -> None:
    config = read("--model", MLP, "--name", "007", "name=007", "--data", "1e3", "--copy-mask-from", "on").config
    assert (config.name, config.data.path, config.start.masks_from) == ("007", "1e3", "on")


def test_a_checkpoint_is_a_file_too(read: Any, tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 1})
    result = runs.dist_train("--config", runs.write_config(tmp_path, settings))
    assert result.returncode == 0, result.stderr
    folder = settings.folder
    for resume in (folder, folder / "checkpoints/latest.pt", tmp_path / "a_initial"):
        invocation = read("--resume", resume, "--epochs", 5)
        assert differences(settings.as_dict(), invocation.config.as_dict()) == ["train.epochs=5 (was 1)"]
        assert invocation.resume == str(resume)
    longer = runs.dist_train("--resume", folder, "--epochs", "2")
    assert longer.returncode == 0, longer.stderr
    assert [runs.summary(folder)[key] for key in ("status", "epochs")] == ["done", 2]
    again = runs.dist_train("--resume", tmp_path / "a_initial")
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stderr and "initial.pt (step 0)" in again.stderr


# -- refused ---------------------------------------------------------------------------------------

REFUSED: list[tuple[list[str], list[str]]] = [
    (["--rewire", "--DeepR"], ["--rewire and --DeepR contradict each other"]),
    (["--DeepR", "--tied"], ["--DeepR and --tied contradict each other"]),
    (["--rewire", "--tied"], ["--rewire and --tied contradict each other"]),
    ([*PRUNE, "--rewire"], ["--rewire and --prune contradict each other"]),
    ([*PRUNE, "--tied"], ["--prune and --tied contradict each other"]),
    (["--tied", "--copy-mask-from", "a"], ["--copy-mask-from: start.masks_from does not go with method tied"]),
    ([*PRUNE, "--copy-mask-from", "a"], ["--copy-mask-from: start.masks_from does not go with method pruning"]),
    (
        [*PRUNE, "--model", WRN, "--initial-sparsity-conv", "0.9"],
        ["--initial-sparsity-conv 0.9 and --prune contradict each other: pruning starts from a dense network; give"],
    ),
    (["--lr", "0.1", "--schedule-file", "wrnet_schedule.yaml"], ["--lr and the lr_schedule of --schedule-file"]),
    (["--epochs", "5", "train.epochs=6"], ["--epochs (train.epochs) and train.epochs=6 contradict each other"]),
    (["--epochs", "5", "train={epochs: 6}"], ["--epochs (train.epochs) and train={epochs: 6} contradict each other"]),
    (["--rewire", "method={name: static}"], ["--rewire (method.name) and method={name: static} contradict each other"]),
    (["-j", "4", "data={name: digits}"], ["--workers (data.threads) and data={name: digits} contradict each other"]),
    (["--momentum", "0", "--nesterov", "True"], ["--momentum, --nesterov (train.optimizer): momentum is 0"]),
    (["--model", WRN, "--layers", "27"], ["--layers (model.depth): depth is 27; a wide ResNet has 6n + 4 layers"]),
    (["--start-epoch", "100"], ["--start-epoch: train.start_epoch is 100; it must be below train.epochs, 100"]),
    (["--epochs", "3", "--start-epoch", "3"], ["--epochs, --start-epoch: train.start_epoch is 3"]),
    (["--name", "../up"], ['--name (name): is "../up"; it must be one plain word']),
    (
        ["--model", WRN, "--tied", "--sub-kernel-granularity", "4", "--conv-group-lasso", "--L1-loss-coeff", "1"],
        ["--conv-group-lasso, --sub-kernel-granularity: train.penalty.group_lasso with method tied needs units"],
    ),
    (["--rewire-fraction", "1.5"], ["--rewire-fraction: is '1.5'; it must be a number from 0 to 1"]),
    (["--rewire-fraction", "nan"], ["--rewire-fraction: is 'nan'; it must be a number from 0 to 1"]),
    (["--initial-sparsity-fc", "1"], ["--initial-sparsity-fc: is '1'; it must be a number of at least 0 and below 1"]),
    (["--initial-sparsity-conv", "-0.5"], ["--initial-sparsity-conv: is '-0.5'; it must be"]),
    (["--prune-target-sparsity-fc", "1.0"], ["--prune-target-sparsity-fc: is '1.0'; it must be"]),
    (["--prune-iterations", "0"], ["--prune-iterations: is '0'; it must be a whole number of at least 1"]),
    (["--n-prune-params", "-5"], ["--n-prune-params: is '-5'; it must be a whole number of at least 1"]),
    (["--post-prune-epochs", "-1"], ["--post-prune-epochs: is '-1'; it must be a whole number of at least 0"]),
    (["--epochs", "2.5"], ["--epochs: is '2.5'; it must be a whole number of at least 1"]),
    (["--epochs", "0"], ["--epochs: is '0'; it must be"]),
    (["--print-freq", "0"], ["--print-freq: is '0'; it must be"]),
    (["-b", "many"], ["--batch-size: is 'many'; it must be a whole number of at least 1"]),
    (["--lr", "-1"], ["--lr: is '-1'; it must be a number of at least 0"]),
    (["--lr", "inf"], ["--lr: is 'inf'; it must be"]),
    (["--momentum", "1"], ["--momentum: is '1'; it must be"]),
    (["--nesterov", "maybe"], ["--nesterov: is 'maybe'; it must be true, yes or 1, or false, no or 0"]),
    (["--widen-factor", "0"], ["--widen-factor: is '0'; it must be a number above 0"]),
    (["--sub-kernel-granularity", "5"], ["--sub-kernel-granularity: is '5'; it must be 4 (element), 3"]),
    (["--job-idx", "-1"], ["--job-idx: is '-1'; it must be"]),
    (["--model", "resnet"], ["--model: is 'resnet'; it must be mnist_mlp, cifar10_WideResNet or imagenet_resnet50"]),
    (["--data", ""], ["--data: is ''; it must be some text"]),
    (["--rew"], ["unrecognized arguments: --rew; see dist_train.py --help"]),
    (["--epochs"], ["argument --epochs: expected one argument; see dist_train.py --help"]),
    (
        ["--resume", "a", "--overwrite"],
        ["argument --overwrite: not allowed with argument --resume; see dist_train.py --help"],
    ),
    (
        ["--resume", "a", "--evaluate", "b"],
        ["argument --evaluate: not allowed with argument --resume; see dist_train.py --help"],
    ),
]


@pytest.mark.parametrize(("words", "expected"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_refused(refused: Any, words: list[str], expected: list[str]) -> None:
    lines = refused(*words)
    assert len(lines) == len(expected), lines
    for line, part in zip(lines, expected, strict=True):
        assert part in line
        assert "\n" not in line


def test_everything_wrong_is_listed_at_once(refused: Any) -> None:
    lines = refused(
        *["--model", WRN, "--rewire-fraction", 2, "--tied", "--DeepR", "--layers", 27],
        *["--schedule-file", "nowhere.yaml", "--epochs", 3, "train.epochs=4", "seed=-1", "nonsense"],
    )
    starts = [re.split(r"[ :(]", line)[0] for line in lines]
    assert starts == [
        "--rewire-fraction",
        "--schedule-file",
        "--DeepR",
        "--epochs",
        "'nonsense'",
        "command",
        "--layers",
    ]


def test_a_file_that_is_wrong_is_named_not_the_flag(refused: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", {**FILE, "method": {"name": "set", "fraction": 3}, "train": 5})
    assert refused("--config", path, "--epochs", 3, "--rewire-scaling") == (
        "--epochs: train is 5, no section; its keys cannot be set",
        f"{path}: method.fraction: is 3; input should be less than or equal to 1",
        f"{path}: train: is 5; it must be a section, with keys of its own",
    )


def test_no_arguments_at_all(refused: Any) -> None:
    message = "--config is missing; give a YAML file such as configs/digits_dsr.yaml, or --model and other flags"
    assert refused() == refused("train.epochs=3") == refused("--resume", "auto") == (message,)


# -- without effect --------------------------------------------------------------------------------

IDLE: list[tuple[list[str], list[str]]] = [
    (
        ["--n-prune-params", "5"],
        ["--n-prune-params has no effect with method static; it is for dsr (--rewire --threshold-prune)"],
    ),
    (["--rewire", "--n-prune-params", "5"], ["--n-prune-params has no effect with method set"]),
    (["--threshold-prune"], ["--threshold-prune has no effect without --rewire"]),
    (["--DeepR", "--threshold-prune"], ["--threshold-prune has no effect without --rewire"]),
    ([*DSR, "--rewire-fraction", "0.2"], ["--rewire-fraction has no effect with method dsr; it is for set (--rewire)"]),
    (
        ["--tied", "--rewire-scaling", "--stop-rewire-epoch", "3"],
        ["--rewire-scaling has no effect", "--stop-rewire-epoch"],
    ),
    (["--layers", "16"], ["--layers has no effect with model mnist_mlp; it is for cifar10_WideResNet"]),
    (["--widen-factor", "2"], ["--widen-factor has no effect with model mnist_mlp"]),
    (["--model", WRN, "--no-batch-norm"], ["--no-batch-norm has no effect with model cifar10_WideResNet"]),
    (["--model", WRN, "--sparse-resnet-downsample"], ["--sparse-resnet-downsample has no effect with model"]),
    (["--no-augment"], ["--no-augment has no effect with data mnist; it is for cifar10, imagenet"]),
    (
        ["--cubic-prune-schedule"],
        ["--cubic-prune-schedule has no effect with method static; it is for pruning (--prune)"],
    ),
    (["--post-prune-epochs", "3"], ["--post-prune-epochs has no effect with method static; it is for pruning"]),
    (["--DeepR_eta", "3"], ["--DeepR_eta has no effect with method static; it is for deepr (--DeepR)"]),
    (["--rescale-tied-gradient"], ["--rescale-tied-gradient has no effect with method static"]),
    (["--big-new-weights"], ["--big-new-weights has no effect with method static; it is for deepr (--DeepR), dsr"]),
    (["--conv-group-lasso"], ["--conv-group-lasso has no effect while --L1-loss-coeff is 0"]),
    (["--initial-sparsity-conv", "0.9"], ["--initial-sparsity-conv has no effect with model mnist_mlp, which has no"]),
    (["--model", WRN, "--initial-sparsity-fc", "0.9"], ["--initial-sparsity-fc has no effect with model cifar10"]),
    (["--model", WRN, "--initial-sparsity-fc", "0.0"], []),
]


@pytest.mark.parametrize(("words", "expected"), IDLE, ids=[" ".join(words) for words, _ in IDLE])
def test_flags_without_effect_are_said_and_change_nothing(read: Any, words: list[str], expected: list[str]) -> None:
    warnings = read("--job-idx", 1, *words).warnings
    assert len(warnings) == len(expected), warnings
    for line, part in zip(warnings, expected, strict=True):
        assert line.startswith(part)


def test_flags_without_effect_on_a_file(read: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", {**FILE, "method": {"name": "rigl"}})
    invocation = read("--config", path, "--rewire-fraction", 0.2, "--momentum", 0.5, "--validate-set", "--data", "x")
    assert changed(path, invocation) == set()
    assert invocation.warnings == [
        "--momentum has no effect with train.optimizer adamw; it is for sgd",
        "--rewire-fraction has no effect with method rigl; it is for set (--rewire)",
        "--validate-set has no effect with data synthetic; it is for mnist, cifar10, imagenet",
        "--data has no effect with data synthetic; it is for mnist, cifar10, imagenet",
    ]
    dense = write(tmp_path / "b.yaml", {**FILE, "method": {"name": "dense"}})
    assert read("--config", dense, "--initial-sparsity-conv", 0.9).warnings == [
        "--initial-sparsity-conv has no effect with method dense"
    ]


def test_warnings_are_a_line_each_on_standard_error(tmp_path: Path) -> None:
    result = runs.dist_train("--dry-run", "--layers", 16, "--DeepR_eta", 1, "data={name: digits}")
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("warning: ")] == [
        "warning: --layers has no effect with model mnist_mlp; it is for cifar10_WideResNet",
        "warning: --DeepR_eta has no effect with method static; it is for deepr (--DeepR)",
    ]
    assert "fc1.weight" in result.stdout


# -- schedule files --------------------------------------------------------------------------------


def test_a_schedule_file_of_ones_own(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.yaml", "lr_schedule:\n  - 0 : .5\n  - 3 : 1e-3\n")
    config = read(*SET, "--schedule-file", "mine.yaml").config.as_dict()
    assert look(config, "train.lr.table") == {0: 0.5, 3: 0.001}
    assert look(config, "method.period") == 1000
    write(tmp_path / "wrnet_schedule.yaml", "rewire_period_schedule:\n  - 0 : 5\n")
    config = read(*SET, "--lr", 0.2, "--schedule-file", "wrnet_schedule.yaml").config.as_dict()
    assert look(config, "method.period") == 5, "a file that is there comes first"
    assert look(config, "train.lr.table") == 0.2


BAD_SCHEDULES: list[tuple[str, list[str]]] = [
    ("lr_shedule:\n  - 0 : 1\n", ["FILE: lr_shedule: unknown table; did you mean 'lr_schedule'?"]),
    ("lr_schedule: []\n", ["FILE: lr_schedule: a step table is empty; give at least the value for epoch 0"]),
    ("lr_schedule:\n", ["FILE: lr_schedule: None is no step table; write"]),
    (
        "lr_schedule:\n  - 0 : 1\n  - 9 : 1\n  - 5 : 1\n",
        ["FILE: lr_schedule: a step table's epochs are [0, 9, 5]; they must rise"],
    ),
    ("lr_schedule:\n  - 1 : 1\n", ["FILE: lr_schedule: a step table starts at epoch 1; its first entry must be for"]),
    ("lr_schedule:\n  - 0 : -1\n", ["FILE: lr_schedule: -1 at epoch 0 is negative; it must be at least 0"]),
    ("lr_schedule:\n  - 0 : fast\n", ["FILE: lr_schedule: a step table has the entry 0: 'fast'; write epoch: number"]),
    ("rewire_period_schedule:\n  - 0 : 0\n", ["FILE: rewire_period_schedule: 0 at epoch 0 is no number of steps"]),
    ("DeepR_temperature_schedule:\n  - 0 : .nan\n", ["FILE: DeepR_temperature_schedule: a step table gives nan"]),
    ("- 0 : 1\n", ["FILE: holds no tables; write lr_schedule, rewire_period_schedule, DeepR_temperature_schedule"]),
    ("", ["FILE: holds no tables"]),
    ("lr_schedule: [", ["FILE: no valid YAML"]),
    (
        "lr_schedule: []\nother: 1\n",
        ["FILE: lr_schedule: a step table is empty", "FILE: other: unknown table; there are"],
    ),
]


@pytest.mark.parametrize(("text", "expected"), BAD_SCHEDULES, ids=[text[:30] for text, _ in BAD_SCHEDULES])
def test_bad_schedule_files(refused: Any, tmp_path: Path, text: str, expected: list[str]) -> None:
    path = write(tmp_path / "bad.yaml", text)
    lines = [line.replace(str(path), "FILE") for line in refused("--schedule-file", path)]
    assert len(lines) == len(expected), lines
    for line, part in zip(lines, expected, strict=True):
        assert line.startswith(part)


def test_unreadable_schedule_files(refused: Any, tmp_path: Path) -> None:
    (line,) = refused("--schedule-file", "nowhere.yaml")
    assert line.startswith("--schedule-file nowhere.yaml: cannot be read (No such file or directory); give a YAML file")
    assert line.endswith("such as those in configs/schedules/")
    (line,) = refused("--schedule-file", tmp_path)
    assert "cannot be read (is a folder)" in line


def test_the_shipped_schedules() -> None:
    """Six files, each with three tables; some values of the paper."""
    names = sorted(path.name for path in SCHEDULES.glob("*"))
    assert names == sorted(
        f"{model}_{kind}.yaml"
        for model in ("resnet", "wrnet")
        for kind in ("schedule", "schedule_long", "prune_schedule")
    )
    for name in names:
        assert list(read_tables(name)) == ["lr_schedule", "rewire_period_schedule", "DeepR_temperature_schedule"]
        assert "  - 0 : " in (SCHEDULES / name).read_text()
    points = {name: [table.points for table in read_tables(name).values()] for name in names}
    assert points["resnet_schedule.yaml"] == [
        ((0, 0.1), (30, 0.01), (60, 0.001), (90, 0.0001)),
        ((0, 1000), (25, 2000), (50, 4000), (75, 8000)),
        ((0, 1e-5), (25, 1e-8), (50, 1e-12), (75, 1e-15)),
    ]
    assert points["wrnet_prune_schedule.yaml"][0] == ((0, 0), (1, 0.02), (15, 0.02), (25, 0.004), (35, 0.0008))
    assert points["resnet_prune_schedule.yaml"][0] == ((0, 0), (1, 0.01), (15, 0.01), (25, 0.001), (35, 0.0001))
    assert points["wrnet_schedule_long.yaml"][0] == ((0, 0.1), (120, 0.02), (220, 0.004), (350, 0.0008))
    assert points["wrnet_schedule_long.yaml"][1:] == points["wrnet_schedule.yaml"][1:]
    assert points["resnet_prune_schedule.yaml"][1:] == points["wrnet_prune_schedule.yaml"][1:]
    assert points["resnet_schedule_long.yaml"][1:] == [
        ((0, 1000), (60, 2000), (120, 4000), (180, 8000)),
        ((0, 1e-5), (50, 1e-8), (100, 1e-12), (150, 1e-15)),
    ]


# -- the same run, said in both ways ---------------------------------------------------------------


def test_the_shipped_yaml_files_are_the_papers_runs(read: Any) -> None:
    """Up to the run's name, the data pipeline's threads, and CIFAR-10 being fetched."""
    dsr = [
        *DSR,
        "--rewire-scaling",
        "--no-validate-train",
        "--sub-kernel-granularity",
        4,
        "--initial-sparsity-conv",
        0.9,
    ]
    wrnet = read(
        *["--model", WRN, *dsr, "--initial-sparsity-fc", 0.0, "--widen-factor", 2, "--weight-decay", 5e-4],
        *["--schedule-file", "wrnet_schedule.yaml", "--epochs", 200, "--stop-rewire-epoch", 190],
        *["--n-prune-params", 20000, "--job-idx", 6],
    )
    resnet = read(
        *["--model", RESNET, *dsr, "--initial-sparsity-fc", 0.9, "-b", 256, "--stop-rewire-epoch", 95],
        *["--schedule-file", "resnet_schedule.yaml", "--n-prune-params", 400000, "--job-idx", 12],
    )
    for invocation, name in ((wrnet, "cifar10_dsr"), (resnet, "imagenet_dsr")):
        file = runs.ROOT / f"configs/{name}.yaml"
        keys = {line.split("=")[0] for line in changed(file, invocation)}
        here = {"train.precision", "train.channels_last"} if name == "imagenet_dsr" else set()
        assert keys - {"data.download", "data.number_of_classes", "data.threads"} == {"name", "job_idx", *here}
        assert not invocation.warnings
