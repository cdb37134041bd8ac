"""Dense training: every weight active. What sparse training is compared with."""

from __future__ import annotations

from typing import Literal

from dynsparse.methods.base import Method, MethodSettings


class DenseSettings(MethodSettings):
    """No sparsity: `sparsity.conv` and `sparsity.fc` do not apply."""

    name: Literal["dense"]

    def build(self) -> Method:
        return Method()

    @property
    def starts(self) -> Literal["dense"]:
        return "dense"
