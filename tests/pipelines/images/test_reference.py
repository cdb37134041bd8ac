"""The reference decoder: pixels of odd kinds, orientation, and how little is read of files that are no image."""

from __future__ import annotations

import io
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import pipelines
from pipelines.common.errors import UserError
from pipelines.datasets import photographs
from pipelines.datasets.webdataset import WebdatasetSettings
from pipelines.images.image_bytes import NoImageError, read_image
from pipelines.images.jpeg import structure
from pipelines.images.png import is_plain
from pipelines.images.reference import content_fault, decoded, rgb
from pipelines.loaders.dali_images import given
from pipelines.loaders.dali_probe import Probe
from tests.pipelines.images.hostile import chunk, encoded, png, segment, turned
from tests.pipelines.pictures import numbered_folder, picture, settings
from tests.pipelines.streams import LOADERS, request, whole
from tests.pipelines.tools.test_scan import pack

Pixels = NDArray[np.uint8]
COLOURS = np.array(picture(16, 16, seed=4))
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
SIXTEEN = (np.arange(256, dtype=np.uint16) * 257 + 100).reshape(16, 16)
SIXTEEN[-1, -1] = 65535
ROUNDED = np.rint(SIXTEEN / 257).astype(np.uint8)
"""65,535 is white."""
BITS = np.array(Image.fromarray(COLOURS).convert("1"))


def with_segment(content: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments behind its first two bytes."""
    return content[:2] + b"".join(segments) + content[2:]


def lying(image: Pixels) -> Image.Image:
    return Image.fromarray(image).transpose(Image.Transpose.ROTATE_90)


def with_tag(tiff: bytes, tag: int, before: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a tag of 16 bits."""
    head = struct.pack("<HHL", tag, 3, 1)
    assert tiff.count(head + struct.pack("<H", before)) == 1
    return tiff.replace(head + struct.pack("<H", before), head + struct.pack("<H", value))


LOSSLESS: dict[str, tuple[bytes, Pixels]] = {
    "16-bit PNG": (encoded(Image.fromarray(SIXTEEN), "PNG"), ROUNDED),
    "16-bit TIFF": (encoded(Image.fromarray(SIXTEEN), "TIFF"), ROUNDED),
    "16-bit TIFF, 0 is white": (with_tag(encoded(Image.fromarray(65535 - SIXTEEN), "TIFF"), 262, 1, 0), ROUNDED),
    "floating-point TIFF": (encoded(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"), GREY),
    "a little outside": (encoded(Image.fromarray((GREY / 255 * 1.002 - 0.001).astype(np.float32)), "TIFF"), GREY),
    "1-bit TIFF": (encoded(Image.fromarray(BITS), "TIFF"), BITS.astype(np.uint8) * 255),
    "1-bit TIFF, group 4": (encoded(Image.fromarray(BITS), "TIFF", compression="group4"), BITS.astype(np.uint8) * 255),
    "1-bit PNG": (encoded(Image.fromarray(BITS), "PNG"), BITS.astype(np.uint8) * 255),
    "turned WebP": (encoded(lying(COLOURS), "WEBP", lossless=True, exif=turned()), COLOURS),
    "turned PNG": (encoded(lying(COLOURS), "PNG", exif=turned()), COLOURS),
    "turned TIFF": (encoded(lying(COLOURS), "TIFF", exif=turned()), COLOURS),
    "turned 16-bit TIFF": (
        encoded(Image.fromarray(SIXTEEN).transpose(Image.Transpose.ROTATE_90), "TIFF", exif=turned()), ROUNDED,
    ),
    "transparent palette": (encoded(Image.fromarray(GREY), "PNG", transparency=7), GREY),
    "damaged EXIF in PNG": (encoded(Image.fromarray(COLOURS), "PNG", exif=b"Exif\0\0MM\0*\xff\xff"), COLOURS),
}  # fmt: skip
"""The file, and its pixels: uint8 [16, 16] or [16, 16, 3]."""
_JPEG = encoded(Image.fromarray(COLOURS), quality=90)
_EXIF = turned().tobytes()
JPEGS: dict[str, tuple[bytes, int]] = {
    "plain": (_JPEG, 1),
    **{f"orientation {n}": (encoded(Image.fromarray(COLOURS), quality=90, exif=turned(n)), n) for n in range(1, 9)},
    "XMP": (with_segment(_JPEG, segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="3"/>')), 3),
    "EXIF before XMP": (
        with_segment(_JPEG, segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0tiff:Orientation="3"'), segment(0xE1, _EXIF)),
        6,
    ),
    "EXIF that is cut": (with_segment(_JPEG, segment(0xE1, _EXIF[:15])), 1),
    "EXIF of no byte order": (with_segment(_JPEG, segment(0xE1, _EXIF.replace(b"MM", b"XX"))), 1),
    "EXIF of an orientation that is none": (encoded(Image.fromarray(COLOURS), quality=90, exif=turned(77)), 1),
    "EXIF in two segments": (
        with_segment(_JPEG, segment(0xE1, _EXIF[:12]), segment(0xE1, b"Exif\0\0" + _EXIF[12:])),
        6,
    ),
    "another's segments": (with_segment(_JPEG, segment(0xE2, b"x" * 50), segment(0xEC, b"Ducky")), 1),
    "pixels behind its end": (_JPEG + _JPEG, 1),
    "progressive": (encoded(Image.fromarray(COLOURS), quality=90, progressive=True, exif=turned(8)), 8),
    "grey": (encoded(Image.fromarray(GREY), exif=turned(3)), 3),
    "CMYK": (encoded(Image.fromarray(COLOURS).convert("CMYK"), exif=turned(3)), 3),
    "RGB, as Adobe says": (encoded(Image.fromarray(COLOURS), quality=90, keep_rgb=True, exif=turned(5)), 5),
    "fill bytes": (_JPEG.replace(b"\xff\xdb", b"\xff\xff\xff\xdb"), 1),
}
"""The file, and its EXIF orientation."""
UPRIGHT = [
    None, None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
]  # fmt: skip


def floats(levels: NDArray[np.number]) -> Image.Image:
    return Image.fromarray(levels.astype(np.float32).reshape(16, 16))


def as_array(content: bytes) -> Pixels:
    return np.frombuffer(content, dtype=np.uint8)


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe()


@pytest.mark.parametrize("loader", LOADERS)
def test_odd_kinds_have_the_same_pixels_by_both_loaders(tmp_path: Path, loader: str) -> None:
    folder = numbered_folder(tmp_path / "images", train=24, val=3)
    shutil.rmtree(folder / "val" / "ape")
    (folder / "val" / "ape").mkdir()
    for number, (content, _) in enumerate(LOSSLESS.values()):
        (folder / "val" / "ape" / f"{number:02}.jpg").write_bytes(content)
    images, _ = whole(pipelines.build(settings(folder, loader=loader), request()).test)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (photographs.MEAN, photographs.STD))
    found = (images[: len(LOSSLESS)] * std + mean).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for (name, (_, expected)), pixels in zip(LOSSLESS.items(), found, strict=True):
        assert np.array_equal(pixels, expected if expected.ndim == 3 else np.stack([expected] * 3, axis=2)), name


@pytest.mark.parametrize("name", JPEGS)
def test_dali_sees_a_jpeg_as_the_reference_does(probe: Probe, name: str) -> None:
    content, turn = JPEGS[name]
    with Image.open(io.BytesIO(content)) as image:
        stored = image.convert("RGB")
    expected = np.asarray(stored if UPRIGHT[turn] is None else stored.transpose(UPRIGHT[turn]))
    assert np.array_equal(np.asarray(rgb(decoded(as_array(content), 1000))), expected)
    assert np.array_equal(probe.pixels(given(as_array(content), 1000)), expected)
    assert content_fault(as_array(content), 1000) is None


@pytest.mark.parametrize(
    ("name", "plain"),
    [("plain", True), ("progressive", True), ("grey", True), ("orientation 6", True), ("pixels behind its end", True),
     ("CMYK", False), ("RGB, as Adobe says", False), ("fill bytes", False)],
)  # fmt: skip
def test_which_jpegs_dali_decodes_itself(name: str, plain: bool) -> None:
    assert structure(as_array(JPEGS[name][0])).plain == plain
    assert (given(as_array(JPEGS[name][0]), 1000)[:2].tobytes() == b"\xff\xd8") == plain


def test_a_baseline_file_with_a_scan_too_many_is_left_to_the_reference() -> None:
    """DALI takes the first scan and is content; Pillow refuses the file."""
    scan = _JPEG[_JPEG.index(b"\xff\xda") : -2]
    twice = as_array(_JPEG[:-2] + scan + b"\xff\xd9")
    assert not structure(twice).plain
    assert (content_fault(twice, 1000) or "").startswith("cannot be decoded: it is truncated or damaged (OSError")


class TestPlainPng:
    GOOD = encoded(Image.fromarray(COLOURS), "PNG")

    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA"])
    def test_of_each_kind_of_8_bits(self, probe: Probe, mode: str) -> None:
        content = as_array(encoded(Image.fromarray(COLOURS).convert(mode), "PNG"))
        assert is_plain(content) and given(content, 1000) is content
        assert np.array_equal(probe.pixels(content), np.asarray(rgb(decoded(content, 1000))))

    @pytest.mark.parametrize("bit", [8 * 20, 8 * 45, -8 * 14, -1])
    def test_a_changed_bit_is_noticed(self, bit: int) -> None:
        changed = bytearray(self.GOOD)
        changed[bit // 8] ^= 1
        assert not is_plain(as_array(bytes(changed)))

    @pytest.mark.parametrize(
        "content",
        [
            GOOD[:-12],
            GOOD[:-1],
            GOOD + b"\0",
            GOOD[:33] + chunk(b"eXIf", _EXIF[6:]) + GOOD[33:],
            GOOD[:33] + chunk(b"tEXt", b"Raw profile type exif\0...") + GOOD[33:],
            GOOD[:33] + chunk(b"tRNS", b"\0" * 6) + GOOD[33:],
            GOOD[:-12] + chunk(b"tIME", bytes(7)) + chunk(b"IDAT") + GOOD[-12:],
            png(8, 8, b"", bits=16),
            png(8, 8, b"", colours=1),
            png(8, 8, b"", colours=3),
            png(8, 8, b"", chunk(b"PLTE", bytes(3)), colours=0),
            png(8, 8, b"", colours=3)[:-12] + chunk(b"PLTE", bytes(3)) + chunk(b"IEND"),
            png(8, 8, b"", chunk(b"PLTE", bytes(3)), chunk(b"gAMA", bytes(4)), chunk(b"PLTE", bytes(3)), colours=3),
            b"\x89PNG\r\n\x1a\n",
        ],
    )
    def test_what_is_not(self, content: bytes) -> None:
        assert not is_plain(as_array(content))

    def test_harmless_chunks_are(self) -> None:
        more = chunk(b"gAMA", b"\0\0\xb1\x8f") + chunk(b"tEXt", b"Software\0x")
        assert is_plain(as_array(self.GOOD[:33] + more + self.GOOD[33:]))


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (
            Image.fromarray(np.linspace(-0.5, 1.5, 256, dtype=np.float32).reshape(16, 16)),
            "levels from -0.5 to 1.5; they",
        ),
        (
            Image.fromarray(GREY.astype(np.float32)),
            "has floating-point grey levels from 0 to 255; they must be in 0 to 1",
        ),
        (Image.fromarray(np.full((16, 16), np.nan, dtype=np.float32)), "from nan to nan; they must be in 0 to 1"),
        (
            Image.fromarray(GREY.astype(np.int32)),
            "has grey levels of 32 bits or with a sign, whose white is not known;",
        ),
        (Image.fromarray(COLOURS).convert("LAB"), "has pixels of a kind that is not read (Pillow's mode LAB); save it"),
    ],
)
def test_pixels_without_a_known_white_are_refused(image: Image.Image, why: str) -> None:
    assert why in (content_fault(as_array(encoded(image, "TIFF")), 1000) or "")


def test_grey_levels_of_12_bits_are_refused() -> None:
    """Pillow gives them as they are, so that white would be nearly black."""
    tiff = with_tag(encoded(Image.fromarray(SIXTEEN), "TIFF"), 258, 16, 12)
    assert content_fault(as_array(tiff), 1000) == "has grey levels of 12 bits; save it with 8 or 16"


class TestReading:
    def test_a_large_file_that_is_no_image_is_not_read(self, tmp_path: Path) -> None:
        for size, content in ((1 << 16, b"junk"), (8 << 30, b"")):
            (tmp_path / "file").write_bytes(content)
            os.truncate(tmp_path / "file", size)
            if content:
                assert len(read_image(tmp_path / "file", 9 << 30)) == size
            else:
                with pytest.raises(NoImageError, match=r"is no image of a known format.*file"):
                    read_image(tmp_path / "file", 9 << 30)

    def test_a_large_image_is_read_whole(self, tmp_path: Path) -> None:
        content = b"BM" + np.random.default_rng(0).bytes(300_000)
        (tmp_path / "file").write_bytes(content)
        assert read_image(tmp_path / "file", 300_002).tobytes() == content
        with pytest.raises(OSError, match="has 300,002 bytes, more than 300,001"):
            read_image(tmp_path / "file", 300_001)


@pytest.mark.parametrize("loader", ["dali", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_shards_sample_has_the_same_limit(tmp_path: Path, loader: str) -> None:
    for part in ("train", "val"):
        large = (encoded(picture(20, 20, 1)) + bytes(2 << 20), 1)
        pack(tmp_path / f"{part}/0.tar", {"a.jpg": (_JPEG, 0), "b.jpg": large if part == "val" else (_JPEG, 1)})
    given_ = {"name": "webdataset", "path": str(tmp_path), "number_of_classes": 2, "image_size": 8, "loader": loader}
    asked = WebdatasetSettings.model_validate({**given_, "evaluation_resize": 8, "threads": 1, "most_pixels": 400})
    with pytest.raises(
        UserError, match=r"b\.jpg \(class 1, .* evaluation: cannot be read \(has [\d,]+ bytes, more than"
    ):
        whole(pipelines.build(asked, request(batch=2)).test)
