"""Configs: text that is no YAML, or more than it seems; values that no field takes; overrides."""

from __future__ import annotations

from pathlib import Path
from random import Random

import yaml

from tests.fuzz.inputs.mutations.files import THINGS
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.place import Place
from tests.fuzz.mutations.damage import DAMAGES
from tests.fuzz.mutations.texts import YAMLS, edit

_EXAMPLES = sorted((Path(__file__).parents[4] / "configs").glob("*.yaml"))


def _growing(form: str) -> str:
    """Lines that each hold the one before nine times."""
    return "".join(form.format(i, i, ", ".join([f"*k{i - 1}"] * 9)) + "\n" for i in range(1, 12))


SNIPPETS: dict[str, str] = {
    "laughs in a value": "model: &k0 [x, x, x]\n" + _growing("k{}: &k{} [{}]"),
    "merges that grow": "k0: &k0 {x: 1}\n" + _growing("k{}: &k{} {{<<: [{}], y: 1}}"),
    "itself in a section": "train: &t {epochs: 1, lr: *t}\n",
    "itself as a key": "? &a {b: *a}\n: 1\n",
    "deep mappings": "a: " + "{a: " * 3_000 + "1" + "}" * 3_000 + "\n",
    "deep blocks": "".join(" " * depth + "a:\n" for depth in range(1_500)),
    "deep sequences": "a:\n" + "- " * 5_000 + "x\n",
    "many keys": "".join(f"k{number}: 1\n" for number in range(3_000)),
    "many entries": "train: {lr: {name: steps, table: [" + "[1, 0.1], " * 5_000 + "]}}\n",
    "long integers": "seed: " + "1" * 5_000 + "\n",
    "hexadecimal integers": "seed: 0x" + "f" * 50_000 + "\n",
    "base 60 for ever": "seed: 1" + ":59" * 3_000 + "\n",
    "huge floats": "train: {lr: {name: steps, table: 1e999999999}}\n",
    "no numbers": "train: {lr: {name: steps, table: .nan}}\nsparsity: {conv: -.inf}\n",
    "tags": "seed: !!int [1]\nname: !!binary aGVs\nruns: !!set {a, b}\nmodel: !!omap [a: 1]\ndata: !!pairs [a: 1]\n",
    "a boolean that is none": "train: {deterministic: !!bool maybe}\n",
    "an integer that is none": "seed: !!int x\n",
    "a float that is none": "seed: !!float x\n",
    "a date that is none": "name: !!timestamp x\n",
    "null with a tag": "name: !!null x\n",
    "Python": "name: !!python/name:os.system\n",
    "Python's objects": "name: !!python/object/apply:os.system ['touch outside/ran']\n",
    "an own tag": "name: !mine {a: 1}\n",
    "escapes": 'name: "a\\0b"\nruns: "x\\e[31m\\u202e\\ud800"\n',
    "line ends in a name": 'name: "a\\nb"\nmodel: {name: "x\\r\\ny"}\n',
    "documents": "name: a\n---\nname: b\n...\n",
    "directives": "%YAML 9.9\n%TAG ! x\n---\nname: a\n",
    "a key twice": "name: a\nname: b\n",
    "a key of two kinds": "1: a\n1.0: b\ntrue: c\n",
    "keys with spaces": "' name': a\n'name ': b\n? \"na\\nme\"\n: c\n",
    "only a comment": "# nothing\n",
    "a text": "just a text\n",
    "a number": "12\n",
    "an alias that is missing": "name: *x\n",
    "a quote that does not end": "name: 'a\n",
    "a block that does not end": "name: |\n",
    "anchors without end": "".join(f"k{number}: &k{number} x\n" for number in range(20_000)),
}  # fmt: skip


@mutation("config")
def text_damaged(rng: Random, place: Place) -> str:
    damage, content = rng.choice(DAMAGES), yaml.safe_dump(place.config, sort_keys=False).encode()
    if rng.random() < 0.3:
        content = rng.choice(_EXAMPLES).read_bytes()
    place.text = damage(rng, content)
    return f"{damage.__name__} of the config"


@mutation("config")
def odd_text(rng: Random, place: Place) -> str:
    """Alone, or before or behind a sound config."""
    texts: dict[str, bytes] = {**YAMLS, **{name: text.encode() for name, text in SNIPPETS.items()}}
    name, config = rng.choice(list(texts)), yaml.safe_dump(place.config, sort_keys=False).encode()
    place.text = rng.choice((texts[name], texts[name] + config, config + texts[name]))
    return f"the config holds {name}"


@mutation("config")
def odd_encoding(rng: Random, place: Place) -> str:
    encoding = rng.choice(("utf-16", "utf-16-le", "utf-8-sig", "utf-32", "latin-1"))
    text = yaml.safe_dump({**place.config, "name": "caf\u00e9"}, sort_keys=False, allow_unicode=True)
    place.text = text.encode(encoding)
    return f"the config in {encoding}"


@mutation("config")
def no_file(rng: Random, place: Place) -> str:
    name = rng.choice([name for name in THINGS if not name.startswith("an image")])
    place.text = None
    place.config["@file"] = name
    return f"the config is {name}"


@mutation("config")
def values_changed(rng: Random, place: Place) -> str:
    said = [edit(rng, place.config) for _ in range(rng.choice((1, 1, 1, 2, 5)))]
    try:
        place.text = yaml.safe_dump(place.config, sort_keys=False).encode(errors="surrogatepass")
    except (yaml.YAMLError, UnicodeError, ValueError, TypeError):
        place.text = b"name: a\n"
    return f"config: {'; '.join(said)}"


def stand(rng: Random, place: Place) -> None:
    """Write the config, or make what stands in its place."""
    thing = place.config.pop("@file", None)
    if thing is None:
        place.write_config()
    else:
        THINGS[thing](rng, place.home / "F.yaml")
