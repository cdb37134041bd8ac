"""Recipes of `benchmarks.reproduce`: data sets, and what each method adds to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.reproduce.recipe import Config, Recipe, merged
from benchmarks.parts.reproduce.recipe_methods import METHODS_IMAGES, METHODS_MNIST
from benchmarks.parts.reproduce.recipe_mnist import ALL_METHODS, MNIST, THIN_MLP
from benchmarks.parts.reproduce.recipe_parts import NETWORKS, PARTS


def _mlp(epochs: int, steps: Sequence[int]) -> Config:
    first, second = steps
    return {
        "model": {"name": "mnist_mlp"},
        "train": {
            "epochs": epochs,
            "global_batch_size": 64,
            "lr": {"name": "steps", "table": {0: 0.1, first: 0.02, second: 0.004}},
        },
    }


FAST = {"precision": "bf16", "channels_last": True, "compile": True}
"""Settings of training on a GPU."""
_IMAGENETTE = {
    "model": {"name": "torchvision/resnet18"},
    "sparsity": {"exclude": ["conv1.*"]},
    "data": {"name": "imagenet", "path": "data/imagenette", "image_size": 64, "threads": 1},
    "train": {
        "precision": "bf16",
        "channels_last": True,
        "epochs": 12,
        "global_batch_size": 64,
        "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        "lr": {"name": "cosine", "peak": 0.1, "warmup_epochs": 1},
    },
}


def _imagenette(title: str, about: str, more: Config, **fields: Any) -> Recipe:
    """Return the recipe of Imagenette, with `more` settings and other fields than the table's."""
    table = {"seeds": dict.fromkeys(("dense", "dsr", "rigl_erk", "set", "static"), 2), "sparsities": (0.9, 0.98)}
    return Recipe(
        title=title,
        about=about,
        base=merged(_IMAGENETTE, more),
        kind="conv",
        sparse_weights=11_157_504,
        period={0: 50, 6: 100},
        stop_epoch=10,
        pruning_epochs=12,
        thin={},
        **{**table, **fields},
    )


def _again(title: str, data: Config) -> Recipe:
    """Return Imagenette's recipe of one method, with other data settings: to see that they change nothing."""
    return _imagenette(title, "As the table of Imagenette.", {"data": data}, seeds={"dsr": 1}, sparsities=(0.9,))


def _wrn28(title: str, images: str, data: Config) -> Recipe:
    """Return the recipe of the paper's wide ResNet on a GPU, for images that lie as `data` says."""
    return Recipe(
        title=title,
        about=(
            "The paper's WRN-28-2 and its schedule of 200 epochs, in bf16, compiled, with the images on the GPU. The "
            "paper's jobs train static networks for 400 epochs. "
            f"{images}"
        ),
        base={
            "model": {"name": "cifar10_WideResNet", "depth": 28, "widen_factor": 2.0},
            "data": {**data, "loader": "resident", "threads": 8},
            "train": {
                "epochs": 200,
                "global_batch_size": 100,
                "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
                "lr": {"name": "steps", "table": {0: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}},
                **FAST,
            },
            "checkpoint": {"every_epochs": 10},
        },
        kind="conv",
        sparse_weights=1_451_520,
        period={0: 100, 25: 200, 80: 400, 140: 800},
        stop_epoch=190,
        pruning_epochs=100,
        thin={},
        seeds=dict.fromkeys(("dense", "dsr", "set", "static"), 1),
        sparsities=(0.9,),
        target_moves=20_000,
    )


RECIPES = {
    "digits": Recipe(
        title="The digits of scikit-learn",
        about=(
            "784-300-100-10 with BatchNorm, 40 epochs, batch 64, SGD with momentum, the rate divided by 5 at epochs 20 "
            "and 32, a weight decay of 1e-4: a table of minutes. DeepR has a penalty of 1e-5 on magnitudes in place of "
            "the decay, as in the paper's jobs. Pruning begins from the trained dense network and takes 20 epochs more."
        ),
        told=(
            "At 99 % uniform densities leave the last layer 10 of its 1,000 weights, drawn at random, so that a class "
            "may get none. What never moves weights between layers (static, DeepR, SET, RigL with uniform densities) "
            "is held back there; dynamic sparse reparameterization moves them, ERK begins with more of them in small "
            "layers, and tied weights leave no position empty. Sparse momentum shares the weights by the mean momentum "
            "of each layer. A neuron whose weights are all new, and so 0, is divided by next to nothing in BatchNorm, "
            "which makes its gradients huge: such neurons draw the weights to themselves, and at 99 % there are many."
        ),
        base={**_mlp(40, (20, 32)), "data": {"name": "digits", "threads": 1}},
        kind="fc",
        sparse_weights=266_200,
        period={0: 20, 20: 40},
        stop_epoch=36,
        pruning_epochs=20,
        thin={sparsity: {"model": {"hidden": hidden}} for sparsity, hidden in THIN_MLP.items()},
        seeds=dict.fromkeys(ALL_METHODS, 5),
        sparsities=(0.9, 0.95, 0.98, 0.99),
    ),
    **MNIST,
    # A network and a schedule for CPUs: the paper's WRN-28-2 trains for 200 epochs (configs/cifar10_dsr.yaml).
    "cifar10": Recipe(
        title="CIFAR-10",
        about=(
            "A table for CPUs, scaled down: WRN-16-1 (the paper has WRN-28-2), 12 epochs (200), batch 128 (100), a "
            "cosine from 0.1 (steps), a tenth of the active weights to move at a time (20,000), bf16. A core trains "
            "three such runs in an hour, so that the table takes two cores four hours. The images are JPEG files of "
            "quality 75, so that accuracies lie a little below those on the originals. The paper's own jobs are in "
            "[configs/experiments](../../configs/experiments), and `python -m benchmarks.gpu --cifar10 DIR` trains "
            "one of them on a GPU."
        ),
        base={
            "model": {"name": "cifar10_WideResNet", "depth": 16, "widen_factor": 1.0},
            "data": {"name": "small_images", "path": "data/cifar10-jpeg", "loader": "resident", "threads": 1},
            "train": {
                "precision": "bf16",
                "channels_last": True,
                "epochs": 12,
                "global_batch_size": 128,
                "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
                "lr": {"name": "cosine", "peak": 0.1, "warmup_epochs": 1},
            },
        },
        told=(
            "At 90 % the order is that of the paper in each of the two seeds: dynamic sparse reparameterization, SET, "
            "static. At 95 % both are above static with each seed, and cannot be told from each other: SET's seeds are "
            "2.2 points apart. RigL, whose ERK densities leave small layers denser, has the highest mean of those that "
            "are sparse throughout. Pruning begins from the trained dense network and trains for 12 epochs more."
        ),
        kind="conv",
        sparse_weights=170_496,
        period={0: 100, 6: 200},
        stop_epoch=10,
        pruning_epochs=12,
        thin={},
        seeds=dict.fromkeys(("dense", "pruning", "dsr", "rigl_erk", "set", "static"), 2),
        sparsities=(0.9, 0.95),
    ),
    # ImageNet's path on ten of its classes, with photographs of 64 pixels.
    "imagenette": _imagenette(
        "Imagenette",
        "Ten classes of ImageNet, photographs by the same path as ImageNet: JPEG files, DALI, random resized crops. "
        "The 9,469 and 3,925 files have a shorter side of 224 pixels and 10 kB on average. A table for CPUs: ResNet-18 "
        "at 64 pixels, 12 epochs, batch 64, a cosine from 0.1, bf16. A run takes a core about 17 minutes where nothing "
        "else runs, so that the table takes two cores two and a half hours. How fast images are read and decoded is on "
        "[another page](pipelines.md#speed-on-photographs).",
        {},
        told=(
            "Dynamic sparse reparameterization is above SET and static networks with each seed: by 0.6 points or more "
            "at 90 %, by 0.9 or more at 98 %. SET and static networks cannot be told apart by two seeds. RigL, whose "
            "ERK densities leave small layers denser, is below dynamic sparse reparameterization at 90 % and above it "
            "at 98 %, with each seed."
        ),
        beside={
            "imagenette_torch": "`data.loader: torch`: torchvision decodes and transforms",
            "imagenette_shards": "`data.name: webdataset`: from tar shards",
        },
    ),
    "imagenette_torch": _again("Imagenette, by torch's loader", {"loader": "torch"}),
    "imagenette_shards": _again(
        "Imagenette, from tar shards",
        {"name": "webdataset", "path": "data/imagenette-shards", "image_size": 64, "threads": 1},
    ),
    # For a GPU: the paper's WRN-28-2 and its whole schedule, with the images on the device.
    "cifar10_wrn28": _wrn28(
        "CIFAR-10, on a GPU",
        "The images are JPEG files of quality 75, so that accuracies lie a little below those on the originals.",
        {"name": "small_images", "path": "data/cifar10-jpeg"},
    ),
    "cifar10_wrn28_originals": _wrn28(
        "CIFAR-10, on a GPU", "The images are the original ones.", {"name": "cifar10", "path": "data/cifar10"}
    ),
    "parts": PARTS,
    "networks": NETWORKS,
    "methods": METHODS_MNIST,
    "methods_images": METHODS_IMAGES,
    "imagenette_128": _imagenette(
        "Imagenette at 128 pixels, on a GPU",
        "ResNet-18, 12 epochs, batch 64, a cosine from 0.1, in bf16, compiled.",
        {"data": {"image_size": 128, "threads": 8}, "train": FAST},
        seeds=dict.fromkeys(("dense", "dsr", "rigl_erk", "set", "static"), 1),
    ),
}


def settings_of(method: str, recipe: Recipe, sparsity: float, dense_run: Path) -> Config:
    """Return what one method, or one part, adds to the recipe."""
    if recipe.parts:
        return _part(recipe, method, sparsity, dense_run)
    moves = {"period": recipe.period, "stop_epoch": recipe.stop_epoch}
    steps = {"rigl": recipe.period, "rigl_erk": recipe.period}.get(method)
    moved, fraction = recipe.moves(sparsity)
    epochs = recipe.pruning_epochs
    sections: dict[str, Config] = {
        "dense": {"method": {"name": "dense"}},
        "thin": {"method": {"name": "dense"}, **recipe.thin.get(sparsity, {})},
        "static": {"method": {"name": "static"}},
        "tied": {"method": {"name": "tied"}},
        "dsr": {"method": {"name": "dsr", "target_moves": moved, **moves}},
        "set": {"method": {"name": "set", "fraction": fraction, **moves}},
        # As in the paper's jobs: L1 instead of weight decay, and a temperature that falls.
        "deepr": {
            "method": {
                "name": "deepr",
                "eta": 0.01,
                "temperature": {0: 1e-5, recipe.stop_epoch // 2: 1e-8},
                "stop_epoch": recipe.stop_epoch,
            },
            "train": {"penalty": {"l1": 1e-5}, "optimizer": {"name": "sgd", "weight_decay": 0.0}},
        },
        "rigl": {"method": {"name": "rigl", "period": steps}},
        "rigl_erk": {"method": {"name": "rigl", "period": steps}, "sparsity": {"allocation": "erk"}},
        # With the default of 0.5 it starves layers at 98 %: where all weights of a neuron are new, and so 0, BatchNorm
        # divides by next to nothing, and such neurons hold 99.8 % of the first layer's momentum.
        "sparse_momentum": {"method": {"name": "sparse_momentum", "fraction": 0.2}},
        "pruning": merged(
            {
                "method": {
                    "name": "pruning",
                    "after_epoch": 0,
                    "every_epochs": 1,
                    "iterations": epochs // 2,
                    "schedule": "cubic",
                    f"target_{recipe.kind}": sparsity,
                    f"target_{'fc' if recipe.kind == 'conv' else 'conv'}": 0.0,
                },
                "start": {"weights_from": str(dense_run)},
                "train": {
                    "epochs": epochs,
                    "lr": {"name": "steps", "table": {0: 0.02, epochs // 2: 0.02, 3 * epochs // 4: 0.004}},
                },
            },
            recipe.pruning,
        ),
    }
    return recipe.methods.get(method, sections.get(method, {}))


def _part(recipe: Recipe, name: str, sparsity: float, dense_run: Path) -> Config:
    """Return what a part adds, and what makes the network sparse. A teacher is the dense network of the same seed."""
    part = recipe.parts[name]
    found = merged(recipe.sparse if sparsity else {"method": {"name": "dense"}}, part.settings)
    found = merged(found, part.at.get(sparsity, {}))
    return merged(found, {"train": {"teacher": {"source": str(dense_run)}}}) if name == "teacher" else found
