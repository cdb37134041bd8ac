from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from dynsparse.config import loading as config
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.allocation import uniform
from dynsparse.masks.candidates import candidates
from dynsparse.models.torchvision_models import TorchvisionSettings
from dynsparse.training.network import require_layers
from tests.models.counting import specs, without_weights


def settings(name: str) -> TorchvisionSettings:
    return TorchvisionSettings(name=f"torchvision/{name}")


def run_config(name: str, shape: tuple[int, int, int]) -> RunConfig:
    return config.parse(
        {
            "model": {"name": f"torchvision/{name}"},
            "sparsity": {"conv": 0.5, "fc": 0.98},
            "method": {"name": "static"},
            "data": {"name": "synthetic", "shape": list(shape)},
        }
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("squeezenet1_0", 64),  # the classifier is a convolution
        ("mobilenet_v3_small", 64),  # grouped convolutions, squeeze and excitation
        ("shufflenet_v2_x0_5", 64),
        ("regnet_x_400mf", 64),
    ],
)
def test_one_sparse_training_step(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = settings(name).build((3, size, size), 7)
    assert model.training
    layers = sparse_layers(model, default=settings(name).sparse_by_default(model))
    dense = settings(name).dense_by_default(model)
    assert bool(dense) == (name != "resnet18")
    usual = [key for key, one in candidates(model).items() if one.by_default and key not in dense]
    assert [layer.name for layer in layers] == usual
    masks = MaskSet(model, layers, uniform(layers, {"conv": 0.8, "fc": 0.9}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True)
    logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    # DistributedDataParallel fails where a parameter takes no part.
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    masks.mask_gradients()
    optimizer.step()
    for layer in masks:
        assert int(torch.count_nonzero(layer.weight.detach()[~layer.mask.expand_as(layer.weight)])) == 0
        assert bool(layer.weight.isfinite().all())


@pytest.mark.parametrize(
    ("name", "size", "sparse"),
    [
        ("resnet18", 224, 21),
        ("densenet121", 32, 119),
        ("googlenet", 224, 56),
        ("inception_v3", 299, 93),
        pytest.param("regnet_y_128gf", 224, 138, marks=pytest.mark.slow),
        pytest.param("vit_h_14", 224, 32 * 6, marks=pytest.mark.slow),
        ("swin_t", 64, 75),
        pytest.param("maxvit_t", 224, 180, marks=pytest.mark.slow),
    ],
)
def test_layers_without_weights_and_without_warnings(name: str, size: int, sparse: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = without_weights(settings(name), (3, size, size), 1000)
        require_layers(run_config(name, (3, size, size)))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(specs(settings(name), model)) == sparse


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name: str) -> None:
    model = without_weights(settings(name), (3, 299, 299), 10)
    assert not [key for key, _ in model.named_parameters() if key.lower().startswith("aux")]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet18", (1, 28, 28), "have 1 channels; torchvision's models take 3: choose data in colour, or another"),
        ("alexnet", (3, 32, 32), "images of 32x32 (Given input size"),
        ("vit_b_16", (3, 40, 40), "images of 40x40 (Input shape indivisible by patch size); choose another image"),
        ("vit_b_16", (3, 32, 48), "images of 32x48 (Wrong image width! Expected 32 but got 48"),
        ("maxvit_t", (3, 64, 64), "images of 64x64 (Input size (16, 16) of block 0 is not divisible"),
    ],
)
def test_images_that_a_model_cannot_take(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        require_layers(run_config(name, shape))
    (line,) = caught.value.lines
    assert line.startswith(f"model.name is torchvision/{name}") and message in line


def test_the_try_changes_neither_weights_nor_random_state() -> None:
    """Only the constructor draws, so that a seed gives torchvision's own network."""
    torch.manual_seed(0)
    built, after = settings("mobilenet_v3_small").build((3, 32, 32), 10), torch.rand(())
    import torchvision

    torch.manual_seed(0)
    plain = torchvision.models.mobilenet_v3_small(num_classes=10)
    assert torch.equal(after, torch.rand(()))
    expected = plain.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in built.state_dict().items())


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_weights_of_another_input_need_a_word(name: str) -> None:
    weights = {"name": f"torchvision/{name}", "weights": "torchvision/DEFAULT"}
    with pytest.raises(ValueError, match=r"normalised otherwise: set model\.options={transform_input: true}"):
        TorchvisionSettings(**weights)
    model = TorchvisionSettings(**weights, options={"transform_input": True}).build((3, 96, 96), 5)
    assert model.transform_input


@pytest.mark.slow  # What is not imported: tests/pipelines/datasets/test_registry.py.
def test_other_models_do_without_torchvision() -> None:
    program = (
        "import sys; from dynsparse.config import schema, loading as config\n"
        "config.parse({'model': {'name': 'small_cnn'}, 'method': {'name': 'dense'}, 'data': {'name': 'synthetic'}})\n"
        "schema.json_schema(); sys.exit('torchvision' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
