"""Tables of the methods side by side: MNIST for all of them, small photographs for those that did best there."""

from __future__ import annotations

from benchmarks.parts.reproduce.recipe import Config, Part, Recipe, merged
from benchmarks.parts.reproduce.recipe_parts import BASE_OF_PARTS

ERK = {"allocation": "erk"}
"""Densities of all methods whose layers keep theirs: with uniform ones the last layer of an MLP starves."""


def _method(name: str, sparsity: Config | None = None, **options: object) -> Config:
    return {"method": {"name": name, **options}, **({"sparsity": sparsity} if sparsity else {})}


def _cubic(start: float) -> Config:
    return {"name": "cubic", "start": start, "end": 0.75}


def _softened(sparsities: tuple[float, ...]) -> dict[float, Config]:
    """Return MEST's soft bound, by sparsity: half as many weights more."""
    return {
        sparsity: {"method": {"density": {"name": "steps", "start": round(1 - 1.5 * (1 - sparsity), 4)}}}
        for sparsity in sparsities
    }


def rows(sparsities: tuple[float, ...], period: int, epochs: int) -> dict[str, Part]:
    """Return the rows, for a run of so many epochs with an event each `period` steps."""
    stop = epochs * 3 // 4
    phase = max(1, epochs // 10)
    phases = {"warmup_epochs": phase, "sparse_epochs": phase, "dense_epochs": phase, "last_sparse_epoch": stop}
    by_step: Config = {"period": period, "stop_epoch": stop}
    return {
        "dense": Part("dense", {}),
        "static": Part("static, uniform", _method("static")),
        "static_erk": Part("static, ERK", _method("static", ERK)),
        "snip": Part("SNIP, static", _method("static", {"initial": {"name": "snip", "batches": 4}})),
        "grasp": Part("GraSP, static", _method("static", {"initial": {"name": "grasp", "batches": 4}})),
        "synflow": Part("SynFlow, static", _method("static", {"initial": {"name": "synflow"}})),
        "set": Part("SET, uniform", _method("set", fraction=0.3, **by_step)),
        "set_erk": Part("SET, ERK", _method("set", ERK, fraction=0.3, **by_step)),
        "set_global": Part(
            "SET, one threshold", _method("set", ERK, scope="global", floor=0.002, fraction=0.3, **by_step)
        ),
        "set_itop": Part("SET-ITOP, ERK", _method("set", ERK, fraction=0.5, exploration=0.9, stop_epoch=epochs)),
        "rigl": Part("RigL, uniform", _method("rigl", period=period)),
        "rigl_erk": Part("RigL, ERK", _method("rigl", ERK, period=period)),
        "rigl_global": Part("RigL, one threshold", _method("rigl", ERK, scope="global", floor=0.002, period=period)),
        "rigl_itop": Part("RigL-ITOP, ERK", _method("rigl", ERK, fraction=0.5, exploration=0.9, until=1.0)),
        "dsr": Part("dynamic sparse reparameterization", _method("dsr", target_moves=0.12, **by_step)),
        "sparse_momentum": Part("sparse momentum", _method("sparse_momentum", fraction=0.2)),
        "deepr": Part(
            "DeepR",
            {
                **_method("deepr", eta=0.01, temperature={0: 1e-5, stop: 1e-12}, stop_epoch=epochs - 1),
                "train": {"penalty": {"l1": 1e-5}},
            },
        ),
        "mest": Part("MEST, EM", _method("mest", ERK, period=period)),
        "mest_soft": Part("MEST, EM&S", _method("mest", ERK, period=period, soft_bound=True), _softened(sparsities)),
        "srigl": Part("SRigL", _method("srigl", {**ERK, "structure": "fan_in"}, period=period)),
        "topkast": Part(
            "Top-KAST", _method("topkast", ERK, reserve=0.1, exploration_loss=1e-4, period=period, stop_epoch=stop)
        ),
        "chts": Part("CHTs", _method("chts", ERK, period=period)),
        "chtss": Part(
            "CHTss", _method("chts", ERK, period=period, removal="relative", density={"name": "sigmoid", "start": 0.5})
        ),
        "gmp": Part("GMP, uniform", _method("gmp", period=period, density=_cubic(0.0))),
        "gmp_global": Part(
            "GMP, one threshold", _method("gmp", period=period, scope="global", floor=0.002, density=_cubic(0.0))
        ),
        "granet_dense": Part("GraNet, from dense", _method("granet", period=2 * period, density=_cubic(0.0))),
        "granet": Part("GraNet, from half dense", _method("granet", ERK, period=2 * period, density=_cubic(0.5))),
        "acdc": Part("AC/DC", _method("acdc", floor=0.002, density={"name": "alternating", **phases})),
    }


MNIST_SPARSITIES, MNIST_EPOCHS = (0.95, 0.98, 0.99), 20
METHODS_MNIST = Recipe(
    title="The methods side by side, on MNIST",
    about=(
        f"784-300-100-10 with BatchNorm, {MNIST_EPOCHS} epochs, batch 100, SGD with a cosine from 0.1 and a weight "
        "decay of 1e-4; an event each 100 steps for three quarters of the run, unless the method has it otherwise. "
        "All end with the same budget of weights, but for SRigL, which is left with fewer by its ablation. Settings "
        "are defaults and those of the examples in configs/, fitted to the length of the run; none was tuned for this "
        "table. N:M is not among them: the layers' inputs (784, 300, 100) have no M in common that makes 95 %."
    ),
    base={
        "model": {"name": "mnist_mlp"},
        "data": {"name": "mnist", "loader": "torch", "threads": 1},
        "train": {
            "epochs": MNIST_EPOCHS,
            "global_batch_size": 100,
            "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
            "lr": {"name": "cosine", "peak": 0.1},
        },
    },
    kind="fc",
    seeds={},
    sparsities=MNIST_SPARSITIES,
    page="reproduce-methods",
    costs=True,
    seconds="method_seconds",
    told=(
        "Rows less than their deviations apart are not told from each other. GraNet, AC/DC and GMP by one threshold, "
        "which begin dense or half dense, come first at every sparsity, for 2.8 to 46 times the FLOPs of training of "
        "a static network. GMP with uniform densities falls behind at 99 %. Among those that are sparse throughout, "
        "CHTs, MEST, RigL and SET with ERK densities lie close together at 95 % and 98 %. At 99 % CHTs, MEST and SET "
        "with ERK densities stay so; RigL varies by several points from seed to seed, and may fall below a static "
        "network, which its paper does not show. It leaves more than half of the neurons of the first layer without a "
        "weight. The reason is BatchNorm: gradients are divided by a neuron's standard deviation, so that neurons "
        "with next to no input take all the growth ([where RigL grows](rigl_neurons.md)). With uniform densities "
        "classes lose their weights, too ([RigL's rules](rigl_rules.md)). SRigL, whose neurons have equal numbers of "
        "weights or none, does not fall."
    ),
    parts=rows(MNIST_SPARSITIES, period=100, epochs=MNIST_EPOCHS),
)
METHODS_MNIST.seeds.update(dict.fromkeys(METHODS_MNIST.parts, 3))


IMAGES_SPARSITIES, IMAGES_EPOCHS, IMAGES_SIZE = (0.9, 0.95), 8, 48
BEST = (
    "dense",
    "static_erk",
    "set_erk",
    "rigl_erk",
    "dsr",
    "mest_soft",
    "srigl",
    "chts",
    "gmp_global",
    "granet",
    "acdc",
)
"""Rows of the table of photographs: one of each method that did best on MNIST, and three to compare with."""
N_OF_M = Part(
    "N:M by SR-STE, 1:8 (87.5 %) and 1:16 (93.75 %)",
    {},
    {
        0.9: _method("nm", {"conv": 0.875, "structure": "1:8"}, period=1, stop_epoch=6),
        0.95: _method("nm", {"conv": 0.9375, "structure": "1:16"}, period=1, stop_epoch=6),
    },
)
_IMAGES = rows(IMAGES_SPARSITIES, period=50, epochs=IMAGES_EPOCHS)
METHODS_IMAGES = Recipe(
    title="The methods side by side, on photographs",
    about=(
        "Imagenette, ten classes of ImageNet, made small before by `python -m benchmarks.shrink`: a shorter side of 80 "
        f"pixels. A ResNet-18 of half the width at {IMAGES_SIZE} pixels, {IMAGES_EPOCHS} epochs, batch 64, a cosine "
        "from 0.1, bf16; the first convolution is dense; an event each 50 steps for three quarters of the run, unless "
        "the method has it otherwise. The rows are one of each method that did best on MNIST; dynamic sparse "
        "reparameterization, SET and a static network; N:M, which does not fit there, at sparsities that it can have."
    ),
    base=merged(
        BASE_OF_PARTS,
        {
            "sparsity": {"exclude": ["conv1.*"]},
            "data": {"image_size": IMAGES_SIZE, "evaluation_resize": IMAGES_SIZE + IMAGES_SIZE // 8},
            "train": {"epochs": IMAGES_EPOCHS},
        },
    ),
    kind="conv",
    seeds=dict.fromkeys((*BEST, "nm"), 2),
    sparsities=IMAGES_SPARSITIES,
    page="reproduce-methods",
    costs=True,
    told=(
        "Two seeds of the same row differ by up to a point, and those of N:M at 95 % by 1.5, so that rows less than "
        "that apart are not told from each other. At 90 % nothing falls more than two points behind the dense "
        "network. A static network with ERK densities loses less than one at both sparsities: there is next to "
        "nothing that moving weights could win back in 1,184 steps and 17 events. That is why RigL, SET and MEST do "
        "not stand above it here, as they do in papers on ImageNet, after many times as many steps, and as they do on "
        "MNIST at 98 %. AC/DC and N:M come last at 95 %, by less than these seeds can settle. AC/DC prunes a network "
        "that was dense in the sixth of 8 epochs, which leaves its last sparse phase two to recover in; on MNIST, "
        "with 20 epochs, it came second to the dense network."
    ),
    parts={**{name: _IMAGES[name] for name in BEST}, "nm": N_OF_M},
)
