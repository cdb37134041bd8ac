"""speed_up gives a network that computes the same, and tells what it was chosen from."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynsparse
from dynsparse.errors import UserError
from dynsparse.inference import SpedUp, speeding
from dynsparse.inference.csr_layers import SparseConv2d
from dynsparse.inference.layers import timed_layers
from dynsparse.inference.networks import ChannelsLast, Network, networks
from dynsparse.inference.rounds import Ratio
from dynsparse.inference.table import LayerRow, NetworkRow, Table
from pipelines.common.extras import install_command
from tests.inference.small import Clock, Slow, cnn, mlp

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_it_computes_the_same_and_leaves_the_model(make: Any) -> None:
    """Whatever is chosen, as time decides it. Other batch sizes work too."""
    model = make()
    state, modules = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    found = dynsparse.speed_up(model, IMAGES, rounds=3)
    assert isinstance(found, SpedUp) and not found.training
    for batch in (2, 1, 5):
        images = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(found(images), model(images).detach(), atol=1e-5, rtol=1e-4)
    assert not found(images).requires_grad
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == modules
    assert all(parameter.requires_grad for parameter in model.parameters())
    table = found.table
    assert table.input_shape == (2, 3, 8, 8) and table.through == "torch" and table.threads == 1
    assert table.chosen in {row.name for row in table.networks}
    assert table.ratio.median <= 1 - speeding.MARGIN or table.chosen == "dense"
    assert 0 <= table.difference <= speeding.TOLERANCE


def test_every_way_is_a_candidate_and_computes_the_same() -> None:
    """Half of the channels between two convolutions are dead."""
    model, images = cnn().requires_grad_(False), IMAGES
    found = {one.name: one for one in networks(model, images, "torch", 3)}
    of_compact = ["compact, CSR", "compact, channels_last", "compact, channels_last, CSR"]
    assert set(found) == {"compact", *of_compact, "CSR", "dense, channels_last", "dense, channels_last, CSR"}
    assert isinstance(found["compact, channels_last"].module, ChannelsLast)
    for one in found.values():
        assert one.module is not None or one.note == "no layer is clearly faster"
        if one.module is not None:
            torch.testing.assert_close(one.module(images), model(images), atol=1e-5, rtol=1e-4)
    assert isinstance(found["compact"].module, nn.Sequential)
    assert found["compact"].module[3].weight.shape == (16, 16, 1, 1)


class Sound(nn.Module):
    """A network of convolutions whose input is no batch of images: [batch, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.head = cnn()[:7], nn.Linear(16, 5)

    def forward(self, sound: Tensor) -> Tensor:
        found = self.network(sound.unsqueeze(1).expand(-1, 3, -1, -1))
        return self.head(input=found.mean((2, 3)))  # type: ignore[no-any-return]


def test_networks_of_other_inputs() -> None:
    """Layers may get theirs by name."""
    model, sound = Sound().eval(), torch.randn(2, 8, 8)
    found = dynsparse.speed_up(model, sound, rounds=3)
    torch.testing.assert_close(found(sound), model(sound).detach(), atol=1e-5, rtol=1e-4)
    assert not any("channels_last" in row.name for row in found.table.networks)


def test_a_network_for_one_image_stays_a_candidate() -> None:
    model = nn.Sequential(nn.Flatten(0), *list(mlp().children())[1:]).eval()
    image = torch.randn(1, 3, 8, 8)
    found = dynsparse.speed_up(model, image, rounds=3)
    torch.testing.assert_close(found(image), model(image).detach(), atol=1e-5, rtol=1e-4)
    notes = {row.name: row.note for row in found.table.networks}
    assert notes["compact"].startswith("the network cannot take two images (")


def test_layers_are_timed_in_each_way() -> None:
    model = cnn().requires_grad_(False)
    smaller = next(one.module for one in networks(model, IMAGES, "torch", 3) if one.module is not None)
    layers = timed_layers(model, smaller, IMAGES, 3)
    assert [(row.name, row.kind, row.shape, set(row.ms)) for row in layers.rows] == [
        ("3", "Conv2d", (32, 16, 1, 1), {"dense", "compact", "CSR"}),
        ("5", "Conv2d", (16, 32, 3, 3), {"dense", "compact", "CSR"}),
    ]
    assert layers.others == 2, "the first convolution and the head are full"
    for row in layers.rows:
        assert row.ratio["dense"] == 1 and row.chosen in ("compact", "CSR")
        assert (row.name in layers.sparse) is (row.chosen == "CSR")


def test_the_fastest_that_wins_is_taken(clock: Clock) -> None:
    seconds = {"dense": 4.0, "slower": 8.0, "same": 4.0, "faster": 3.0, "fastest": 1.0}
    networks = {name: Slow(one, clock) for name, one in seconds.items()}
    rows, chosen, won = speeding._race(networks, torch.ones(1, 2), 5)
    assert (chosen, won) == ("fastest", Ratio(0.25, 0.25, 0.25))
    assert [row.name for row in rows] == list(seconds)
    rows, chosen, won = speeding._race({"dense": Slow(1, clock), "slower": Slow(3, clock)}, torch.ones(1, 2), 5)
    assert (chosen, won) == ("dense", Ratio(1, 1, 1))


class FastOnce(Slow):
    """A network that is fast in its first calls alone, as one that a noisy machine has favoured."""

    def forward(self, images: Tensor) -> Tensor:
        found = super().forward(images)
        self.calls = getattr(self, "calls", 0) + 1
        self.seconds = 1.0 if self.calls < 7 else 8.0
        return found


def test_what_does_not_win_again_is_not_taken(clock: Clock) -> None:
    """Two calls warm up and five are timed; from the eighth on it is slow."""
    rows, chosen, _ = speeding._race({"dense": Slow(4, clock), "lucky": FastOnce(1, clock)}, torch.ones(1, 2), 5)
    assert chosen == "dense"
    assert rows[1].note == "not taken: 2.00 of dense when timed again"


def test_other_outputs_are_refused(clock: Clock) -> None:
    probes = [(torch.ones(1, 2), torch.ones(1, 2))]
    assert speeding._compared(Network("right", Slow(0, clock, 1 + 1e-5)), probes).note == ""
    wrong = speeding._compared(Network("wrong", Slow(0, clock, 1.001)), probes)
    assert (wrong.module, wrong.note) == (None, "refused: outputs differ by 1e-03")
    broken = speeding._compared(Network("broken", nn.Linear(7, 2)), probes)
    assert broken.module is None and broken.note.startswith("refused: does not run (mat1 and mat2")
    nan = speeding._compared(Network("nan", Slow(0, clock, float("nan"))), probes)
    assert nan.note == "refused: outputs differ by inf"


def test_transformers_that_read_weights_past_forward() -> None:
    """Their fast path reads the weights of linear1 itself, which nothing may replace."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 5)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= torch.rand_like(parameter) < 0.1
    example = torch.randn(3, 4, 16)
    found = dynsparse.speed_up(model, example, rounds=3)
    torch.testing.assert_close(found(example), model(example).detach(), atol=1e-5, rtol=1e-4)
    assert [row.name for row in found.table.layers] == ["2"]
    assert not [row for row in found.table.networks if row.note.startswith("refused")]


def test_wrappers_are_taken_off() -> None:
    model = mlp()
    found = dynsparse.speed_up(nn.DataParallel(model).eval(), IMAGES, rounds=3)
    assert not any(isinstance(module, nn.DataParallel) for module in found.modules())
    torch.testing.assert_close(found(IMAGES), model(IMAGES).detach(), atol=1e-5, rtol=1e-4)


def test_without_torch_pruning_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    notes = {row.name: row.note for row in dynsparse.speed_up(mlp(), IMAGES, rounds=3).table.networks}
    assert notes["compact"] == (
        f"a compact network needs torch_pruning, which is not installed; {install_command('export')}, or make setup"
    )
    assert {row.name for row in dynsparse.speed_up(mlp(), IMAGES.flatten(1)[:, :192], rounds=3).table.networks} >= {
        "dense",
        "compact",
    }


def test_the_table_by_hand() -> None:
    networks_ = [
        NetworkRow("dense", 4.0, Ratio(1, 1, 1)),
        NetworkRow("CSR", 1.0, Ratio(0.25, 0.2, 0.3)),
        NetworkRow("compact", float("nan"), None, "no channel does nothing"),
    ]
    row = LayerRow("fc", "Linear", (9, 7), 0.05, {"dense": 3.0, "CSR": 0.3}, {"dense": 1.0, "CSR": 0.1}, "CSR")
    table = Table((1, 7), "torch", 2, "CSR", Ratio(0.26, 0.21, 0.31), 2e-7, networks_, [row], 3)
    head = "input 1x7, through torch, 2 threads: CSR is taken, 0.26 (0.21 to 0.31) of the dense time; "
    head += "outputs differ by 2e-07"
    text = [line.rstrip() for line in str(table).splitlines()]
    assert text == [
        head,
        "",
        "network     ms             of dense",
        "dense    4.000  1.00 (1.00 to 1.00)",
        "CSR      1.000  0.25 (0.20 to 0.30)                    taken",
        "compact      -                    -  no channel does nothing",
        "",
        "layer    kind  weight  density  dense ms  compact   CSR  chosen",
        "fc     Linear     9x7    0.050     3.000        -  0.10     CSR",
        "",
        "3 other layers have no way but dense",
    ]


def test_layers_are_told_as_they_run_in_what_is_taken() -> None:
    """A layer that is faster as CSR alone runs dense where the network with it is not taken."""
    row = LayerRow("fc", "Linear", (9, 7), 0.05, {"dense": 3.0, "compact": 2.0, "CSR": 0.3}, {}, "CSR")
    for chosen, runs_as in {"dense": "dense", "compact": "compact", "compact, channels_last, CSR": "CSR"}.items():
        assert speeding._runs_as(row, chosen) == runs_as


class Random(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.rand_like(images)


class Both(nn.Module):
    def forward(self, images: Tensor) -> Any:
        return {"logits": images}


class Infinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images / 0


def in_training() -> nn.Module:
    model = mlp()
    model[3].train()
    return model


REFUSED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "the model is in training mode in 3; call model.eval() first": (in_training(), IMAGES, {}),
    "the model is in training mode; call model.eval() first": (mlp().train(), IMAGES, {}),
    "the example is a list; give one batch of the model's input as a tensor": (mlp(), [1], {}),
    "the example is torch.float64; give float32": (mlp(), IMAGES.double(), {}),
    "1.weight is torch.bfloat16; only float32 can be sped up: call model.float() first": (mlp().bfloat16(), IMAGES, {}),
    "the example's shape is (0, 3, 8, 8); give a batch of one input at least": (mlp(), IMAGES[:0], {}),
    "the example is on meta and 1.weight on cpu; move them to one device": (mlp(), IMAGES.to("meta"), {}),
    "the example is on meta; move it and the model to the CPU or a GPU": (mlp().to("meta"), IMAGES.to("meta"), {}),
    "the model does not take an example of 2x3x4x4 (mat1 and mat2 shapes cannot be multiplied (2x48 and 192x256)); "
    "give one batch of its input": (mlp(), IMAGES[:, :, :4, :4], {}),
    "the model gives a dict; it has to give one tensor": (Both().eval(), IMAGES, {}),
    "the model gives NaN or inf for the example; give a batch of its input": (Infinite().eval(), IMAGES, {}),
    "the model gives other outputs each time; nothing can be compared with them": (Random().eval(), IMAGES, {}),
    "through is 'tensorrt'; there are inductor, onnxruntime, openvino, torch": (mlp(), IMAGES, {"through": "tensorrt"}),
    "through is 'onnxruntim'; did you mean 'onnxruntime'?": (mlp(), IMAGES, {"through": "onnxruntim"}),
    "rounds is 2; it must be at least 3": (mlp(), IMAGES, {"rounds": 2}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message: str) -> None:
    model, example, options = REFUSED[message]
    with pytest.raises(UserError) as found:
        dynsparse.speed_up(model, example, **options)
    assert str(found.value) == f"speed_up: {message}"


def test_a_model_that_cannot_be_copied() -> None:
    model = mlp()
    model.cache = model[1].weight * 1  # type: ignore[assignment]
    with pytest.raises(
        UserError, match=r"^speed_up: the model cannot be copied \(Only Tensors .*\); give it as a plain module$"
    ):
        dynsparse.speed_up(model, IMAGES)


def test_convolutions_with_csr_take_their_place() -> None:
    model = cnn().requires_grad_(False)
    layers = timed_layers(model, model, IMAGES, 3)
    assert {row.name for row in layers.rows} == {"3", "5"}
    assert all(isinstance(layer, SparseConv2d) for layer in layers.sparse.values())
