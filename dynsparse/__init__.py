"""Dynamic sparse training of convolutional networks on many GPUs."""

__version__ = "0.1.0"
