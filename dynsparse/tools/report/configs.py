"""Configs and versions of the runs side by side, and where they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dynsparse.tools.report.run import Run
from dynsparse.tools.report.tables import Line
from dynsparse.tools.report.words import NOTHING


def flat(value: Any, key: str = "") -> dict[str, str]:
    """Return a config by dotted keys. Lists and tables of numbers stay in one piece, as a config has them."""
    if isinstance(value, Mapping) and value and all(isinstance(name, str) for name in value):
        return {k: v for name in value for k, v in flat(value[name], f"{key}.{name}" if key else name).items()}
    if isinstance(value, Mapping):
        return {key: "{" + ", ".join(f"{name}: {_text(item)}" for name, item in value.items()) + "}"}
    return {key: _text(value)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def configs(runs: Sequence[Run]) -> list[Line]:
    """Return a line for every key of any run, in the order of the first that has it."""
    return _side_by_side([flat(run.config) for run in runs], ignored=("name", "runs"))


def versions(runs: Sequence[Run]) -> list[Line]:
    """Return a line for each version that any run noted at its latest start."""
    return _side_by_side([{key: _text(value) for key, value in _versions(run).items()} for run in runs])


def _versions(run: Run) -> Mapping[str, Any]:
    if run.history is not None and run.history.sessions:
        found = run.history.sessions[-1].start.get("versions")
        if isinstance(found, Mapping):
            return found
    found = (run.summary or {}).get("versions")
    return found if isinstance(found, Mapping) else {}


def _side_by_side(columns: Sequence[Mapping[str, str]], ignored: Sequence[str] = ()) -> list[Line]:
    keys = list(dict.fromkeys(key for column in columns for key in column))
    lines = []
    for key in keys:
        cells = tuple(column.get(key, NOTHING) for column in columns)
        lines.append(Line(key, cells, code=True, differs=key not in ignored and len(set(cells)) > 1))
    return lines
