"""The schema of a run: strict, typed, one class a section.

A config is a YAML file plus `section.key=value` overrides. Everything that is
wrong with it is listed at once, each with where it stands, the value, the rule
and the remedy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails

from dynsparse.distributed.allreduce import Gradients
from dynsparse.errors import UserError, nearest
from dynsparse.masks.granularity import Granularity
from dynsparse.methods import AnyMethod
from dynsparse.models import AnyModel
from dynsparse.optimizers import OptimizerSettings, SgdSettings
from dynsparse.reallocation import OnDesync
from dynsparse.runtime import Backend
from dynsparse.schedules import LrSettings, StepLr
from dynsparse.settings import Settings
from pipelines.config import DataSettings

Sparsity = Annotated[float, Field(ge=0, lt=1)]
AtLeast1 = Annotated[int, Field(ge=1)]


class SparsitySettings(Settings):
    """Which layers are sparse, how sparse, and in what units."""

    conv: Sparsity = 0.5
    """Share of the weights of each sparse convolution that are 0."""
    fc: Sparsity = 0.98
    """Share of the weights of each sparse linear layer that are 0."""
    allocation: Literal["uniform", "erk"] = "uniform"
    """uniform: each layer as above; erk: as many weights in all, but small layers are denser (Evci et al. 2020)."""
    granularity: Granularity = 4
    """Unit of a convolution: 4 an element, 3 a kernel row, 2 a kernel slice, 1 a filter."""
    include: Annotated[list[str], Field(min_length=1)] | None = None
    """Shell patterns of parameter names to make sparse (`layer3.*`), instead of the model's own choice."""
    exclude: list[str] = []
    """Shell patterns of parameter names to keep dense."""


class PenaltySettings(Settings):
    """Pulls the active weights of the sparse layers to 0."""

    l1: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the sum of magnitudes."""
    group_lasso: bool = False
    """In convolutions, of the sum of the norms of the kernel slices instead."""


class StartSettings(Settings):
    """What to take over from another run: its folder (the latest state), FOLDER_initial, or a checkpoint."""

    weights_from: Annotated[str, Field(min_length=1)] | None = None
    """Weights to begin with."""
    masks_from: Annotated[str, Field(min_length=1)] | None = None
    """Masks to begin with, instead of random ones; they decide the sparsity."""


class TrainSettings(Settings):
    """Epochs, batches, optimizer, precision."""

    epochs: AtLeast1 = 10
    start_epoch: Annotated[int, Field(ge=0)] = 0
    """Epoch that a new run begins with, for schedules; a resumed one goes on where it was."""
    global_batch_size: AtLeast1 = 100
    """Samples in one optimizer step, over all workers and micro-batches."""
    micro_batches: AtLeast1 = 1
    """Gradient accumulation: parts in which each worker takes its share of a batch."""
    evaluation_batch_size: AtLeast1 = 256
    """Samples that one worker evaluates at once."""
    optimizer: OptimizerSettings = SgdSettings()
    lr: LrSettings = StepLr()
    penalty: PenaltySettings = PenaltySettings()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, fp16: forward under autocast, with fp16 the loss is scaled; weights and optimizer stay float32."""
    channels_last: bool = False
    """Memory format of convolution weights and images; faster on GPUs with bf16."""
    compile: bool = False
    """torch.compile the model."""
    max_bad_steps: AtLeast1 = 10
    """Steps in a row to skip because the loss or a gradient is no finite number; then training stops."""
    evaluate_train: bool = False
    """After each epoch, evaluate on the training samples too."""


class DistributedSettings(Settings):
    """How the workers talk."""

    backend: Backend = "auto"
    """auto: NCCL where there are GPUs, gloo on the CPU otherwise."""
    timeout_seconds: Annotated[float, Field(gt=0, le=7 * 24 * 3600)] = 300
    """How long a worker waits for the others before it gives up: it must be longer than any pause that is none."""
    gradients: Gradients = "dense"
    """What travels between the ranks each step. active: the gradients of active weights alone, bytes fall with the
    density; dense: all; auto: whatever proves faster in steps at the start. With more than two ranks the two differ in
    rounding, so that runs repeat bit for bit only where it is set."""
    on_desync: OnDesync = "abort"
    """When ranks hold different masks or weights: stop and name the layers, or take over rank 0's."""

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout_seconds)


class CheckpointSettings(Settings):
    """When to save, and what to keep. The initial, the latest and the best state are always kept.

    Checkpoints are written in the background, while training goes on.
    """

    every_epochs: AtLeast1 = 1
    every_steps: AtLeast1 | None = None
    """Save in mid-epoch too."""
    every_minutes: Annotated[float, Field(gt=0, le=7 * 24 * 60)] | None = None
    """Save after the step at which so long has passed since the last save, for whatever reason that was."""
    keep: AtLeast1 = 2
    """Number of most recent checkpoints to keep. Where the newest is damaged, the one before is resumed from: with 1
    there is none, and one that is damaged is a run that is lost."""


class LogSettings(Settings):
    """What observers get to see."""

    every_steps: AtLeast1 = 50
    """Steps between two readings of loss and learning rate."""
    tensorboard: bool = True
    histograms: bool = True
    """Histograms of the active weights in TensorBoard, once an epoch."""
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    """auto: a bar in a terminal, lines elsewhere."""


class RunConfig(Settings):
    """One run of training."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,199}$")] | None = None
    """Name of the run's folder, one plain word; default {model}_{job_idx}."""
    job_idx: Annotated[int, Field(ge=0)] = 0
    """Number of the run, for lists of experiments."""
    runs: str = "runs"
    """Folder of all runs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: AnyModel
    sparsity: SparsitySettings = SparsitySettings()
    method: AnyMethod
    start: StartSettings = StartSettings()
    data: DataSettings
    train: TrainSettings = TrainSettings()
    distributed: DistributedSettings = DistributedSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _sections_fit(self) -> RunConfig:
        """Raise ValueError for sections that are right alone and wrong together."""
        method, start, train = self.method, self.start, self.train
        if train.start_epoch >= train.epochs:
            raise ValueError(f"train.start_epoch is {train.start_epoch}; it must be below train.epochs, {train.epochs}")
        if self.data.dtype == "float16" and train.precision == "fp32":
            raise ValueError(
                "data.dtype is float16, which the network's float32 weights cannot be multiplied with: "
                "set train.precision=bf16 or fp16, or data.dtype=float32"
            )
        if method.name == "pruning" and start.weights_from is None:
            raise ValueError(
                "method.name is pruning, which starts from a trained dense network: set start.weights_from to its run"
            )
        if method.name == "pruning" and method.last_prune >= train.epochs:
            raise ValueError(
                f"train.epochs is {train.epochs}; the last of {method.iterations} prunes comes at the end of epoch "
                f"{method.last_prune} (counted from 0): train at least {method.last_prune + 1}"
            )
        if start.masks_from is not None and method.starts != "sparse":
            raise ValueError(f"start.masks_from does not go with method {method.name}, which starts without masks")
        if method.name == "tied" and start.weights_from is not None:
            raise ValueError("start.weights_from does not go with method tied, whose weights are others")
        if method.name == "tied" and train.penalty.group_lasso and self.sparsity.granularity > 2:
            raise ValueError(
                "train.penalty.group_lasso with method tied needs units that hold whole kernel slices: "
                "set sparsity.granularity to 2 or 1"
            )
        return self

    @property
    def run_name(self) -> str:
        return self.name or f"{self.model.name.replace('/', '_')}_{self.job_idx}"

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.run_name

    def check_split(self, workers: int) -> None:
        """Raise UserError unless each worker gets a sample for each of its micro-batches. Parts may differ by one."""
        train = self.train
        parts = workers * train.micro_batches
        if train.global_batch_size < parts:
            raise UserError(
                f"train.global_batch_size is {train.global_batch_size}; each of {workers} workers x "
                f"{train.micro_batches} micro-batches needs a sample: take {parts} or more"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back to an equal config."""
        return self.model_dump()

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides, check. UserError lists all that is wrong."""
    return parse(read_mapping(path), overrides, source=str(path))


def read_mapping(path: str | Path) -> dict[Any, Any]:
    """The sections that a config's file holds, unchecked. UserError if it cannot be read or holds none."""
    raw = read_file(path, "--config", "configs/")
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {_kind(raw)}; a config is a mapping of sections, as those in configs/ are")
    return raw


def read_file(path: str | Path, option: str, examples: str) -> Any:
    """What a YAML file holds. UserError, naming the option that the path came from, if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(
            f"{option} {path}: cannot be read ({reason}); give a YAML file such as those in {examples}"
        ) from None
    return _read_yaml(text, str(path))


def parse(
    raw: Mapping[str, Any],
    overrides: Sequence[str] = (),
    source: str = "config",
    flags: Mapping[tuple[str, ...], str] | None = None,
) -> RunConfig:
    """A checked config from plain data and overrides. UserError lists all that is wrong.

    `flags` are options of the command line by the keys that they have set, so that an error names the option.
    """
    merged, overridden, wrong = merge(raw, overrides)
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        wrong += [explain(details, source, overridden, flags or {}) for details in error.errors()]
    if wrong:
        raise UserError(*wrong)
    return config


def merge(raw: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[tuple[str, ...]], list[str]]:
    """The data with the overrides in it, the paths of those, and an error for each that is none."""
    merged = _copy(raw)
    overridden: list[tuple[str, ...]] = []
    wrong: list[str] = []
    for text in overrides:
        try:
            overridden.append(_override(merged, text))
        except UserError as error:
            wrong += error.lines
    return merged, overridden, wrong


def json_schema() -> str:
    """JSON Schema of the config, for editors."""
    schema = RunConfig.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _copy(raw: Any) -> Any:
    return {key: _copy(value) for key, value in raw.items()} if isinstance(raw, Mapping) else raw


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two repairs: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_NUMBER = r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_NUMBER), list("-+0123456789."))


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, a number without digits
        raise UserError(f"{source}: no valid YAML ({' '.join(str(error).split())})") from None


def _override(config: dict[str, Any], text: str) -> tuple[str, ...]:
    """Set one `section.key=value` in place; returns its path."""
    path, equals, value = text.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise UserError(f"'{text}' is no override; write section.key=value, such as train.epochs=20")
    put(config, keys, _read_yaml(value, f"'{text}'"), f"'{text}'")
    return keys


def put(config: dict[str, Any], keys: Sequence[str], value: Any, source: str) -> None:
    """Set a key in place, making the sections above it. UserError, naming `source`, if one of them is no section."""
    section = config
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UserError(f"{source}: {key} {_kind(section)}, no section; its keys cannot be set")
    section[keys[-1]] = value


def explain(
    details: ErrorDetails,
    source: str,
    overridden: Sequence[tuple[str, ...]],
    flags: Mapping[tuple[str, ...], str],
) -> str:
    """One line for one of pydantic's errors on a `RunConfig`: where, the value, the rule, the remedy.

    `overridden` are the keys that command line overrides set, `flags` says which option has set a key.
    """
    location, model = _resolve(details["loc"])
    where = _where(location, details["msg"], source, overridden, flags)
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{_hint(location, model, overridden)}"
        case "missing":
            return f"{where}: missing; it has no default"
        case "union_tag_not_found" if isinstance(value, Mapping):
            return f"{where}: lacks 'name', which says which one it is"
        case "union_tag_invalid":
            room = {"method": "methods", "model": "models"}.get(location[-1])
            home = f"; yours goes in dynsparse/{room}/" if room else ""
            tags = details["ctx"]["expected_tags"].replace("'", "")
            return f"{where}.name: unknown {location[-1]} '{details['ctx']['tag']}'; there are {tags}{home}"
        case "value_error":
            return f"{where}: {details['ctx']['error']}"
        case "invalid_key":
            return f"{where}: keys are words; this one {_kind(value)}"
        case _:
            return f"{where}: {_kind(value)}; {_rule(details)}"


def _overlap(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether one key path is the other, or above it."""
    return all(x == y for x, y in zip(a, b, strict=False))


def _where(
    location: Sequence[str],
    message: str,
    source: str,
    overridden: Sequence[tuple[str, ...]],
    flags: Mapping[tuple[str, ...], str],
) -> str:
    """Who is to blame: options by name, `section.key=value`, else the source."""
    key = ".".join(location)
    if location:
        named = [flag for keys, flag in flags.items() if _overlap(keys, location)]
    else:  # Sections that do not fit together: the message names their keys.
        named = [flag for keys, flag in flags.items() if len(keys) > 1 and ".".join(keys) in message]
    if named:
        return ", ".join(dict.fromkeys(named)) + (f" ({key})" if key else "")
    from_override = any(_overlap(keys, location) for keys in overridden)
    return f"{'command line' if from_override else source}: {key}" if key else source


def _hint(location: Sequence[str], model: type[BaseModel] | None, overridden: Sequence[tuple[str, ...]]) -> str:
    """What an unknown key may have been meant to be."""
    hint = nearest(location[-1], model.model_fields if model is not None else {})
    section = tuple(location[:-1])
    if (*section, "name") in overridden:
        return f" of this name{hint}; for another name replace the section: '{'.'.join(section)}={{name: ...}}'"
    return hint


def _rule(details: ErrorDetails) -> str:
    """What a value must be: ours where pydantic's words speak of Python."""
    match details["type"]:
        case "model_type" | "model_attributes_type" | "union_tag_not_found":
            return "it must be a section, with keys of its own"
        case "too_short":
            return f"it must have at least {details['ctx']['min_length']} entries"
        case "string_pattern_mismatch":
            return "it must be one plain word of letters, digits and _ . = + -"
        case _:
            return details["msg"][0].lower() + details["msg"][1:]


def _kind(value: Any) -> str:
    shown = json.dumps(value, default=str)
    return f"is {shown if len(shown) < 60 else shown[:57] + '...'}" if not isinstance(value, dict) else "is a section"


def _resolve(loc: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None]:
    """The key path of a pydantic location (which also names union members), and the class that holds its last key."""
    keys: list[str] = []
    current: Any = RunConfig
    holder: type[BaseModel] | None = RunConfig
    for step in loc:
        members = _models_of(current)
        if len(members) > 1 and step in members:  # A union's tag: no key of the user's.
            current = members[str(step)]
            continue
        holder = next(iter(members.values())) if len(members) == 1 else None
        keys.append(str(step))
        field = holder.model_fields.get(str(step)) if holder is not None else None
        current = field.annotation if field is not None else None
    return keys, holder


def _models_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """The classes that a value of this type can be, by the tags that tell them apart."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = annotation.model_fields.get("name")
        literal = get_args(name.annotation) if name is not None and get_origin(name.annotation) is Literal else ()
        return {str(next(iter(literal), annotation.__name__)): annotation}
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        tags = [item.tag for item in metadata if isinstance(item, Tag)]
        members = _models_of(inner)
        return dict(zip(tags, members.values(), strict=True)) if tags else members
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return {tag: model for member in get_args(annotation) for tag, model in _models_of(member).items()}
    return {}
