from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dynsparse.config import loading as config
from dynsparse.config import reading, schema
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.network import build_without_weights, layer_specs
from pipelines.common.paths import written
from tests.training import runs

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
GOOD = """
model: {name: mnist_mlp}
sparsity: {conv: 0.5, fc: 0.98}
method: {name: dsr}
data: {name: synthetic}
"""


def errors(text: str, *overrides: str, tmp_path: Path) -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        config.load(path, overrides)
    return [line.replace(str(path), "FILE") for line in caught.value.lines]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid_and_completes_in_editors(path: Path) -> None:
    first, *_ = text = path.read_text().splitlines()
    assert first == "# yaml-language-server: $schema=schema.json"
    loaded = config.load(path)
    assert loaded.run_name == path.stem
    plain = re.sub(r"\b(\d)e-", r"\1.0e-", "\n".join(text))  # 1e-4 is text to other readers of YAML.
    validator(path.parent / "schema.json").validate(json.loads(json.dumps(yaml.safe_load(plain))))


@cache
def validator(path: Path) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(path.read_text()))


def test_the_schema_knows_every_key_and_its_documentation() -> None:
    described = json.loads(schema.json_schema())
    jsonschema.Draft202012Validator.check_schema(described)
    for name, definition in {**described["$defs"], "RunConfig": described}.items():
        if "properties" in definition:
            assert definition["additionalProperties"] is (name == "OwnMethod"), name
    assert "Gradient accumulation" in described["$defs"]["TrainSettings"]["properties"]["micro_batches"]["description"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**yaml.safe_load(GOOD), "modle": 1}, described)


def test_a_resolved_config_reads_back_to_itself() -> None:
    for path in CONFIGS:
        loaded = config.load(path)
        assert config.parse(yaml.safe_load(loaded.as_yaml())) == loaded


@pytest.mark.parametrize(
    ("model", "run_name"),
    [
        ({"name": "cifar10_WideResNet", "widen_factor": 2}, "cifar10_WideResNet_0"),
        ({"name": "imagenet_resnet50", "widen_factor": 0.5, "sparse_downsample": True}, "imagenet_resnet50_0"),
        ({"name": "torchvision/resnet18"}, "torchvision_resnet18_0"),
    ],
    ids=lambda value: str(value),
)
def test_models_read_back_from_configs_and_from_settings(model: dict[str, Any], run_name: str) -> None:
    loaded = config.parse({**yaml.safe_load(GOOD), "model": model})
    assert {**loaded.as_dict()["model"], **model} == loaded.as_dict()["model"]
    assert config.parse(yaml.safe_load(loaded.as_yaml())) == loaded
    assert config.parse({**loaded.as_dict(), "model": loaded.model}) == loaded
    assert loaded.run_name == run_name
    jsonschema.validate({**yaml.safe_load(GOOD), "model": model}, json.loads(schema.json_schema()))


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)


@given(
    texts=st.lists(TEXT | st.sampled_from(["1e3", "on", "~", "null", "=", "<<", "2026-11-05", "0x1", "- a", "'", "#"]))
)
@settings(max_examples=50, deadline=None)
def test_a_config_is_read_back_whatever_its_texts_hold(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Paths, patterns and keys that are text."""
    path = tmp_path_factory.getbasetemp() / "texts.yaml"
    word = texts[0] if texts else "a"
    kept = dict.fromkeys(texts, 0.5)
    raw = {
        "model": {"name": "mnist_mlp"},
        "method": {"name": "pruning", "max_sparsity": kept},
        "data": {"name": "webdataset", "path": written(word), "val_shards": word},
        "start": {"weights_from": written(word)},
        "sparsity": {"exclude": texts},
        "train": {"epochs": 99},
    }
    first = config.parse(raw)
    path.write_text(first.as_yaml(), encoding="utf-8")
    assert config.load(path) == first
    assert first.data.model_dump()["val_shards"] == word
    assert first.method.model_dump()["max_sparsity"] == kept
    assert config.parse(raw, [f"sparsity.exclude={yaml.safe_dump(texts, default_flow_style=True)}"]) == first


def test_every_number_has_a_limit() -> None:
    """Counts cannot be so large that products overflow, and lists cannot be endless."""

    def integers(schema: Any, where: str) -> Iterator[tuple[str, Any]]:
        if isinstance(schema, dict):
            if schema.get("type") == "integer" and "enum" not in schema:
                yield where, schema
            for key, value in schema.items():
                yield from integers(value, f"{where}.{key}")
        elif isinstance(schema, list):
            for value in schema:
                yield from integers(value, where)

    found = list(integers(json.loads(schema.json_schema()), ""))
    assert len(found) > 30
    for where, one in found:
        most = one.get("maximum", one.get("exclusiveMaximum"))
        assert most is not None, f"{where}: give it a largest value (pipelines/common/settings.py)"
        assert most <= 2**63, where


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=2147483648", "is 2147483648; input should be less than or equal to 2147483647"),
        ("train.epochs=99999999999999999999", "is 99999999999999999999; the largest whole number is 2^63 - 1"),
        ("train.epochs=0x" + "f" * 5000, "numbers have at most 100 characters"),
        ("train.epochs=" + "1:" * 3000 + "1", "numbers have at most 100 characters"),
        ("train.epochs=1e999999", "is Infinity; input should be a valid integer"),
        ("seed=9223372036854775808", "is 9223372036854775808; the largest whole number is 2^63 - 1"),
        ("data.samples=2147483647", "values in memory; take fewer or smaller ones: 4,294,967,296 are the most"),
        ("data.shape=[1, 8193, 1]", "data.shape.1: is 8193; input should be less than or equal to 8192"),
        ("data.number_of_classes=2000000", "is 2000000; input should be less than or equal to 1048576"),
        ("data.threads=1025", "is 1025; input should be less than or equal to 1024"),
        ("data={name: digits, image_size: 10000}", "is 10000; input should be less than or equal to 8192"),
        ("train.global_batch_size=1048577", "is 1048577; input should be less than or equal to 1048576"),
        ("model={name: cifar10_WideResNet, depth: 1006}", "is 1006; input should be less than or equal to 1000"),
        (
            "model={name: cifar10_WideResNet, widen_factor: 1e6}",
            "is 1000000.0; input should be less than or equal to 1000",
        ),
        ("model={name: mnist_mlp, hidden: [2000000]}", "is 2000000; input should be less than or equal to 1048576"),
        ("model.hidden=[" + "1," * 1001 + "]", "is a list of 1,001; it must have at most 1,000 entries"),
        ("sparsity.exclude=[" + "a," * 1001 + "]", "is a list of 1,001; it must have at most 1,000 entries"),
        ("method.period={0: 1, 2147483648: 2}", "has the epoch 2147483648; 2,147,483,647 is the last"),
        ("method.period=1e300", "a step table gives 1e+300 for epoch 0; 2^53 is the largest value"),
        ("method.period={99999999999999999999: 2}", "a step table has the entry 99999999999999999999: 2; write"),
        ('runs="\\0"', "no valid YAML (line 1, column 1: a text holds the character U+0000"),
        ("name=\udc80", "no valid YAML (line 1: holds the character U+DC80)"),
    ],
    ids=lambda text: text[:40].encode("unicode_escape").decode(),
)
def test_what_is_too_much(override: str, message: str, tmp_path: Path) -> None:
    (line,) = errors(GOOD, override, tmp_path=tmp_path)
    assert message in line


def test_values_that_come_without_a_file() -> None:
    """Settings need not come from a file: flags, and the config that a checkpoint holds."""
    nested: dict[str, Any] = {}
    for _ in range(3000):
        nested = {"a": nested}
    for value, message in (
        ("a\0", "runs: is 'a\\x00', which holds the character U+0000"),
        ("\ud800", "runs: is '\\ud800', which holds the character U+D800"),
        (10**5000, "runs: is a whole number of 16610 bits; the largest whole number is 2^63 - 1"),
        (nested, "has more than 50 levels, one in another"),
        ({"a\nb": 1}, "runs: has the key 'a\\nb', which holds the character U+000A"),
    ):
        with pytest.raises(UserError) as caught:
            config.parse({**yaml.safe_load(GOOD), "runs": value})
        assert message in str(caught.value)


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    loaded = config.load(
        path,
        ["train.epochs=3", "method={name: static}", "train.lr={name: steps, table: {0: 1e-1, 5: 1e-3}}", "seed=9"],
    )
    assert (loaded.train.epochs, loaded.method.name, loaded.seed) == (3, "static", 9)
    assert loaded.train.lr.at(55, steps_per_epoch=10, total_steps=100) == pytest.approx(1e-3)


IMAGES = """
model: {name: small_cnn}
method: {name: pruning, max_sparsity: {1e3: 0.5, on: 0.25}}
data: {name: webdataset}
start: {weights_from: dense}
train: {epochs: 30}
"""
TEXTS = ["2026-11-05", "2026-99-99", "007", "1e3", "1_000", "0x1F", "1.50", "on", "No", "TRUE"]


@pytest.mark.parametrize("text", [*TEXTS, "'quoted'"])
def test_text_is_what_was_written(text: str, tmp_path: Path) -> None:
    """Names are taken as text on the command line and in a file, whatever else YAML reads them as."""
    path = tmp_path / "run.yaml"
    path.write_text(IMAGES)
    word = text.strip("'")
    keys = ["name", "runs", "start.weights_from", "data.path", "data.exclude", "data.val_shards"]
    loaded = config.load(path, [f"{key}={text}" for key in keys] + [f"sparsity.exclude=[{text}, conv1.*]"])
    path.write_text(loaded.as_yaml())
    assert config.load(path) == loaded
    assert loaded.run_name == loaded.runs == loaded.start.weights_from == word
    assert loaded.data.model_dump()["path"] == loaded.data.model_dump()["exclude"] == word
    assert loaded.sparsity.exclude == [word, "conv1.*"]
    assert loaded.method.model_dump()["max_sparsity"] == {"1e3": 0.5, "on": 0.25}


@pytest.mark.parametrize("text", ["null", "~", "NULL", ""])
def test_null_is_text_only_where_it_cannot_be_null(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"{IMAGES}name: {text}\nruns: {text or '.'}\n")
    loaded = config.load(path, [f"data.exclude={text}"])
    assert (loaded.name, loaded.data.model_dump()["exclude"]) == (None, None)
    assert loaded.runs == (str(Path.home()) if text == "~" else text or ".")  # A path, which ~ is in a shell too.


def test_numbers_and_booleans_are_what_they_were(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    loaded = config.load(path, ["train.epochs=1_0", "train.channels_last=on", "method.period={0: 5, 010: 7}", "seed=7"])
    assert (loaded.train.epochs, loaded.train.channels_last, loaded.seed) == (10, True, 7)
    assert loaded.method.model_dump()["period"] == {0: 5, 8: 7}


def test_a_key_is_text_in_all_members_of_a_union_or_in_none() -> None:
    """Otherwise an override could not be read before its member is known."""
    for section in ("model", "method", "data"):
        members = reading.alternatives(reading.under([RunConfig], section))
        for key in {key for member in members for key in member.model_fields}:
            types = reading.under([RunConfig.model_fields[section].annotation], key)
            assert len({reading.plain(reading.Written(1, "1"), [type_]) for type_ in types}) == 1, (section, key)


def test_a_warmup_may_be_shorter_than_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    assert config.load(path, ["train.lr={name: steps, warmup_epochs: 9.5}"]).train.lr.warmup_epochs == 9.5


CASES: list[tuple[list[str], list[str]]] = [
    (["method.periodd=3"], ["command line: method.periodd: unknown key; did you mean 'period'?"]),
    (["trian.epochs=3"], ["command line: trian: unknown key; did you mean 'train'?"]),
    (["train.optimizer={name: sgd, momentun: 0}"], ["momentun: unknown key; did you mean 'momentum'?"]),
    (
        ["model.name=resnet"],
        [
            "command line: model.name: unknown model 'resnet'; there are cifar10_WideResNet, imagenet_resnet50, ",
            "imagenet_resnet50, mnist_mlp, small_cnn, torchvision/..., timm/...; yours goes in dynsparse/models/",
        ],
    ),
    (["model.name=3"], ["model.name: unknown model '3'; there are"]),
    (["model={}"], ["command line: model: lacks 'name', which says which one it is"]),
    (["model=resnet50"], ['command line: model: is "resnet50"; it must be a section, with keys of its own']),
    (["model.hiden=[1]"], ["command line: model.hiden: unknown key; did you mean 'hidden'?"]),
    (
        ["model={name: torchvision/resnet18, depth: 3}"],
        ["command line: model.depth: unknown key; it goes with model.name cifar10_WideResNet alone"],
    ),
    (
        ["model={name: imagenet_resnet50, sparse_downsampel: true}"],
        ["command line: model.sparse_downsampel: unknown key; did you mean 'sparse_downsample'?"],
    ),
    (["model={name: torchvision/resnet81}"], ["model.name: torchvision has no classifier 'resnet81'; did you mean '"]),
    (
        ["model={name: torchvision/}"],
        ["model.name: torchvision has no classifier ''; there are alexnet, convnext_base"],
    ),
    (
        ["model={name: cifar10_WideResNet, depth: 27}"],
        ["model.depth: depth is 27; a wide ResNet has 6n + 4 layers: take"],
    ),
    (
        ["model={name: cifar10_WideResNet, widen_factor: 0}"],
        ["model.widen_factor: is 0; input should be greater than 0"],
    ),
    (
        ["method.name=rigl2"],
        ["unknown method 'rigl2'; there are acdc, chase, chts, deepr, dense, dsr, gmp, granet, "],
    ),
    (
        ["data.name=cifar"],
        ["data.name: unknown data 'cifar'; there are cifar10, digits, imagenet, mnist, parquet, small_images, "],
    ),
    (["method={}"], ["command line: method: lacks 'name'"]),
    (["method={name: set, fraction: 1.5}"], ["method.fraction: is 1.5; input should be less than or equal to 1"]),
    (["method={name: rigl, until: -0.1}"], ["method.until: is -0.1; input should be greater than 0"]),
    (["method={name: deepr, temperature: {}}"], ["method.temperature: a step table is empty; give at least the value"]),
    (["method={name: deepr, temperature: -1}"], ["method.temperature: -1 at epoch 0 is negative; it must be at least"]),
    (["method={name: dsr, period: {5: 1, 0: 2}}"], ["method.period: a step table starts at epoch 5; its first entry"]),
    (["method={name: dsr, period: {0: 1, 9: 2, 5: 3}}"], ["method.period: a step table's epochs are [0, 9, 5]; they"]),
    (["method={name: pruning, target_fc: 1.0}"], ["method.target_fc: is 1.0; input should be less than 1"]),
    (["method={name: pruning}"], ["method.name is pruning, which starts from a trained dense network: set start."]),
    (
        ["method={name: pruning, after_epoch: 6, iterations: 4}", "start.weights_from=x"],
        ["train.epochs is 10; the last of 4 prunes comes at the end of epoch 12 (counted from 0): train at least 13"],
    ),
    (["method={name: dense}", "start.masks_from=x"], ["start.masks_from does not go with method dense, which starts"]),
    (["method={name: tied}", "start.weights_from=x"], ["start.weights_from does not go with method tied"]),
    (["method={name: tied}", "train.penalty={l1: 1.0, group_lasso: true}"], ["set sparsity.granularity to 2 or 1"]),
    (["train.mixing.probability=0.5"], ["train.mixing: probability is 0.5, and mixup_alpha and cutmix_alpha are 0:"]),
    (["train.mixing.mixup_alpha=-1"], ["train.mixing.mixup_alpha: is -1; input should be greater than or equal to 0"]),
    (["train.mixing.mixup=1"], ["train.mixing.mixup: unknown key; did you mean 'mixup_alpha'?"]),
    (["train.mixup_alpha=1"], ["train.mixup_alpha: unknown key; did you mean 'train.mixing.mixup_alpha'?"]),
    (
        ["train.mixing.cutmix_alpha=1", "train.global_batch_size=13"],
        ["train: global_batch_size is 13, and mixing mixes its samples in pairs: take an even number, such as 14"],
    ),
    (["train.loss=bec"], ["train.loss: is \"bec\"; input should be 'cross_entropy' or 'bce'; did you mean 'bce'?"]),
    (["train.start_epoch=10"], ["train.start_epoch is 10; it must be below train.epochs, 10"]),
    (["train.lr={name: cosine, warmup_epochs: 10}"], ["train.lr.warmup_epochs is 10; the rate would never reach its"]),
    (
        ["train.lr={name: steps, warmup_epochs: 12.5}"],
        ["12.5; the rate would never reach its value in 10 epochs", "below that, or"],
    ),
    (["sparsity.allocation=erd"], ["sparsity.allocation: is \"erd\"; input should be 'uniform' or 'erk'"]),
    (["data.validation_samples=-1"], ["data.validation_samples: is -1; input should be greater than or equal to 0"]),
    (["train.epochs=many"], ['train.epochs: is "many"; input should be a valid integer']),
    (["train.epochs=2.5"], ["train.epochs: is 2.5; input should be a valid integer"]),
    (["train.epochs=yes"], ["train.epochs: is true; input should be a valid integer"]),
    (["train.channels_last=1"], ["train.channels_last: is 1; input should be a valid boolean"]),
    (["train=5"], ["train: is 5; it must be a section"]),
    (["sparsity.fc=1.0"], ["sparsity.fc: is 1.0; input should be less than 1"]),
    (["sparsity.conv=-0.1"], ["sparsity.conv: is -0.1; input should be greater than or equal to 0"]),
    (["sparsity.granularity=5"], ["sparsity.granularity: is 5; input should be 1, 2, 3 or 4"]),
    (["train.precision=fp8"], ["train.precision: is \"fp8\"; input should be 'fp32', 'bf16' or 'fp16'"]),
    (["train.lr={name: steps, table: {3: 0.1}}"], ["starts at epoch 3; its first entry must be for epoch 0"]),
    (["train.lr={name: steps, table: {0: 1, 5: 1, 2: 1}}"], ["epochs are [0, 5, 2]; they must rise"]),
    (["train.lr={name: steps, table: []}"], ["a step table is empty"]),
    (["train.lr={name: steps, table: fast}"], ["'fast' is no step table"]),
    (["train.lr={name: steps, table: -1}"], ["-1 at epoch 0 is negative"]),
    (["train.lr={name: steps, table: .inf}"], ["inf for epoch 0; values must be finite"]),
    (["method.period=0"], ["method.period: 0 at epoch 0 is no number of steps"]),
    (["method.period={0: 10, a: 2}"], ["the entry 'a': 2; write epoch: number"]),
    (["train.optimizer={name: sgd, momentum: 0.0}"], ["Nesterov's step needs momentum"]),
    (["seed=-1"], ["seed: is -1; input should be greater than or equal to 0"]),
    (["seed=2024-99-99"], ['seed: is "2024-99-99"; input should be a valid integer']),
    (['seed="3"'], ['seed: is "3"; input should be a valid integer']),
    (["method.name=007"], ["method.name: unknown method '007'; there are acdc"]),
    (["log.progress=off"], ["log.progress: is \"off\"; input should be 'auto', 'bar', 'lines' or 'none'"]),
    (["runs="], ["runs: is null; input should be a valid string"]),
    (["model.1e3=2"], ["model.1e3: unknown key"]),
    (["name=../up"], ['name: is "../up"; it must be one plain word']),
    (["name=/abs"], ['name: is "/abs"; it must be one plain word']),
    (["distributed.timeout_seconds=.inf"], ["timeout_seconds: is Infinity; input should be a finite number"]),
    (["distributed.timeout_seconds=1e300"], ["timeout_seconds: is 1e+300; input should be less than or equal to"]),
    (["method.initial_threshold=.nan"], ["initial_threshold: is NaN; input should be"]),
    (["sparsity.include=[]"], ["sparsity.include: is []; it must have at least 1 entries"]),
    (["model.1=2"], ["model.1: unknown key"]),
    (["data={? [a, b] : 1}"], ["no valid YAML (line 1, column 4: a key is a list; it must be a word)"]),
    (
        ["train.optimizer={}", "train.optimizer.name=adamw", "train.optimizer.momentum=0.9"],
        ["unknown key of this name", "for another name replace the section: 'train.optimizer={name: ...}'"],
    ),
    (["name"], ["'name' is no override; write section.key=value"]),
    (["seed.x=1"], ["seed: is a section; input should be a valid integer"]),
    (["train.epochs={"], ["'train.epochs={': no valid YAML"]),
]


@pytest.mark.parametrize(("overrides", "expected"), CASES, ids=lambda value: str(value)[:40])
def test_bad_values(overrides: list[str], expected: list[str], tmp_path: Path) -> None:
    lines = errors(GOOD, *overrides, tmp_path=tmp_path)
    assert len(lines) == 1
    assert all(part in lines[0] for part in expected), lines


def test_all_errors_are_listed_at_once_with_their_place(tmp_path: Path) -> None:
    text = GOOD.replace("fc: 0.98", "fc: 2") + "train: {epochs: 0, batch: 3}\n"
    assert errors(text, "log.every_steps=0", tmp_path=tmp_path) == [
        "FILE: sparsity.fc: is 2; input should be less than 1",
        "FILE: train.epochs: is 0; input should be greater than or equal to 1",
        "FILE: train.batch: unknown key; did you mean 'evaluation_batch_size' or 'global_batch_size'?",
        "command line: log.every_steps: is 0; input should be greater than or equal to 1",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "FILE: is null; a config is a mapping"),
        ("- a\n- b\n", 'FILE: is ["a", "b"]; a config is a mapping'),
        ("a: [1, 2", "FILE: no valid YAML"),
        ("1: 2\n01: 2\n", "FILE: no valid YAML (line 2, column 1: key '01' is given twice)"),
        ("seed: 1\nseed: 2\n", "FILE: no valid YAML (line 2, column 1: key 'seed' is given twice)"),
        (
            "!!python/object/apply:os.system ['true']",
            "FILE: no valid YAML (line 1, column 1: the tag !!python/object/apply:os.system is none for this; leave",
        ),
    ],
)
def test_bad_files(text: str, expected: str, tmp_path: Path) -> None:
    (line,) = errors(text, tmp_path=tmp_path)
    assert line.startswith(expected)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read \(No such file or directory\)"):
        config.load(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(is a folder\)"):
        config.load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.yaml: cannot be read \(it is not UTF-8 text\)"):
        config.load(tmp_path / "binary.yaml")


@pytest.mark.parametrize(("batch", "parts", "workers", "least"), [(2, 1, 3, 3), (10, 4, 3, 12)])
def test_a_batch_with_fewer_samples_than_parts(batch: int, parts: int, workers: int, least: int) -> None:
    asked = runs.config(train={"global_batch_size": batch, "micro_batches": parts})
    with pytest.raises(UserError, match=rf"global_batch_size is {batch}; each of .* take {least} or more$"):
        asked.require_split(workers)


def test_a_batch_with_fewer_pairs_than_parts() -> None:
    asked = runs.config(train={"global_batch_size": 10, "micro_batches": 2, "mixing": {"mixup_alpha": 1}})
    asked.require_split(2)
    with pytest.raises(UserError, match=r"3 workers .* needs a pair of samples \(train.mixing\): take 12"):
        asked.require_split(3)


def test_a_batch_with_enough() -> None:
    runs.config(train={"global_batch_size": 96, "micro_batches": 4}).require_split(8)
    runs.config(train={"global_batch_size": 100}).require_split(3)


def test_names() -> None:
    asked: dict[str, Any] = {"job_idx": 7}
    assert runs.config(**asked).run_name == "mnist_mlp_7"
    assert runs.config(name="mine").folder == Path("runs/mine")


@pytest.mark.parametrize("method", ["static", "rigl", "dsr", "tied"])
def test_sparsity_has_to_be_said(method: str, tmp_path: Path) -> None:
    """No network gets the sparsity of another paper in silence."""
    text = GOOD.replace("sparsity: {conv: 0.5, fc: 0.98}\n", "").replace("name: dsr", f"name: {method}")
    assert errors(text, tmp_path=tmp_path) == [
        (
            f"FILE: sparsity is not said, and method {method} needs it: give the fraction of zeros in convolutions and "
            "linear layers, such as sparsity='{conv: 0.9, fc: 0.9}'"
        )
    ]
    said = config.parse(
        {"model": {"name": "small_cnn"}, "method": {"name": method}, "data": {"name": "synthetic"}},
        ["sparsity.conv=0.8"],
    )
    assert said.sparsity.shares == {"conv": 0.8, "fc": 0.0}, "the other kind of layers stays dense"
    assert config.parse(said.as_dict()) == said


def test_who_says_the_sparsity_otherwise(tmp_path: Path) -> None:
    """Dense phases have none, and masks of another run bring their own."""
    parts = {"model": {"name": "small_cnn"}, "data": {"name": "synthetic"}}
    dense = config.parse({**parts, "method": {"name": "dense"}})
    masks = config.parse({**parts, "method": {"name": "static"}, "start": {"masks_from": "runs/a"}})
    for one in (dense, masks):
        assert not one.sparsity.is_said
        assert [spec.kind for spec in layer_specs(one, build_without_weights(one))] == ["conv", "conv", "conv", "fc"]
