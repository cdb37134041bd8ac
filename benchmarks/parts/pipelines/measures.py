"""The parts of `benchmarks.pipelines`: each measures something and returns numbers. None is asserted."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from torch import Tensor, nn

import pipelines
from benchmarks.harness.record import ROOT
from benchmarks.harness.rounds import summary
from dynsparse.config import loading
from dynsparse.models.resnet50 import ResNet50Settings
from dynsparse.runtime import Worker
from dynsparse.training.building import build_parts
from dynsparse.training.evaluate import evaluate
from dynsparse.training.trainer import Trainer
from pipelines import augment
from pipelines.base import Data, Request
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.datasets.photographs import MEAN, NORMALISATION, STD
from pipelines.datasets.webdataset import WebdatasetSettings
from pipelines.images.encoded import MOST_PIXELS
from pipelines.images.reference import decoded
from pipelines.loaders import dali_views, torch_views
from pipelines.loaders.dali_images import given
from pipelines.order import SampleOrder, Share
from pipelines.sources.image_folder import check_folders, list_images
from pipelines.tools import sample_images
from pipelines.tools import shards as shard_tools
from pipelines.views import RandomResizedCrop

Result = dict[str, Any]
CLASSES = len(sample_images.CLASSES)


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    each: int = 100
    """Images a class, in train as in val."""
    image_size: int = 224
    resize: int = 256
    batch: int = 64
    rounds: int = 7
    batches: int = 8
    """Timed in each round, after `warm_up`."""
    warm_up: int = 4
    traced: int = 512
    """Images through each partial graph, a round."""
    network_epochs: int = 4
    memory_train: int = 40
    """Images a class."""
    memory_val: int = 10
    memory_epochs: int = 50
    memory_size: int = 64
    memory_batch: int = 32
    feed_cpu: tuple[int, int] = (64, 32)
    """Image size and batch where there is no GPU."""
    feed_gpu: tuple[int, int] = (224, 256)
    feed_steps: int = 4


TINY = Amount(
    each=2, image_size=32, resize=36, batch=4, rounds=1, batches=2, warm_up=1, traced=8, network_epochs=1,
    memory_train=1, memory_val=1, memory_epochs=3, memory_size=16, memory_batch=4,
    feed_cpu=(32, 2), feed_gpu=(32, 2), feed_steps=1,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Where the data are, and what all parts share."""

    folder: Path
    amount: Amount
    threads: int

    @property
    def workers(self) -> int:
        """Processes to write images with: to start some takes longer than a few images do."""
        return self.threads if self.amount.each > 10 else 1

    def photographs(self, name: str, plans: Mapping[str, tuple[int, tuple[int, int]]]) -> Path:
        """Images, as many a class and of such sides, by part."""
        folder = self.folder / name
        if not folder.exists():
            files = [file for part, (n, sides) in plans.items() for file in sample_images.plan(part, n, sides, 0, 0)]
            sample_images.write(files, folder, self.workers)
        return folder

    def large(self) -> Path:
        """Training images of about as many pixels as 500x375; validation images of all sizes."""
        each = self.amount.each
        return self.photographs("photographs", {"train": (each, (375, 500)), "val": (each, (160, 500))})

    def data(self, path: Path, loader: str, batch: int, size: tuple[int, int] | None = None, **request: Any) -> Data:
        """Pipelines of a folder of images, or of shards where the folder holds them."""
        kind = WebdatasetSettings if (path / "classes.txt").exists() else ImagenetSettings
        image_size, resize = size or (self.amount.image_size, self.amount.resize)
        settings = kind.model_validate(
            {
                "name": kind.__name__.removesuffix("Settings").lower(),
                "path": str(path),
                "loader": loader,
                "threads": self.threads,
                "number_of_classes": CLASSES,
                "image_size": image_size,
                "evaluation_resize": resize,
            }
        )
        request = {"seed": 0, "global_batch": batch, "evaluation_batch": batch, "device_id": None, **request}
        return pipelines.build(settings, Request(share=Share(), **request))


def endless(data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches. To be closed: left to the garbage collector, the torch loader's processes end seconds late."""
    try:
        while True:
            for step in data.train.epoch():
                yield from step
    finally:
        close(data.train)


def close(*served: Any) -> None:
    """Let a pipeline's threads and processes go."""
    for pipeline in served:
        pipeline.close()


# Of this process and those below it, while they live.


def processes() -> list[int]:
    """This process and all below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold blanks; none if the process is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds() -> float:
    ticks = sum(int(fields[11]) + int(fields[12]) for process in processes() if (fields := _stat(process)))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory() -> Result:
    """Resident memory in MB: RSS, in which a page shared by two processes counts twice, and PSS, in which it does not.

    PSS is None where the system does not tell.
    """
    totals = {"Rss": 0.0, "Pss": 0.0}
    for process in processes():
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, value = line.partition(":")
            if key in totals:
                totals[key] += int(value.split()[0]) / 1024
    if totals["Rss"]:
        return {"rss_mb": totals["Rss"], "pss_mb": totals["Pss"]}
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "pss_mb": None}


# speed

COMPARED = (("dali", "torch"), ("dali", "torchvision"), ("torch", "torchvision"), ("dali, shards", "dali"))


def speed(bench: Bench) -> Result:
    """Images/s and CPU time an image, in rounds that take turns."""
    amount, folder = bench.amount, bench.large()
    shards = bench.folder / "shards"
    if not shards.exists():
        shard_tools.write(folder, shards, 1000)
    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "dali": lambda: endless(bench.data(folder, "dali", amount.batch)),
        "torch": lambda: endless(bench.data(folder, "torch", amount.batch)),
        "torchvision": lambda: reference(folder, amount, bench.threads),
        "dali, shards": lambda: endless(bench.data(shards, "dali", amount.batch)),
    }
    rounds = [{way: timed(make, amount) for way, make in ways.items()} for _ in range(amount.rounds)]
    files = list((folder / "train").rglob("*.jpg"))
    return {
        "threads": bench.threads,
        "image_size": amount.image_size,
        "batch": amount.batch,
        "rounds": len(rounds),
        "images_per_round": amount.batches * amount.batch,
        "mean_file_kb": statistics.mean(file.stat().st_size for file in files) / 1000,
        "images_per_second": {way: summary([r[way][0] for r in rounds]) for way in ways},
        "cpu_ms_per_image": {way: summary([r[way][1] for r in rounds]) for way in ways},
        "ratios": {f"{a} / {b}": summary([r[a][0] / r[b][0] for r in rounds]) for a, b in COMPARED},
        "cpu_ratios": {f"{a} / {b}": summary([r[a][1] / r[b][1] for r in rounds]) for a, b in COMPARED},
        "stages_cpu_ms_per_image": {"dali": dali_stages(folder, amount), "torch": torch_stages(folder, amount)},
    }


def timed(make: Callable[[], Iterator[Any]], amount: Amount) -> tuple[float, float]:
    """Images/s and CPU milliseconds an image, after a warm-up. Nothing of the pipeline outlives it."""
    stream = make()
    for _ in range(amount.warm_up):
        next(stream)
    cpu, began = cpu_seconds(), time.perf_counter()
    for _ in range(amount.batches):
        next(stream)
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    if hasattr(stream, "close"):
        stream.close()
    del stream
    gc.collect()
    images = amount.batches * amount.batch
    return images / seconds, 1000 * cpu / images


def reference(folder: Path, amount: Amount, workers: int) -> Iterator[Any]:
    """torchvision's reference recipe, as people write it."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder  # torch_views has made it importable.
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(amount.image_size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    images = ImageFolder(str(folder / "train"), transform)
    # One long epoch: the pause between short ones would count against it, and ImageNet's are long.
    sampler = RandomSampler(images, num_samples=1_000_000)
    options: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
    return iter(DataLoader(images, amount.batch, sampler=sampler, num_workers=workers, drop_last=True, **options))


DALI_STAGES = ("read", "size and window", "decode", "resize", "flip and normalise")
TORCH_STAGES = ("read", "decode", "size and window", "decode", "resize", "flip and normalise")


def dali_stages(folder: Path, amount: Amount) -> Result:
    """CPU milliseconds an image of each stage, one thread: graphs that end ever later, and their differences."""
    upto = {stage: [_graph_ms(folder, amount, stage) for _ in range(3)] for stage in DALI_STAGES}
    medians = [statistics.median(times) for times in upto.values()]
    stages = dict(zip(DALI_STAGES, np.diff([0.0, *medians]).tolist(), strict=True))
    return {**stages, "all": medians[-1]}


def _graph_ms(folder: Path, amount: Amount, stage: str) -> float:
    source, view = (
        list_images(folder, "train", check_folders(str(folder), CLASSES)),
        RandomResizedCrop(amount.image_size),
    )
    order = SampleOrder(0, len(source.labels), min(amount.batch, len(source.labels)))

    def batches() -> Iterator[tuple[Any, ...]]:
        for epoch in range(1_000_000):
            for batch in range(order.batches_per_epoch):
                uniforms = order.randoms(epoch, batch, 0, Share(), view.uniforms)
                images = [given(source.encoded(index), MOST_PIXELS) for index in order.batch(epoch, batch)]
                yield images, *view.numbers(uniforms)

    graph = _partial_graph(
        batches(), amount.image_size, stage, batch_size=order.global_batch, num_threads=1, device_id=None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Early stages have no use for all that is given.
        graph.build()
    for _ in range(3):
        graph.run()
    began, runs = time.process_time(), max(1, amount.traced // order.global_batch)
    for _ in range(runs):
        graph.run()
    return 1000 * (time.process_time() - began) / (runs * order.global_batch)


@pipeline_def(exec_dynamic=True)  # type: ignore[untyped-decorator]
def _partial_graph(batches: Iterator[Any], size: int, stage: str) -> Any:
    """The graph of pipelines/loaders/dali_loader.py as far as one stage."""
    encoded, factors, place, mirror = fn.external_source(
        source=batches,
        num_outputs=4,
        batch=True,
        dtype=[types.UINT8, types.FLOAT64, types.FLOAT64, types.INT32],
        ndim=[1, 2, 1, 0],
    )
    image = dali_views.Encoded(encoded)
    window = dali_views.random_window(image.shape(), factors, place)
    pixels = image.window(*window)
    resized = dali_views.resized(pixels, size=(size, size))
    normalised = dali_views.Normaliser(NORMALISATION, half=False, channels_last=False)(resized, mirror=mirror)
    ends = dict(zip(DALI_STAGES, ((encoded,), window, (pixels,), (resized,), (normalised,)), strict=True))
    return ends[stage]


def torch_stages(folder: Path, amount: Amount) -> Result:
    """The same of the torch loader: its steps one by one, in one thread."""
    source, view = (
        list_images(folder, "train", check_folders(str(folder), CLASSES)),
        RandomResizedCrop(amount.image_size),
    )
    chosen = np.arange(amount.traced) % len(source.labels)
    uniforms = np.random.default_rng(0).random((amount.traced, view.uniforms))
    numbers = list(zip(*view.numbers(uniforms), strict=True))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (NORMALISATION.mean, NORMALISATION.std))
    spent = dict.fromkeys(DALI_STAGES, 0.0)
    for index, (factors, place, mirror) in zip(chosen.tolist(), numbers, strict=True):
        times = [time.process_time()]
        encoded = source.encoded(index)
        times.append(time.process_time())
        image = decoded(encoded, MOST_PIXELS)
        image.load()
        times.append(time.process_time())
        top, left, height, width = augment.random_window(image.height, image.width, factors, place)
        times.append(time.process_time())
        tensor = torch_views.pixels(image.crop((left, top, left + width, top + height)))
        times.append(time.process_time())
        small = torch_views._resized(tensor, amount.image_size, amount.image_size)
        times.append(time.process_time())
        torch_views._mirrored(small, mirror).float().sub_(mean).div_(std)
        times.append(time.process_time())
        for stage, seconds in zip(TORCH_STAGES, np.diff(times).tolist(), strict=True):
            spent[stage] += seconds
    stages = {stage: 1000 * seconds / len(chosen) for stage, seconds in spent.items()}
    return {**stages, "all": sum(stages.values())}


# agreement


def agreement(bench: Bench) -> Result:
    """Evaluation tensors of both loaders on the same images, and one network's accuracy through both."""
    jpeg = bench.large()
    png = bench.folder / "png"
    if not png.exists():
        _as_png(jpeg, png)
    return {
        "tensors": {kind: differences(bench, path) for kind, path in (("JPEG", jpeg), ("PNG", png))},
        "network": network(bench, jpeg),
    }


def _as_png(folder: Path, png: Path) -> None:
    """The same pixels in a format that every decoder decodes alike. Of the training images only what must be there."""
    train = [next(path.glob("*.jpg")) for path in sorted((folder / "train").iterdir())]
    for file in [*train, *sorted((folder / "val").rglob("*.jpg"))]:
        target = (png / file.relative_to(folder)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(target, compress_level=1)


def differences(bench: Bench, path: Path) -> Result:
    """Of values: a pixel has three."""
    dali, torch_ = (bench.data(path, loader, CLASSES).test for loader in ("dali", "torch"))
    levels_of = torch.tensor(NORMALISATION.std).view(1, 3, 1, 1)
    largest, largest_normalised, total, total_normalised, over, count, images = 0.0, 0.0, 0.0, 0.0, 0, 0, 0
    for (ours, labels), (theirs, same_labels) in zip(dali.batches(), torch_.batches(), strict=True):
        assert torch.equal(labels, same_labels), "the same samples in the same order"
        normalised = (ours - theirs).abs()
        levels = normalised * levels_of
        largest = max(largest, levels.max().item())
        largest_normalised = max(largest_normalised, normalised.max().item())
        total, total_normalised = total + levels.sum().item(), total_normalised + normalised.sum().item()
        over += int((levels > 1.001).sum())  # Rounding of float32 is no grey level.
        count, images = count + levels.numel(), images + len(labels)
    close(dali, torch_)
    return {
        "images": images,
        "grey_levels": {"max": largest, "mean": total / count},
        "normalised": {"max": largest_normalised, "mean": total_normalised / count},
        "share_over_1_level": over / count,
    }


def network(bench: Bench, photographs: Path) -> Result:
    """A ResNet-18 trained at 48 px through DALI, then evaluated through both loaders."""
    amount = bench.amount
    asked = [f"data.path={photographs}", f"data.threads={bench.threads}", f"runs={bench.folder / 'runs'}"]
    asked += [f"train.epochs={amount.network_epochs}", "log.tensorboard=false"]
    if len(sample_images.CLASSES) * amount.each < 100:
        asked += ["train.global_batch_size=8", "train.lr.warmup_epochs=0", "method.stop_epoch=1"]
    path = ROOT / "configs" / "sample_images_resnet.yaml"
    configs = {loader: loading.load(path, [*asked, f"data.loader={loader}"]) for loader in ("dali", "torch")}
    parts = {loader: build_parts(config, Worker()) for loader, config in configs.items()}
    trained, data = parts["dali"]
    with redirect_stdout(sys.stderr):
        Trainer(configs["dali"], trained, data, Worker()).fit()
    found: Result = {"epochs": amount.network_epochs}
    predictions = []
    for loader, (_, same_data) in parts.items():
        on = evaluate(trained.model, same_data.test, torch.device("cpu"), nullcontext())
        found[loader] = {"top1": on.top1, "loss": on.loss, "images": on.samples}
        predictions.append(_predictions(trained.model, same_data))
        close(same_data.train, same_data.test)
    found["difference_in_points"] = found["dali"]["top1"] - found["torch"]["top1"]
    found["predictions_that_differ"] = int((predictions[0] != predictions[1]).sum())
    return found


@torch.no_grad()
def _predictions(model: nn.Module, data: Data) -> Tensor:
    model.eval()
    return torch.cat([model(images).argmax(1) for images, _ in data.test.batches()])


# memory


def resident(bench: Bench) -> Result:
    """Resident memory after each epoch of training and evaluation, each loader in a fresh process."""
    amount = bench.amount
    plans = {"train": (amount.memory_train, (160, 500)), "val": (amount.memory_val, (160, 500))}
    folder = bench.photographs("for_memory", plans)
    found: Result = {"epochs": amount.memory_epochs, "images": CLASSES * (amount.memory_train + amount.memory_val)}
    for loader in ("dali", "torch"):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            epochs = pool.submit(_epochs, bench, folder, loader).result()
        settled = epochs[min(4, len(epochs) - 2) :]
        slopes = {
            f"{key}_slope_mb_per_epoch": float(np.polyfit(range(len(settled)), [e[key] for e in settled], 1)[0])
            for key in ("rss_mb", "pss_mb")
            if settled[0][key] is not None
        }
        found[loader] = {"by_epoch": epochs, **slopes}
    return found


def _epochs(bench: Bench, folder: Path, loader: str) -> list[Result]:
    torch.set_num_threads(1)
    size = bench.amount.memory_size
    data = bench.data(folder, loader, bench.amount.memory_batch, (size, size + size // 8))
    found = []
    for _ in range(bench.amount.memory_epochs):
        for _ in data.train.epoch():
            pass
        for _ in data.test.batches():
            pass
        found.append(memory())
    close(data.train, data.test)
    return found


# feed


def feed(bench: Bench) -> Result:
    """Training steps of a ResNet-50 fed by DALI, against the same steps on one batch that is there already."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    size, batch = bench.amount.feed_gpu if gpu else bench.amount.feed_cpu
    batch = min(batch, CLASSES * bench.amount.each)
    data = bench.data(bench.large(), "dali", batch, (size, size), device_id=device.index, channels_last=True)
    step = _training_step(size, device)
    fixed = (torch.randn(batch, 3, size, size, device=device), torch.randint(CLASSES, (batch,), device=device))
    fixed = (fixed[0].contiguous(memory_format=torch.channels_last), fixed[1])
    fed = endless(data)
    ways: dict[str, Callable[[], Any]] = {"fed by DALI": lambda: next(fed), "fixed batch": lambda: fixed}

    def images_per_second(batch_of: Callable[[], Any]) -> float:
        step(*batch_of())
        began = time.perf_counter()
        for _ in range(bench.amount.feed_steps):
            step(*batch_of())
        if gpu:
            torch.cuda.synchronize()
        return bench.amount.feed_steps * batch / (time.perf_counter() - began)

    rounds = [{way: images_per_second(make) for way, make in ways.items()} for _ in range(bench.amount.rounds)]
    close(data.train)
    return {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "image_size": size,
        "batch": batch,
        "images_per_second": {way: summary([r[way] for r in rounds]) for way in ways},
        "ratio": summary([r["fed by DALI"] / r["fixed batch"] for r in rounds]),
    }


def _training_step(size: int, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """In bfloat16 and channels last; ends without waiting for the GPU."""
    network = ResNet50Settings(name="imagenet_resnet50").build((3, size, size), CLASSES)
    model = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's lacks it
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


PARTS: dict[str, Callable[[Bench], Result]] = {
    "speed": speed,
    "agreement": agreement,
    "memory": resident,
    "feed": feed,
}
