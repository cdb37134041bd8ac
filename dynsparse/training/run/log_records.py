"""Records of metrics.jsonl and history.jsonl: which values they may hold, and how a line is checked.

Files are cut, mixed up and edited by hand, and disks change bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dynsparse import files

Record = Mapping[str, Any]

LARGEST = 1e100
"""Beyond, a number tells nothing, and sums and axes overflow."""
MOST = 2**53
"""Beyond, float64 does not tell neighbours apart."""
_SHARED = {"kind", "step", "epoch", "dropped", "grown", "layers", "repaired", "timing"}
"""Keys of a reallocation that all methods have."""


class BadLineError(ValueError):
    """A line that is not what training writes."""


def metrics_line(content: bytes) -> Record:
    """Return a line of metrics.jsonl. Unknown kinds pass unchecked. ValueError for anything else."""
    line = files.json_object(content.decode("utf-8"))
    checks = {"epoch": _check_epoch, "reallocation": _check_reallocation, "shrink": _check_shrink}
    check = checks.get(word(line.get("kind")))
    if check is not None:
        _check(check, line)
    return line


def is_of_kind_known(line: Record) -> bool:
    """Tell whether this version writes lines of this kind."""
    return line["kind"] in ("epoch", "reallocation", "shrink")


def own_numbers(reallocation: Record) -> Record:
    """Return the method's own numbers in the record of a reallocation, such as its threshold."""
    return {key: value for key, value in reallocation.items() if key not in _SHARED}


def history_line(content: bytes) -> Record:
    """Return a line of history.jsonl. ValueError for anything else."""
    line = files.json_object(content.decode("utf-8"))
    if line.get("kind") not in ("start", "end"):
        raise BadLineError("neither a start nor an end")
    _check(_check_session, line)
    return line


def _check(check: Callable[[Record], None], line: Record) -> None:
    try:
        check(line)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadLineError(str(error)) from error


def _check_epoch(line: Record) -> None:
    for key in ("epoch", "step"):
        whole_number(line[key])
    numbers(line)
    numbers(line.get("timing", {}))
    for layer in line["layers"].values():
        whole_number(layer["active"])
        number(layer["sparsity"])
        number(layer.get("explored"))
        number(layer.get("flops"))
        number(layer.get("dead_outputs"))


def _check_reallocation(line: Record) -> None:
    whole_number(line["step"])
    numbers(own_numbers(line))
    number(line.get("timing", {}).get("seconds"))
    if not isinstance(line.get("repaired", []), list):
        raise BadLineError("repaired is no list")
    for layer in line["layers"].values():
        for key in ("dropped", "grown", "active"):
            whole_number(layer[key])
        number(layer.get("explored"))


def _check_shrink(line: Record) -> None:
    for key in ("epoch", "step", "parameters", "parameters_before"):
        whole_number(line[key])
    for key in ("dense_flops", "dense_flops_before"):
        number(line.get(key))
    number(line.get("timing", {}).get("seconds"))
    for layer in line["channels"].values():
        for key in ("inputs", "outputs", "inputs_before", "outputs_before"):
            whole_number(layer[key])


def _check_session(line: Record) -> None:
    word(line.get("time"))
    for key in ("step", "epoch"):
        whole_number(line.get(key))
    if line["kind"] == "start":
        whole_number(line.get("world_size"))
        if line.get("reached") is not None:  # Older runs lack it.
            whole_number(line["reached"])
        if not isinstance(line.get("resumed"), bool):
            raise BadLineError("it does not say whether it resumed")


def numbers(line: Record) -> dict[str, float]:
    """Return the numbers of a record by key, NaN where it has null."""
    return {
        str(key): number(value)
        for key, value in line.items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def number(value: Any) -> float:
    """Return the value, NaN for null and for what is beyond LARGEST. BadLineError for what is no number."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadLineError("no number")
    try:
        found = float(value)
    except OverflowError:
        raise BadLineError("an integer of hundreds of digits") from None
    return found if abs(found) <= LARGEST else float("nan")


def whole_number(value: Any) -> int:
    """Return the value if it is a count, 0 to MOST. BadLineError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise BadLineError("no count")
    return value


def word(value: Any) -> str:
    """Return the value if it is text. BadLineError otherwise."""
    if not isinstance(value, str):
        raise BadLineError("no text")
    return value
