"""2:4 layers against dense ones: compressed by torch's own reference on a CPU, by its kernels on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass
from torch.utils._python_dispatch import TorchDispatchMode

import dynsparse
from dynsparse.errors import UserError
from dynsparse.masks.transposable import best_patterns
from dynsparse.sparse_kernels import semi_structured
from dynsparse.sparse_kernels.choosing import Chosen, Timer, choose
from dynsparse.sparse_kernels.modules import Compressed, CompressedPointwise, TrainedLinear, TrainedPointwise
from dynsparse.sparse_kernels.operands import Reference
from dynsparse.sparse_kernels.patterns import found_patterns, is_two_of_four
from tests.gpu.devices import GPU


def two_of_four(*shape: int, seed: int = 0, both: bool = True) -> Tensor:
    """A weight [outputs, inputs] of 2:4, both ways or along its inputs alone."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    if not both:
        order = weight.abs().view(-1, 4).argsort(1)
        return (weight.view(-1, 4) * torch.zeros_like(weight).view(-1, 4).scatter_(1, order[:, 2:], 1)).view(shape)
    tiles = weight.abs().unfold(0, 4, 4).unfold(1, 4, 4)
    marks = best_patterns(tiles.reshape(-1, 16), 2, 4).view(tiles.shape)
    return weight * marks.transpose(1, 2).reshape(shape)


class Net(nn.Module):
    """A 1x1 convolution of stride 2, one of 3x3, a linear layer of 2:4, and one that is dense."""

    def __init__(self, both: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.point = nn.Conv2d(64, 32, 1, stride=2)
        self.norm = nn.BatchNorm2d(32)
        self.wide = nn.Conv2d(32, 8, 3, padding=1)
        self.hidden = nn.Linear(128, 64)
        self.head = nn.Linear(64, 10)
        with torch.no_grad():
            self.point.weight.copy_(two_of_four(32, 64, both=both)[..., None, None])
            self.hidden.weight.copy_(two_of_four(64, 128, seed=1, both=both))

    def forward(self, images: Tensor) -> Tensor:
        found = self.wide(torch.relu(self.norm(self.point(images))))
        return self.head(torch.relu(self.hidden(found.flatten(1))))  # type: ignore[no-any-return]


IMAGES = torch.randn(6, 64, 8, 8, generator=torch.Generator().manual_seed(2))


def told(*seconds: float) -> Timer:
    """A timer that runs what it is given, and tells these seconds, one a call."""
    left: Iterator[float] = iter(seconds)

    def timer(call: Callable[[], object]) -> float:
        call()
        return next(left)

    return timer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nothing_is_lost_by_compressing(dtype: torch.dtype) -> None:
    """The values are a half, the metadata 2 bits for each; back come the same bits, in both directions."""
    weight = two_of_four(64, 128).to(dtype)
    packed = Reference(weight, both=True).packed
    assert packed.packed.shape == (64, 64) and packed.meta.numel() * packed.meta.element_size() * 8 == 2 * 64 * 64
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed.packed, packed.meta), weight)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed.packed_t, packed.meta_t), weight.t())
    assert torch.equal(packed.to_dense(), weight)


def test_a_weight_of_one_direction_loses_values_in_the_other() -> None:
    """The conversion itself does not complain: so the pattern is looked at before."""
    weight = two_of_four(64, 128, both=False).half()
    assert is_two_of_four(weight) and not is_two_of_four(weight, 0)
    packed = Reference(weight, both=True).packed
    assert torch.equal(packed.to_dense(), weight)
    assert not torch.equal(packed.t().to_dense(), weight.t())


def test_products_are_the_dense_ones() -> None:
    weight, bias = two_of_four(32, 64).bfloat16(), torch.randn(32).bfloat16()
    rows, others = torch.randn(5, 64).bfloat16(), torch.randn(5, 32).bfloat16()
    operand = Reference(weight, both=True)
    assert torch.equal(operand.times(rows, bias), nn.functional.linear(rows, weight, bias))
    torch.testing.assert_close(operand.back(others), others @ weight)
    with pytest.raises(RuntimeError, match=r"2:4 kernels take float16 and bfloat16, and the weight is torch\.float32"):
        Reference(weight.float(), both=False)


@pytest.mark.parametrize("both", [True, False])
def test_a_network_for_inference_gives_the_same_outputs(both: bool) -> None:
    model = Net(both).bfloat16().eval()
    expected = model(IMAGES.bfloat16())
    found = choose(model, IMAGES.bfloat16(), Reference, told(2.0, 1.0, 2.0, 1.0), training=False)
    assert found.sparse == {"point": (2.0, 1.0), "hidden": (2.0, 1.0)}
    assert found.dense == {"wide": "neither linear nor 1x1", "head": "not 2:4 along its inputs"}
    assert isinstance(model.point, CompressedPointwise) and isinstance(model.hidden, Compressed)
    torch.testing.assert_close(model(IMAGES.bfloat16()), expected)
    assert str(found) == (
        "by 2:4 kernels: point (2e+03 ms dense, 1e+03 ms 2:4), hidden (2e+03 ms dense, 1e+03 ms 2:4); dense: wide "
        "(neither linear nor 1x1), head (not 2:4 along its inputs)"
    )


@pytest.mark.parametrize("autocast", [True, False])
def test_a_network_in_training_gets_the_same_gradients(autocast: bool) -> None:
    model = Net() if autocast else Net().bfloat16()
    images = IMAGES if autocast else IMAGES.bfloat16()
    twin = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = choose(model, images, Reference, told(2.0, 1.0, 2.0, 1.0), training=True)
        assert set(found.sparse) == {"point", "hidden"}
        ours, theirs = (one(images).float().square().sum() for one in (model, twin))
    assert isinstance(model.point, TrainedPointwise) and isinstance(model.hidden, TrainedLinear)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours, theirs)
    for name, one in model.named_parameters():
        assert one is parameters[name], "optimizer and masks know it"
        expected = twin.get_parameter(name).grad
        assert one.grad is not None and expected is not None and one.grad.dtype == one.dtype
        scale = float(expected.abs().max())
        assert float((one.grad - expected).abs().max()) <= 0.02 * scale, name  # bfloat16, in another order.
    assert torch.equal(model.norm.running_mean, twin.norm.running_mean), "looking for inputs has left no trace"  # type: ignore[arg-type]
    assert list(model.state_dict()) == list(twin.state_dict())


def test_in_evaluation_mode_an_average_of_masks_is_whole() -> None:
    """An average over moved masks is 2:4 no longer: it must not be compressed."""
    model = Net().bfloat16()
    choose(model, IMAGES.bfloat16(), Reference, told(2.0, 1.0, 2.0, 1.0), training=True)
    average = copy.deepcopy(model).eval()
    with torch.no_grad():
        average.hidden.weight.add_(1)
    plain = Net().bfloat16().eval()
    plain.load_state_dict(average.state_dict())
    assert torch.equal(average(IMAGES.bfloat16()), plain(IMAGES.bfloat16()))


def test_what_is_slower_stays_dense() -> None:
    model = Net().bfloat16().eval()
    found = choose(model, IMAGES.bfloat16(), Reference, told(1.0, 2.0, 2.0, 1.0), training=False)
    assert found.dense["point"] == "1e+03 ms dense, 2e+03 ms 2:4"
    assert type(model.point) is nn.Conv2d and list(found.sparse) == ["hidden"]


def test_what_has_no_kernel_stays_dense() -> None:
    """CUTLASS makes no blocks of 24 outputs; a layer that the forward pass leaves out has no input."""
    model = nn.Sequential(nn.Linear(64, 24)).bfloat16()
    with torch.no_grad():
        model[0].weight.copy_(two_of_four(24, 64))
    found = choose(model, torch.randn(4, 64).bfloat16(), Reference, told(), training=False)
    assert found == Chosen(dense={"0": "Number of rows of dense matrix 24 must be divisible by 32"})
    with_idle = Net().bfloat16()
    with_idle.idle = nn.Linear(64, 32).bfloat16()
    with torch.no_grad():
        with_idle.idle.weight.copy_(two_of_four(32, 64))
    found = choose(with_idle, IMAGES.bfloat16(), Reference, told(2, 1, 2, 1), training=False)
    assert found.dense["idle"] == "its forward is not called"
    one_way = choose(Net(both=False), IMAGES, Reference, told(), training=True)
    assert one_way.dense["hidden"] == "not 2:4 along its outputs"
    assert choose(Net(), IMAGES, Reference, told(), training=False).dense["hidden"] == "float32 weights"


@torch.no_grad()
def test_layers_whose_weights_another_module_reads_stay_dense() -> None:
    """nn.TransformerEncoderLayer hands the weights of its two layers to a kernel of its own, in evaluation mode."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
    block.linear1.weight.copy_(two_of_four(128, 64))
    block.linear2.weight.copy_(two_of_four(64, 128))
    head = nn.Linear(64, 32)
    head.weight.copy_(two_of_four(32, 64))
    model, images = nn.Sequential(block, head).bfloat16().eval(), torch.randn(2, 8, 64).bfloat16()
    expected = model(images)
    found = choose(model, images, Reference, told(2, 1, 2, 1, 2, 1), training=False)
    assert list(found.sparse) == ["1"]
    assert found.dense["0.linear1"] == found.dense["0.linear2"] == "its forward is not called"
    torch.testing.assert_close(model(images), expected)


class Scaled(nn.Module):
    """Two layers, one of which it also reads the weight of, and a counter of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 32)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.second(self.first(images) / self.first.weight.norm())  # type: ignore[no-any-return]


@torch.no_grad()
def test_a_layer_without_which_the_model_does_not_run_is_put_back() -> None:
    torch.manual_seed(0)
    model, images = Scaled().eval(), torch.randn(4, 64).bfloat16()
    for layer in (model.first, model.second):
        layer.weight.copy_(two_of_four(*layer.weight.shape))
    model = model.bfloat16()
    expected, first = model(images), model.first
    found = choose(model, images, Reference, told(2, 1, 2, 1), training=False)
    assert list(found.sparse) == ["second"]
    assert found.dense["first"].startswith("the model does not run without it: 'Compressed' object has no attribute")
    assert model.first is first and isinstance(model.second, Compressed)
    assert model.calls == 1
    torch.testing.assert_close(model(images), expected)


def test_patterns_are_found_by_name() -> None:
    model = Net(both=False)
    model.grouped = nn.Conv2d(8, 8, 1, groups=2)
    model.odd = nn.Linear(6, 2)
    found = found_patterns(model)
    assert found.layers == ["point.weight", "hidden.weight"]
    assert found.others == {
        "wide.weight": "more than 2 of some 4 inputs",
        "head.weight": "more than 2 of some 4 inputs",
        "grouped.weight": "2 groups",
        "odd.weight": "6 inputs, which 4 does not divide",
    }
    assert found_patterns(nn.Linear(4, 1)).others == {"weight": "more than 2 of some 4 inputs"}


def test_the_axis_of_a_convolution_is_its_inputs() -> None:
    weight = torch.ones(4, 4, 3, 3)
    weight[:, 1:3] = 0
    assert is_two_of_four(weight) and not is_two_of_four(weight, 0) and not is_two_of_four(weight, 3)


def test_without_a_gpu_it_is_refused_in_a_line() -> None:
    assert dynsparse.semi_structured is semi_structured
    with pytest.raises(UserError) as refused:
        semi_structured(Net(), IMAGES)
    assert str(refused.value) == (
        "semi_structured() needs a CUDA device, and the model is on cpu: move it there before"
    )


@pytest.mark.gpu
def test_an_older_gpu_and_float32_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net().to(GPU)
    with pytest.raises(UserError, match=r"takes float16 or bfloat16 weights, and the model has none"):
        semi_structured(model, IMAGES.to(GPU))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match=r"needs compute capability 8\.0, and cuda:0 has 7\.5: run it dense"):
        semi_structured(model, IMAGES.to(GPU))


@pytest.mark.gpu
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_give_what_dense_layers_give(dtype: torch.dtype, training: bool) -> None:
    """All layers that can, whether faster or not."""
    from dynsparse.sparse_kernels.operands import OnGpu

    images = IMAGES.to(GPU, dtype)
    model = Net().to(GPU, dtype).train(training)
    twin = copy.deepcopy(model)
    found = choose(model, images, OnGpu, told(2.0, 1.0, 2.0, 1.0), training=training)
    assert set(found.sparse) == {"point", "hidden"}, found
    ours, theirs = model(images), twin(images)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
    if training:
        ours.float().square().sum().backward()
        theirs.float().square().sum().backward()
        for name, one in model.named_parameters():
            torch.testing.assert_close(one.grad, twin.get_parameter(name).grad, rtol=0.05, atol=0.05)


def test_a_dense_layer_casts_its_weights_in_each_pass_that_is_timed() -> None:
    """Autocast keeps the cast of a weight: of the dense layer it would be paid once in all the passes of a timing."""
    casts: list[int] = []
    weights = [layer.weight.shape for layer in (Net().point, Net().hidden)]

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            casts[-1] += function is torch.ops.aten._to_copy.default and args[0].shape in weights
            return function(*args, **(kwargs or {}))

    def timer(work: Callable[[], object]) -> float:
        with Casts():
            for _ in range(3):
                casts.append(0)
                work()
        return 1.0

    with torch.autocast("cpu", torch.bfloat16):
        choose(Net(), IMAGES, Reference, timer, training=True)
    dense = [*casts[:3], *casts[6:9]]  # Each layer is timed dense, then by its kernel.
    assert len(casts) == 12 and len(set(dense)) == 1 and dense[0] > 0
