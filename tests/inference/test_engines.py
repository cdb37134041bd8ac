"""Networks in ONNX Runtime, OpenVINO and by torch.compile."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch
from torch import nn

import dynsparse
from dynsparse.errors import UserError
from dynsparse.inference.engines import made
from dynsparse.inference.networks import networks
from pipelines.common.extras import install_command
from tests.inference.small import cnn, mlp

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("through", ["onnxruntime", "openvino"])
def test_dense_and_compact_networks(through: str) -> None:
    """Both give the dense network's outputs at any batch size, of images in any memory order."""
    pytest.importorskip(through)
    model = cnn().requires_grad_(False)
    found = {one.name: one.module for one in networks(model, IMAGES[:1], through, 3)}
    assert list(found) == [f"dense, {through}", f"compact, {through}"]
    for engine in found.values():
        assert engine is not None
        for batch in (1, 4):
            images = torch.randn(batch, 3, 8, 8)
            for one in (images, images.contiguous(memory_format=torch.channels_last)):
                torch.testing.assert_close(engine(one), model(images), atol=1e-5, rtol=1e-4)
        first = engine(images)
        kept = first.clone()
        engine(torch.zeros_like(images))
        assert torch.equal(first, kept), "outputs keep their memory"


@pytest.mark.slow
@pytest.mark.parametrize("through", ["onnxruntime", "openvino"])
def test_they_are_timed_beside_torch(through: str) -> None:
    pytest.importorskip(through)
    model = cnn()
    found = dynsparse.speed_up(model, IMAGES, through=through, rounds=3)
    assert [row.name for row in found.table.networks] == ["dense", f"dense, {through}", f"compact, {through}"]
    assert found.table.chosen in ("dense", f"dense, {through}", f"compact, {through}")
    torch.testing.assert_close(found(IMAGES), model(IMAGES).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_inductor() -> None:
    model = cnn()
    found = dynsparse.speed_up(model, IMAGES, through="inductor", rounds=3)
    assert [row.name for row in found.table.networks] == ["dense", "dense, inductor", "compact, inductor"]
    engine = made("inductor", model.requires_grad_(False), IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(engine(IMAGES), model(IMAGES), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("through", "library"), [("onnxruntime", "onnxruntime"), ("onnxruntime", "onnxscript"), ("openvino", "openvino")]
)
def test_a_missing_library_is_named(through: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "onnxruntime"):  # What is not installed here cannot be imported before.
        monkeypatch.setitem(sys.modules, name, None if name == library else sys)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError) as found:
        dynsparse.speed_up(mlp(), IMAGES, through=through)
    assert str(found.value) == (
        f"speed_up: through='{through}' needs {library}, which is not installed; {install_command(through)}"
    )


class Untranslatable(nn.Module):
    """A network whose course depends on its input's values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images) if float(images.sum()) > 0 else images  # type: ignore[no-any-return]


def test_a_network_that_cannot_be_translated() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"^speed_up: onnxruntime cannot run the network \(.*\); use through='torch'$"):
        dynsparse.speed_up(Untranslatable().eval(), IMAGES, through="onnxruntime")
