"""Hints at what a user may have meant. Each key and name in a hint exists."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from dynsparse import hints
from dynsparse.config import loading as config
from dynsparse.config.overrides import merge
from dynsparse.config.own_file import known_names
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.network import require_layers
from pipelines.common.errors import MOST_LINES
from pipelines.common.text import alike, some_of
from tests.training import runs

GOOD: dict[str, Any] = {
    "model": {"name": "mnist_mlp"},
    "sparsity": {"fc": 0.9},
    "method": {"name": "static"},
    "data": {"name": "digits"},
}
KEYS = hints._keys(RunConfig)


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config.parse(GOOD, overrides)
    assert len(caught.value.lines) == 1, caught.value.lines
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=3", "command line: epochs: unknown key; did you mean 'train.epochs'?"),
        (
            "lr=0.1",
            "lr: unknown key; did you mean 'train.lr.table' or 'train.lr.peak' (where train.lr.name is cosine, linear",
        ),
        (
            "train.learning_rate=1",
            "did you mean 'train.lr.table' or 'train.lr.peak' (where train.lr.name is cosine, linear, polynomial or ",
        ),
        ("train.max_grad_norm=1", "max_grad_norm: unknown key; did you mean 'train.clip.norm'?"),
        ("batch_size=32", "batch_size: unknown key; did you mean 'train.global_batch_size'?"),
        ("data.batch_size=32", "data.batch_size: unknown key; did you mean 'train.global_batch_size'?"),
        ("momentum=0", "(where method.name is sparse_momentum) or 'train.optimizer.momentum'?"),
        ("weight_decay=0", "weight_decay: unknown key; did you mean 'train.optimizer.weight_decay'?"),
        ("threads=1", "threads: unknown key; did you mean 'data.threads'?"),
        ("num_workers=1", "num_workers: unknown key; did you mean 'data.threads'?"),
        ("epoch=3", "epoch: unknown key; did you mean 'train.epochs'?"),
        ("trian.epochs=3", "trian: unknown key; did you mean 'train'?"),
        ("train.epohcs=3", "train.epohcs: unknown key; did you mean 'epochs'?"),
        ("depth=3", "depth: unknown key; did you mean 'model.depth' (where model.name is cifar10_WideResNet)?"),
        ("model.depth=3", "model.depth: unknown key; it goes with model.name cifar10_WideResNet alone"),
        ("method.eta=3", "method.eta: unknown key; it goes with method.name deepr alone"),
        ("xyzzy=3", "xyzzy: unknown key; there are checkpoint, data, distributed, job_idx, log, method, model, "),
        (
            "train.lr=0.1",
            "is 0.1; it must be a section, with keys of its own; did you mean train.lr='{name: steps, table: 0.1}'?",
        ),
        ("train.optimizer=adam", "did you mean train.optimizer='{name: torch/Adam}'?"),
        ("model=resnet50", "did you mean model='{name: torchvision/resnet50}'?"),
        ("model.name=resnet50", "; did you mean 'torchvision/resnet50' or 'imagenet_resnet50'?"),
        ("model.name=ResNet-50", "; did you mean 'torchvision/resnet50' or 'imagenet_resnet50'?"),
        ("model.name=resnet18", "; did you mean 'torchvision/resnet18'?"),
        ("model.name=wrn28", "; did you mean 'cifar10_WideResNet' or "),
        ("model.name=mlp", "; did you mean 'mnist_mlp'?"),
        ("data.name=imagenette", "; did you mean 'imagenet'?"),
        ("data.name=cifar", "; did you mean 'cifar10'?"),
        ("method.name=RigL", "; did you mean 'rigl' or 'srigl'?"),
        ("method.name=dynamic_sparse", "; did you mean 'dsr'?"),
        (
            "method.name=xyz",
            f"there are {', '.join(known_names())}; yours goes in",
        ),
    ],
)
def test_hints(override: str, message: str) -> None:
    assert message in refusal(override)


def test_the_name_of_the_run_is_no_sections_name() -> None:
    """Only a section whose name was overridden may have to be replaced as a whole."""
    assert "replace the section" not in refusal("name=mine", "epochs=3")
    assert "for another name replace the section: 'model={name: ...}'" in refusal(
        "model.name=small_cnn", "model.hidden=[3]"
    )


def test_every_key_that_a_hint_gives_is_one() -> None:
    for paths in hints.KEYS.values():
        assert set(paths) <= KEYS.keys()
    for key in {path.rpartition(".")[2] for path in KEYS} - {"name"}:
        if key not in RunConfig.model_fields:
            quoted = re.findall(r"'([^']*)'", refusal(f"{key}=1"))
            assert quoted, key
            assert set(quoted) <= KEYS.keys(), key


def test_sections_with_a_default_need_no_name() -> None:
    """A setting that a hint gives works: train.lr.table=0.1, with and without a section in the file."""
    assert config.parse(GOOD, ["train.lr.table=0.2"]).train.lr.at(0, 1, 1) == 0.2
    assert config.parse(GOOD, ["train.lr.name=cosine", "train.lr.peak=0.2"]).train.lr.at(0, 1, 1) == 0.2
    assert config.parse(GOOD, ["train.optimizer.momentum=0.5"]).train.optimizer.model_dump()["momentum"] == 0.5
    assert (
        "train.lr.peak: unknown key; it goes with train.lr.name cosine, linear, polynomial or constant alone"
        in refusal("train.lr.peak=0.1")
    )


def test_a_pattern_that_matches_nothing_names_the_nearest_layers() -> None:
    settings = runs.config(model={"name": "imagenet_resnet50"}, sparsity={"include": ["layer3.1.conv9.weight"]})
    with pytest.raises(UserError) as caught:
        require_layers(settings)
    assert str(caught.value) == (
        "sparsity.include: 'layer3.1.conv9.weight' matches no weight that can be sparse; the nearest of 54 are "
        "layer1.1.conv1.weight, layer3.1.conv1.weight, layer3.1.conv2.weight, layer3.1.conv3.weight"
    )


def test_names_that_are_alike() -> None:
    names = ["conv1.weight", *(f"layer{n}.{m}.weight" for n in range(1, 5) for m in range(9)), "fc.weight"]
    few = "; there are 38, such as conv1.weight, layer1.0.weight, layer2.0.weight, fc.weight"
    assert alike("head.*", names) == few
    assert alike("*" * 10_000, names) == few
    assert alike("*", ["a"]) == "; there is a"
    assert alike("x", []) == "; there are none"
    assert alike("features.9.weight", [f"features.{n}.weight" for n in range(7)]).startswith("; the nearest of 7 are ")


def test_messages_are_bounded() -> None:
    """However much is wrong, and however long it is."""
    with pytest.raises(UserError) as caught:
        config.parse(GOOD | {f"key_{n}": 1 for n in range(20_000)})
    assert len(caught.value.lines) == 21
    assert caught.value.lines[-1] == "config: 19,980 more values are wrong; mend these first"
    assert len(UserError(*["x" * 10**6] * 10**3).lines) == MOST_LINES + 1
    assert max(map(len, UserError("x" * 10**6).lines)) == 4000
    assert some_of(map(str, range(30)), 3) == "0, 1, 2 and 27 more"
    for override in (
        "a" * 90_000 + "=1",
        "runs=[" + "1," * 10_000 + "]",
        "model.name=" + "a" * 90_000,
        "train.lr.table=" + "a" * 90_000,
        "train.lr.table={" + "a" * 9_000 + ": 1}",
        "train.epochs=" + "1" * 90_000,
        "sparsity.exclude=[" + "a" * 90_000 + "]",
        "name=" + "a" * 90_000,
        "seed.x={",
        "x" * 90_000,
    ):
        assert len(refusal(override)) < 500, override[:30]


def test_a_section_that_is_missing_has_its_choices_named() -> None:
    with pytest.raises(UserError) as caught:
        config.parse({"model": {"name": "mnist_mlp"}, "data": {"name": "folder"}})
    method, data = caught.value.lines
    names = hints.models_of(RunConfig.model_fields["method"].annotation)
    assert method.endswith("method: missing; it has no default; give {name: ...}, one of " + ", ".join(sorted(names)))
    assert data.endswith("did you mean 'imagenet'?")


@pytest.mark.parametrize("text", ["runs=/tmp/a #b", "name=#a", "data.path=x\t#y"])
def test_what_would_be_cut_as_a_comment_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="what follows # would be a comment"):
        config.parse({}, [text])


def test_a_number_sign_within_a_word_or_quotes_is_one() -> None:
    merged, _, wrong = merge({}, ["runs=a#b", "data.path='x #y'"])
    assert not wrong and (merged["runs"], merged["data"]["path"]) == ("a#b", "x #y")


@pytest.mark.parametrize("override", ["train.lr=0.1", "method=rigl", "train.optimizer=adamw", "model=resnet18"])
def test_a_hint_that_is_followed_is_taken_beside_keys_of_another_name(override: str) -> None:
    given: dict[str, Any] = {
        "model": {"name": "mnist_mlp", "hidden": [30]},
        "sparsity": {"conv": 0.9, "fc": 0.9},
        "method": {"name": "dsr", "target_moves": 30},
        "data": {"name": "digits"},
        "train": {"lr": {"name": "cosine", "peak": 0.1}, "optimizer": {"name": "sgd", "nesterov": True}},
    }
    with pytest.raises(UserError) as caught:
        config.parse(given, [override])
    (line,) = caught.value.lines
    meant = shlex.split(line.rpartition("did you mean ")[2].removesuffix("?"))
    assert config.parse(given, meant)
