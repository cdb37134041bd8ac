"""The configs for ImageNet are what the sources that they name have published."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.methods.chase import ChaseSettings
from dynsparse.optimizers import parameter_groups
from dynsparse.training.network import build_network, build_without_weights
from tests.training.runs import ROOT

CONFIGS = ROOT / "configs"
IMAGES = 1_281_167
"""Training samples of ImageNet."""
MOSTAFA = {"imagenet_dense": 0.0, "imagenet_dsr": 0.8003, "imagenet_shards_dsr": 0.8003}
MODERN = ("imagenet_modern_dense", "imagenet_modern_rigl", "convnext_tiny", "vit_s_16")
CHASE = {"imagenet_chase": 0.8, "imagenet_chase_90": 0.9}
ALL = (*MOSTAFA, "imagenet_rigl_erk", "imagenet_rigl_erk_1024", "imagenet_rigl_itop", *CHASE, *MODERN)


def config(name: str) -> RunConfig:
    if name == "vit_s_16":
        pytest.importorskip("timm", exc_type=ImportError)
    return loading.load(CONFIGS / f"{name}.yaml")


def rate(asked: RunConfig, epoch: float, images: int = IMAGES) -> float:
    """The learning rate at the begin of an epoch, counted from 0."""
    steps = images // asked.train.batch_at(0)
    return asked.train.lr.at(int(epoch * steps), steps, asked.train.epochs * steps)


def sparsity(asked: RunConfig) -> float:
    """Zeros of the whole model, as a fraction."""
    return build_network(asked, torch.device("cpu")).model_sparsity


def without_decay(asked: RunConfig) -> set[str]:
    """Return the names of the parameters that do not decay."""
    model = build_without_weights(asked)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, asked.train.parameters)
    return {names[id(one)] for group in groups if group.get("weight_decay") == 0 for one in group["params"]}


def norms(asked: RunConfig) -> set[str]:
    """Return the names of the scales and shifts of the model's norms."""
    kinds = nn.modules.batchnorm._BatchNorm, nn.LayerNorm
    modules = build_without_weights(asked).named_modules()
    return {f"{name}.{key}" for name, one in modules if isinstance(one, kinds) for key, _ in one.named_parameters()}


@pytest.mark.parametrize("name", ALL)
def test_all_are_for_gpus_and_name_their_source(name: str) -> None:
    asked, text = config(name), (CONFIGS / f"{name}.yaml").read_text()
    train = asked.train
    assert (train.precision, train.channels_last) == ("bf16", name != "vit_s_16"), "no convolution but the first there"
    assert asked.data.threads >= 8 and asked.data.classes == 1000
    source = "imagenet_dsr.yaml" if "shards" in name else "imagenet_rigl_erk.yaml" if "1024" in name else "# Source: "
    assert source in text
    asked.require_split(2 if "itop" in name else 8)


@pytest.mark.parametrize("name", MOSTAFA)
def test_of_mostafa_and_wang(name: str) -> None:
    """Section B of the supplement: 100 epochs of batches of 256, Nesterov momentum, drops after 30, 60 and 90."""
    asked = config(name)
    train = asked.train
    assert (train.epochs, train.batch_at(0), train.label_smoothing) == (100, 256, 0)
    assert train.optimizer.model_dump() == {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    assert [rate(asked, epoch) for epoch in (0, 29, 30, 60, 90)] == [0.1, 0.1, 0.01, 0.001, 0.0001]
    assert train.parameters.is_off
    assert sparsity(asked) == pytest.approx(MOSTAFA[name], abs=1e-4)


@pytest.mark.parametrize(("name", "batch"), [("imagenet_rigl_erk", 4096), ("imagenet_rigl_erk_1024", 1024)])
def test_of_rigl(name: str, batch: int) -> None:
    """Evci et al. 2020, section 4.1, for batches of 4096. With smaller ones, rate and period follow the samples."""
    asked = config(name)
    train, method = asked.train, asked.method
    assert train.batch_at(0) == batch
    assert train.optimizer.model_dump() == {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    assert train.epochs * (IMAGES // batch) * batch == pytest.approx(32_000 * 4096, rel=0.01)
    peak = 1.6 * batch / 4096
    assert [rate(asked, epoch) for epoch in (5, 30, 70, 90)] == pytest.approx(
        [peak, peak / 10, peak / 100, peak / 1000]
    )
    assert rate(asked, 2.5) == pytest.approx(peak / 2, rel=0.01)
    assert train.label_smoothing == 0.1
    assert without_decay(asked) == norms(asked) | {"fc.bias"}, "kernels alone decay"
    assert asked.model.zero_init_residual
    assert (method.name, method.fraction, asked.sparsity.allocation) == ("rigl", 0.3, "erk")
    assert method.period.at(0) * batch == 100 * 4096
    assert method.until * 32_000 == pytest.approx(25_000, rel=0.01)
    assert sparsity(asked) == pytest.approx(0.8, abs=0.002)


def test_of_itop() -> None:
    """Liu et al. 2021, the command of their code for ResNet-50 and its defaults."""
    asked = config("imagenet_rigl_itop")
    train, method = asked.train, asked.method
    assert (train.epochs, train.batch_at(0), train.label_smoothing) == (100, 2 * 64, 0.1)
    assert train.optimizer.model_dump() == {"name": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}
    assert [rate(asked, epoch) for epoch in (5, 30, 60, 89, 90)] == [0.1, 0.01, 0.001, 0.001, 0.0001]
    assert without_decay(asked) == {name for name in norms(asked) if "bn" in name}
    assert (method.name, method.period.at(0), method.fraction, method.until) == ("rigl", 4000, 0.5, 1.0)
    assert (asked.sparsity.allocation, asked.sparsity.fc) == ("erk", 0.8)


@pytest.mark.parametrize(("name", "zeros"), CHASE.items())
def test_of_chase(name: str, zeros: float) -> None:
    """Yin et al. 2023, the command of their code for ResNet-50 and its defaults."""
    asked = config(name)
    train, method = asked.train, asked.method
    assert (train.epochs, train.batch_at(0), train.label_smoothing) == (100, 4 * 128, 0.1)
    assert train.optimizer.model_dump() == {"name": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}
    assert [rate(asked, epoch) for epoch in (8, 100)] == [pytest.approx(0.512), pytest.approx(0, abs=1e-9)]
    assert without_decay(asked) == {name for name in norms(asked) if "bn" in name}
    assert isinstance(method, ChaseSettings)
    assert (method.period.at(0), method.fraction) == (1000, 0.5)
    assert (method.channel_sparsity, method.channel_floor) == (0.4, 0.2)
    assert (method.channels_until, asked.sparsity.allocation) == (1 - 20 / 100, "erk")
    assert method.density is not None
    assert (method.density.start, asked.sparsity.conv, asked.sparsity.fc) == (pytest.approx(zeros - 0.05), zeros, zeros)


@pytest.mark.parametrize("name", ["imagenet_modern_dense", "imagenet_modern_rigl", "convnext_tiny"])
def test_of_torchvision(name: str) -> None:
    """The commands of torchvision's references for ResNet-50 (IMAGENET1K_V2) and ConvNeXt."""
    asked = config(name)
    train, data = asked.train, asked.data
    is_convnext = name == "convnext_tiny"
    assert (train.epochs, train.batch_at(0)) == (600, 8 * 128)
    assert train.optimizer.name == ("adamw" if is_convnext else "sgd")
    assert train.optimizer.weight_decay == (0.05 if is_convnext else 2e-5)
    peak = 1e-3 if is_convnext else 0.5
    assert rate(asked, 5) == pytest.approx(peak, rel=1e-3)
    assert rate(asked, 5 + 595 / 2) == pytest.approx(peak / 2, rel=1e-3)
    assert rate(asked, 599.99) < 1e-6
    assert (train.label_smoothing, train.mixing.mixup_alpha, train.mixing.cutmix_alpha) == (0.1, 0.2, 1.0)
    assert (train.size_at(0), data.image_size, data.evaluation_resize) == (176, 224, 236 if is_convnext else 232)
    assert (data.trivial_augment, data.random_erasing, data.repeated_augmentation) == (True, 0.1, 4)
    assert without_decay(asked) == norms(asked), "their norm_weight_decay; biases decay as weights do"
    assert train.ema is not None
    assert (train.ema.every_steps, train.ema.start_epoch) == (32, 5)
    published = 1 - (1 - 0.99998) * 8 * 128 * 32 / 600
    assert train.ema.decay == pytest.approx(published, abs=1e-5)


def test_of_deit() -> None:
    """Touvron et al. 2021, table 9, DeiT-S without distillation."""
    asked = config("vit_s_16")
    train, data = asked.train, asked.data
    assert asked.model.options == {"drop_path_rate": 0.1}
    assert (train.epochs, train.optimizer.name, train.optimizer.weight_decay) == (300, "adamw", 0.05)
    assert train.batch_at(0) == math.ceil(1024 / 6) * 6, "pairs to mix, each sample three times"
    assert rate(asked, 5) == pytest.approx(5e-4 * 1024 / 512, rel=1e-3)
    assert rate(asked, 299.99) == pytest.approx(1e-5, rel=1e-2)
    assert (train.label_smoothing, train.mixing.mixup_alpha, train.mixing.cutmix_alpha) == (0.1, 0.8, 1.0)
    assert train.mixing.cutmix_share == 0.5
    assert (data.rand_augment.operations, data.rand_augment.magnitude, data.rand_augment.probability) == (2, 27, 0.5)
    assert (data.random_erasing, data.erasing_value, data.repeated_augmentation) == (0.25, "random", 3)
    assert train.clip.is_on is False and train.ema is None
    model = build_without_weights(asked)
    assert without_decay(asked) == {name for name, one in model.named_parameters() if one.dim() == 1} | {
        "cls_token",
        "pos_embed",
    }


@pytest.mark.parametrize(
    ("name", "whole"), [("imagenet_modern_rigl", 0.7983), ("convnext_tiny", 0.7675), ("vit_s_16", 0.7704)]
)
def test_whole_models_of_the_sparse_ones(name: str, whole: float) -> None:
    assert sparsity(config(name)) == pytest.approx(whole, abs=1e-4)
