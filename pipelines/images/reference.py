"""The reference decoder: for all loaders, Pillow decides whether an image is good, and what its pixels are."""

from __future__ import annotations

import errno
import io
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from pipelines.images.encoded import Bytes
from pipelines.images.headers import UNKNOWN, BadImageError, Header, check_tags, checked, require_scans, require_size
from pipelines.images.image_bytes import NoImageError

LACKS_END = "lacks its last bytes, the end mark of a JPEG file; all its pixels are there"
DAMAGED = "cannot be decoded: it is truncated or damaged"
LARGEST_EXIF = 16 << 20
"""Most bytes of EXIF values. Damaged tags declare more than there are, while the image is good."""
LARGEST_RUNS = 8 << 20
"""Most bytes of a run-length encoded BMP, which Pillow decodes in Python."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that makes an image upright, by EXIF orientation."""
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Pillow's modes of 8 bits a channel that it converts to RGB."""
_TO_8_BITS = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)
"""Table from 16-bit to 8-bit grey levels: 65,535 is white."""

Image.MAX_IMAGE_PIXELS = None  # The limit is data.most_pixels.
warnings.filterwarnings("ignore", module=r"PIL\.")  # It warns about metadata that nobody needs.


def decoded(content: Bytes, most_pixels: int, header: Header | None = None) -> Image.Image:
    """Return the upright image, in a mode that converts to RGB. Raises BadImageError, or anything that Pillow raises.

    The pixels of an upright JPEG are decoded when they are first needed.
    """
    header = header or checked(content, most_pixels)
    image: Image.Image = Image.open(io.BytesIO(content.data), formats=(header.format,))
    require_size(*image.size, most_pixels)
    if header.jpeg is not None:
        require_scans(header.jpeg.scans, image.width * image.height, most_pixels)
    if len(content) > LARGEST_RUNS and any("rle" in str(tile[0]) for tile in getattr(image, "tile", ())):
        raise BadImageError(f"has {len(content):,} bytes of run-length encoded pixels, more than {LARGEST_RUNS:,}")
    if header.format != "JPEG":
        image.load()  # Pillow turns a TIFF here. A PNG's EXIF data may follow its pixels.
    if isinstance(image, TiffImageFile) and image.mode.startswith("I;16"):
        image = _with_white_above(image)
    if (turn := _TURNS.get(orientation(image))) is not None:
        image = image.transpose(turn)
    return _with_8_bits(image)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8. Damaged EXIF data mean upright, 1."""
    exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    try:
        if exif:
            check_tags(memoryview(exif), LARGEST_EXIF)
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow raises nearly anything at unknown data
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB, if it is not."""
    return image if image.mode == "RGB" else image.convert("RGB")


def as_pnm(image: Image.Image) -> Bytes:
    """Encode an image as PNM, without loss: its size in text, then the pixels. No decoder reads that differently."""
    head = b"P6\n%d %d\n255\n" % image.size
    return np.frombuffer(head + rgb(image).tobytes(), dtype=np.uint8)


def content_fault(content: Bytes, most_pixels: int) -> str | None:
    """Decode all of a file's content. Return why that fails, or None.

    Raises MemoryError, which is not the image's fault.
    """
    pixels = 0
    try:
        header = checked(content, most_pixels)
        pixels = header.size[0] * header.size[1] if header.size else 0
        rgb(decoded(content, most_pixels, header)).load()  # A palette may be missing.
    except BadImageError as error:
        return str(error)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises about anything at damaged files
        np.empty((8, pixels), dtype=np.uint8)  # If this fails, decoding may have failed for lack of memory.
        return LACKS_END if _lacks_only_its_end(content, most_pixels) else _decoding_fault(error)
    return None


def read_fault(error: OSError) -> str:
    """Return why a file cannot be read, as the rest of a sentence that begins with its name."""
    if isinstance(error, NoImageError):
        return UNKNOWN
    if error.errno == errno.EFBIG:
        return f"cannot be read ({error.strerror}: an image of data.most_pixels takes less)"
    return f"cannot be read ({error.strerror or error})"


def _decoding_fault(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return UNKNOWN
    said = " ".join(str(error).split())[:100]
    return f"{DAMAGED} ({type(error).__name__}{said and f': {said}'})"


def _lacks_only_its_end(content: Bytes, most_pixels: int) -> bool:
    """True if a JPEG's pixels do not depend on what follows its last byte."""
    header = checked(content, most_pixels)
    if header.jpeg is None or not header.jpeg.cut:
        return False
    data = content.tobytes().rstrip(b"\xff")
    endings = (b"\xff\xd9", b"\x5a\xa5" * 32 + b"\xff\xd9")  # A decoder replaces missing data by zeros.
    first, second = (_checksum(np.frombuffer(data + ending, dtype=np.uint8), most_pixels) for ending in endings)
    return first is not None and first == second


def _checksum(content: Bytes, most_pixels: int) -> int | None:
    """Return a checksum of the pixels; None if they cannot be decoded."""
    try:
        return zlib.crc32(decoded(content, most_pixels).tobytes())
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as in `content_fault`
        return None


def _with_white_above(image: TiffImageFile) -> Image.Image:
    """Return 16-bit grey levels of which 65,535 is white: Pillow leaves them as stored. Raises BadImageError."""
    (bits, *_), below = image.tag_v2.get(258, (1,)), image.tag_v2.get(262) == 0
    if bits != 16:
        raise BadImageError(f"has grey levels of {bits} bits; save it with 8 or 16")
    return Image.fromarray(65535 - np.asarray(image, dtype=np.uint16)) if below else image


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Round 16-bit grey levels, and floating-point ones of 0 (black) to 1 (white), to 8 bits. Raises BadImageError."""
    if image.mode in _MODES:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray(_TO_8_BITS[np.asarray(image, dtype=np.uint16)])
    if image.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(image)))
    if image.mode == "I":
        if image.format == "PNG":  # Older Pillows give 16-bit grey levels so.
            return Image.fromarray(_TO_8_BITS[np.asarray(image).astype(np.uint16)])
        raise BadImageError("has grey levels of 32 bits or with a sign, whose white is not known; save it with 8 or 16")
    raise BadImageError(f"has pixels of a kind that is not read (Pillow's mode {image.mode}); save it as RGB")


def _from_floats(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return uint8 [height, width]. Levels slightly outside of 0 to 1 come from filters, and are clipped."""
    least, most = float(levels.min()), float(levels.max())
    if not (least >= -_OUTSIDE and most <= 1 + _OUTSIDE):  # False for NaN, too.
        raise BadImageError(f"has floating-point grey levels from {least:.6g} to {most:.6g}; they must be in 0 to 1")
    rounded: NDArray[np.uint8] = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    return rounded


_OUTSIDE = 1 / 255
"""Distance outside of 0 to 1 that is clipped: one grey level."""
