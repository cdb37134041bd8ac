"""A flag of the paper's code: a row of the table in flags.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynsparse.cli.paper.kinds import Kind
from dynsparse.errors import UserError


@dataclass(frozen=True)
class Flag:
    """One flag of the paper's code."""

    name: str
    help: str
    kind: Kind | None = None
    """None for a switch."""
    key: str = ""
    """The key that it sets in a config; "" if it acts by a rule together with others."""
    default: Any = None
    """The key's value without the flag; None: the config's own default, or nothing."""
    value: Any = True
    """The key's value with the switch."""
    special: Mapping[str, Any] = field(default_factory=dict)
    """`default` (of a switch: `value`) with certain models, methods or data sets."""
    only: tuple[str, ...] = ()
    """Names of the section that holds the key for which it has an effect; (): all."""
    also: tuple[str, ...] = ()
    """Other names."""
    shown: str = ""
    """The default in words, where it is more than a value."""
    metavar: str = "N"

    @property
    def path(self) -> tuple[str, ...]:
        """The key in parts."""
        return tuple(self.key.split("."))

    @property
    def section(self) -> str:
        """The section of the key, such as "train.optimizer"."""
        return self.key.rpartition(".")[0]

    def read(self, text: str) -> Any:
        """Return the value of the flag's text. Raises UserError, which names the flag."""
        assert self.kind is not None
        try:
            value = self.kind.read(text)
        except (ValueError, KeyError):
            pass
        else:
            if self.kind.fits(value):
                return value
        raise UserError(f"{self.name}: is '{text}'; it must be {self.kind.rule}")

    def with_default(self) -> str:
        """Return the help text, with the default."""
        default = self.shown or ("" if self.kind is None or self.default is None else str(self.default))
        return (f"{self.help} (default: {default})" if default else self.help).replace("%", "%%")
