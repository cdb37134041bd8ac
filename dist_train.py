#!/usr/bin/env python3
"""Train a sparse network: config -> data, network, method -> Trainer.

torchrun --nproc-per-node 2 dist_train.py --config configs/digits_dsr.yaml train.epochs=20
python dist_train.py --config configs/digits_dsr.yaml          (one worker)
"""

from __future__ import annotations

import signal
import sys

from dynsparse import streams, torchrun

if __name__ == "__main__":
    streams.make_safe()  # Before anything opens a file.
    if INTERRUPTIBLE := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # No traceback if it comes while torch is imported.
if (code := torchrun.over()) is not None:
    sys.exit(code)  # An earlier attempt of this launch has said why. Before torch, which takes seconds to import.

import argparse
import logging
import os
import platform
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

import pipelines
from dynsparse.cli import help_pages
from dynsparse.cli.paper_cli import Invocation, any_given, read_resume, translate
from dynsparse.cli.paper_flags import add_flags
from dynsparse.config import schema
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    DesyncError,
    StopRequested,
    StorageFaultError,
    UserError,
)
from dynsparse.files import open_regular
from dynsparse.runtime import Worker, lost_peer, print_to_reader, process_group
from dynsparse.training.banner import banner_lines
from dynsparse.training.callbacks import standard_observers
from dynsparse.training.checkpoint import checkpoint_of, how_chosen, read_run, result_of
from dynsparse.training.compatibility import require_same_evaluation
from dynsparse.training.network import Network, build_method, build_network, require_layers
from dynsparse.training.preflight import (
    idle_warning,
    require_checkpoint_of,
    require_model_of,
    require_resumable,
    require_split,
    require_usable_sources,
)
from dynsparse.training.resume import (
    ResumePoint,
    begun_by,
    checkpoints_of,
    find_resume_point,
    is_finished,
    require_writable,
    take_folder,
)
from dynsparse.training.run import names
from dynsparse.training.run.lock import BEAT_SECONDS, RunLock, holding, waiting
from dynsparse.training.sources import (
    NOTHING,
    Sources,
    missing_sources,
    read_sources,
    require_sources,
)
from dynsparse.training.stopping import StopFlag
from dynsparse.training.trainer import Trainer
from pipelines.base import Data, Request, TrainPipeline
from pipelines.common.command_line import Parser
from pipelines.common.paths import argument
from pipelines.order import Share
from pipelines.position import Position
from pipelines.preview import write_png


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        prog="dist_train.py",
        allow_abbrev=False,  # Abbreviations make --prune ambiguous, and change meaning with every new option.
        usage="%(prog)s --config FILE [OPTIONS] [section.key=value ...]",
        description=help_pages.description(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=help_pages.EXIT_CODES,
    )
    parser.add_argument("--config", metavar="FILE", type=argument, help="YAML file; those in configs/ are examples")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the config, such as seed=3")
    parser.add_argument(
        "--resume",
        metavar="auto|CKPT",
        action="append",
        help="go on from the run's newest checkpoint, or from this one; CKPT may be a run's folder, or FOLDER_initial; "
        "with --prune, --copy-mask-from or a second --resume auto: take weights from it",
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    one.add_argument(
        "--evaluate", metavar="CKPT", type=argument, help="evaluate a checkpoint, or a run's best, and end"
    )
    one.add_argument("--dry-run", action="store_true", help="print the resolved config and the layers, and end")
    one.add_argument(
        "--preview", metavar="N", type=_count, help="write a picture of N training samples with their labels, and end"
    )
    one.add_argument("--print-schema", action="store_true", help="print the config's JSON Schema, and end")
    parser.add_argument(
        "--check", action="store_true", help="with the options of a start: say what it would refuse, and end"
    )
    help_pages.add_help_options(parser)
    add_flags(parser)
    return parser.parse_intermixed_args()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is '{text}'; it must be a whole number of at least 1")
    return int(text)


def load_config(arguments: argparse.Namespace) -> Invocation:
    """From --config, else from the checkpoint to resume or evaluate, else all from the paper's flags."""
    resume = read_resume(arguments)
    for option in ("--overwrite", "--evaluate"):
        if resume.go_on is not None and getattr(arguments, option[2:]):
            raise UserError(f"argument {option}: not allowed with argument --resume; see dist_train.py --help")
    named = arguments.evaluate or (resume.go_on if resume.go_on != "auto" else None)
    if arguments.config is not None:
        return translate(arguments, schema.read_mapping(arguments.config), arguments.config)
    if named is not None:
        checkpoint = result_of(named) if arguments.evaluate else checkpoint_of(named)
        return translate(arguments, config_of(checkpoint), named)
    if any_given(arguments):
        return translate(arguments, None, "command line")
    for text in arguments.overrides:
        if text.endswith((".yaml", ".yml")):
            raise UserError(f"{text} is no section.key=value; a config is given by --config {text}")
    raise UserError("--config is missing; give a YAML file such as configs/digits_dsr.yaml, or --model and other flags")


def config_of(path: Path) -> Mapping[str, Any]:
    """What the checkpoint's run was made with.

    An earlier attempt of this launch that went on from it may have saved so often since that it is not kept any more
    (`checkpoint.keep`): then the config which that attempt has left in the run's folder.
    """
    folder = path.absolute().parent.parent
    if not path.exists() and begun_by(torchrun.launch_id(), folder):
        try:
            open_regular(folder / names.CONFIG).close()
        except OSError as error:
            raise UserError(f"{folder / 'config.yaml'}: {error.strerror}; bring it back, or set name=") from None
        return schema.read_mapping(folder / names.CONFIG)
    config: Mapping[str, Any] = read_run(path)["config"]
    return config


def resolved(config: RunConfig, *, without_data: bool) -> RunConfig:
    """With what the data alone know, such as their number of classes. UserError if it cannot be had."""
    try:
        data = config.data.resolved()
    except UserError as error:
        hint = "; without the data, set data.number_of_classes" if without_data else ""
        raise UserError(f"{error}{hint}") from None
    return config if data is config.data else config.model_copy(update={"data": data})


T = TypeVar("T")
Rule = Callable[[], object]
"""Raises UserError."""


def require(rules: Sequence[Rule]) -> None:
    """Raise UserError with all that the rules refuse."""
    problems: list[str] = []
    for rule in rules:
        try:
            rule()
        except UserError as error:
            problems += str(error).splitlines()
    if problems:
        raise UserError(*dict.fromkeys(problems))


def check(config: RunConfig, worker: Worker, arguments: argparse.Namespace, resume: str | None) -> None:
    """What can be known to fail before any process group or GPU is touched, all at once."""
    rules: list[Rule] = [
        lambda: require_layers(config),
        lambda: worker.backend(config.distributed.backend),
    ]
    if not arguments.evaluate:
        rules.append(lambda: require_split(config, worker.world_size))
    if not arguments.dry_run:
        rules.append(config.data.check)
        if not arguments.evaluate and resume is None and not is_later_attempt(config):
            rules.append(lambda: require_sources(config))
    require(rules)


def check_more(config: RunConfig, worker: Worker, arguments: argparse.Namespace, resume: str | None) -> str:
    """What a start would refuse later, as it reads, builds and takes its folder. Nothing is fetched or changed.

    Returns what would be done, in words.
    """
    if arguments.dry_run:
        if not missing_sources(config):
            require_usable_sources(config)
        return "the config and its layers fit"
    if arguments.preview:
        check_data(config, worker)
        return "a preview can be made"
    if arguments.evaluate:
        path = result_of(arguments.evaluate)
        saved = read_run(path)
        require([lambda: require_checkpoint_of(config, saved), lambda: check_evaluation(config, worker, saved)])
        return f"can be evaluated: {how_chosen(path, saved)}"
    return check_start(config, worker, resume, overwrite=arguments.overwrite)


def check_start(config: RunConfig, worker: Worker, resume: str | None, *, overwrite: bool) -> str:
    start = check_folder(config, resume, overwrite=overwrite)
    if start is None:
        require([lambda: require_usable_sources(config), lambda: check_training(config, worker)])
        return f"a start would begin in {config.folder}"
    if is_finished(config, start):
        return finished(config, start)
    state = start.state
    require([lambda: require_resumable(config, state), lambda: check_training(config, worker, state)])
    return f"a start would go on from {how_chosen(start.path, state)}"


def finished(config: RunConfig, start: ResumePoint) -> str:
    return f"{start.path} has all {config.train.epochs} epochs behind it; set train.epochs= to train on"


def check_training(config: RunConfig, worker: Worker, saved: Mapping[str, Any] | None = None) -> None:
    """Raise UserError for data that cannot be trained on, or other than a checkpoint's; warn if no weight will move."""
    data = check_data(config, worker)
    if saved is not None:
        data.load_state_dict(saved["data"])
        if "evaluated_on" in saved and not getattr(config.data, "download", False):
            with closing(pipelines.build(config.data, data_request(config, worker))) as whole:
                require_same_evaluation(saved, whole.evaluated_on)
    done = config.train.start_epoch * data.steps_per_epoch if saved is None else saved["progress"]["step"]
    if warning := idle_warning(config, data.steps_per_epoch, done):
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def check_evaluation(config: RunConfig, worker: Worker, saved: Mapping[str, Any]) -> None:
    """Raise UserError for data that the network of a checkpoint cannot be evaluated on."""
    check_data(config, worker)
    if not getattr(config.data, "download", False):
        with closing(pipelines.build(config.data, data_request(config, worker))) as data:
            require_same_classes(saved, data)


def check_data(config: RunConfig, worker: Worker) -> Position | TrainPipeline:
    """Where training on the data begins. Raises UserError where building it would."""
    return pipelines.position_of(config.data, data_request(config, worker))


def check_folder(config: RunConfig, resume: str | None, *, overwrite: bool) -> ResumePoint | None:
    """Where a start would go on. UserError where it would find that the run's folder is another's, or in use."""
    launch = torchrun.launch_id()
    RunLock(config.folder, launch).require_free(within=BEAT_SECONDS + 1)
    start = find_resume_point(config, resume=resume, overwrite=overwrite, launch=launch)
    require_writable(config.folder)
    return start


def is_later_attempt(config: RunConfig) -> bool:
    """Whether this looks like another attempt of a launch. Rank 0 decides it, in `find_resume_point`."""
    return torchrun.is_retry() or begun_by(torchrun.launch_id(), config.folder)


def run(arguments: argparse.Namespace, worker: Worker) -> None:
    invocation = load_config(arguments)
    config = resolved(invocation.config, without_data=arguments.dry_run)
    if worker.is_main and not arguments.check:
        print("".join(f"warning: {line}\n" for line in invocation.warnings), end="", file=sys.stderr, flush=True)
    check(config, worker, arguments, invocation.resume)
    if arguments.check or arguments.dry_run or arguments.preview:
        if worker.is_main:
            look(config, worker, arguments, invocation.resume)
        return
    stop = StopFlag()
    if not arguments.evaluate:
        stop.install()  # From here on a signal is remembered, however long the start takes.
    with process_group(worker, config.distributed.backend, config.distributed.timeout):
        if arguments.evaluate:
            evaluate(config, worker, result_of(arguments.evaluate))
            return
        try:
            train(config, worker, stop, invocation.resume, overwrite=arguments.overwrite)
        except StopRequested:
            # On all ranks: a mark is seen on its own machine alone, and where there is none torchrun would start
            # workers again that wait for the others in vain.
            if sync.any_rank(stop.ends_launch):
                torchrun.end_launch(EXIT_STOPPED)
            raise


def look(config: RunConfig, worker: Worker, arguments: argparse.Namespace, resume: str | None) -> None:
    """What is asked for in place of a run."""
    if arguments.check:
        print_to_reader(f"check passed: {check_more(config, worker, arguments, resume)}")
    elif arguments.preview:
        preview(config, worker, arguments.preview)
    else:
        dry_run(config)


def dry_run(config: RunConfig) -> None:
    """Print the resolved config and the table of layers, as the method begins with them."""
    missing = missing_sources(config)
    sources = NOTHING if missing else read_sources(config)
    network = build_network(config, torch.device("cpu"), sources)
    build_method(config, [layer.spec for layer in network.masks]).prepare(network.masks)
    notes = [f"note: {line}; the table is of a start without it" for line in missing]
    print_to_reader("\n".join([config.as_yaml(), network.table(), *notes]))


def train(config: RunConfig, worker: Worker, stop: StopFlag, resume: str | None, *, overwrite: bool) -> None:
    """Train in the run's folder, which nobody else may do meanwhile."""
    launch, patience = torchrun.launch_id(), config.distributed.timeout_seconds
    again = worker.is_main and torchrun.has_taken()
    lock = RunLock(config.folder, launch, grace=patience, again=again, on_loss=end_at_once)
    with holding(lock, patience / 4):
        train_in_folder(config, worker, stop, resume, overwrite=overwrite, launch=launch, lock=lock)


def end_at_once(reason: str, same_launch: bool) -> None:
    """From any thread, and without a further word to the run's folder.

    Nor from a later attempt on this machine: the folder is another launch's. Of the same one it is where rank 0 is now.
    """
    print(f"error: {reason}", file=sys.stderr, flush=True)
    if not same_launch:
        torchrun.end_launch(EXIT_FAULT)
    torchrun.note_exit_code(EXIT_FAULT)
    os._exit(EXIT_FAULT)


def train_in_folder(
    config: RunConfig,
    worker: Worker,
    stop: StopFlag,
    resume: str | None,
    *,
    overwrite: bool,
    launch: str | None,
    lock: RunLock,
) -> None:
    """Build everything, then touch the run's folder: an error before leaves it as it was."""
    retry = sync.any_rank(torchrun.is_retry())

    def on_disk(act: Callable[[], T]) -> T:
        return sync.from_rank_0(lambda: waiting(act, config.distributed.timeout_seconds / 4, again=lock.again))

    start = on_disk(lambda: find_resume_point(config, resume=resume, overwrite=overwrite, launch=launch, retry=retry))
    if start is not None and sync.from_rank_0(lambda: is_finished(config, start)):
        if worker.is_main:
            print(finished(config, start))
        return
    if start is not None:  # Before a network is built as large as its config says.
        sync.from_rank_0(lambda: require_model_of(config, start.state))
    network, data = build(config, worker, fresh=start is None)
    trainer = Trainer(
        config,
        network,
        data,
        worker,
        observers=standard_observers(config, launch=launch, resumed_from=start and start.path)
        if worker.is_main
        else (),
        checkpoints=checkpoints_of(config, launch, lock.require) if worker.is_main else None,
        stop_requested=stop,
        guard=lock.require,
    )
    if start is not None:
        sync.together(lambda: trainer.load(start.state))
    on_disk(lambda: take_folder(config, start, overwrite=overwrite, launch=launch, guard=lock.require))
    if worker.is_main:
        torchrun.note_taken()
        print("\n".join(banner_lines(config, network, data, worker)), flush=True)
    with closing(data):
        trainer.fit()


def preview(config: RunConfig, worker: Worker, count: int) -> None:
    """Write the first training samples of worker 0, as its network would get them, beside the run's folder."""
    pipelines.prepare(config.data)
    data = pipelines.build(config.data, data_request(config, worker))
    steps = islice(data.train.epoch(), ceil(count * worker.world_size / config.train.global_batch_size))
    with closing(data):
        images, labels = (torch.cat(parts) for parts in zip(*(batch for step in steps for batch in step), strict=True))
    path = config.folder.with_name(f"{config.folder.name}_preview.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(data.picture(images, labels, most=count), path)
    except OSError as error:
        raise UserError(f"--preview: {path} cannot be written ({error.strerror}); set runs=") from None
    print_to_reader(f"{min(count, len(labels))} training samples in {path}")


def evaluate(config: RunConfig, worker: Worker, checkpoint: Path) -> None:
    saved = sync.from_rank_0(lambda: read_run(checkpoint))
    require_model_of(config, saved)
    network, data = build(config, worker)
    trainer = Trainer(config, network, data, worker)
    sync.together(lambda: trainer.run.load_network(saved))
    require_same_classes(saved, data)
    if worker.is_main:
        print("\n".join(banner_lines(config, network, data, worker)))
        print(how_chosen(checkpoint, saved), flush=True)
    with closing(data):
        result = trainer.evaluate()
    if worker.is_main:
        for name, on in (("test", result.test), ("validation", result.validation), ("train", result.train)):
            if on is not None:
                print(f"{name}: top-1 {on.top1:.2f} %  top-5 {on.top5:.2f} %  loss {on.loss:.4f}")


def build(config: RunConfig, worker: Worker, *, fresh: bool = False) -> tuple[Network, Data]:
    """A collective: data may have to be fetched, by one process a machine, before any can read them.

    Only a fresh run looks at `config.start`: one that goes on has weights and masks of its own.
    """
    sync.together(lambda: pipelines.prepare(config.data) if worker.local_rank == 0 else None)
    sources = sync.from_rank_0(lambda: read_sources(config)) if fresh else NOTHING
    network, data = sync.together(lambda: build_parts(config, worker, sources))
    require_same_data(data)
    return network, data


def build_parts(config: RunConfig, worker: Worker, sources: Sources = NOTHING) -> tuple[Network, Data]:
    """What a rank builds without talking to the others."""
    device = worker.device(config.distributed.backend)
    data = pipelines.build(config.data, data_request(config, worker))
    return build_network(config, device, sources), data


def data_request(config: RunConfig, worker: Worker) -> Request:
    """What a rank asks of its data set."""
    return Request(
        seed=config.seed,
        global_batch=config.train.global_batch_size,
        share=Share(worker.rank, worker.world_size, config.train.micro_batches),
        evaluation_batch=config.train.evaluation_batch_size,
        device_id=worker.device(config.distributed.backend).index,
        evaluate_train=config.train.evaluate_train,
        channels_last=config.train.channels_last,
    )


def require_same_data(data: Data) -> None:
    """A collective. Raise UserError where workers see other data than rank 0, such as another copy of them."""
    states = sync.all_of((data.train.state_dict(), data.test and data.test.listing))
    differing = [str(rank) for rank, state in enumerate(states) if state != states[0]]
    if differing:
        raise UserError(
            f"data: worker {', '.join(differing)} has other training or test samples than worker 0; "
            "give all machines the same files, of the same names"
        )


def require_same_classes(saved: Mapping[str, Any], data: Data) -> None:
    """Raise UserError if the network's outputs are other classes than the data's, as far as both have names."""
    trained = saved.get("input", {}).get("class_names", [])
    for ours, theirs in zip(data.class_names, trained, strict=False):
        if ours != theirs:
            raise UserError(
                f"data: class {data.class_names.index(ours)} is {ours}, and {theirs} where the checkpoint was trained; "
                "give data of the same classes"
            )


def say(error: object) -> None:
    if torchrun.speaks_first():
        print("".join(f"error: {line}\n" for line in str(error).splitlines()), end="", file=sys.stderr, flush=True)


def say_fault(error: Exception, worker: Worker) -> None:
    lost = lost_peer(error)
    if lost is None:
        traceback.print_exc()
    elif torchrun.over() is None:  # Else another worker of this launch has said why it ends.
        say(f"worker {worker.rank} on {platform.node()} has lost another worker ({lost})")


def leave(code: int, worker: Worker) -> NoReturn:
    """Exit. Bad input ends the launch: torchrun would try it again, and say the same again."""
    if code == EXIT_DONE and (problem := streams.lost_output()):
        say(problem)
        code = EXIT_BAD_INPUT
    if code == EXIT_BAD_INPUT:
        torchrun.end_launch(code)
    if worker.local_rank == 0 or code == EXIT_BAD_INPUT:
        torchrun.note_exit_code(torchrun.over() or code)  # Another's bad input looks like a fault from here.
    sys.stdout.flush()
    sys.stderr.flush()
    if worker.under_torchrun or __name__ == "__main__":
        # All that is worth closing is closed. What is left for the interpreter to take down are threads of libraries:
        # once in hundreds of runs one is still alive then and aborts the process, which would make a fault of a run
        # that is done; and after a fault they could wait for peers that will never answer.
        os._exit(code)
    sys.exit(code)


def trains(arguments: argparse.Namespace) -> bool:
    """Whether a run is asked for, and not what is printed."""
    looks = ("evaluate", "dry_run", "preview", "print_schema", "check")
    return not any(getattr(arguments, name) for name in looks)


def main() -> NoReturn:
    worker = Worker()
    torchrun.forget_exit_code()
    try:
        worker = Worker.from_environment()
        arguments = parse_arguments()
        if trains(arguments):
            streams.go_on_without()
        if arguments.print_schema:
            print_to_reader(schema.json_schema().rstrip("\n"))
            leave(EXIT_DONE, worker)
        speaks = worker.is_main and not arguments.check
        streams.log_in_lines(logging.INFO if speaks else logging.ERROR)
        run(arguments, worker)
    except SystemExit as ended:  # argparse's: 0 after --help, 2 for what it cannot read.
        leave(int(ended.code or EXIT_DONE), worker)
    except StopRequested:
        leave(EXIT_STOPPED, worker)
    except UserError as error:
        say(error)
        leave(EXIT_BAD_INPUT, worker)
    except (DesyncError, StorageFaultError) as error:
        say(error)
        leave(EXIT_FAULT, worker)
    except KeyboardInterrupt:
        leave(EXIT_INTERRUPTED, worker)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must not wait for this one
        say_fault(error, worker)
        leave(EXIT_FAULT, worker)
    leave(EXIT_DONE, worker)


if __name__ == "__main__":
    if INTERRUPTIBLE:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
