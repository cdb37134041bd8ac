"""Operations on pixels: how DALI's own differ from torchvision's, and the CPU time of TrivialAugmentWide in three ways.

    python -m benchmarks.pixel_operations        (about a minute; writes results/pixel_operations.json)

Pictures are crops of the two photographs that scikit-learn ships. Time is that of all threads of the process, which
other programs on the machine disturb less than the time by the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.auto_aug import augmentations
from nvidia.dali.auto_aug.trivial_augment import trivial_augment_wide

from benchmarks.harness.record import Result, keep
from benchmarks.harness.rounds import in_rounds, ratio, returned
from benchmarks.harness.script import plain_parser
from pipelines.common.command_line import at_least_1
from pipelines.loaders.torch_views import functional
from pipelines.order import SampleOrder, Share
from pipelines.pixels.policies import TrivialAugment
from pipelines.pixels.recipe import Pixels
from tests.pipelines.pixels.photographs import crops

SIZE, BATCH = 224, 64
FACTOR = 0.6
COMPARED: dict[str, tuple[float | None, Callable[[torch.Tensor], torch.Tensor]]] = {
    "brightness": (1 + FACTOR, lambda image: functional.adjust_brightness(image, 1 + FACTOR)),
    "contrast": (1 + FACTOR, lambda image: functional.adjust_contrast(image, 1 + FACTOR)),
    "color": (1 + FACTOR, lambda image: functional.adjust_saturation(image, 1 + FACTOR)),
    "sharpness": (FACTOR, lambda image: functional.adjust_sharpness(image, 1 + FACTOR)),
    "posterize": (4, lambda image: functional.posterize(image, 4)),
    "solarize": (128, lambda image: functional.solarize(image, 128)),
    "auto_contrast": (None, functional.autocontrast),
    "equalize": (None, functional.equalize),
}
"""Operations by DALI's name: its magnitude, and torchvision's function of the same."""


def differences(pictures: NDArray[np.uint8]) -> Result:
    images = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
    found = {}
    for name, (magnitude, reference) in COMPARED.items():
        difference = (by_dali(name, magnitude, pictures).int() - reference(images).int()).abs().float()
        found[name] = {
            "max": float(difference.max()),
            "mean": round(float(difference.mean()), 3),
            "over_1_level": round(float((difference > 1).float().mean()), 4),
        }
    return found


def by_dali(name: str, magnitude: float | None, pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Return uint8 [n, 3, height, width] as DALI's operation makes it, of the given magnitude alone."""
    operation = getattr(augmentations, name)
    options: dict[str, Any] = {}
    if magnitude is not None:
        factors = {"mag_to_param": np.float32} if name in ("brightness", "contrast", "color") else {}
        operation = operation.augmentation(mag_range=(magnitude, magnitude), randomly_negate=False, **factors)
        options = {"magnitude_bin": 0, "num_magnitude_bins": 2}

    @pipeline_def(batch_size=len(pictures), num_threads=1, device_id=None, enable_conditionals=True)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        image = fn.external_source(source=lambda: list(pictures), batch=True, layout="HWC", dtype=types.UINT8)
        return operation(image, **options)

    pipeline = graph()
    pipeline.build()
    made = np.stack([np.array(image) for image in pipeline.run()[0]])
    return torch.from_numpy(made.transpose(0, 3, 1, 2).copy())


def ways(pictures: NDArray[np.uint8]) -> dict[str, Callable[[], float]]:
    """Return the ways to augment a batch, each of which returns the CPU milliseconds of an image."""
    from torchvision.transforms import InterpolationMode, v2

    images = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
    policy, order = TrivialAugment(), SampleOrder(7, BATCH, BATCH)
    one_by_one = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    steps = iter(range(1_000_000))

    def ours() -> Any:
        return Pixels((policy,)).changed(images, order.randoms(next(steps), 0, 0, Share(), policy.uniforms))

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, enable_conditionals=True, seed=1)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        image = fn.external_source(source=lambda: list(pictures), batch=True, layout="HWC", dtype=types.UINT8)
        return trivial_augment_wide(image, shape=image.shape(), interp_type=types.INTERP_LINEAR, fill_value=0)

    pipeline = graph()
    pipeline.build()
    acts = {
        "pipelines.pixels": ours,
        "torchvision, picture by picture": lambda: torch.stack([one_by_one(image) for image in images]),
        "DALI's trivial_augment_wide": pipeline.run,
    }
    return {way: lambda act=act: milliseconds(act) for way, act in acts.items()}  # type: ignore[misc]


def milliseconds(act: Callable[[], Any], batches: int = 4) -> float:
    began = time.process_time()
    for _ in range(batches):
        act()
    return 1000 * (time.process_time() - began) / (batches * BATCH)


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--rounds", type=at_least_1, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    compared = differences(crops(16, 48, 100))
    for name, found in compared.items():
        print(f"{name}: {found}", flush=True)
    times = in_rounds(ways(crops(BATCH, SIZE, SIZE)), asked.rounds, measure=returned)
    ours, *others = times
    ratios = {other: ratio(times[ours], times[other])["median"] for other in others}
    for way, found in times.items():
        print(f"{way}: {statistics.median(found):.2f} ms an image", flush=True)
    print(keep("pixel_operations", {"differences": compared, "ms": times, "ratios": ratios}, asked.output))


if __name__ == "__main__":
    main()
