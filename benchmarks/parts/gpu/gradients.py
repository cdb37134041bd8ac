"""Part of `benchmarks.gpu`: gradients through NCCL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from benchmarks.harness.rounds import compared
from benchmarks.harness.runs import GivenGradients
from benchmarks.parts.gpu.bench import FAST, Bench, Found, resnet, rounds_until, settings
from dynsparse.distributed.allreduce import ActiveAllReduce
from dynsparse.training.network import Network, build_network


def nccl(bench: Bench, found: Found) -> None:
    """Look with one rank, so that nothing travels, whether the hook is right on a GPU, and what packing costs there."""
    with one_rank(bench):
        _hooked(bench, found)


@contextmanager
def one_rank(bench: Bench) -> Iterator[None]:
    """Be a group of one rank, with NCCL on a GPU."""
    backend = "cpu:gloo,cuda:nccl" if bench.on_gpu else "gloo"
    with TemporaryDirectory() as folder:
        dist.init_process_group(backend, store=FileStore(f"{folder}/store", 1), rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _hooked(bench: Bench, found: Found) -> None:
    case = resnet(bench, batch=64)
    config = settings(case, {"name": "static"}, train=FAST)
    networks = {way: build_network(config, bench.device) for way in ("no DDP", "dense", "active")}
    modules: dict[str, nn.Module] = {way: GivenGradients(network.model) for way, network in networks.items()}
    devices = [bench.device.index] if bench.on_gpu else None
    for way in ("dense", "active"):
        modules[way] = DistributedDataParallel(modules[way], device_ids=devices, gradient_as_bucket_view=True)
    hook = ActiveAllReduce(networks["active"].masks)
    hook.register(modules["active"])  # type: ignore[arg-type]
    for _ in range(2):  # Buckets are laid out anew after the first backward.
        sent = hook.bytes_sent
        same = _same_gradients(networks, modules)
        found.check("active and dense gradients are the same bits, after masking", same)
    found.figures["bytes_handed_over"] = hook.bytes_sent - sent
    found.figures["bytes_dense"] = 4 * networks["dense"].total_parameters
    share = (hook.bytes_sent - sent) / found.figures["bytes_dense"]
    found.say("bytes handed to the all-reduce, of all", f"{100 * share:.1f} %")
    images = torch.randn(case.batch, 3, case.image, case.image, device=bench.device)
    images = images.contiguous(memory_format=torch.channels_last)
    ways = {way: partial(_ddp_step, networks[way], modules[way], images) for way in networks}
    found.figures["steps"] = compared(rounds_until(bench, ways, 20), "dense")
    ratio = found.figures["steps"]["ratio_to_dense"]["active"]["median"]
    found.say(f"step with the active gradients over one with all, {case.title}", f"{ratio:.3f}")


def _same_gradients(networks: Mapping[str, Network], modules: Mapping[str, nn.Module]) -> bool:
    """Compare after the same gradients, for cuDNN need not give the same ones twice."""
    gradients = [torch.randn_like(parameter) for parameter in networks["dense"].model.parameters()]
    for way, network in networks.items():
        network.model.zero_grad()
        modules[way](gradients).backward()
        network.masks.mask_gradients()
    columns = zip(*(network.model.parameters() for network in networks.values()), strict=True)
    return all(torch.equal(one.grad, other.grad) for one, *others in columns for other in others)


def _ddp_step(network: Network, module: nn.Module, images: Tensor) -> None:
    network.model.zero_grad()
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        loss = module(images).float().square().mean()
    loss.backward()
    network.masks.mask_gradients()
