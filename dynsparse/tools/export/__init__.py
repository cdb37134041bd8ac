"""python -m dynsparse export: write the network of a checkpoint for other programs.

There is one file a format. Each has

- `encode(network) -> bytes`, the file's content,
- `SUFFIX`, of the file's name, and `LOADING`, a line that loads it,
- `beside(network) -> bytes`, where FILE has no place for the network's input and classes: the content of FILE.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from dynsparse.errors import UserError
from dynsparse.tools.export.network import ExportedNetwork, made_compact, with_two_of_four
from dynsparse.tools.export.source import add_source, taken
from pipelines.common.command_line import Parser
from pipelines.common.paths import argument
from pipelines.common.text import nearest, one_line

FORMATS = {
    "torch": ("torch_file", "state_dict, dense tensors with zeros"),
    "safetensors": ("safetensors_file", "the same tensors, and where they come from"),
    "onnx": ("onnx_file", "graph for ONNX Runtime and others, BatchNorm multiplied in, any batch size"),
    "csr": ("csr", "sparse layers as CSR matrices, the rest dense"),
    "compact": ("compact_file", "program that torch alone loads, without the channels that do nothing"),
}


def main(arguments: list[str]) -> None:
    """Export. UserError for a checkpoint that is not valid, and for a file that cannot or must not be written."""
    parser = Parser(
        prog="python -m dynsparse export",
        description="Take the network of a checkpoint away, in evaluation mode. Needs no data.",
        epilog="\n".join(f"  {name:12} {text}" for name, (_, text) in FORMATS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source(parser)
    parser.add_argument("--format", required=True, metavar="|".join(FORMATS), help="see below")
    parser.add_argument("--out", metavar="FILE", type=argument, help="default: the run's name, in this folder")
    parser.add_argument(
        "--compact", action="store_true", help="take out the channels that do nothing, in other formats too"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parsed = parser.parse_args(arguments)
    if parsed.format not in FORMATS:
        raise UserError(f"--format: unknown format '{parsed.format}'{nearest(parsed.format, FORMATS)}")
    format_ = import_module(f"{__name__}.{FORMATS[parsed.format][0]}")
    network, source = taken(parsed)
    if parsed.compact or parsed.format == "compact":
        network = made_compact(network, parsed.format)
    network = with_two_of_four(network)
    path = Path(parsed.out or f"{network.facts['run']}{format_.SUFFIX}")
    contents = {path: format_.encode}
    if hasattr(format_, "beside"):
        contents[path.with_name(f"{path.name}.json")] = format_.beside
    for target in contents:
        check_target(target, source, overwrite=parsed.overwrite)
    for target, encode in contents.items():
        write(target, encode(network))
    loading = format_.LOADING.format(path=path)
    if parsed.format in ("torch", "safetensors") and network.facts.keys() & {"shrunk", "compact"}:
        loading = "code that builds layers of these shapes; --format compact is a program that torch loads by itself"
    print(_report(network, source, list(contents), parsed.format, loading), flush=True)


def check_target(path: Path, source: Path, *, overwrite: bool) -> None:
    """Raise UserError where a file at `path` would replace what it must not, or cannot be looked for."""
    try:
        if path.exists() and source.samefile(path):
            raise UserError(f"--out: {path} is the checkpoint itself; name another file")
        if path.exists() and not path.is_file():
            raise UserError(f"--out: {path} is no file; name a file")
        if path.exists() and not overwrite:
            raise UserError(f"--out: {path} exists; replace it with --overwrite, or name another file")
    except OSError as error:
        raise UserError(f"--out: {path} cannot be looked up ({error.strerror}); name another file") from None


def write(path: Path, content: bytes) -> None:
    """Write all of a file or nothing. UserError if it cannot be written."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written ({error.strerror}); name another file") from None
    finally:
        with suppress(OSError):  # Where it could not be written it may not be looked for either.
            partial.unlink()


def _report(network: ExportedNetwork, source: Path, paths: Sequence[Path], name: str, loading: str) -> str:
    facts, dense, size = network.facts, network.dense_bytes, paths[0].stat().st_size
    method = f" by {facts['method']}" if facts["method"] else ""
    top1 = f"; {facts['test_top1']} % on the test data" if facts["test_top1"] else ""
    tied = "; its tied weights have a value each now" if facts["tied"] == "true" else ""
    rows = [
        ("network", f"{facts['model']}{method}, of {network.chosen}{top1}"),
        ("input", _input(json.loads(facts["input"]))),
        ("sparsity", f"{_percent(facts['sparsity'])} of its sparse layers, {_percent(facts['model_sparsity'])} of all"),
        *([("shrunk", f"{facts['shrunk']}; its tensors fit no whole network")] if "shrunk" in facts else []),
        *([("compact", facts["compact"])] if "compact" in facts else []),
        *([("2:4", _two_of_four(json.loads(facts["two_of_four"])))] if "two_of_four" in facts else []),
        ("format", f"{name}: {FORMATS[name][1]}{tied}"),
        ("file", f"{paths[0]}, {size:,} bytes" + "".join(f"; {other}: classes and input" for other in paths[1:])),
        ("dense", f"{dense:,} bytes for all values: the file is {size / dense:.3f} of it"),
        ("checkpoint", f"{source.stat().st_size:,} bytes{', with what training needs beside' if method else ''}"),
        ("load it with", loading),
    ]
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"{title.ljust(width)}  {one_line(text)}" for title, text in rows)


def _input(facts: Mapping[str, Any]) -> str:
    """Return the network's input and classes in a line."""
    names = facts.get("class_names") or []
    named = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    parts = [f"{'x'.join(map(str, facts['shape']))}, {facts['number_of_classes']:,} classes{named}"]
    if facts.get("resize"):
        parts.append(f"shorter side resized to {facts['resize']}, central crop")
    if facts.get("mean"):
        mean, std = (" ".join(f"{value:.6g}" for value in facts[key]) for key in ("mean", "std"))
        parts.append(f"(grey level - {mean}) / {std}")
    return "; ".join(parts)


def _two_of_four(facts: Mapping[str, Any]) -> str:
    """Return which layers a GPU's sparse tensor cores can take, and which not, in a line."""
    others = [f"{name} ({why})" for name, why in facts["others"].items()]
    return f"{', '.join(facts['layers'])}; not {', '.join(others)}" if others else ", ".join(facts["layers"])


def _percent(share: str) -> str:
    return f"{100 * float(share):.2f} %"
