"""The command line of the paper's code, translated to the config that a YAML file gives.

docs/from-the-paper-code.md says what each flag sets, and what differs from the paper's code.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dynsparse.cli.paper.flags import DATA, FLAGS, MLP, MODEL, POST_PRUNE_EPOCHS, WRN, Flag
from dynsparse.cli.resuming import Resume, path_given
from dynsparse.config import schema
from dynsparse.config.reading import plain, read_file
from dynsparse.config.schema import RunConfig
from dynsparse.config.shipped import found
from dynsparse.errors import UserError
from dynsparse.methods.pruning import PruningSettings
from dynsparse.schedules import NotNegative, Period, StepTable
from pipelines.common.text import nearest

MODES = {"--rewire": "set", "--DeepR": "deepr", "--prune": "pruning", "--tied": "tied"}
"""Flags that choose the method; --threshold-prune makes set dsr."""
_ASKED_BY = {"dsr": "--rewire --threshold-prune", **{method: flag for flag, method in MODES.items()}}
_UNNAMED = {"train.optimizer": "sgd", "train.lr": "steps"}
"""What a section is that lacks its name."""


def any_given(arguments: argparse.Namespace) -> bool:
    """Whether one of the flags is there."""
    return any(flag.name in vars(arguments) for flag in FLAGS)


@dataclass(frozen=True)
class Translation:
    """The config that a command line makes."""

    config: RunConfig
    warnings: Sequence[str]
    """Flags that have no effect, a line each."""


def translate(
    arguments: argparse.Namespace, resume: Resume, base: Mapping[str, Any] | None, source: str
) -> Translation:
    """The checked config of a command line. UserError lists all that is wrong.

    `base` is the config that `source` holds, of which the flags given change keys; None: the flags and their
    defaults say all. `arguments` come from a parser with `add_flags`, `--resume` and `overrides`.
    """
    draft = Draft.read(arguments, base)
    _choose_networks(draft)
    _choose_method(draft)
    _read_schedules(draft)
    for flag in FLAGS:
        draft.apply(flag)
    _finish_data_and_optimizer(draft)
    _take_weights(draft, resume)
    _plan_pruning(draft)
    draft.wrong += [*_contradictions(draft), *_contradicted_overrides(draft)]
    draft.idle += _without_effect(draft)
    try:
        config = schema.parse(draft.raw, draft.overrides, source, draft.options)
    except UserError as error:
        raise UserError(*draft.wrong, *error.lines) from None
    if draft.wrong:
        raise UserError(*draft.wrong)
    return Translation(config, draft.idle)


@dataclass
class Draft:
    """A config in the making."""

    given: Mapping[str, Any]
    """Values of the flags on the command line, by name."""
    overrides: Sequence[str]
    raw: dict[str, Any]
    fresh: set[str]
    """Sections in which the flags' defaults hold."""
    wrong: list[str]
    idle: list[str] = field(default_factory=list)
    options: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Which option has set a key."""

    @classmethod
    def read(cls, arguments: argparse.Namespace, base: Mapping[str, Any] | None) -> Draft:
        """The flags that are given, and what they start from. An unknown model ends it: too much hangs on it."""
        given: dict[str, Any] = {}
        wrong: list[str] = []
        for flag in FLAGS:
            if flag.name in vars(arguments):
                text = vars(arguments)[flag.name]
                try:
                    given[flag.name] = flag.value if flag.kind is None else flag.read(text)
                except UserError as error:
                    wrong += error.lines
                    if flag.kind is MODEL:
                        raise
        fresh = set(RunConfig.model_fields) if base is None else set()
        return cls(given, arguments.overrides, schema.merge(base or {}, ())[0], fresh, wrong)

    @property
    def merged(self) -> dict[str, Any]:
        """With the overrides."""
        return schema.merge(self.raw, self.overrides)[0]

    def overridden(self, key: str) -> list[str]:
        """The overrides that touch a key."""
        return [text for text in self.overrides if overlap(text, key)]

    def look(self, key: str) -> Any:
        """A key's value; None if it has none yet."""
        return look(self.raw, key)

    def put(self, key: str, value: Any, option: str = "") -> None:
        """Set a key; `option` is who does, if somebody asked for it."""
        section = key.rpartition(".")[0]
        try:
            if section in _UNNAMED and self.look(f"{section}.name") is None:
                schema.put(self.raw, f"{section}.name".split("."), _UNNAMED[section], option)
            schema.put(self.raw, key.split("."), value, option)
        except UserError as error:
            self.wrong += error.lines
        else:
            if option:
                self.options[tuple(key.split("."))] = option

    def named(self, section: str) -> str:
        """Which one a section is."""
        return str(self.look(f"{section}.name") or _UNNAMED.get(section, ""))

    def apply(self, flag: Flag) -> None:
        """Set the flag's key as given, or to its default where these hold."""
        if not flag.key:
            return
        special = [
            value for name, value in flag.special.items() if name in map(self.named, ("model", "method", "data"))
        ]
        is_given = flag.name in self.given
        if flag.only and self.named(flag.section) not in flag.only:
            if is_given:
                self.idle.append(_no_effect(flag, self.named(flag.section)))
        elif is_given:
            self.put(flag.key, special[0] if flag.kind is None and special else self.given[flag.name], flag.name)
        elif flag.path[0] in self.fresh and self.look(flag.key) is None:
            default = special[0] if flag.kind is not None and special else flag.default
            if default is not None:
                self.put(flag.key, default)


def look(config: Mapping[str, Any], key: str) -> Any:
    """The value at section.key; None if there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def overlap(override: str, key: str) -> bool:
    """Whether a section.key=value sets the key, something in it, or the section around it."""
    parts = override.partition("=")[0].strip().split(".")
    return all(a == b for a, b in zip(parts, key.split("."), strict=False))


def _no_effect(flag: Flag, name: str) -> str:
    them = [f"{one} ({_ASKED_BY[one]})" if flag.section == "method" else one for one in flag.only]
    return f"{flag.name} has no effect with {flag.section} {name}; it is for {', '.join(them)}"


# -- rules of several flags ------------------------------------------------------------------------


def _choose_networks(draft: Draft) -> None:
    """The model; without a config its data set too. Another model than the config's is a section of its own."""
    model = draft.given.get("--model", MLP)
    if "model" in draft.fresh:
        draft.raw |= {"model": {"name": model}, "data": {"name": DATA[model]}}
    elif "--model" in draft.given and draft.named("model") != model:
        draft.raw["model"] = {"name": model}
        draft.fresh.add("model")


def _choose_method(draft: Draft) -> None:
    """From the flag that says it; else, without a config, static, or dense where nothing is sparse."""
    given = draft.given
    modes = [mode for mode in MODES if mode in given]
    if modes:
        mode = modes[0]
        method = "dsr" if mode == "--rewire" and "--threshold-prune" in given else MODES[mode]
        draft.fresh.add("method")
        draft.raw["method"] = {}
        draft.put("method.name", method, _ASKED_BY[method])
    elif "method" in draft.fresh:
        sparsities = [given.get(flag.name, flag.default) for flag in FLAGS if flag.name in _INITIAL]
        is_dense = not any(sparsities) and "--copy-mask-from" not in given
        draft.put("method.name", "dense" if is_dense else "static")


_INITIAL = ("--initial-sparsity-conv", "--initial-sparsity-fc")

TABLES: dict[str, TypeAdapter[StepTable]] = {
    "lr_schedule": TypeAdapter(NotNegative),
    "rewire_period_schedule": TypeAdapter(Period),
    "DeepR_temperature_schedule": TypeAdapter(NotNegative),
}


def _read_schedules(draft: Draft) -> None:
    """What the schedule file says, as if it stood in a config: overrides win over it."""
    if "--lr" in draft.given and draft.named("train.lr") != "steps":
        draft.put("train.lr", {"name": "steps"})
    if "--schedule-file" not in draft.given:
        return
    try:
        tables = read_tables(draft.given["--schedule-file"])
    except UserError as error:
        draft.wrong += error.lines
        return
    if "lr_schedule" in tables:
        if "--lr" in draft.given:
            draft.wrong.append(
                f"--lr and the lr_schedule of --schedule-file {draft.given['--schedule-file']} contradict each other; "
                f"give one of them"
            )
        if draft.named("train.lr") != "steps":
            draft.put("train.lr", {"name": "steps"})
        draft.put("train.lr.table", tables["lr_schedule"].as_yaml())
    if "rewire_period_schedule" in tables and draft.named("method") in ("dsr", "set"):
        draft.put("method.period", tables["rewire_period_schedule"].as_yaml())
    if "DeepR_temperature_schedule" in tables and draft.named("method") == "deepr":
        draft.put("method.temperature", tables["DeepR_temperature_schedule"].as_yaml())


def read_tables(name: str) -> dict[str, StepTable]:
    """The tables of a schedule file, looked for as given and in configs/schedules/. UserError lists what is wrong."""
    path = found(path_given("--schedule-file", name), "schedules")
    raw = plain(read_file(path, "--schedule-file", "configs/schedules/"))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no tables; write {', '.join(TABLES)}, each a list of '- epoch : value'")
    tables, wrong = {}, []
    for table, entries in raw.items():
        if table not in TABLES:
            wrong.append(f"{path}: {table}: unknown table{nearest(str(table), TABLES)}")
            continue
        try:
            tables[table] = TABLES[table].validate_python(entries)
        except ValidationError as error:
            wrong += [f"{path}: {table}: {details['ctx']['error']}" for details in error.errors()]
    if wrong:
        raise UserError(*wrong)
    return tables


def _finish_data_and_optimizer(draft: Draft) -> None:
    """What one flag means for a second key."""
    if "data" in draft.fresh and "--data" not in draft.given and draft.named("data") in ("cifar10", "mnist"):
        draft.put("data.download", True)
    if "data" in draft.fresh and draft.named("data") == "imagenet":
        draft.put("data.number_of_classes", 1000)  # The paper's, with or without the data at hand.
    if (
        draft.given.get("--momentum") == 0
        and "--nesterov" not in draft.given
        and draft.named("train.optimizer") == "sgd"
    ):
        draft.put("train.optimizer.nesterov", False)


def _take_weights(draft: Draft, resume: Resume) -> None:
    if resume.weights is not None:
        draft.put("start.weights_from", resume.weights, "--resume")
    elif "--prune" in draft.given and look(draft.merged, "start.weights_from") is None:
        draft.options[("method", "name")] = "--prune without --resume RUN"


def _plan_pruning(draft: Draft) -> None:
    """How long it takes."""
    if draft.named("method") != "pruning":
        return
    section = draft.merged.get("method")
    try:
        settings = PruningSettings.model_validate(section)
    except ValidationError:
        return  # Said when the whole config is checked.
    if draft.overridden("train.epochs") or not {"--prune", "--post-prune-epochs"} & draft.given.keys():
        return
    after = draft.given.get("--post-prune-epochs", POST_PRUNE_EPOCHS)
    epochs = settings.last_prune + 1 + after
    asked = draft.given.get("--epochs", epochs)
    if asked != epochs:
        draft.wrong.append(
            f"--epochs {asked} and --prune contradict each other: the last prune ends epoch {settings.last_prune} "
            f"(counted from 0), and {after} more make {epochs} epochs; leave --epochs out or set --post-prune-epochs"
        )
    draft.put("train.epochs", epochs)


def _contradictions(draft: Draft) -> Iterator[str]:
    given = draft.given
    modes = [mode for mode in MODES if mode in given]
    for one, other in itertools.combinations(modes, 2):
        yield f"{one} and {other} contradict each other: each is a method of its own; give one of them"
    for name in _INITIAL:
        if "--prune" in given and given.get(name):
            yield (
                f"{name} {given[name]} and --prune contradict each other: pruning starts from a dense network; "
                f"give {name.replace('initial', 'prune-target')} for the sparsity in the end"
            )


def _contradicted_overrides(draft: Draft) -> Iterator[str]:
    """Overrides win over defaults and files, but what a flag says and an override says must be the same."""
    merged = draft.merged
    for path, option in draft.options.items():
        key = ".".join(path)
        if look(merged, key) != draft.look(key):
            yield (f"{option} ({key}) and {', '.join(draft.overridden(key))} contradict each other; give one of them")


def _without_effect(draft: Draft) -> Iterator[str]:
    given, method = draft.given, draft.named("method")
    if "--threshold-prune" in given and "--rewire" not in given:
        yield "--threshold-prune has no effect without --rewire"
    if "--conv-group-lasso" in given and not look(draft.merged, "train.penalty.l1"):
        yield "--conv-group-lasso has no effect while --L1-loss-coeff is 0"
    if "--post-prune-epochs" in given and method != "pruning":
        yield f"--post-prune-epochs has no effect with method {method}; it is for pruning (--prune)"
    elif "--post-prune-epochs" in given and draft.overridden("train.epochs"):
        yield f"--post-prune-epochs has no effect with {', '.join(draft.overridden('train.epochs'))}"
    for name in _INITIAL:
        if given.get(name) and method == "dense":
            yield f"{name} has no effect with method dense"
    for model, kind, layers in ((MLP, "conv", "convolutions"), (WRN, "fc", "sparse linear layers")):
        for name in (f"--initial-sparsity-{kind}", f"--prune-target-sparsity-{kind}"):
            if given.get(name) and draft.named("model") == model and not draft.look("sparsity.include"):
                yield f"{name} has no effect with model {model}, which has no {layers}"
