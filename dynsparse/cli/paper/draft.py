"""A config in the making, from the flags that are given."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynsparse.cli.paper.flag import Flag
from dynsparse.cli.paper.flags import FLAGS
from dynsparse.cli.paper.kinds import MODEL
from dynsparse.config.overrides import look, merge, overlap, put
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError

MODES = {"--rewire": "set", "--DeepR": "deepr", "--prune": "pruning", "--tied": "tied"}
"""Flags that choose the method; --threshold-prune makes set dsr."""
ASKED_BY = {"dsr": "--rewire --threshold-prune", **{method: flag for flag, method in MODES.items()}}
_UNNAMED = {"train.optimizer": "sgd", "train.lr": "steps"}
"""Names of the sections that need not give one."""
INITIAL = ("--initial-sparsity-conv", "--initial-sparsity-fc")
"""Flags of the sparsity that a network begins with."""


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
    """Options by the keys that they have set."""

    @classmethod
    def read(cls, arguments: argparse.Namespace, base: Mapping[str, Any] | None) -> Draft:
        """Read the flags that are given, and what they start from.

        Raises UserError for an unknown model, since too much hangs on it. Other mistakes are listed in `wrong`.
        """
        given: dict[str, Any] = {}
        wrong: list[str] = []
        for flag in FLAGS:
            if flag.name not in vars(arguments):
                continue
            try:
                given[flag.name] = flag.value if flag.kind is None else flag.read(vars(arguments)[flag.name])
            except UserError as error:
                wrong += error.lines
                if flag.kind is MODEL:
                    raise
        fresh = set(RunConfig.model_fields) if base is None else set()
        return cls(given, arguments.overrides, merge(base or {}, ())[0], fresh, wrong)

    @property
    def merged(self) -> dict[str, Any]:
        """The config with the overrides in it."""
        return merge(self.raw, self.overrides)[0]

    def overridden(self, key: str) -> list[str]:
        """Return the overrides that touch a key."""
        return [text for text in self.overrides if overlap(text, key)]

    def look(self, key: str) -> Any:
        """Return a key's value; None if it has none yet."""
        return look(self.raw, key)

    def put(self, key: str, value: Any, option: str = "") -> None:
        """Set a key. `option` is the flag that asked for it, or ""."""
        section = key.rpartition(".")[0]
        try:
            if section in _UNNAMED and self.look(f"{section}.name") is None:
                put(self.raw, f"{section}.name".split("."), _UNNAMED[section], option)
            put(self.raw, key.split("."), value, option)
        except UserError as error:
            self.wrong += error.lines
        else:
            if option:
                self.options[tuple(key.split("."))] = option

    def named(self, section: str) -> str:
        """Return the name in a section, such as "sgd" in train.optimizer."""
        return str(self.look(f"{section}.name") or _UNNAMED.get(section, ""))

    def apply(self, flag: Flag) -> None:
        """Set the flag's key as given, or to its default where defaults hold."""
        if not flag.key:
            return
        is_given = flag.name in self.given
        if flag.only and self.named(flag.section) not in flag.only:
            if is_given:
                self.idle.append(_no_effect(flag, self.named(flag.section)))
        elif is_given:
            is_switch = flag.kind is None
            self.put(flag.key, self._special(flag, self.given[flag.name], when=is_switch), flag.name)
        elif flag.path[0] in self.fresh and self.look(flag.key) is None:
            default = self._special(flag, flag.default, when=flag.kind is not None)
            if default is not None:
                self.put(flag.key, default)

    def _special(self, flag: Flag, value: Any, *, when: bool) -> Any:
        """Return the value that the flag has with this model, method or data set, else `value`."""
        names = [self.named(section) for section in ("model", "method", "data")]
        return next((flag.special[name] for name in flag.special if name in names), value) if when else value


def _no_effect(flag: Flag, name: str) -> str:
    them = [f"{one} ({ASKED_BY[one]})" if flag.section == "method" else one for one in flag.only]
    return f"{flag.name} has no effect with {flag.section} {name}; it is for {', '.join(them)}"
