"""Training steps fed by DALI, against the same steps on one batch that is there already."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness.record import Result
from benchmarks.harness.rounds import Act, in_rounds, ratio, seconds_of, summaries
from benchmarks.parts.pipelines.bench import CLASSES, Bench, close, endless
from dynsparse.models.resnet50 import ResNet50Settings


def feed(bench: Bench) -> Result:
    """Images a second of a ResNet-50 both ways."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    size, batch = bench.amount.feed_gpu if gpu else bench.amount.feed_cpu
    batch = min(batch, CLASSES * bench.amount.each)
    data = bench.data(bench.large(), "dali", batch, (size, size), device_id=device.index, channels_last=True)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    fixed = images, torch.randint(CLASSES, (batch,), device=device)
    fed, step = endless(data), _training_step(size, device)
    batches: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "fed by DALI": lambda: next(fed),
        "fixed batch": lambda: fixed,
    }

    def train(way: str, steps: int = bench.amount.feed_steps) -> None:
        for _ in range(steps):
            step(*batches[way]())

    def rate(act: Act) -> float:
        return bench.amount.feed_steps * batch / seconds_of(act)

    ways = {way: partial(train, way) for way in batches}
    rates = in_rounds(ways, bench.amount.rounds, warm_up=0, before=partial(train, steps=1), measure=rate)
    close(data.train)
    return {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "image_size": size,
        "batch": batch,
        "images_per_second": summaries(rates),
        "ratio": ratio(rates["fed by DALI"], rates["fixed batch"]),
    }


def _training_step(size: int, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """Return a step in bfloat16 and channels last. It ends without waiting for the GPU."""
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
