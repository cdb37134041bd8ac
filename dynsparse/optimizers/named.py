"""Optimizers of torch.optim by their names there, where they leave a masked weight at 0."""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn, optim

from dynsparse.hints import for_name
from dynsparse.optimizers.base import Parameters
from dynsparse.optimizers.zeros import SOUND
from pipelines.common.settings import Settings
from pipelines.common.text import cut, nearest

PREFIX = "torch/"
_OURS = frozenset({"self", "params", "lr"})
_FIXED = frozenset({"capturable", "differentiable", "foreach", "fused", "maximize"})
"""Options that choose an implementation, or turn training around."""
_REASONS = {
    "LBFGS": "evaluates a batch several times in a step",
    "Muon": "makes each weight's step of those of all others, so masked weights would not stay 0",
    "SparseAdam": "takes sparse gradients alone",
}


class TorchSettings(Settings):
    """An optimizer of torch.optim with its own options, where it leaves a masked weight at exactly 0."""

    name: Annotated[str, Field(pattern=f"^{PREFIX}")]
    """torch/ and the class's name there, such as torch/RAdam."""
    options: Annotated[dict[str, Any], Field(max_length=100)] = {}
    """Options of its constructor by name, but for the learning rate, which is `train.lr`."""

    @field_validator("name")
    @classmethod
    def _is_sound(cls, name: str) -> str:
        word = name.removeprefix(PREFIX)
        if reason := _REASONS.get(word):
            raise ValueError(f"torch.optim.{word} {reason}; there are {', '.join(classes())}")
        if word not in classes():
            hint = for_name(word, more_names()) or f"; there are {', '.join(classes())}"
            raise ValueError(f"torch.optim has no '{cut(word)}' that keeps masked weights at 0{hint}")
        return name

    @field_validator("options")
    @classmethod
    def _are_plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            parts = value if isinstance(value, list) else [value]
            if len(parts) > 8 or not all(part is None or isinstance(part, (int, float, str)) for part in parts):
                raise ValueError(f"{cut(name)} must be a number, a word, true or false, or a list of a few numbers")
            if not all(math.isfinite(part) for part in parts if isinstance(part, float)):
                raise ValueError(f"{cut(name)} must be finite")
        return options

    @model_validator(mode="after")
    def _options_fit(self) -> TorchSettings:
        known = options_of(self._class)
        for name in self.options:
            if name == "lr":
                raise ValueError("options.lr: the learning rate is set by train.lr")
            if name in _FIXED:
                raise ValueError(f"options.{name}: dynsparse sets it; leave it out")
            if name not in known:
                raise ValueError(f"options: {self.name} has no option '{cut(name)}'{nearest(name, known)}")
            self._require_kind(name)
        self._try()
        return self

    def _require_kind(self, name: str) -> None:
        """Raise ValueError for a flag that is no flag, and for numbers that are none: any word counts as true there."""
        value, is_flag = self.options[name], isinstance(_defaults(self._class)[name], bool)
        if is_flag != isinstance(value, bool) or isinstance(value, str):
            rule = "is true or false" if is_flag else "takes numbers"
            raise ValueError(f"options: {name} of {self.name} is '{cut(value)}'; it {rule}")

    def build(self, parameters: Parameters, lr: float) -> optim.Optimizer:
        """Return the optimizer; `lr` is the rate of the first step."""
        options = {key: tuple(one) if isinstance(one, list) else one for key, one in self.options.items()}
        built: optim.Optimizer = self._class(parameters, lr=lr, **options)
        return built

    @property
    def state_keys(self) -> frozenset[str]:
        """Names of the state that it keeps of a parameter: it depends on the options."""
        return _after_steps(self)[1]

    @property
    def _class(self) -> type[Any]:
        return classes()[self.name.removeprefix(PREFIX)]

    def _try(self) -> None:
        """Raise ValueError for options that the class refuses, or under which a masked weight does not stay 0."""
        try:
            weight, _ = _after_steps(self)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ValueError(f"options: torch.optim.{self._class.__name__} refuses them ({cut(reason, 200)})") from None
        if not bool((weight[1] == 0).all()):
            raise ValueError(
                f"options: with these {self.name} moves a masked weight, whose value and gradient are 0, as with an "
                f"eps of 0: take others"
            )


@cache
def classes() -> dict[str, type[optim.Optimizer]]:
    """Return torch's optimizers that a config can name, by their names there."""
    return {cls.__name__: cls for cls in sorted(SOUND, key=lambda cls: cls.__name__) if _is_offered(cls)}


def _is_offered(cls: type[optim.Optimizer]) -> bool:
    return getattr(optim, cls.__name__, None) is cls and cls.__name__ not in _REASONS


def more_names() -> list[str]:
    """Return the names that `torch/...` stands for."""
    return [f"{PREFIX}{word}" for word in classes()]


def options_of(cls: type[optim.Optimizer]) -> list[str]:
    """Return the options of a class that a config may set."""
    return [name for name in _defaults(cls) if name not in _OURS | _FIXED]


def _defaults(cls: type[optim.Optimizer]) -> dict[str, Any]:
    """Return the constructor's arguments with their defaults."""
    return {name: one.default for name, one in inspect.signature(cls.__init__).parameters.items()}


def _after_steps(settings: TorchSettings) -> tuple[Tensor, frozenset[str]]:
    """Make three steps on weights [2, 3] whose second row is masked: value and gradient are 0.

    Returns the weights, and the names of the state that the optimizer keeps of them.
    """
    weight = nn.Parameter(torch.tensor([[1.0, -1.0, 0.5], [0.0, 0.0, 0.0]]))
    optimizer = settings.build([weight], lr=0.01)
    for size in (1.0, -0.5, 0.25):
        weight.grad = torch.tensor([[size, 2 * size, -size], [0.0, 0.0, 0.0]])
        optimizer.step()
    return weight.detach(), frozenset(optimizer.state[weight])
