"""The place where DALI decodes: what a config may ask for, and which decoder a worker takes as the faster."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pipelines
from dynsparse.errors import UserError
from pipelines.base import Batch
from pipelines.decoding import BY_DEFAULT, Decoding, Place
from pipelines.loaders import dali_timing
from pipelines.loaders.base import BadSamples, Feed
from pipelines.loaders.dali_views import decoder
from tests.pipelines.pictures import numbered_folder, settings
from tests.pipelines.streams import assert_same, endless, request, whole
from tests.training import runs

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return numbered_folder(tmp_path / "images", train=24, val=10)


@pytest.mark.parametrize("decode", ["auto", "cpu"])
def test_on_a_processor_all_is_as_without(decode: str, folder: Path) -> None:
    def batches(**options: object) -> list[Batch]:
        data = pipelines.build(settings(folder, **options), request())
        steps = endless(data.train)
        return [whole(data.test), *(next(steps) for _ in range(3))]

    assert_same(batches(decode=decode), batches())


def test_a_gpu_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.decode is gpu, and this run has no GPU: leave it out, or set it to"):
        pipelines.build(settings(folder, decode="gpu"), request())


@pytest.mark.parametrize(
    ("data", "train", "line"),
    [
        (
            {"loader": "torch", "decode": "cpu"},
            {},
            "decode is cpu, and loader torch decodes on the CPU always: leave decode out, or set loader=dali",
        ),
        (
            {"decode": "auto"},
            {"deterministic": True},
            "train.deterministic is on and data.decode is auto, which chooses by the clock: set it to gpu or cpu",
        ),
    ],
)
def test_refused_in_a_config(data: dict[str, object], train: dict[str, object], line: str) -> None:
    photographs = {"name": "imagenet", "path": "none", "number_of_classes": 10, "image_size": 32}
    with pytest.raises(UserError) as refused:
        runs.config(model={"name": "small_cnn", "channels": [4]}, data={**photographs, **data}, train=train)
    assert line in refused.value.lines[0]


def test_options_of_the_decoder() -> None:
    """Memory is taken for the largest image on a GPU alone, else `mixed` would grow in mid-run."""
    mixed = decoder(Decoding("gpu", (640, 480)), gpu=True)
    assert (mixed["device"], mixed["preallocate_width_hint"], mixed["preallocate_height_hint"]) == ("mixed", 640, 480)
    assert decoder(BY_DEFAULT, gpu=True)["device"] == "mixed"
    common = decoder(BY_DEFAULT, gpu=False)
    assert common == decoder(Decoding("cpu"), gpu=True)
    assert common["device"] == "cpu" and common.items() <= {**mixed, "device": "cpu"}.items()


class Clock:
    """A clock that goes on where a feed says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(Feed):
    """A feed whose batches take seconds of a clock; at the end of them a sample is bad."""

    def __init__(self, clock: Clock, seconds: list[float]) -> None:
        self.clock, self.seconds, self.closed = clock, seconds, False

    def next(self) -> Batch:
        if not self.seconds:
            raise BadSamples({3: "is bad"})
        self.clock.now += self.seconds.pop(0)
        return torch.zeros(0), torch.zeros(0)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


@pytest.mark.parametrize(
    ("on_gpu", "on_cpu", "expected"),
    [
        ([9.0] * 3 + [1.0] * 5, [1.0] * 3 + [2.0] * 5, "gpu"),
        ([1.0] * 3 + [2.0] * 5, [9.0] * 3 + [1.0, 1.0, 1.0, 30.0, 30.0], "cpu"),
        ([1.0] * 8, [1.0] * 8, "gpu"),
        ([2.0] * 8, [1.0] * 5, "gpu"),
    ],
    ids=["faster there", "by the median", "alike", "a bad sample"],
)
def test_the_faster_decoder(clock: Clock, on_gpu: list[float], on_cpu: list[float], expected: Place) -> None:
    """Batches that DALI had ready do not count; all that is opened is closed."""
    feeds: dict[Place, Timed] = {"gpu": Timed(clock, on_gpu), "cpu": Timed(clock, on_cpu)}
    assert dali_timing.faster(feeds.__getitem__, CPU) == expected
    assert all(feed.closed for feed in feeds.values())


def test_batches_to_time_are_those_of_a_feed(folder: Path) -> None:
    """Two real feeds, both on the processor, from the stream that would be timed."""
    data = pipelines.build(settings(folder), request())
    recipe, loader = data.train._recipe, data.train._loader  # type: ignore[attr-defined]
    made = [loader.feed(recipe, dali_timing.batches(recipe, 5), 5) for _ in range(2)]
    try:
        (images, labels), (again, _) = (feed.next() for feed in made)
        assert images.shape[0] == labels.shape[0] == 5
        assert torch.equal(images, again)
    finally:
        for feed in made:
            feed.close()
