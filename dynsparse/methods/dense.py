"""Dense training: every weight is active. Sparse training is compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from dynsparse.errors import UserError
from dynsparse.masks.granularity import Kind
from dynsparse.methods.base import Method, MethodSettings


class DenseSettings(MethodSettings):
    """No sparsity: `sparsity.conv` and `sparsity.fc` do not apply."""

    name: Literal["dense"]

    def aiming_at(self, sparsity: Mapping[Kind, float]) -> DenseSettings:
        if any(sparsity.values()):
            raise UserError(f"method dense keeps every weight, and sparsity is {max(sparsity.values()):g}: set it to 0")
        return self

    def build(self) -> Method:
        return Method()

    @property
    def starts(self) -> Literal["dense"]:
        return "dense"
