"""Reads that fail for a moment, and those that fail by no fault of the file."""

from __future__ import annotations

import errno
import io
import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.images.encoded import Bytes
from pipelines.loaders.torch_loader import TorchLoader
from pipelines.sources import faults
from pipelines.sources.image_folder import ImageFiles, list_images
from pipelines.tools.scan_facts import Decodes, examine
from pipelines.tools.scan_processes import examined
from tests.pipelines.loaders.test_bad_files import build
from tests.pipelines.pictures import CLASSES, numbered_folder, picture


def png() -> bytes:
    picture(8, 8, 1).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


class Failing:
    """A source of one good image. Its first reads raise the errors given."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.reopened = 0

    def name(self, index: int) -> str:
        return f"sample {index}"

    def encoded(self, index: int, most: int = 0) -> Bytes:
        if self.errors:
            raise OSError(number := self.errors.pop(0), os.strerror(number))
        return np.frombuffer(png(), dtype=np.uint8)

    def reopen(self) -> None:
        self.reopened += 1


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(faults, "time", SimpleNamespace(sleep=pauses.append))
    return pauses


@pytest.mark.parametrize(
    ("number", "pauses"), [(errno.EIO, faults.OF_A_DISK), (errno.ESTALE, faults.PAUSES), (errno.EMFILE, faults.PAUSES)]
)
def test_what_passes_is_read_again(number: int, pauses: tuple[float, ...], slept: list[float]) -> None:
    source: Any = Failing(*[number] * len(pauses))
    assert faults.fault(source, 0, 1000) is None
    assert slept == list(pauses)
    assert source.reopened == len(pauses), "a file that was kept open may be the stale one"


def test_a_fault_of_the_file_is_told_at_once(slept: list[float]) -> None:
    source: Any = Failing(errno.ENOENT)
    assert faults.fault(source, 0, 1000) == "cannot be read (No such file or directory)"
    assert slept == []


def test_a_damaged_disk_is_a_fault_of_the_file() -> None:
    source: Any = Failing(*[errno.EIO] * 2)
    assert faults.fault(source, 0, 1000) == "cannot be read (Input/output error)"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ENOTCONN])
def test_what_is_no_fault_of_the_file_ends_the_run(number: int) -> None:
    reason = rf"^sample 0 cannot be read now \({os.strerror(number)}\), which is no fault of the file: mend that, and"
    for use in (lambda source: faults.fault(source, 0, 1000), lambda source: examine(source, 0, Decodes(1000))):
        with pytest.raises(UserError, match=reason):
            use(Failing(*[number] * 4))


class Away(ImageFiles):
    """Images on storage that is away."""

    def encoded(self, index: int, most: int = 0) -> Bytes:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))


@pytest.mark.slow  # It waits, as a scan does before it ends.
def test_a_scan_ends_where_storage_is_away(tmp_path: Path) -> None:
    """None of the files is listed as bad, in whichever process it was read."""
    found = list_images(numbered_folder(tmp_path, train=3, val=3), "train", list(CLASSES))
    away = Away(**{field.name: getattr(found, field.name) for field in fields(found) if field.init})
    with pytest.raises(
        UserError, match=r"cannot be read now \(Transport endpoint is not connected\), which is no fault"
    ):
        list(examined({"train": away}, 1, Decodes(1000)))


def test_an_image_is_made_again_when_it_can_be_read() -> None:
    loader = TorchLoader(1, None, half=False, channels_last=False, most_pixels=1000)

    def make(source: Any) -> Any:
        return lambda: source.encoded(0).tobytes()

    source: Any = Failing(errno.ENXIO)
    assert loader.made(source, 0, make(source)) == png()
    source = Failing(errno.ENXIO, errno.ENXIO)
    assert loader.made(source, 0, make(source)) == "cannot be read (No such device or address)"
    source = Failing()

    def never() -> Any:
        raise OSError(errno.ENXIO, "away")

    with pytest.raises(UserError, match=r"^sample 0 can be read at one time and not at another \(away\)"):
        loader.made(source, 0, never)


def test_a_run_goes_on_after_a_moments_fault_and_skips_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI reads in threads of this process, where its reads can be made to fail."""
    read, left = ImageFiles.encoded, [errno.ENXIO]

    def encoded(self: ImageFiles, index: int, *most: int) -> Bytes:
        if left:
            raise OSError(left.pop(), "away")
        return read(self, index, *most)

    monkeypatch.setattr(ImageFiles, "encoded", encoded)
    data = build(numbered_folder(tmp_path / "images", 60, 30), "dali", on_bad_file="skip")
    assert sum(len(labels) for step in data.train.epoch() for _, labels in step) == 48
    assert not data.train.bad_samples and not left
    left += [errno.EMFILE] * 1000
    with pytest.raises(UserError, match=r"cannot be read now \(away\), which is no fault of the file"):
        list(data.train.epoch())
    assert not data.train.bad_samples
    data.close()
