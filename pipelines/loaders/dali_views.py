"""Views as DALI's graph: nodes in, nodes out. Called while a pipeline is being defined."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, math, types

from pipelines import augment
from pipelines.decoding import Decoding
from pipelines.views import AsItIs, CentralCrop, Normalisation, RandomCrop, RandomResizedCrop, View


def on_gpu() -> bool:
    """Return True if the graph that is being defined ends on a GPU."""
    return Pipeline.current().device_id is not None


def decoder(decoding: Decoding, *, gpu: bool) -> dict[str, Any]:
    """Return the options of a decoder. Fancy upsampling makes GPU and CPU agree; EXIF is applied by default."""
    options: dict[str, Any] = {"output_type": types.RGB, "jpeg_fancy_upsampling": True}
    if not gpu or decoding.place == "cpu":
        return {"device": "cpu", **options}
    width, height = decoding.largest  # Memory from the start, else it would grow in mid-run.
    return {"device": "mixed", **options, "preallocate_width_hint": width, "preallocate_height_hint": height}


class Decoded:
    """Decoded images, uint8 HWC."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def shape(self) -> Any:
        """Return the node of height, width, channels: int64 [3], on the CPU."""
        return self._images.shape()

    def whole(self) -> Any:
        """Return the node of the images."""
        return self._images.gpu() if on_gpu() else self._images

    def window(self, anchor: Any, size: Any) -> Any:
        """Return the node of a part of the images."""
        return fn.slice(self.whole(), anchor, size, axis_names="HW")


class Encoded:
    """Encoded images, uint8 [bytes] on the CPU."""

    def __init__(self, encoded: Any, decoding: Decoding) -> None:
        self._encoded = encoded
        self._decoder = decoder(decoding, gpu=on_gpu())

    def shape(self) -> Any:
        """Return the node of height, width, channels, from the header: int64 [3], on the CPU."""
        return fn.peek_image_shape(self._encoded)

    def whole(self) -> Any:
        """Return the node of whole images, as a window: so decoding waits until the header has been read.

        If reading a header fails while the same batch is being decoded, DALI 2.4 ends the process.
        """
        size = self.shape()[:2]
        return self.window(size * 0, size)

    def window(self, anchor: Any, size: Any) -> Any:
        """Return the node of a part of the images. Only as much as needed is decoded."""
        images = fn.decoders.image_slice(self._encoded, anchor, size, axis_names="HW", **self._decoder)
        return images.gpu() if on_gpu() and self._decoder["device"] == "cpu" else images


class Normaliser:
    """The normalisation: to float CHW, or HWC if `channels_last`; half precision if `half`. None: uint8 as they are."""

    def __init__(self, normalisation: Normalisation | None, *, half: bool, channels_last: bool) -> None:
        self._options: dict[str, Any] = {"output_layout": "HWC" if channels_last else "CHW", "dtype": types.UINT8}
        if normalisation is not None:
            self._options["dtype"] = types.FLOAT16 if half else types.FLOAT
            self._options |= {"mean": list(normalisation.mean), "std": list(normalisation.std)}

    def __call__(self, images: Any, **crop_and_mirror: Any) -> Any:
        return fn.crop_mirror_normalize(images, **self._options, **crop_and_mirror)


@singledispatch
def made(view: View, image: Decoded | Encoded, normalised: Normaliser, *numbers: Any) -> Any:
    """Return the node of the images that `view` makes of `image`, given the nodes of `view.numbers`."""
    raise NotImplementedError(type(view).__name__)


@made.register
def _(view: AsItIs, image: Decoded | Encoded, normalised: Normaliser) -> Any:
    images = image.whole()
    if view.size is not None:
        images = fn.resize(images, size=view.size, interp_type=types.INTERP_LINEAR, dtype=types.FLOAT)
    return normalised(images)


@made.register
def _(view: RandomCrop, image: Decoded | Encoded, normalised: Normaliser, top: Any, left: Any, mirror: Any) -> Any:
    # DALI takes a place as a fraction of the free pixels, and rounds it back.
    rooms = [float(max(room, 1)) for room in view.room]
    y, x = (fn.cast(place / room, dtype=types.FLOAT) for place, room in zip((top, left), rooms, strict=True))
    return normalised(image.whole(), crop=view.size, crop_pos_y=y, crop_pos_x=x, mirror=mirror)


@made.register
def _(view: CentralCrop, image: Decoded | Encoded, normalised: Normaliser) -> Any:
    """Compute the size here: DALI rounds it otherwise than torchvision."""
    height_width = fn.cast(image.shape()[:2], dtype=types.FLOAT64)
    shorter = math.min(height_width[0], height_width[1])
    size = math.floor(height_width * float(view.resize) / shorter)
    images = resized(image.whole(), size=fn.cast(size, dtype=types.FLOAT))
    room = size - float(view.size)
    lower = math.floor(room * 0.5)
    odd, odd_lower = room - 2.0 * lower, lower - 2.0 * math.floor(lower * 0.5)
    # Half a pixel is rounded to even. Sizes are at most some thousands, so fractions in float32 round back exactly.
    place = fn.cast((lower + odd * odd_lower) / math.max(room, 1.0), dtype=types.FLOAT)
    return normalised(images, crop=(view.size, view.size), crop_pos_y=place[0], crop_pos_x=place[1])


@made.register
def _(view: RandomResizedCrop, image: Decoded | Encoded, normalised: Normaliser, *numbers: Any) -> Any:
    factors, place, mirror = numbers
    anchor, size = random_window(image.shape(), factors, place)
    return normalised(resized(image.window(anchor, size), size=(view.size, view.size)), mirror=mirror)


def resized(images: Any, **size: Any) -> Any:
    """Resize to uint8 images as torchvision does: linear with antialiasing, rounded to whole grey levels."""
    return fn.resize(images, **size, interp_type=types.INTERP_LINEAR, antialias=True, dtype=types.UINT8)


def random_window(shape: Any, factors: Any, place: Any) -> tuple[Any, Any]:
    """Compute `augment.random_window` as nodes.

    Takes `shape`, int64 [3]. Returns (anchor, size), each int64 [2]: (height, width).
    """
    height_width = fn.cast(fn.reshape(shape[:2], shape=[2, 1]), dtype=types.FLOAT64)
    width_height = fn.cast(fn.stack(shape[1:2], shape[:1]), dtype=types.FLOAT64)
    attempts = math.floor(factors * math.sqrt(height_width[0] * height_width[1]) + 0.5)
    # It always fits, so it is the last candidate.
    fallback = math.min(height_width, math.floor(width_height * augment.ASPECT[1] + 0.5))
    sizes = fn.cat(attempts, fallback, axis=1)
    fits = (sizes >= 1.0) & (sizes <= height_width)
    unfit = (fits[0] & fits[1]) == 0
    # The first that fits: of the indices 0 to ATTEMPTS the least, once ATTEMPTS is added to those that do not fit.
    # With 3 attempts that fit [no, yes, no] and the fallback: min(0 + 3, 1, 2 + 3, 3) = 1.
    chosen = fn.reductions.min(types.Constant(np.arange(augment.ATTEMPTS + 1)) + unfit * augment.ATTEMPTS)
    size = sizes[:, chosen]
    free = height_width[:, 0] - size
    central = chosen == augment.ATTEMPTS
    anchor = central * math.floor(free * 0.5) + (central == 0) * math.floor(place * (free + 1.0))
    return fn.cast(anchor, dtype=types.INT64), fn.cast(size, dtype=types.INT64)
