"""python -m dynsparse export: take the network of a checkpoint away. One file a format, each with

- `encode(network) -> bytes`, the file's content,
- `SUFFIX`, of the file's name, and `LOADING`, a line that loads it.
"""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from dynsparse.errors import UserError, nearest, one_line
from dynsparse.runtime import print_to_reader
from dynsparse.tools.command_line import Parser
from dynsparse.tools.export.network import ExportedNetwork, source_of, take_network

FORMATS = {
    "torch": ("torch_file", "state_dict, dense tensors with zeros"),
    "safetensors": ("safetensors_file", "the same tensors, and where they come from"),
    "onnx": ("onnx_file", "graph for ONNX Runtime and others, BatchNorm multiplied in, any batch size"),
    "csr": ("csr", "sparse layers as CSR matrices, the rest dense"),
}


def main(arguments: list[str]) -> None:
    """UserError for a checkpoint that is not whole, and for a file that cannot or must not be written."""
    parser = Parser(
        "export",
        description="Take the network of a checkpoint away, in evaluation mode. Needs no data.",
        epilog="\n".join(f"  {name:12} {text}" for name, (_, text) in FORMATS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint, or a run's folder: its best")
    parser.add_argument("--format", required=True, metavar="|".join(FORMATS), help="see below")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: the run's name, in this folder")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parsed = parser.parse_args(arguments)
    if parsed.format not in FORMATS:
        raise UserError(f"--format: unknown format '{parsed.format}'{nearest(parsed.format, FORMATS)}")
    format_ = import_module(f"{__name__}.{FORMATS[parsed.format][0]}")
    source = source_of(parsed.checkpoint)
    network = take_network(source)
    path: Path = parsed.out or Path(f"{network.facts['run']}{format_.SUFFIX}")
    check_target(path, source, overwrite=parsed.overwrite)
    content = format_.encode(network)
    write(path, content)
    loading = format_.LOADING.format(path=path)
    print_to_reader(_report(network, source, path, parsed.format, len(content), loading))


def check_target(path: Path, source: Path, *, overwrite: bool) -> None:
    """UserError where a file at `path` would replace what it must not, or cannot be looked for."""
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
    """All or nothing. UserError if it cannot be written."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written ({error.strerror}); name another file") from None
    finally:
        with suppress(OSError):  # Where it could not be written it may not be looked for either.
            partial.unlink()


def _report(network: ExportedNetwork, source: Path, path: Path, name: str, size: int, loading: str) -> str:
    facts, dense = network.facts, network.dense_bytes
    top1 = f", {facts['test_top1']} % on the test data" if facts["test_top1"] else ""
    tied = "; its tied weights have a value each now" if facts["tied"] == "true" else ""
    rows = [
        ("network", f"{facts['model']} by {facts['method']}, of {source}, step {int(facts['step']):,}{top1}"),
        ("sparsity", f"{_percent(facts['sparsity'])} of its sparse layers, {_percent(facts['model_sparsity'])} of all"),
        ("format", f"{name}: {FORMATS[name][1]}{tied}"),
        ("file", f"{path}, {size:,} bytes"),
        ("dense", f"{dense:,} bytes for all values: the file is {size / dense:.3f} of it"),
        ("checkpoint", f"{source.stat().st_size:,} bytes, with what training needs beside"),
        ("load it with", loading),
    ]
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"{title.ljust(width)}  {one_line(text)}" for title, text in rows)


def _percent(share: str) -> str:
    return f"{100 * float(share):.2f} %"
