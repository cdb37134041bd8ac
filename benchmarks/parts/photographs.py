"""Photographs made small: they are decoded again and again."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def shrunk(path: Path, side: int) -> Image.Image:
    """Return a photograph whose shorter side has `side` pixels."""
    image = Image.open(path).convert("RGB")
    shorter = min(image.size)
    return image.resize((max(side, image.width * side // shorter), max(side, image.height * side // shorter)))
