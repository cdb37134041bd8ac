"""The parts of `benchmarks.gpu`: each checks or measures something on one device. All run on the CPU too."""

from __future__ import annotations

import gc
import math
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

import pipelines
from benchmarks.harness.rounds import compared, summary
from benchmarks.parts.gpu.bench import (
    FOR_EVER,
    MOVING,
    RESNET_224,
    TINY_RESNET,
    Bench,
    Case,
    Found,
    device_ms,
    is_zero_outside,
    make_trainer,
    resnet,
    rounds_until,
    settings,
    steps,
    wrn,
)
from dynsparse.config.schema import RunConfig
from dynsparse.distributed.allreduce import ActiveAllReduce
from dynsparse.distributed.digest import mask_digest
from dynsparse.masks import MaskSet
from dynsparse.training import checkpoint
from dynsparse.training.network import Network, build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Request
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.datasets.photographs import STD
from pipelines.order import Share
from pipelines.tools import sample_images

FAST = {"precision": "bf16", "channels_last": True}
# The machine


def environment(bench: Bench, found: Found) -> None:
    """Which GPU, and its two ceilings as measured: a copy, and a matrix product of random bf16 numbers."""
    driver = None
    if bench.on_gpu and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()[:1]
    name = torch.cuda.get_device_name() if bench.on_gpu else "CPU"
    found.figures |= {
        "device": name,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": list(torch.cuda.nccl.version()) if bench.on_gpu else None,
    }
    found.say("device", name)
    count, side = (1 << 16, 64) if bench.tiny else (1 << 30, 8192)
    source = torch.randn(count, device=bench.device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    gigabytes = 2 * source.nbytes / 1e9
    copies = [gigabytes / device_ms(bench, lambda: target.copy_(source)) for _ in range(20)][5:]
    products = [2 * side**3 / 1e9 / device_ms(bench, lambda: a @ b) for _ in range(20)][5:]
    found.check("the copy is the same", torch.equal(source, target))
    found.figures |= {"copy_terabytes_per_second": summary(copies), "bf16_teraflops": summary(products)}
    found.say("copy, bytes read and written", f"{found.figures['copy_terabytes_per_second']['median']:.2f} TB/s")
    found.say(f"bf16 matrix product, {side} cubed", f"{found.figures['bf16_teraflops']['median']:.0f} TFLOP/s")


# Gradients through NCCL


class Given(nn.Module):
    """The model; given gradients instead of images, a loss that has exactly them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        if isinstance(images, Tensor):
            logits: Tensor = self.model(images)
            return logits
        pairs = zip(self.model.parameters(), images, strict=True)
        return torch.stack([(weight * gradient).sum() for weight, gradient in pairs]).sum()


def nccl(bench: Bench, found: Found) -> None:
    """One rank, so that nothing travels: whether the hook is right on a GPU, and what packing costs there."""
    backend = "cpu:gloo,cuda:nccl" if bench.on_gpu else "gloo"
    with TemporaryDirectory() as folder:
        dist.init_process_group(backend, store=FileStore(f"{folder}/store", 1), rank=0, world_size=1)
        try:
            _hooked(bench, found)
        finally:
            dist.destroy_process_group()


def _hooked(bench: Bench, found: Found) -> None:
    case = resnet(bench, batch=64)
    config = settings(case, {"name": "static"}, train=FAST)
    networks = {way: build_network(config, bench.device) for way in ("no DDP", "dense", "active")}
    modules: dict[str, nn.Module] = {way: Given(network.model) for way, network in networks.items()}
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
    ways = {way: (lambda way=way: _ddp_step(networks[way], modules[way], images)) for way in networks}
    found.figures["steps"] = compared(rounds_until(bench, ways, 20), "dense")
    ratio = found.figures["steps"]["ratio_to_dense"]["active"]["median"]
    found.say(f"step with the active gradients over one with all, {case.title}", f"{ratio:.3f}")


def _same_gradients(networks: Mapping[str, Network], modules: Mapping[str, nn.Module]) -> bool:
    """Given the same gradients, for cuDNN need not give the same ones twice."""
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


# Steps


class Masked(nn.Module):
    """Multiplies a weight by a float mask, at every forward."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.get_buffer("mask")


WAYS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"name": "dense"},
    "static": {"name": "static"},
    "dsr": {"name": "dsr", "period": FOR_EVER, "target_moves": 1},
    "deepr": {"name": "deepr"},
    "multiplied": {"name": "dense"},
}
LIMITS = {"static": 1.02, "dsr": 1.02, "deepr": 1.25}


def step_trainer(bench: Bench, case: Case, way: str, **train: Any) -> Trainer:
    """`multiplied`: a dense network whose weights a float mask multiplies, as masked layers do, with no masks of ours.

    All their weights have momentum, and are stepped.
    """
    config = settings(case, WAYS[way], train={**FAST, **train})
    if way != "multiplied":
        return make_trainer(config, bench.device)
    network = build_network(config, bench.device)
    for layer in build_network(settings(case, WAYS["static"], train=FAST), bench.device).masks:
        module, _, name = layer.name.rpartition(".")
        mask = layer.mask.to(layer.weight.dtype)
        parametrize.register_parametrization(network.model.get_submodule(module), name, Masked(mask))
    return make_trainer(config, bench.device, Network(network.model, MaskSet(network.model, [], {})))


def training_steps(bench: Bench, found: Found) -> None:
    """Blocks of steps, all ways in turn; rounds end early where time runs out, the cheapest case first."""
    cases = [(wrn(bench), 2 if bench.tiny else 20), (TINY_RESNET if bench.tiny else RESNET_224, 1 if bench.tiny else 5)]
    compiled_too = [(case, count, compiled) for compiled in (False, True) for case, count in cases]
    if bench.tiny:  # To compile a narrow ResNet-50 takes a CPU as long as a whole one.
        compiled_too.pop()
    share = (bench.ends - time.monotonic()) / len(compiled_too)
    for i, (case, count, compiled) in enumerate(compiled_too, start=1):
        ends = bench.ends - share * (len(compiled_too) - i)
        _steps_of(Bench(bench.device, bench.tiny, ends), found, case, count, compiled)


def _steps_of(bench: Bench, found: Found, case: Case, count: int, compiled: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    trainers = {way: step_trainer(bench, case, way, compile=compiled) for way in WAYS}
    before, breaks = {}, {}
    for way, trainer in trainers.items():
        before[way] = steps(trainer, 1)
        if way != "multiplied":
            breaks = dict(counters["graph_break"])
    blocks = {way: (lambda way=way: steps_without_reading(trainers[way], count)) for way in WAYS}
    times = {way: [s / count for s in found] for way, found in rounds_until(bench, blocks, 12).items()}
    figures = compared(times, "dense")
    figures["images_per_second"] = {way: summary([case.batch / s for s in times[way]]) for way in WAYS}
    title = case.title + (", compiled" if compiled else "")
    found.figures[title] = {**figures, "first_losses": before, "graphs": counters["stats"]["unique_graphs"]}
    dense = figures["images_per_second"]["dense"]["median"]
    found.say(f"{title}: dense, images/s", f"{dense:.0f}")
    for way in WAYS:
        ratio = figures["ratio_to_dense"][way]["median"]
        if way in LIMITS:
            found.target(f"{title}: step of {way} over dense", ratio, LIMITS[way])
        elif way != "dense":
            found.say(f"{title}: step of {way} over dense", f"{ratio:.3f}")
    if compiled:
        found.check(f"{title}: no graph break", not breaks, str(breaks or "none"))


def steps_without_reading(trainer: Trainer, count: int) -> None:
    epoch = trainer.data.train.epoch()
    for _ in range(count):
        trainer.train_step(next(epoch))


# Precision, memory, compilation


def amp(bench: Bench, found: Found) -> None:
    """bf16; fp16 from the usual scale; and fp16 from a scale so large that steps must be skipped."""
    case = wrn(bench)
    for title, precision, scale in (("bf16", "bf16", None), ("fp16", "fp16", None), ("fp16, 2^60", "fp16", 2.0**60)):
        trainer = make_trainer(settings(case, MOVING["dsr"], train={"precision": precision}), bench.device)
        if scale is not None:
            trainer.engine.precision.load_state_dict({**trainer.engine.precision.state_dict(), "scale": scale})
        steps(trainer, 60 if scale else 2)
        losses = steps(trainer, 6)
        skipped = trainer.progress.skipped_steps
        found.figures[title] = {"losses": losses, "skipped_steps": skipped}
        found.check(f"{title}: losses are finite", all(map(math.isfinite, losses)), f"{losses[-1]:.3f} in the end")
        found.check(f"{title}: weights and moments outside the masks are exactly 0", is_zero_outside(trainer))
        if scale is None:
            found.say(f"{title}: skipped steps", str(skipped))
        else:
            found.check(f"{title}: skipped steps are counted", 0 < skipped < 60, str(skipped))


def memory(bench: Bench, found: Found) -> None:
    """The most that is allocated over four steps, of which two are followed by a reallocation."""
    methods = {"dense": WAYS["dense"], "static": WAYS["static"], "dsr": MOVING["dsr"], "rigl": MOVING["rigl"]}
    for batch in (16, 256):
        case = resnet(bench, batch)
        peaks: dict[str, int] = {}
        for way, method in methods.items():
            peaks[way], active = _peak(bench, settings(case, method, train=FAST))
        limit = 1.05 * peaks["dense"] + 8 * active
        found.figures[case.title] = {"bytes": peaks, "active_weights": active, "limit": limit}
        for way, peak in peaks.items():
            if not bench.on_gpu:
                found.say(f"{case.title}: {way}", "the CPU does not count")
            elif way == "dense":
                found.say(f"{case.title}: dense, GB at most", f"{peak / 1e9:.3f}")
            else:
                found.target(f"{case.title}: {way} over 1.05 dense + 8 bytes an active weight", peak / limit, 1.0)


def _peak(bench: Bench, config: RunConfig) -> tuple[int, int]:
    """Bytes beyond what was there before, and active weights of the sparse layers."""
    gc.collect()
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if bench.on_gpu else 0
    trainer = make_trainer(config, bench.device)
    steps_without_reading(trainer, 4)
    return (torch.cuda.max_memory_allocated() - before if bench.on_gpu else 0), trainer.masks.active_weights


def recompiles(bench: Bench, found: Found) -> None:
    """Twelve compiled steps whose masks move: one graph, from the first step on."""
    for name, method in MOVING.items():
        torch._dynamo.reset()
        counters.clear()
        trainer = make_trainer(settings(wrn(bench), method, train={**FAST, "compile": True}), bench.device)
        steps(trainer, 1)
        first = counters["stats"]["unique_graphs"]
        steps(trainer, 11)
        graphs, moved = counters["stats"]["unique_graphs"], trainer.progress.reallocations
        found.figures[name] = {
            "graphs": [first, graphs],
            "reallocations": moved,
            "breaks": dict(counters["graph_break"]),
        }
        found.check(
            f"{name}: graphs after 1 and 12 steps, {moved} reallocations", first == graphs == 1, f"{first}, {graphs}"
        )
        found.check(f"{name}: no graph break", not counters["graph_break"])
        found.check(f"{name}: weights and moments outside the masks are exactly 0", is_zero_outside(trainer))


# Data


def dali(bench: Bench, found: Found) -> None:
    """Photographs decoded on the GPU against on the CPU: how fast, and how alike."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        found.say("nvidia.dali", "not installed")
        found.figures["missing"] = str(error)
        return
    each, size, batch, threads = (1, 32, 4, 1) if bench.tiny else (40, 224, 64, min(16, os.cpu_count() or 1))
    with TemporaryDirectory() as folder:
        parts = {"train": (each, (375, 500)), "val": (max(1, each // 4), (160, 500))}
        files = [file for part, (n, sides) in parts.items() for file in sample_images.plan(part, n, sides, 0, 0)]
        sample_images.write(files, Path(folder) / "photographs", threads)
        config = ImagenetSettings.model_validate(
            {
                "name": "imagenet", "path": f"{folder}/photographs", "loader": "dali", "threads": threads,
                "number_of_classes": len(sample_images.CLASSES), "image_size": size, "evaluation_resize": size + 32,
            }
        )  # fmt: skip
        places = {"device": bench.device.index if bench.on_gpu else None, "cpu": None}
        data = {
            where: pipelines.build(config, Request(0, batch, Share(), batch, device_id=index))
            for where, index in places.items()
        }
        largest = 0.0
        for (ours, labels), (theirs, same) in zip(*(data[where].test.batches() for where in data), strict=True):
            assert torch.equal(labels.cpu(), same.cpu())
            levels = 255 * torch.tensor(STD).view(1, 3, 1, 1) * (ours.cpu() - theirs.cpu())
            largest = max(largest, float(levels.abs().max()))
        found.figures["largest_difference_in_grey_levels"] = largest
        found.say("largest difference of a pixel, device against CPU decode, of 255", f"{largest:.1f}")

        def epoch(where: str) -> None:
            for ((images, _),) in data[where].train.epoch():
                images.to(bench.device)

        times = rounds_until(bench, {where: partial(epoch, where) for where in data}, 5)
        images = batch * data["cpu"].train.steps_per_epoch
        found.figures["images_per_second"] = {way: summary([images / s for s in times[way]]) for way in times}
        found.figures["epochs"] = compared(times, "cpu")
        for where, figures in found.figures["images_per_second"].items():
            found.say(f"images/s, decoded by: {where}, {threads} threads", f"{figures['median']:.0f}")
        for one in data.values():
            one.close()


# Checkpoints


def checkpoints(bench: Bench, found: Found) -> None:
    """Ten steps with reallocations, and the same with a save after five, loaded by another trainer."""
    case = wrn(bench)
    for deterministic in (True, False):
        torch.backends.cudnn.deterministic = deterministic
        config = settings(case, MOVING["dsr"], train=FAST)
        whole, again, first, second = (make_trainer(config, bench.device) for _ in range(4))
        for trainer, count in ((whole, 10), (again, 10), (first, 5)):
            steps(trainer, count)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "saved.pt"
            checkpoint.write(path, first.run.save([first.run.of_this_rank()]))
            second.load(checkpoint.read(path))
        found.check("what was loaded is what was saved, bit for bit", _same_state(first, second))
        steps(second, 5)
        twice, resumed = _same_state(whole, again), _same_state(whole, second)
        title = "cuDNN deterministic" if deterministic else "cuDNN as it likes"
        found.figures[title] = {"two_runs_agree": twice, "resumed_agrees": resumed}
        found.say(f"{title}: two runs give the same bits", "yes" if twice else "no")
        if twice:
            found.check(f"{title}: so does one that was resumed", resumed)
        else:
            found.say(f"{title}: so does one that was resumed", "cannot be asked")


def _same_state(ours: Trainer, theirs: Trainer) -> bool:
    """Masks, weights, buffers, moments."""
    if mask_digest(ours.masks) != mask_digest(theirs.masks):
        return False
    pairs = [*zip(ours.model.state_dict().values(), theirs.model.state_dict().values(), strict=True)]
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        mine, its = ours.optimizer.state[one], theirs.optimizer.state[other]
        pairs += [(mine[key], its[key]) for key in mine if isinstance(mine[key], Tensor)]
    return all(torch.equal(one, other) for one, other in pairs)
