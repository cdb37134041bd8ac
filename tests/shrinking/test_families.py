"""A shrink of one network of each of torchvision's families: the same outputs, the same budget, a smaller network."""

from __future__ import annotations

import pytest

from benchmarks.parts.shrinking.families import family
from dynsparse.errors import UserError

FAMILIES = [
    ("alexnet", 64),
    ("vgg11_bn", 32),
    ("resnet50", 32),
    ("resnext50_32x4d", 32),
    ("wide_resnet50_2", 32),
    ("densenet121", 32),
    ("googlenet", 32),
    ("inception_v3", 75),
    ("mobilenet_v2", 32),
    ("mobilenet_v3_large", 32),
    ("mnasnet0_5", 32),
    ("squeezenet1_1", 32),
    ("efficientnet_b0", 32),
    ("efficientnet_v2_s", 32),
    ("regnet_y_400mf", 32),
    ("regnet_x_400mf", 32),
    ("convnext_tiny", 32),
    ("vit_b_16", 32),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_the_same_function_and_budget(name: str, size: int) -> None:
    found = family(name, size)
    assert found["largest_difference"] <= 1e-5 * found["largest_output"]
    assert found["active_weights"][0] == found["active_weights"][1]
    assert found["parameters"][1] < found["parameters"][0]
    assert found["dense_flops"][1] < found["dense_flops"][0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("shufflenet_v2_x0_5", 32), ("swin_t", 64), ("maxvit_t", 224)])
def test_those_that_cannot_be_followed_are_refused(name: str, size: int) -> None:
    with pytest.raises(UserError, match=r"^torch-pruning cannot follow the network \(.*\); it cannot be made compact$"):
        family(name, size)
