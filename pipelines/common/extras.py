"""Optional packages, and the commands that install them. Their versions are in pyproject.toml and constraints.txt."""

from __future__ import annotations

DALI = "nvidia-dali-cuda130"
"""NVIDIA DALI, as the extra `train` brings it on Linux. The package `nvidia-dali` is empty."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra, in a clone: the one form that messages and pages have."""
    return f"pip install --constraint constraints.txt '.[{extra}]'"
