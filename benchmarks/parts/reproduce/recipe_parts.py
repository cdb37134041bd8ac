"""Tables of what each part of a recipe does, and of transformers and ConvNeXts, on small photographs."""

from __future__ import annotations

from benchmarks.parts.reproduce.recipe import Config, Part, Recipe

_SMALL: Config = {
    "name": "imagenet",
    "path": "data/imagenette-small",
    "image_size": 64,
    "evaluation_resize": 72,
    "number_of_classes": 10,
    "threads": 1,
}
_RIGL: Config = {
    "method": {"name": "rigl", "period": 50, "until": 0.8},
    "sparsity": {"allocation": "erk", "exclude": ["conv1.*"]},
}
_ADAM = {"name": "adamw", "weight_decay": 0.05}
_COSINE = {"name": "cosine", "peak": 0.1, "warmup_epochs": 1}
_MODERN: Config = {
    "data": {"trivial_augment": True, "random_erasing": 0.1},
    "train": {
        "label_smoothing": 0.1,
        "mixing": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0},
        "parameters": {"decay_norms_and_biases": False},
        "ema": {"decay": 0.99, "every_steps": 4, "ramp": True, "best_by": "ema"},
    },
}


def _train(**options: object) -> Config:
    return {"train": options}


def _lr(name: str, **options: object) -> Config:
    return _train(lr={"name": name, "peak": 0.1, "warmup_epochs": 1, **options})


BASE_OF_PARTS: Config = {
    "model": {"name": "timm/resnet18", "options": {"channels": [32, 64, 128, 256], "zero_init_last": False}},
    "data": _SMALL,
    "train": {
        "precision": "bf16",
        "channels_last": True,
        "epochs": 10,
        "global_batch_size": 64,
        "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        "lr": _COSINE,
    },
}

PARTS = Recipe(
    title="Parts of a recipe",
    about=(
        "Imagenette, ten classes of ImageNet, made small before by `python -m benchmarks.shrink`: a shorter side of 80 "
        "pixels. A ResNet-18 of half the width at 64 pixels, 10 epochs, batch 64, a cosine from 0.1, bf16; sparse "
        "by RigL with ERK densities. Each row is the first one and one part more."
    ),
    base=BASE_OF_PARTS,
    kind="conv",
    seeds={},
    sparsities=(0.0, 0.9),
    sparse=_RIGL,
    page="reproduce-parts",
    told=(
        "Each part has one seed, and of 23 parts at two densities some lie beyond a bound by chance. Beyond the bounds "
        "both dense and at 90 % are TrivialAugment, RandAugment, repeats, cutmix, a constant rate and AdamW, with "
        "settings that were not tuned: all cost accuracy in ten epochs, and most of all the parts together. Colour "
        "jitter, mixup, binary cross-entropy and a polynomial of power 2 cost accuracy beyond the dense network's "
        "bound, which is the narrower one, and not beyond that at 90 %. A teacher gains beyond it there, and most of "
        "all parts at 90 %, within the bound. What the other parts do is within the bounds."
    ),
    parts={
        "base": Part("the recipe", {}),
        "label_smoothing": Part("label smoothing, 0.1", _train(label_smoothing=0.1)),
        "trivial_augment": Part("TrivialAugmentWide", {"data": {"trivial_augment": True}}),
        "rand_augment": Part("RandAugment(2, 9)", {"data": {"rand_augment": {"operations": 2, "magnitude": 9}}}),
        "color_jitter": Part(
            "colour jitter, 0.4", {"data": {"color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}}}
        ),
        "random_erasing": Part("random erasing, 0.25", {"data": {"random_erasing": 0.25}}),
        "repeats": Part("repeated augmentation, 2 copies", {"data": {"repeated_augmentation": 2}}),
        "mixup": Part("mixup, 0.2", _train(mixing={"mixup_alpha": 0.2})),
        "cutmix": Part("cutmix, 1.0", _train(mixing={"cutmix_alpha": 1.0})),
        "bce": Part("binary cross-entropy", _train(loss="bce")),
        "ema": Part(
            "average of the weights, 0.99 every 4 steps",
            _train(ema={"decay": 0.99, "every_steps": 4, "ramp": True, "best_by": "ema"}),
        ),
        "clip": Part("gradients clipped to norm 1", _train(clip={"norm": 1.0})),
        "no_decay": Part("no decay of norms and biases", _train(parameters={"decay_norms_and_biases": False})),
        "zero_init": Part("zero-initialised last gamma", {"model": {"options": {"zero_init_last": True}}}),
        "drop_path": Part("stochastic depth, 0.1", {"model": {"options": {"drop_path_rate": 0.1}}}),
        "dropout": Part("dropout before the head, 0.2", {"model": {"options": {"drop_rate": 0.2}}}),
        "linear": Part("linear instead of cosine", _lr("linear")),
        "polynomial": Part("polynomial of power 2", _lr("polynomial", power=2.0)),
        "constant": Part("constant rate", _lr("constant")),
        "sizes": Part("48 pixels for 5 epochs, then 64", _train(image_size={0: 48, 5: 64})),
        "adamw": Part("AdamW, 1e-3", _train(optimizer=_ADAM, lr={**_COSINE, "peak": 1e-3})),
        "lamb": Part(
            "LAMB, 5e-3", _train(optimizer={"name": "lamb", "weight_decay": 0.02}, lr={**_COSINE, "peak": 5e-3})
        ),
        "teacher": Part("a teacher: the dense network", _train(teacher={"temperature": 2.0, "share": 0.5})),
        "modern": Part("smoothing, TrivialAugment, erasing, mixup, cutmix, no decay, average", _MODERN),
    },
)
PARTS.seeds.update({name: 3 if name == "base" else 1 for name in PARTS.parts})

NETWORKS = Recipe(
    title="A small transformer and a small ConvNeXt",
    about=(
        "Imagenette, ten classes of ImageNet, made small before by `python -m benchmarks.shrink`: a shorter side of 80 "
        "pixels. 64 pixels, 20 epochs, batch 64, AdamW with a cosine from 1e-3, label smoothing 0.1, bf16; "
        "sparse by RigL with ERK densities."
    ),
    base={
        "model": {"name": "timm/vit_tiny_patch16_224"},
        "data": _SMALL,
        "train": {
            "precision": "bf16",
            "epochs": 20,
            "global_batch_size": 64,
            "optimizer": _ADAM,
            "parameters": {"decay_norms_and_biases": False},
            "lr": {"name": "cosine", "peak": 1e-3, "warmup_epochs": 2},
            "label_smoothing": 0.1,
        },
    },
    kind="all",
    seeds={"vit": 2, "convnext": 2},
    sparsities=(0.0, 0.8),
    sparse={"method": {"name": "rigl", "period": 50, "until": 0.8}, "sparsity": {"allocation": "erk"}},
    page="reproduce-networks",
    parts={
        "vit": Part(
            "ViT: 6 blocks of 128 channels, 4 heads, patches of 8 pixels",
            {"model": {"options": {"patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4}}},
        ),
        "convnext": Part(
            "ConvNeXt: blocks 1, 1, 3, 1 of 32, 64, 128, 256 channels, patches of 2 pixels",
            {
                "model": {
                    "name": "timm/convnext_atto",
                    "options": {"depths": [1, 1, 3, 1], "dims": [32, 64, 128, 256], "patch_size": 2},
                },
                "train": {"channels_last": True},
            },
        ),
    },
)
