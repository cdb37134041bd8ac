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
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

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
    granularity: Granularity = 4
    """Unit of a convolution: 4 an element, 3 a kernel row, 2 a kernel slice, 1 a filter."""
    include: Annotated[list[str], Field(min_length=1)] | None = None
    """Shell patterns of parameter names to make sparse (`layer3.*`), instead of the model's own choice."""
    exclude: list[str] = []
    """Shell patterns of parameter names to keep dense."""


class TrainSettings(Settings):
    """Epochs, batches, optimizer, precision."""

    epochs: AtLeast1 = 10
    global_batch_size: AtLeast1 = 100
    """Samples in one optimizer step, over all workers and micro-batches."""
    micro_batches: AtLeast1 = 1
    """Gradient accumulation: parts in which each worker takes its share of a batch."""
    evaluation_batch_size: AtLeast1 = 256
    """Samples that one worker evaluates at once."""
    optimizer: OptimizerSettings = SgdSettings()
    lr: LrSettings = StepLr()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward and loss under autocast; weights and optimizer stay float32."""
    channels_last: bool = False
    """Memory format of convolution weights and images; faster on GPUs with bf16."""
    compile: bool = False
    """torch.compile the model."""


class DistributedSettings(Settings):
    """How the workers talk."""

    backend: Backend = "auto"
    """auto: NCCL where there are GPUs, gloo on the CPU otherwise."""
    timeout_seconds: Annotated[float, Field(gt=0, le=7 * 24 * 3600)] = 300
    """How long a worker waits for the others before it gives up."""
    on_desync: OnDesync = "abort"
    """When ranks hold different masks or weights: stop and name the layers, or take over rank 0's."""

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout_seconds)


class CheckpointSettings(Settings):
    """When to save, and what to keep. The initial, the latest and the best state are always kept."""

    every_epochs: AtLeast1 = 1
    every_steps: AtLeast1 | None = None
    """Save in mid-epoch too."""
    keep: AtLeast1 = 2
    """Number of most recent checkpoints to keep."""


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
    data: DataSettings
    train: TrainSettings = TrainSettings()
    distributed: DistributedSettings = DistributedSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    @property
    def run_name(self) -> str:
        return self.name or f"{self.model.name}_{self.job_idx}"

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.run_name

    def check_split(self, workers: int) -> None:
        """Raise UserError unless each worker and micro-batch gets the same number of samples."""
        train = self.train
        parts = workers * train.micro_batches
        if train.global_batch_size % parts:
            down = train.global_batch_size // parts * parts
            near = f"{down} or {down + parts}" if down else f"{parts}"
            raise UserError(
                f"train.global_batch_size is {train.global_batch_size}; it must split evenly over {workers} workers "
                f"x {train.micro_batches} micro-batches = {parts} parts: take {near}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back to an equal config."""
        return self.model_dump()

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides, check. UserError lists all that is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(
            f"--config {path}: cannot be read ({reason}); give a YAML file such as those in configs/"
        ) from None
    raw = _read_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {_kind(raw)}; a config is a mapping of sections, as those in configs/ are")
    return parse(raw, overrides, source=str(path))


def parse(raw: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "config") -> RunConfig:
    """A checked config from plain data and overrides. UserError lists all that is wrong."""
    merged = _copy(raw)
    overridden: list[tuple[str, ...]] = []
    wrong: list[str] = []
    for text in overrides:
        try:
            overridden.append(_override(merged, text))
        except UserError as error:
            wrong += error.lines
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        wrong += [_explain(details, source, overridden) for details in error.errors()]
    if wrong:
        raise UserError(*wrong)
    return config


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
    section = config
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UserError(f"'{text}': {key} {_kind(section)}, no section; its keys cannot be set")
    section[keys[-1]] = _read_yaml(value, f"'{text}'")
    return keys


def _explain(details: ErrorDetails, source: str, overridden: Sequence[tuple[str, ...]]) -> str:
    location, model = _resolve(details["loc"])
    key = ".".join(location) or "(top level)"
    from_override = any(all(a == b for a, b in zip(keys, location, strict=False)) for keys in overridden)
    where = f"{'command line' if from_override else source}: {key}"
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{_hint(location, model, overridden)}"
        case "missing":
            return f"{where}: missing; it has no default"
        case "union_tag_not_found":
            names = details["ctx"]["discriminator"].strip("'")
            return f"{where}: lacks '{names}', which says which one it is"
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
        case "model_type" | "model_attributes_type":
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
        tagged = [m for m in members if len(members) > 1 and step in get_args(m.model_fields["name"].annotation)]
        if tagged:  # A union's tag: no key of the user's.
            current = tagged[0]
            continue
        holder = members[0] if len(members) == 1 else None
        keys.append(str(step))
        field = holder.model_fields.get(str(step)) if holder is not None else None
        current = field.annotation if field is not None else None
    return keys, holder


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return _models_of(get_args(annotation)[0])
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return [model for member in get_args(annotation) for model in _models_of(member)]
    return []
