"""Tables of runs: each run is a job that resumes where it was, and is not made twice."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.record import PAGES, RESULTS, ROOT
from benchmarks.parts.reproduce import starts
from benchmarks.parts.reproduce.comparing import chance_from, compared, interval, told_apart, verdict
from benchmarks.parts.reproduce.jobs import Job, Table, dense, jobs, key
from benchmarks.parts.reproduce.making import Making, is_needed
from benchmarks.parts.reproduce.published import PUBLISHED
from benchmarks.parts.reproduce.recipes import RECIPES
from benchmarks.parts.reproduce.rows import rows
from benchmarks.parts.reproduce.running import Children, or_stop
from benchmarks.parts.reproduce.table import Runs, added, described, has_weights, read, shown, unreached
from benchmarks.parts.reproduce.table import write as write_table
from benchmarks.reproduce import facts, main, parse, rows_of, write
from dynsparse.errors import UserError
from tests.training.runs import kill, python


def reproduce(folder: Path, *words: str, work: str = "work") -> list[str]:
    """Return the command line of a small table on the digits."""
    options = ["--work", folder / work, "--out", folder / "out", "--workers-at-once", "2", "--seeds", "1"]
    overrides = [word for word in words if "=" in word]  # Last: an option before them takes any number of words.
    given = [word for word in words if word not in overrides]
    return [sys.executable, "-m", "benchmarks.reproduce", *given, *map(str, options), *overrides]


def run(command: list[str]) -> str:
    done = python(*command[1:], limit=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def kept(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "reproduce_digits.json").read_text())
    return content


def test_a_table_its_page_and_its_plots(tmp_path: Path) -> None:
    """Pruning waits for the dense network of its seed. A second call makes no run anew, but the page."""
    command = reproduce(tmp_path, "--sparsity", "0.9", "--epochs", "2", "--methods", "pruning", "dsr")
    said = run(command)
    assert said.index("dense_0_0 ") < said.index("pruning_0.9_0 ")
    content = kept(tmp_path)
    by = {one["method"]: one for one in content["runs"]}
    assert list(by) == ["dense", "pruning", "dsr"], "in the order of METHODS"
    for one in by.values():
        assert len(one["accuracy"]) == 2
        assert one["accuracy"][-1] == pytest.approx(one["test_top1"], abs=0.01)
        assert content["settings"][one["settings"]]["train"]["epochs"] == 2
        assert {"weight_digest", "mask_digest", "seconds", "commit", "processor", "versions"} <= one.keys()
    assert by["pruning"]["active_weights"] == by["dsr"]["active_weights"] < 0.11 * by["dense"]["active_weights"]
    assert set(by["dsr"]["densities"]) == set(by["dsr"]["layers"])
    page = (tmp_path / "out" / "digits.md").read_text()
    assert page.partition("![")[0].count("\n| ") == 2 + 3, "a row a method"
    assert page.count("\n| dynamic sparse") == 2, "and its seconds"
    for plot in ("digits_accuracy.svg", "digits_layers.svg"):
        assert plot in page
        assert (tmp_path / "out" / plot).read_text().rstrip().endswith("</svg>")
    assert (content["epochs"], content["overrides"]) == (2, [])
    assert by["pruning"]["needs"] == by["dense"]["settings"]
    assert by["dense"]["data"] == by["dsr"]["data"]
    folders = {path.name.rpartition("_")[0]: path for path in (tmp_path / "work").iterdir() if path.is_dir()}
    for file in (".yaml", ".log", ".starts.jsonl"):
        assert (tmp_path / "work" / (folders["dsr_0.9_0"].name + file)).is_file()
    assert (folders["dense_0_0"] / "checkpoints").is_dir()
    assert not (folders["dsr_0.9_0"] / "checkpoints").exists()
    assert "runs;" not in run(command)
    assert kept(tmp_path) == content


@pytest.mark.slow
def test_a_dense_network_is_kept_for_those_that_begin_from_it_later(tmp_path: Path) -> None:
    """One whose checkpoint is gone is made again, and stays as it was recorded."""
    words = ["--sparsity", "0.9", "--epochs", "1", "--seeds", "1", "--workers-at-once", "1"]
    words += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    main([*words, "--methods", "dense"])
    (first,) = kept(tmp_path)["runs"]
    of = Table("digits", tmp_path / "work", epochs=1)
    assert has_weights(of.folder(dense(0)))
    main([*words, "--methods", "dense", "pruning"])
    assert [run["method"] for run in kept(tmp_path)["runs"]] == ["dense", "pruning"]
    assert kept(tmp_path)["runs"][0] == first
    shutil.rmtree(of.folder(dense(0)) / "checkpoints")
    assert Making(of, tmp_path / "out").needed_by([Job("pruning", 0.95, 0)]) == [dense(0)]
    assert not of.folder(dense(0)).exists(), "it would not begin in a folder that holds a run"


@pytest.mark.parametrize(
    ("data", "job", "needed"),
    [
        ("digits", dense(0), True),
        ("digits", Job("dsr", 0.9, 0), False),
        ("imagenette", dense(0), False),
        ("parts", Job("base", 0.0, 0), True),
        ("parts", Job("base", 0.9, 0), False),
        ("networks", Job("vit", 0.0, 0), False),
    ],
)
def test_what_is_needed_is_known_from_the_whole_recipe(data: str, job: Job, needed: bool) -> None:
    """A call may make one row alone, and the next one another that needs it."""
    assert is_needed(job, data) is needed


def test_an_error_in_the_midst_stops_the_other_runs() -> None:
    def done(job: Job) -> None:
        raise UserError("no")

    children = Children()
    with pytest.raises(UserError):
        or_stop(children, done, dense(0))
    assert children.stopping


@pytest.mark.slow  # A table that is done is not made again: above. A killed run resumes: tests/training/.
def test_killed_and_finished_it_is_the_table_of_one_that_was_not(tmp_path: Path) -> None:
    """SIGKILL to the table's process, and so to nobody else: its runs save and stop, and the next call resumes."""
    words = ("--sparsity", "0.9", "--methods", "dsr")
    command = reproduce(tmp_path, *words, "train.epochs=8", "checkpoint.every_epochs=1")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while (
            not (begun := list((tmp_path / "work").glob("dsr*/metrics.jsonl")))
            or begun[0].read_bytes().count(b"\n") < 4
        ):
            assert process.poll() is None, "it has ended too early to be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        kill(process)
    assert not (tmp_path / "out" / "reproduce_digits.json").exists()
    run(command)
    (history,) = (tmp_path / "work").glob("dsr*/history.jsonl")
    assert [json.loads(line)["kind"] for line in history.read_text().splitlines()].count("start") == 2, "it resumed"
    interrupted = kept(tmp_path)
    shutil.rmtree(tmp_path / "out")
    run([*reproduce(tmp_path, *words, work="undisturbed"), "train.epochs=8", "checkpoint.every_epochs=1"])
    for ours, theirs in zip(interrupted["runs"], kept(tmp_path)["runs"], strict=True):
        for fact in ("method", "settings", "weight_digest", "mask_digest", "accuracy", "active_weights"):
            assert ours[fact] == theirs[fact], fact


@pytest.mark.slow  # Killed, it stops its runs in the same way.
def test_asked_to_stop_it_saves_and_says_so(tmp_path: Path) -> None:
    command = reproduce(tmp_path, "--sparsity", "0.9", "--methods", "static", "train.epochs=100000")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not any(path.stat().st_size for path in (tmp_path / "work").glob("*/metrics.jsonl")):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    finally:
        kill(process)
    assert process.returncode == 75
    assert said.splitlines()[-1] == "stopped; the same command resumes"
    (summary,) = (tmp_path / "work").glob("static*/summary.json")
    assert json.loads(summary.read_text())["status"] == "stopped"


@pytest.mark.slow
def test_a_job_that_fails_is_named(tmp_path: Path) -> None:
    bad = ("train.lr.table=1e15", "train.max_bad_steps=1", "train.epochs=1")
    words = reproduce(tmp_path, "--methods", "static", "--sparsity", "0.9", *bad)
    failed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == "failed: static_0.9_0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--part", "3/2"), "error: --part is '3/2'; it must be K/N, such as 1/3"),
        (("--methods", "thin", "--sparsity", "0.5"), "error: no widths of the thin network for [0.5]"),
        (("--part", "1/" + "9" * 5000), "error: --part is '1/999"),
        (("--seeds", "0"), "error: argument --seeds: is '0'; it must be a whole number of at least 1"),
        (("--workers-at-once", "0"), "error: argument --workers-at-once: is '0'; it must be"),
        (("--epochs", "-1"), "error: argument --epochs: is '-1'; it must be"),
        (("--sparsity", "nan"), "error: argument --sparsity: is 'nan'; it must be a number from 0 to below 1"),
        (("--page",), "error: {out}/reproduce_digits.json cannot be read (No such file or directory); give the JSON"),
        (("--add", "/nowhere/a.json"), "error: /nowhere/a.json cannot be read (No such file or directory); give the"),
        (("--add", "CITATION.cff"), "error: CITATION.cff cannot be read (is no JSON); give the JSON of a table"),
        (("--add", "configs/schema.json"), "error: configs/schema.json holds no table of runs; give the JSON that"),
        (("seed=3",), "error: seed=3: the table gives each run its own; choose by --seeds and --work"),
        (("train.epoch=3",), "error: command line: train.epoch: unknown key; did you mean 'epochs'?"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", reproduce(tmp_path, *words)[2:])
    with pytest.raises(SystemExit) as end:
        main()
    said = end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err
    assert said.startswith(message.format(out=tmp_path / "out"))
    assert said.strip().count("\n") == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (work := tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=f"^error: {work}: File exists; give another"):
        main(["--methods", "static", "--work", str(work), "--out", str(tmp_path / "out")])


# Without a run.


@pytest.mark.parametrize("data", sorted(RECIPES))
def test_every_job_of_every_table_is_a_config(data: str, tmp_path: Path) -> None:
    table, recipe = Table(data, tmp_path), RECIPES[data]
    listed = jobs(list(recipe.seeds), recipe.sparsities, None, recipe.seeds)
    assert sum(recipe.seeds.values()) <= len(listed)
    assert len({table.folder(job) for job in listed}) == len(listed)
    for job in listed:
        assert job.needs not in listed[listed.index(job) :], "what a job needs comes before it"
    assert set(recipe.seeds) <= set(recipe.titles)


def test_settings_are_the_same_for_all_seeds_and_places(tmp_path: Path) -> None:
    def of(seed: int, folder: Path, *overrides: str) -> str:
        return key(Table("mnist", folder, overrides).settings(Job("pruning", 0.9, seed)))

    assert of(0, tmp_path) == of(1, tmp_path / "other", "data.path=/elsewhere", "data.threads=7")
    assert of(0, tmp_path) != of(0, tmp_path, "train.global_batch_size=7")


def test_seeds_come_in_turn_so_that_early_figures_have_all_columns() -> None:
    found = jobs(["set", "dense", "static"], [0.9, 0.98], None, {"dense": 2, "set": 2, "static": 1})
    assert found[:2] == [dense(0), dense(1)]
    assert found[2:] == [
        Job("set", 0.9, 0),
        Job("static", 0.9, 0),
        Job("set", 0.98, 0),
        Job("static", 0.98, 0),
        Job("set", 0.9, 1),
        Job("set", 0.98, 1),
    ]


def made(method: str, seed: int, top1: float, digest: str = "a", sparsity: float = 0.9) -> dict[str, Any]:
    return {
        "method": method,
        "sparsity": sparsity,
        "seed": seed,
        "settings": "k",
        "test_top1": top1,
        "parameters": 5,
        "weight_digest": digest,
        **ABOUT,
    }


ABOUT = {"seconds": 60, "commit": "abc", "processor": "a processor", "versions": {"torch": "2.13"}}
MNIST = Table("mnist", Path("/work"))


def table_of(*runs: dict[str, Any], of: Table = MNIST, **changed: Any) -> dict[str, Any]:
    """Return the JSON's content of runs whose settings are those of a table's jobs, but for what is `changed`."""
    every, found = {}, []
    for run in runs:
        plain = of.settings(Job(run["method"], run["sparsity"], run["seed"]))
        plain["train"] |= changed
        every[key(plain)] = json.loads(json.dumps(plain))
        found.append({**run, "settings": key(plain)})
    return {"data": of.data, "settings": every, "runs": found}


def test_runs_of_other_machines_are_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs(MNIST)
    runs.add_all(table_of(made("set", 0, 98.0)), tmp_path)
    runs.add_all(table_of(made("set", 0, 98.0), made("set", 1, 97.0)), tmp_path)
    content = runs.content()
    assert [run["seed"] for run in content["runs"]] == [0, 1]
    assert content["results"] == [
        {"method": "set", "sparsity": 0.9, "seeds": 2, "mean": 97.5, "sd": pytest.approx(0.5**0.5), "parameters": 5}
    ]
    assert capsys.readouterr().out == ""
    runs.add_all(table_of(made("set", 0, 96.0, digest="b"), made("set", 2, 97.0)), tmp_path)
    assert [run["test_top1"] for run in runs] == [98.0, 97.0, 97.0], "the first stays, and what follows is added"
    said = capsys.readouterr().out
    assert said == f"{tmp_path}: its run set_0.9_0 has other weights than the one that is there, which stays\n"
    with pytest.raises(UserError, match=r"its run set_0\.9_0 has other settings than the one that is there"):
        runs.add_all(table_of(made("set", 0, 98.0), epochs=3), tmp_path)
    with pytest.raises(UserError, match="has runs on cifar10, not on mnist"):
        runs.add_all({**content, "data": "cifar10"}, tmp_path)
    with pytest.raises(UserError, match="has a row 'later', which this version's mnist lacks"):
        runs.add_all({"data": "mnist", "settings": {}, "runs": [made("later", 0, 98.0)]}, tmp_path)


def test_the_same_run_by_a_version_with_fewer_options_is_the_same(tmp_path: Path) -> None:
    runs, older = Runs(MNIST), table_of(made("set", 0, 98.0))
    (plain,) = older["settings"].values()
    del plain["train"]["ema"]
    older = {**older, "settings": {"older": plain}, "runs": [{**older["runs"][0], "settings": "older"}]}
    runs.add_all(table_of(made("set", 0, 98.0)), tmp_path)
    runs.add_all(older, tmp_path)
    assert len(list(runs)) == 1


def test_a_run_of_an_earlier_version_counts_if_options_since_then_are_at_their_defaults() -> None:
    job = Job("dsr", 0.9, 0)
    plain = json.loads(json.dumps(MNIST.settings(job)))
    older = json.loads(json.dumps(plain))
    del older["train"]["ema"], older["method"]["soft_drop"], older["data"]["random_erasing"]
    assert MNIST.makes(job, older)
    for since in ("method.soft_drop=1", "data.random_erasing=0.5", "method.target_moves=7", "train.epochs=3"):
        assert not Table("mnist", MNIST.work, (since,)).makes(job, older), since
    for change in ({"period": {"0": 100}}, {"no_longer": 1}):
        assert not MNIST.makes(job, {**older, "method": {**older["method"], **change}}), change


def test_weights_of_another_run_than_the_dense_one_are_settings_of_their_own() -> None:
    pruning, teacher = Job("pruning", 0.9, 0), Job("teacher", 0.9, 0)
    given = Table("mnist", MNIST.work, ("start.weights_from=/elsewhere",)).settings(pruning)
    assert given["start"]["weights_from"] == "/elsewhere"
    assert not MNIST.makes(pruning, given)
    usual = MNIST.settings(pruning)
    assert usual["start"]["weights_from"] == "the dense network of the same seed"
    assert not Table("mnist", MNIST.work, ("start.weights_from=/elsewhere",)).makes(pruning, usual)
    given = Table("parts", MNIST.work, ("train.teacher.source=/elsewhere",)).settings(teacher)
    assert given["train"]["teacher"]["source"] == "/elsewhere"


def test_pruning_is_another_run_where_its_dense_network_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of before that was recorded is valid, and so is its folder if it has begun from the same network."""
    of, job, other = Table("mnist", tmp_path), Job("pruning", 0.9, 0), ({"method": {"name": "dense"}})
    usual, plain, of_dense = of.folder(job), of.settings(job), of.settings(dense(0))
    before = tmp_path / f"{job.name}_{key(plain)}"
    before.mkdir()
    (before / "config.yaml").write_text(f"start:\n  weights_from: {of.folder(dense(0))}\n")
    assert of.folder(job) == before != usual
    longer = {**RECIPES["mnist"].methods, "dense": {**other, "train": {"epochs": 200}}}
    monkeypatch.setitem(RECIPES, "mnist", replace(RECIPES["mnist"], methods=longer))
    assert of.settings(job) == plain
    assert of.folder(job) not in (before, usual)
    assert of.makes(job, json.loads(json.dumps(plain))), "it has not said which"
    assert not of.makes(job, json.loads(json.dumps(plain)), json.loads(json.dumps(of_dense)))


def test_runs_on_other_data_are_not_mixed(tmp_path: Path) -> None:
    one, same, other = (
        {**made("set", seed, 98.0), "data": {"first_epoch_steps": steps, "input": "a"}}
        for seed, steps in enumerate((600, 600, 500))
    )
    runs = Runs(MNIST)
    runs.add_all(table_of(one, same, made("set", 3, 98.0)), tmp_path)
    with pytest.raises(UserError, match=r"its run static_0\.9_2 is on other data than set_0\.9_0, which is there"):
        runs.add_all(table_of({**other, "method": "static"}), tmp_path)


def test_several_may_add_to_one_file_at_once(tmp_path: Path) -> None:
    """Each reads anew what is there before it writes."""
    path = tmp_path / "reproduce_mnist.json"
    added(MNIST, path, [(table_of(made("set", 0, 98.0)), tmp_path)])
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda seed: added(MNIST, path, [(table_of(made("static", seed, 97.0)), tmp_path)]),
                range(8),
            )
        )
    assert [run["seed"] for run in read(path)["runs"]] == [0, *range(8)]
    assert list(tmp_path.iterdir()) == [path], "no lock is left"


def test_only_runs_that_the_recipe_makes_are_averaged_and_counted(tmp_path: Path) -> None:
    """Runs of 2 epochs stay in the file. Other seeds and sparsities are shown, and no jobs of the recipe."""
    longer = table_of(made("dsr", 0, 97.0), made("dsr", 7, 97.0), made("dsr", 0, 97.0, sparsity=0.985))
    shorter = table_of(made("dsr", 1, 50.0), made("static", 0, 50.0), epochs=2)
    both = {**longer, "settings": longer["settings"] | shorter["settings"], "runs": longer["runs"] + shorter["runs"]}
    write_table(both, path := tmp_path / "reproduce_mnist.json")
    added(MNIST, path)
    kept = read(path)
    assert len(kept["runs"]) == 5
    assert [(row["sparsity"], row["seeds"], row["mean"]) for row in kept["results"]] == [(0.9, 2, 97), (0.985, 1, 97)]
    page, _ = write("mnist", tmp_path, tmp_path)
    lines = page.read_text().splitlines()
    assert "**Not complete: 1 of 183 runs.**" in lines
    assert "| method | 90 % | 98.5 % |" in lines
    assert not any(line.startswith("| static sparse") for line in lines)


def test_sparsities_are_told_with_all_their_digits() -> None:
    page = rows_of(table_of(*(made("set", 0, 98.0, sparsity=sparsity) for sparsity in (0.97, 0.985, 0.995))))
    assert page.splitlines()[0] == "| method | 97 % | 98.5 % | 99.5 % |"


def test_only_the_dense_network_stands_in_every_column() -> None:
    runs = table_of(made("dense", 0, 99.0, sparsity=0.0), made("set", 0, 1.0, sparsity=0.0), made("static", 0, 97.0))
    assert [line for line in rows_of(runs).splitlines() if "9" in line][1:] == [
        "| dense | 99.00 (98.69) |",
        "| static sparse | 97.00 (97.94) |",
    ]


def test_each_sparsity_is_asked_for_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--sparsity", "0.9", "0.95", "0.90"]).sparsity == [0.9, 0.95]
    with pytest.raises(SystemExit):
        parse(["--sparsity", "0", "--methods", "dsr"])
    assert "error: --sparsity has a 0, which is the dense network" in capsys.readouterr().err
    assert parse(["--data", "parts", "--sparsity", "0"]).sparsity == [0.0]


def test_every_start_of_a_run_is_told(tmp_path: Path) -> None:
    """A run that has begun anew forgets earlier starts; one that resumes names all that differ."""
    folder, of_run = tmp_path / "dsr_0.9_0_key", {"torch": "2.13"}
    assert starts.origin_of(folder, of_run)["versions"] == of_run
    starts.note(folder)
    starts.note(folder)
    ours = starts.origin_of(folder, {})
    assert {"commit", "processor", "versions"} == ours.keys(), "both are one"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "latest.pt").touch()
    (file,) = tmp_path.glob("*.jsonl")
    first = {**ours, "commit": "first"}
    file.write_text(f"{json.dumps(first)}\n{json.dumps(first)}\n")
    starts.note(folder)
    assert starts.origin_of(folder, {}) == {**ours, "earlier": [first]}
    run = {**made("set", 0, 98.0), **ours, "commit": "last", "earlier": [{**first, "versions": {"torch": "2.9"}}]}
    content = table_of(run)
    told = facts({**content, "results": described(content["runs"])})
    assert told["commits"] == "first, last"
    assert told["versions"].startswith("dynsparse ")
    assert told["versions"].endswith("; torch 2.9")


def test_one_seed_has_no_deviation() -> None:
    assert described([made("set", 0, 98.0)])[0]["sd"] == 0.0


def test_classes_that_no_weight_reaches_are_told_seed_by_seed(tmp_path: Path) -> None:
    every = [
        ("set", 0.98, 0, 0, 97.7),
        ("set", 0.99, 0, 2, 78.7),
        ("set", 0.99, 1, 0, 97.0),
        ("static", 0.99, 0, 0, 49),
    ]
    runs = [made("static", 1, 50.0, sparsity=0.99)]
    for method, sparsity, seed, classes, top1 in every:
        dead = {"fc1.weight": 7, **({"fc3.weight": classes} if classes else {})}
        layers = {"fc1.weight": 0.02, "fc3.weight": 0.02}
        runs.append({**made(method, seed, top1, sparsity=sparsity), "layers": layers, "dead_outputs": dead})
    content = table_of(*runs)
    assert unreached(content["runs"]) == {
        0.99: {
            "set": [{"test_top1": 78.7, "classes": 2}, {"test_top1": 97.0, "classes": 0}],
            "static": [{"test_top1": 49, "classes": 0}],
        }
    }
    write_table(content, tmp_path / "reproduce_mnist.json")
    page, *_ = write("mnist", tmp_path, tmp_path)
    lines = page.read_text().splitlines()
    assert "| 99 % | SET | 78.70 (2), 97.00 |" in lines
    assert "| 99 % | static sparse | 49.00 |" in lines
    assert not any(line.startswith("| 98 % |") for line in lines)


def test_runs_made_in_another_way_stand_beside_the_table_and_what_is_published(tmp_path: Path) -> None:
    for name, top1 in (("mnist", 98.5), ("mnist_moves", 98.25)):
        table = table_of(made("set", 0, top1, sparsity=0.95), of=Table(name, tmp_path))
        write_table(table, tmp_path / f"reproduce_{name}.json")
    page, *_ = write("mnist", tmp_path, tmp_path)
    row = "| SET | 95 % | 600 weights in each reallocation | 98.25 (1 seed) | 98.50 (1 seed) | 98.14 |"
    assert row in page.read_text().splitlines()


def test_a_network_whose_last_layer_is_dense_has_no_classes_without_weights(tmp_path: Path) -> None:
    """Outputs of its last convolution are no classes."""
    run = {**made("set", 0, 75.0, sparsity=0.95), "layers": {"conv.weight": 0.05}, "dead_outputs": {"conv.weight": 1}}
    write_table(table_of(run, of=Table("cifar10", tmp_path)), tmp_path / "reproduce_cifar10.json")
    page, *_ = write("cifar10", tmp_path, tmp_path)
    assert "classes not reached" not in page.read_text()


def test_published_figures_are_judged_by_how_sure_our_mean_is() -> None:
    """SET at 99 %: 95.80 is published. 89.99 ± 9.49 of 5 seeds may be anything; at 90 % it is 98.39."""
    wide = [made("set", seed, top1, sparsity=0.99) for seed, top1 in enumerate((78.7, 82.0, 95.0, 97.0, 97.25))]
    near = [made("set", seed, 98.3 + 0.1 * seed) for seed in range(3)]
    far = [made("set", seed, 98.20 + 0.01 * seed) for seed in range(3)]
    few = [made("set", seed, 98.1 + 0.13 * seed) for seed in range(3)]
    for runs, told in (
        (wide, "too wide to judge"),
        (near, "alike"),
        (few, "not told apart"),
        (far, "differs"),
    ):
        (row,) = compared({"data": "mnist", "runs": runs})
        assert row["verdict"] == told
    assert compared({"data": "mnist", "runs": near[:1]}) == [], "one seed has no spread"
    assert compared({"data": "digits", "runs": near}) == []


def test_figures_are_judged_once_all_that_is_published_is_there() -> None:
    recipe, published = RECIPES["mnist"], PUBLISHED["mnist"]
    every = [one for one in jobs(list(recipe.seeds), recipe.sparsities, None, recipe.seeds) if one.method in published]
    runs = [made(one.method, one.seed, 98.0, sparsity=one.sparsity) for one in every]
    for some, judged in ((runs, True), (runs[:-1], False)):
        content = {"data": "mnist", "settings": {}, "results": [{"seeds": 3}], "runs": some}
        found = facts(content)
        assert (found["judged"], found["there"]) == (judged, len(some))
        assert found["there"] < found["wanted"]


def test_the_limit_of_a_verdict_falls_with_the_seeds() -> None:
    assert interval(5, 0.5) == pytest.approx(2.776 * 0.5 / 5**0.5)
    assert interval(40, 10) == pytest.approx(2.228 * 10 / 40**0.5)
    assert interval(5, 0.0) == 0.1
    assert told_apart(3, 0.1) == pytest.approx(4.303 * 2**0.5 * 0.1)
    assert interval(1, 0.0) == float("inf")
    assert verdict(-40.0, 9.0, 11.0) == "differs", "however wide"
    assert [verdict(one, 0.2, 0.5) for one in (0.2, 0.3, -0.6)] == ["alike", "not told apart", "differs"]
    assert verdict(0.1, 0.0, 0.1) == "alike", "a difference of 0.1 is none"


def test_the_interval_of_a_difference_counts_the_published_error() -> None:
    """Welch's t-test has 4.95 degrees of freedom for 3 seeds that deviate by 0.09 and an error of 0.047 of 5."""
    assert interval(3, 0.09, 0.047) == pytest.approx(2.776 * math.hypot(0.09 / 3**0.5, 0.047), rel=1e-3)
    assert interval(3, 0.0, 0.2) == pytest.approx(2.776 * 0.2)
    assert interval(5, 0.2) < interval(5, 0.2, 0.1)


@pytest.mark.parametrize(("difference", "seeds", "sd"), [(0.18, 5, 0.07), (-0.38, 3, 0.14), (0.1, 3, 0.3)])
def test_a_difference_may_be_chance_of_published_runs_that_deviate_enough(
    difference: float, seeds: int, sd: float
) -> None:
    least = chance_from(difference, seeds, sd)
    assert interval(seeds, sd, least / 5**0.5) >= abs(difference)
    assert least == 0 or interval(seeds, sd, (least - 0.01) / 5**0.5) < abs(difference)


def test_what_differs_tells_of_chance_only_where_no_error_is_published() -> None:
    runs = [made("set", seed, 99.0 + 0.01 * seed, sparsity=one) for one in (0.9, 0.95) for seed in range(3)]
    near, far = compared({"data": "mnist", "runs": runs})
    assert near["verdict"] == far["verdict"] == "differs"
    assert near["chance_from"] is None and far["chance_from"] > 0


def test_a_table_that_cannot_be_read_is_not_replaced(tmp_path: Path) -> None:
    """Its runs do not say by which settings they were made."""
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "reproduce_digits.json"
    old.write_text(text := json.dumps({"data": "digits", "runs": [{"method": "dense"}]}))
    for words in (["--page"], ["--methods", "dsr"]):
        with pytest.raises(SystemExit, match="is of an earlier version, and cannot be added to; move it away, or give"):
            main([*reproduce(tmp_path)[3:], *words])
    assert old.read_text() == text
    assert not list(tmp_path.glob("work/*/")), "nothing was trained"


@pytest.mark.parametrize(
    "words", [("--epochs", "2"), ("train.lr.table=0.2",), ("model.hidden=[3,3]", "data.threads=1")]
)
@pytest.mark.parametrize("out", [(), ("--out", str(RESULTS)), ("--out", f"{PAGES}/../results")])
def test_changed_runs_do_not_replace_kept_ones(words: tuple[str, ...], out: tuple[str, ...], tmp_path: Path) -> None:
    path = RESULTS / "reproduce_digits.json"
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=r"^error: .*: makes other runs than those that are kept; give a folder with"):
        main(["--methods", "dsr", "--seeds", "1", *out, "--work", str(tmp_path), *words])
    assert path.read_bytes() == before
    assert not list(tmp_path.iterdir())


def test_places_change_no_run() -> None:
    places = ("data.path=/elsewhere", "data.threads=7", "checkpoint.every_epochs=9", "log.tensorboard=true")
    assert Table("mnist", MNIST.work, places).changes == []
    assert Table("mnist", MNIST.work, (*places, "train.epochs=2"), 3).changes == ["--epochs=3", "train.epochs=2"]


def test_a_file_says_what_was_changed_and_takes_no_other_runs(tmp_path: Path) -> None:
    changed = Table("mnist", MNIST.work, ("train.lr.table=0.2", "data.threads=1"), 2)
    path = tmp_path / "reproduce_mnist.json"
    added(changed, path, [(table_of(made("set", 0, 50.0), of=changed) | CHANGED, tmp_path)])
    assert {name: value for name, value in read(path).items() if name in CHANGED} == CHANGED
    assert [run["test_top1"] for run in shown(read(path))] == [50.0]
    page, _ = write("mnist", tmp_path, tmp_path)
    assert "**Not the recipe: made with `--epochs=2 train.lr.table=0.2`.**" in page.read_text().splitlines()
    for other in (MNIST, replace(changed, epochs=3), replace(changed, overrides=())):
        with pytest.raises(UserError, match=r"has runs with --epochs=2 train\.lr\.table=0\.2, and these are runs"):
            added(other, path)


CHANGED = {"epochs": 2, "overrides": ["train.lr.table=0.2"]}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("reproduce_*.json")), ids=lambda path: str(path.stem))
def test_kept_runs_and_pages_are_what_this_version_makes_of_them(path: Path, tmp_path: Path) -> None:
    """No figure is lost by reading and writing, each run is one of the recipe's, and the page is of this JSON."""
    content = read(path)
    of = Table(content["data"], Path("/work"))
    runs = Runs.read(of, path)
    write_table(runs.content(), tmp_path / path.name)
    assert (tmp_path / path.name).read_text() == path.read_text(), "benchmarks.reproduce --page"
    assert runs.made == content["runs"]
    if (page := PAGES / f"{content['data']}.md").exists():
        fresh, *plots = write(content["data"], tmp_path, None)
        link = re.compile(rf"\]\(\S*/{path.name}\)")
        assert link.sub("]", fresh.read_text()) == link.sub("]", page.read_text()), "benchmarks.reproduce --page"
        assert all((PAGES / plot.name).exists() for plot in plots)


def test_parts_of_a_recipe_are_compared_seed_by_seed(tmp_path: Path) -> None:
    values = {("base", 0.0): (80.0, 82.0, 87.0), ("mixup", 0.0): (81.0, 85.0), ("base", 0.9): (70.0,)}
    runs = [
        made(method, seed, top1, sparsity=sparsity)
        for (method, sparsity), seeds in values.items()
        for seed, top1 in enumerate(seeds)
    ]
    base, mixup = rows(runs, {"base": "the recipe", "mixup": "mixup", "cutmix": "cutmix"})
    assert [cell["mean"] for cell in base["cells"]] == [83.0, 70.0]
    assert base["cells"][0]["difference"] is None
    assert mixup["title"] == "mixup"
    assert mixup["cells"][1] is None
    found = mixup["cells"][0]
    assert (found["mean"], found["difference"], found["pairs"]) == (83.0, 2.0, 2), "+1 and +3, for two seeds alone"
    assert found["difference_sd"] == pytest.approx(2**0.5)


@pytest.mark.parametrize("data", ["parts", "networks"])
def test_pages_of_parts_are_made_of_their_json_alone(data: str, tmp_path: Path) -> None:
    recipe = RECIPES[data]
    runs = [
        {**made(job.method, 0, 50.0 + number, sparsity=job.sparsity), "parameters": 1_234_567}
        for number, job in enumerate(jobs(list(recipe.seeds), recipe.sparsities, 1, recipe.seeds))
    ]
    write_table(table_of(*runs, of=Table(data, tmp_path)), tmp_path / f"reproduce_{data}.json")
    (page,) = write(data, tmp_path, tmp_path)
    lines = page.read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + len(recipe.parts)
    assert f"**Not complete: {2 * len(recipe.parts)} of {2 * sum(recipe.seeds.values())} runs.**" in lines
    (first,) = (line for line in lines if line.startswith(f"| {next(iter(recipe.titles.values()))} |"))
    assert first.split(" | ")[1] == "50.00"


def test_costs_are_beside_the_accuracy_and_the_best_row_is_first(tmp_path: Path) -> None:
    recipe = RECIPES["methods"]
    costs = {"flops": {"inference": 0.25, "training": 0.5}, "active_weights": 1234, "peak_memory": 3 << 20}
    runs = [
        {**made(job.method, job.seed, 50.0 + number / 10, sparsity=job.sparsity), **costs}
        for number, job in enumerate(jobs(list(recipe.seeds), recipe.sparsities, 2, recipe.seeds))
    ]
    write_table(table_of(*runs, of=Table("methods", tmp_path)), tmp_path / "reproduce_methods.json")
    page, plot = write("methods", tmp_path, tmp_path)
    assert plot.name == "methods_costs.svg"
    assert f"({plot.name})" in page.read_text()
    lines = page.read_text().splitlines()
    assert [line for line in lines if line.startswith("## ")][:3] == ["## 95 %", "## 98 %", "## 99 %"]
    rows = [line.split(" | ") for line in lines if line.startswith("| ")][1:]
    assert len([row for row in rows if row[0] == "| dense"]) == len(recipe.sparsities), "beside each"
    first = rows[1]  # After the line of dashes.
    assert first[0] == f"| {list(recipe.titles.values())[-1]}", "the last of the list got the highest figure"
    assert first[2:] == ["2", "0.500", "0.250", "1,234", "3 |"]
    figures = [float(row[1].split(" ")[0]) for row in rows[1 : 1 + len(recipe.parts)]]
    assert figures == sorted(figures, reverse=True)

    seconds = {"whole_run_to_dense": dict.fromkeys(recipe.parts, 1.25)}
    (tmp_path / "method_seconds.json").write_text(json.dumps(seconds))
    write("methods", tmp_path, tmp_path)
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [row[-1] for row in rows[:3]] == ["time |", "--- |", "1.25 |"]


def test_a_teacher_is_the_dense_network_of_its_seed(tmp_path: Path) -> None:
    table, job = Table("parts", tmp_path), Job("teacher", 0.9, 1)
    assert job.needs == Job("base", 0.0, 1)
    teacher = table.config(job).train.teacher
    assert teacher is not None
    assert Path(teacher.source) == table.folder(job.needs)
    assert table.config(job.needs).method.name == "dense"
