"""Files of images as a network's input, made as its evaluation makes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.tools.opening import Opened
from pipelines.images.encoded import most_bytes
from pipelines.images.image_bytes import read_image
from pipelines.images.reference import content_fault, decoded, read_fault
from pipelines.loaders.torch_views import made
from pipelines.sources.walking import EXTENSIONS, files_of
from pipelines.views import AsItIs, CentralCrop, View


@dataclass(frozen=True)
class Reader:
    """Turns a file into the input of one network."""

    shape: tuple[int, int, int]
    resize: int | None
    """Size of the shorter side before the central crop; None where whole images are resized."""
    mean: Tensor
    std: Tensor
    """Float [channels, 1, 1], in grey levels of 0 to 255."""
    most_pixels: int

    @classmethod
    def of(cls, opened: Opened) -> Reader:
        """Return the reader of a checkpoint's network. UserError where images are not what it takes."""
        found = opened.input
        if found.get("mean") is None:
            raise UserError(
                f"checkpoint {opened.path}: its network was not trained on images ({opened.config.data.name}), or by "
                "an older version that did not save how they are prepared; give another"
            )
        if found["shape"][0] not in (1, 3):
            raise UserError(
                f"checkpoint {opened.path}: its network takes {found['shape'][0]} channels; image files have 1 or 3: "
                "give another"
            )
        mean, std = (torch.tensor(found[key]).view(-1, 1, 1) for key in ("mean", "std"))
        return cls(tuple(found["shape"]), found["resize"], mean, std, opened.config.data.pixel_limit)

    def read(self, path: Path) -> Tensor:
        """Return a file's image, normalised: float32 [channels, height, width]. UserError without the file's name."""
        try:
            content = read_image(path, most_bytes(self.most_pixels))
        except OSError as error:
            raise UserError(read_fault(error)) from None
        if (fault := content_fault(content, self.most_pixels)) is not None:
            raise UserError(fault)
        image = decoded(content, self.most_pixels)
        pixels = made(self._view(image), np.array(image.convert("L"))[..., None] if self.shape[0] == 1 else image)
        return pixels.float().sub_(self.mean).div_(self.std)

    def _view(self, image: Image.Image) -> View:
        _, height, width = self.shape
        if self.resize is not None:
            return CentralCrop(height, self.resize)
        return AsItIs(None if (image.height, image.width) == (height, width) else (height, width))


def found_in(path: Path) -> Iterator[Path]:
    """Yield the file itself, or all images in a folder and those within it, sorted. UserError if it has none."""
    if not _is_folder(path):
        yield path
        return
    whole = Path(os.path.realpath(path))
    images = sorted(name for name, is_image in files_of(whole.parent, whole.name, whole=False) if is_image)
    if not images:
        raise UserError(f"{path} holds no image ({', '.join(EXTENSIONS)}); name another folder, or files")
    yield from (path / name for name in images)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # The reader tells why.
        return False
