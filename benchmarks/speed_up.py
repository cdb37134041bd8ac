"""speed_up beside the dense network, over the families of torchvision, on the CPU.

    python -m benchmarks.speed_up                                  (half an hour; a quiet machine)
    python -m benchmarks.speed_up --networks resnet50 vit_b_16     (some of them anew, beside what the JSON has)
    python -m benchmarks.speed_up --through onnxruntime            (figures and page of their own: ..._onnxruntime)
    python -m benchmarks.speed_up --page                           (the page anew, from the JSON)

Each network at batch 1 and 32 with zeros of two kinds: random ERK masks at 90 %, and 40 % of the inner channels dead.
What `speed_up` returns is timed once more beside the dense network, in turns. Images have 96 pixels a side, so that the
whole takes half an hour. Through another program the dense network is timed in it, too.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim

from benchmarks.harness import record
from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import compared, in_rounds
from benchmarks.harness.script import page_parser, run
from dynsparse import SparseTraining, speed_up, usually_dense
from dynsparse.errors import UserError
from dynsparse.inference.engines import ENGINES, TORCH, made
from dynsparse.shrinking.groups import Graph
from pipelines.common.command_line import at_least_1
from pipelines.common.torchvision_ops import import_torchvision

NAME = "speed_up"
SPARSITY, DEAD = 0.9, 0.4
KINDS = {"masks": "random masks, 90 %", "channels": "40 % of inner channels dead"}
DENSE, OURS, THROUGH = "dense", "sped up", "dense, through the other program"
NETWORKS = (
    *("resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "regnet_y_400mf", "vgg16_bn"),
    *("mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s", "shufflenet_v2_x1_0"),
    *("alexnet", "densenet121", "squeezenet1_1", "googlenet", "inception_v3", "convnext_tiny", "vit_b_16", "swin_t"),
)


class Amount(NamedTuple):
    """The amount that is measured."""

    networks: Sequence[str]
    batches: Sequence[int] = (1, 32)
    size: int = 96
    """Height and width of the images."""
    rounds: int = 9


def main() -> None:
    parser = page_parser(__doc__, rounds=Amount(NETWORKS).rounds)
    parser.add_argument("--networks", metavar="NAME", nargs="+", choices=NETWORKS, default=NETWORKS, help="(all)")
    parser.add_argument("--batch", metavar="N", nargs="+", type=at_least_1, default=(1, 32), help="(1 32)")
    parser.add_argument("--size", metavar="PIXELS", type=at_least_1, default=Amount(()).size, help="(%(default)s)")
    parser.add_argument("--through", choices=(TORCH, *ENGINES), default=TORCH, help="(%(default)s)")
    run(_name(parser.parse_args().through), parser, measure, page)


def _name(through: str) -> str:
    return NAME if through == TORCH else f"{NAME}_{through}"


def measure(asked: Namespace) -> Result:
    amount = Amount(asked.networks, asked.batch, asked.size, asked.rounds)
    if asked.tiny:
        amount = Amount(("mobilenet_v3_small",), (1, 2), 32, 3)
    found = {(case["network"], case["kind"], case["batch"]): case for case in _before(asked, amount)}
    found.update({(case["network"], case["kind"], case["batch"]): case for case in by_case(amount, asked.through)})
    command = shlex.join(["python", "-m", f"benchmarks.{NAME}", *sys.argv[1:]])
    return {"command": command, "through": asked.through, "size": amount.size, "cases": list(found.values())}


def _before(asked: Namespace, amount: Amount) -> Sequence[Result]:
    """Return the cases that the JSON has, where they were measured in the same way."""
    name = _name(asked.through)
    if not record.path_of(name, asked.output).exists():
        return []
    before = record.kept(name, asked.output)
    if before["size"] != amount.size:
        return []
    return [case for case in before["cases"] if case["threads"] == torch.get_num_threads()]


def by_case(amount: Amount, through: str) -> Iterator[Result]:
    for name in amount.networks:
        for kind in KINDS:
            for batch in amount.batches:
                told = {"network": name, "kind": kind, "batch": batch, **record.origin()}
                yield {**told, "threads": torch.get_num_threads(), **one(name, kind, batch, amount, through)}


def one(name: str, kind: str, batch: int, amount: Amount, through: str) -> Result:
    """Speed up one network, and time what comes of it. A network that cannot have such zeros has no figures."""
    images = torch.randn(batch, 3, amount.size, amount.size, generator=torch.Generator().manual_seed(0))
    try:
        model = (masked if kind == "masks" else with_dead_channels)(name, amount.size)
        found = speed_up(model, images, through=through, rounds=amount.rounds)
    except UserError as error:
        return {"refused": error.lines[0]}
    ways = {DENSE: lambda: model(images), OURS: lambda: found(images)}
    if through != TORCH:
        other = made(through, model, images)
        ways[THROUGH] = lambda: other(images)
    with torch.no_grad():
        times = in_rounds(ways, amount.rounds)
    table = found.table
    layers: dict[str, int] = {}
    for row in table.layers:
        layers[row.chosen] = layers.get(row.chosen, 0) + 1
    told = {"chosen": table.chosen, "promised": table.ratio.median, "difference": table.difference, "layers": layers}
    return {**told, "notes": {row.name: row.note for row in table.networks if row.note}, **compared(times, DENSE)}


def network(name: str, size: int) -> nn.Module:
    import_torchvision()
    from torchvision.models import get_model

    torch.manual_seed(0)
    model: nn.Module = get_model(name, weights=None, **_options(name, size))
    return model.eval()


def _options(name: str, size: int) -> Mapping[str, Any]:
    if name == "vit_b_16":
        return {"image_size": size}
    return {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}


def masked(name: str, size: int) -> nn.Module:
    """Return the network with random ERK masks, as sparse training begins with."""
    model = network(name, size)
    unused = optim.SGD(model.parameters(), lr=0.1)
    excluded = list(usually_dense(model))
    SparseTraining(model, unused, "static", sparsity=SPARSITY, allocation="erk", exclude=excluded, total_steps=1)
    plain = network(name, size)
    plain.load_state_dict(model.state_dict())
    return plain


def with_dead_channels(name: str, size: int) -> nn.Module:
    """Return the network with channels that nobody reads: the same ones in all layers that share them."""
    model = network(name, size)
    generator = torch.Generator().manual_seed(0)
    groups = [group for group in Graph(model, torch.randn(2, 3, size, size)) if not group.obstacle]
    for group in groups:
        dead = torch.rand(group.size, generator=generator) < DEAD
        for side in group.readers:
            silence(side.module.get_parameter("weight"), side.places[dead[side.channels]])
    return model.requires_grad_(False)


@torch.no_grad()
def silence(weight: Tensor, columns: Tensor) -> None:
    weight[:, columns] = 0


def page(content: Result) -> str:
    measured = [case for case in content["cases"] if "chosen" in case]
    ratios = [case["ratio_to_dense"][OURS]["median"] for case in measured if case["chosen"] != DENSE]
    words = {"KINDS": KINDS, "OURS": OURS, "THROUGH": THROUGH, "TORCH": TORCH}
    return filled(NAME, content, words, measured=measured, ratios=ratios, origins=origins(content["cases"]))


def origins(cases: Sequence[Result]) -> dict[tuple[str, str | None], list[str]]:
    """Return the networks that were timed on each processor at each commit: a call may time some of them anew."""
    found: dict[tuple[str, str | None], list[str]] = {}
    for case in cases:
        networks = found.setdefault((case["processor"], case["commit"]), [])
        if case["network"] not in networks:
            networks.append(case["network"])
    return found


if __name__ == "__main__":
    main()
