"""The flags of the paper's code: a row of `FLAGS` says what a flag sets, with which default, and on what it acts.

Rules of several flags together are in choosing.py and contradictions.py.
"""

from __future__ import annotations

import argparse
from typing import Any

from dynsparse.cli.paper.flag import Flag
from dynsparse.cli.paper.kinds import (
    AMOUNT,
    BOOLEAN,
    COUNT,
    DATA,
    FACTOR,
    MLP,
    MODEL,
    PART,
    RESNET,
    SHARE,
    SIZE,
    TEXT,
    UNIT,
    WRN,
)

POST_PRUNE_EPOCHS = 10
_MOVING = ("deepr", "dsr", "set")


FLAGS = (
    Flag(
        "--model", "network, which also says the data set", MODEL, "model.name", MLP, metavar="{" + ",".join(DATA) + "}"
    ),
    Flag("--epochs", "epochs in all", SIZE, "train.epochs", 100, shown="100; with --prune see --post-prune-epochs"),
    Flag("--start-epoch", "epoch that a new run begins with, for its schedules", COUNT, "train.start_epoch", 0),
    Flag("--batch-size", "over all workers", SIZE, "train.global_batch_size", 100, also=("-b",)),
    Flag("--lr", "constant learning rate", AMOUNT, "train.lr.table", 0.1, also=("--learning-rate",)),
    Flag("--schedule-file", "tables by epoch of learning rate, rewire period and temperature", TEXT, metavar="FILE"),
    Flag("--momentum", "of SGD", PART, "train.optimizer.momentum", 0.9, only=("sgd",)),
    Flag(
        "--nesterov",
        "Nesterov's momentum, true or false",
        BOOLEAN,
        "train.optimizer.nesterov",
        True,
        only=("sgd",),
        shown="true; false with --momentum 0",
        metavar="BOOL",
    ),
    Flag("--weight-decay", "of SGD", AMOUNT, "train.optimizer.weight_decay", 1e-4, also=("--wd",)),
    Flag("--L1-loss-coeff", "pull of sparse layers' weights to 0", AMOUNT, "train.penalty.l1", 0.0),
    Flag("--conv-group-lasso", "pull whole kernel slices of convolutions to 0", key="train.penalty.group_lasso"),
    Flag("--print-freq", "steps between two readings of the loss", SIZE, "log.every_steps", 50, also=("-p",)),
    Flag("--layers", f"depth of {WRN}, 6n + 4", SIZE, "model.depth", 28, only=(WRN,)),
    Flag(
        "--widen-factor",
        f"width of {WRN} or {RESNET}",
        FACTOR,
        "model.widen_factor",
        10.0,
        special={RESNET: 1.0},
        only=(WRN, RESNET),
        shown=f"10 for {WRN}, 1 for {RESNET}",
    ),
    Flag("--no-batch-norm", f"biases instead, in {MLP}", key="model.batch_norm", value=False, only=(MLP,)),
    Flag(
        "--sparse-resnet-downsample",
        f"make the shortcuts of {RESNET} sparse too",
        key="model.sparse_downsample",
        only=(RESNET,),
    ),
    Flag(
        "--sub-kernel-granularity",
        "unit of a convolution: 4 element, 3 kernel row, 2 kernel slice, 1 filter",
        UNIT,
        "sparsity.granularity",
        2,
        special={MLP: 4},
        shown=f"2; 4 for {MLP}",
    ),
    Flag(
        "--initial-sparsity-conv",
        "share of zeros in sparse convolutions; 0 in both kinds of layers trains a dense network",
        PART,
        "sparsity.conv",
        0.5,
        special={"pruning": 0.0},
    ),
    Flag(
        "--initial-sparsity-fc",
        "share of zeros in sparse linear layers",
        PART,
        "sparsity.fc",
        0.98,
        special={"pruning": 0.0},
    ),
    Flag("--rewire", "move weights while training: SET, or with --threshold-prune the paper's method"),
    Flag("--threshold-prune", "with --rewire: drop what is below a global threshold (dynamic sparse)"),
    Flag(
        "--n-prune-params",
        "units (at granularity 4: weights) to move at a time",
        SIZE,
        "method.target_moves",
        600,
        only=("dsr",),
    ),
    Flag(
        "--rewire-fraction", "share of weights that SET moves at a time", SHARE, "method.fraction", 0.1, only=("set",)
    ),
    Flag("--rewire-scaling", "move weights between layers", key="method.scaling", default=False, only=("dsr", "set")),
    Flag("--stop-rewire-epoch", "move weights before this epoch", COUNT, "method.stop_epoch", 1000, only=_MOVING),
    Flag(
        "--big-new-weights",
        "grown weights begin with a draw from the initial distribution instead of 0",
        key="method.new_weights",
        value="initial",
        only=_MOVING,
    ),
    Flag("--DeepR", "train with DeepR: weights that cross 0 move, every step"),
    Flag("--DeepR_eta", "rate of DeepR's noise", AMOUNT, "method.eta", 0.001, only=("deepr",)),
    Flag("--tied", "tie weights (HashedNets) instead of making them 0"),
    Flag(
        "--rescale-tied-gradient",
        "divide a tied value's gradient by how often it is used",
        key="method.rescale_gradient",
        only=("tied",),
    ),
    Flag("--prune", "prune the trained dense network that --resume names"),
    Flag(
        "--start-pruning-after-epoch",
        "the first prune ends this epoch, counted from 0",
        COUNT,
        "method.after_epoch",
        20,
        only=("pruning",),
    ),
    Flag("--prune-epoch-frequency", "epochs between prunes", SIZE, "method.every_epochs", 2, only=("pruning",)),
    Flag("--prune-iterations", "number of prunes", SIZE, "method.iterations", 1, only=("pruning",)),
    Flag("--post-prune-epochs", "epochs after the last prune", COUNT, default=POST_PRUNE_EPOCHS),
    Flag(
        "--prune-target-sparsity-conv",
        "share of zeros in convolutions in the end",
        PART,
        "method.target_conv",
        0.5,
        only=("pruning",),
    ),
    Flag(
        "--prune-target-sparsity-fc",
        "share of zeros in linear layers in the end",
        PART,
        "method.target_fc",
        0.98,
        only=("pruning",),
    ),
    Flag(
        "--cubic-prune-schedule",
        "prune along Zhu & Gupta's cubic instead of equal shares",
        key="method.schedule",
        value="cubic",
        only=("pruning",),
    ),
    Flag("--copy-mask-from", "run whose masks to begin with", TEXT, "start.masks_from", metavar="RUN"),
    Flag(
        "--validate-set",
        "hold out training images to choose the best epoch by: 10,000, of CIFAR-10 5,000",
        key="data.validation_samples",
        value=10000,
        special={"cifar10": 5000},
        only=tuple(DATA.values()),
    ),
    Flag(
        "--no-validate-train",
        "after an epoch, do not evaluate on the training images as well",
        key="train.evaluate_train",
        default=True,
        value=False,
    ),
    Flag(
        "--no-augment",
        "train on the images as they are",
        key="data.augment",
        value=False,
        only=("cifar10", "imagenet"),
    ),
    Flag(
        "--data",
        "folder of the data set",
        TEXT,
        "data.path",
        special={name: f"data/{name}" for name in DATA.values()},
        only=tuple(DATA.values()),
        shown="data/mnist, data/cifar10, both fetched if absent, or data/imagenet",
        metavar="DIR",
    ),
    Flag("--workers", "threads of the data pipeline in each worker", SIZE, "data.threads", 8, also=("-j",)),
    Flag("--job-idx", "number of the run, in its folder's name", COUNT, "job_idx", 0),
    Flag("--name", "name of the run's folder", TEXT, "name", shown="{model}_{job-idx}", metavar="NAME"),
)

_BY_NAME = {name: flag for flag in FLAGS for name in (flag.name, *flag.also)}


def flag_named(name: str) -> Flag | None:
    """Return the flag with this name, such as "--rewire" or "-b"; None if there is none."""
    return _BY_NAME.get(name)


def any_given(arguments: argparse.Namespace) -> bool:
    """Return whether one of the flags is on the command line."""
    return any(flag.name in vars(arguments) for flag in FLAGS)


def add_flags(parser: argparse.ArgumentParser, *, shown: bool = False) -> None:
    """Add all flags, in a group of their own. `parser` also has `--resume`, which may be repeated, and overrides.

    They are many: a page of their own shows them, --help names it.
    """
    about = "--model, --rewire, --threshold-prune and the others work too, alone or with --config: see --help-paper"
    group = parser.add_argument_group("the flags of the paper's code", None if shown else about)
    for flag in FLAGS:
        names = [*flag.also, flag.name] if flag.also and len(flag.also[0]) == 2 else [flag.name, *flag.also]
        text = flag.with_default() if shown else argparse.SUPPRESS
        options: dict[str, Any] = {"dest": flag.name, "default": argparse.SUPPRESS, "help": text}
        if flag.kind is None:
            group.add_argument(*names, action="store_true", **options)
        else:
            group.add_argument(*names, metavar=flag.metavar, **options)
