"""The verb `speed-up`: what is the fastest way to run a network on this machine, at each batch size."""

from __future__ import annotations

import argparse

import torch

from dynsparse.inference import speed_up
from dynsparse.inference.engines import ENGINES, TORCH
from dynsparse.inference.speeding import ROUNDS
from dynsparse.tools.export.network import ExportedNetwork
from dynsparse.tools.export.source import add_source, taken
from pipelines.common.command_line import Parser, at_least_1
from pipelines.common.text import one_line


def main(arguments: list[str]) -> None:
    """Print a table for each batch size. Raises UserError for a checkpoint that is not valid, and a missing package."""
    parsed = _parser().parse_args(arguments)
    network, _ = taken(parsed)
    print(one_line(f"{network.facts['model']}, of {network.chosen}"), flush=True)
    for batch in parsed.batch:
        print(f"\n{table(network, batch, parsed.through, parsed.rounds)}", flush=True)


def table(network: ExportedNetwork, batch: int, through: str, rounds: int) -> str:
    """Return what was timed for a batch of random images, as text."""
    images = torch.randn(batch, *network.image_shape, generator=torch.Generator().manual_seed(0))
    found = speed_up(network.model, images, through=through, rounds=rounds).table
    return "\n".join(line.rstrip() for line in str(found).splitlines())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m dynsparse speed-up",
        description="Time the network of a checkpoint dense, without dead channels and with CSR layers, on this "
        "machine. In Python, dynsparse.speed_up(model, images) gives the fastest. Needs no data.",
    )
    add_source(parser)
    parser.add_argument("--batch", metavar="N", nargs="+", type=at_least_1, default=[1], help="images at a time (1)")
    parser.add_argument("--through", metavar="|".join((TORCH, *ENGINES)), default=TORCH, help="runs it (%(default)s)")
    parser.add_argument(
        "--rounds", metavar="N", type=at_least_1, default=ROUNDS, help="timed, at least 3 (%(default)s)"
    )
    return parser
