"""Models of timm by name, and options for the constructors of timm's and torchvision's."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib import util
from typing import Any

import pytest
import torch

from dynsparse.config import loading
from dynsparse.errors import UserError
from dynsparse.models.timm_models import TimmSettings
from dynsparse.models.torchvision_models import TorchvisionSettings
from dynsparse.training.network import build_network, require_layers
from pipelines.common.extras import install_command
from tests.models.counting import without_weights
from tests.training import runs


def config(name: str, shape: tuple[int, int, int] = (3, 64, 64), **options: Any) -> Any:
    return loading.parse(
        {
            "model": {"name": name, "options": options},
            "sparsity": {"conv": 0.9, "fc": 0.9},
            "method": {"name": "static"},
            "data": {"name": "synthetic", "shape": list(shape)},
        }
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (1, 28, 28)),  # of any channels and size
        ("vit_tiny_patch16_224", (3, 64, 48)),  # built for the images' size
        ("convnext_atto", (3, 64, 64)),
        ("efficientnet_b0", (3, 64, 64)),
        ("vit_tiny_r_s16_p8_224", (3, 64, 64)),  # runs its first part where it is made
        pytest.param("swinv2_cr_tiny_224", (3, 224, 224), marks=pytest.mark.slow),  # computes on its weights' device
        pytest.param("swin_tiny_patch4_window7_224", (3, 64, 64), marks=pytest.mark.slow),
    ],
)
def test_layers_without_weights(name: str, shape: tuple[int, int, int]) -> None:
    settings = TimmSettings(name=f"timm/{name}")
    model = without_weights(settings, shape, 7)
    assert all(parameter.is_meta for parameter in model.parameters())
    require_layers(config(f"timm/{name}", shape))


def test_a_seed_gives_timms_own_network_and_options_reach_it() -> None:
    import timm

    options = {"drop_path_rate": 0.25, "zero_init_last": False}
    network = build_network(config("timm/resnet18", **options), torch.device("cpu"))
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", num_classes=10, **options)
    masked = {layer.name: layer.mask for layer in network.masks}
    for name, parameter in plain.state_dict().items():
        ours = network.model.state_dict()[name]
        mask = masked.get(name)
        assert torch.equal(ours, parameter if mask is None else parameter * mask.expand_as(parameter)), name
    assert network.model.layer4[1].drop_path.drop_prob == 0.25
    assert network.costs is not None and network.costs.dense > 0


def test_training() -> None:
    """It repeats bit for bit, with stochastic depth and images of one channel."""
    model = {"name": "timm/resnet10t", "options": {"drop_path_rate": 0.2}}
    settings = runs.config(
        model=model, data={"shape": [1, 16, 16], "samples": 24, "test_samples": 8}, train={"epochs": 1}
    )
    first, second = (runs.trainer(settings).fit() for _ in range(2))
    assert first.weight_digest == second.weight_digest
    assert first.inference_flops_of_dense is not None and first.inference_flops_of_dense < 0.5


def test_lists_of_numbers_make_a_network_small() -> None:
    small = build_network(config("timm/resnet18", channels=[8, 16, 24, 32]), torch.device("cpu"))
    assert small.model.layer4[0].conv1.weight.shape == (32, 24, 3, 3)
    assert loading.parse(config("timm/resnet18", channels=[8, 16]).as_dict()).model.options == {"channels": [8, 16]}


def test_torchvisions_options() -> None:
    settings = TorchvisionSettings(name="torchvision/resnet18", options={"zero_init_residual": True})
    model = settings.build((3, 32, 32), 5)
    assert int(model.layer1[0].bn2.weight.count_nonzero()) == 0
    with pytest.raises(UserError) as caught:
        require_layers(config("torchvision/resnet18", zero_init_residual="yes"))
    assert list(caught.value.lines) == [
        "model.options: zero_init_residual of torchvision/resnet18 is 'yes'; it is true or false"
    ]


def test_options_of_the_functions_that_make_a_network() -> None:
    """MobileNetV3's width is no argument of its class."""
    for options in ({"width_mult": 0.5}, {"reduced_tail": True}, {"dropout": 0.5}):
        require_layers(config("torchvision/mobilenet_v3_small", **options))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "timm/vit_tinyy_patch16_224",
            {},
            "config: model.name: timm has no model 'vit_tinyy_patch16_224'; did you mean 'vit_tiny_patch16_224'?",
        ),
        (
            "timm/resnet18",
            {"pretrained": True},
            (
                "config: model: options: pretrained of timm/resnet18 follows from the config's other sections; "
                "leave it out"
            ),
        ),
        (
            "timm/resnet18",
            {"drop_rate": 1.5},
            "config: model: options: drop_rate is 1.5; a probability is at least 0 and below 1",
        ),
        (
            "timm/resnet18",
            {"drop_pathrate": 0.1},
            "model.options: timm/resnet18 has no option 'drop_pathrate'; did you mean 'drop_path_rate'?",
        ),
        (
            "timm/resnet18",
            {"drop_path_rate": 2},
            "config: model: options: drop_path_rate is 2; a probability is at least 0 and below 1",
        ),
        (
            "timm/vit_tiny_patch16_224",
            {"drop_path_rate": True},
            "model.options: drop_path_rate of timm/vit_tiny_patch16_224 is 'True'; it is a number",
        ),
        (
            "timm/caformer_s18",
            {"drop_pathrate": 0.1},
            "model.options: timm/caformer_s18 has no option 'drop_pathrate'; did you mean 'drop_path_rate'?",
        ),
        (
            "torchvision/convnext_tiny",
            {"stochastic_depth_probability": 0.5},
            (
                "model.options: torchvision/convnext_tiny has no option 'stochastic_depth_probability'; did you mean "
                "'stochastic_depth_prob'?"
            ),
        ),
        (
            "torchvision/mobilenet_v3_small",
            {"drop_rate": 0.5},
            "model.options: torchvision/mobilenet_v3_small has no option 'drop_rate'; did you mean 'dropout'?",
        ),
        (
            "torchvision/resnet18",
            {"zero_init_residuals": True},
            (
                "model.options: torchvision/resnet18 has no option 'zero_init_residuals'; did you mean "
                "'zero_init_residual'?"
            ),
        ),
        (
            "timm/resnet18",
            {"channels": {"a": 1}},
            (
                "config: model.options.channels: is {'a': 1}; an option is a number, true or false, a word, or a list "
                "of such"
            ),
        ),
        (
            "timm/resnet18",
            {"channels": [[8, 8], [8, 8]]},
            (
                "config: model.options.channels: is [[8, 8], [8, 8]]; an option is a number, true or false, a word, or "
                "a list of such"
            ),
        ),
        (
            "timm/resnet18",
            {"channels": None},
            "config: model.options.channels: is None; an option is a number, true or false, a word, or a list of such",
        ),
        (
            "timm/resnet18",
            {"channels": [8] * 101},
            "config: model.options.channels: has 101 entries; a list has 100 at most",
        ),
        (
            "timm/resnet18",
            {"drop_path_rate": math.nan},
            "config: model.options.drop_path_rate: is nan; numbers are from -2,147,483,647 to 2,147,483,647",
        ),
        (
            "timm/resnet18",
            {"channels": [8, 1e30]},
            "config: model.options.channels: is [8, 1e+30]; numbers are from -2,147,483,647 to 2,147,483,647",
        ),
        (
            "timm/resnet18",
            {"channels": [8, 8]},
            (
                "model.name is timm/resnet18, which cannot take images of 64x64 with channels=[8, 8] ('ResNet' object "
                "has no attribute 'layer3'); choose another image size or model or other options"
            ),
        ),
        (
            "timm/resnet18",
            {"norm_layer": "x"},
            (
                "model.name is timm/resnet18, which cannot take images of 64x64 with norm_layer=x (KeyError: 'x'); "
                "choose another image size or model or other options"
            ),
        ),
    ],
)
def test_bad_names_and_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        require_layers(config(name, **options))
    assert list(caught.value.lines) == [message]


def test_a_part_of_hundreds_of_names_has_a_few_of_them() -> None:
    with pytest.raises(UserError) as caught:
        config("timm/vit")
    (line,) = caught.value.lines
    assert line.count(" or '") == 4 and " or one of " in line and len(line) < 250


def test_images_that_a_model_cannot_take() -> None:
    with pytest.raises(UserError) as caught:
        require_layers(config("timm/crossvit_9_240"))
    (line,) = caught.value.lines
    assert line.startswith("model.name is timm/crossvit_9_240, which cannot take images of 64x64 (")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = util.find_spec
    monkeypatch.setattr(
        "dynsparse.models.timm_models.find_spec", lambda name: None if name == "timm" else find_spec(name)
    )
    with pytest.raises(UserError) as caught:
        config("timm/resnet18")
    assert list(caught.value.lines) == [
        f"config: model.name: timm is not installed: install the extra timm ({install_command('timm')})"
    ]


@pytest.mark.slow  # What is not imported: tests/pipelines/datasets/test_registry.py.
def test_other_models_do_without_timm() -> None:
    program = (
        "import sys; from dynsparse.config import schema, loading as config\n"
        "config.parse({'model': {'name': 'small_cnn'}, 'method': {'name': 'dense'}, 'data': {'name': 'synthetic'}})\n"
        "schema.json_schema(); sys.exit('timm' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
