"""The page that real runs make."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynsparse.cli.main import main
from dynsparse.tools.report.dense import dense
from dynsparse.tools.report.metrics import Metrics
from dynsparse.tools.report.run import Run
from dynsparse.tools.report.summary import checked_summary
from tests.tools.report.conftest import static_run
from tests.tools.report.pages import Page
from tests.training import runs


def report(out: Path, *folders: Path, arguments: tuple[str, ...] = ()) -> Page:
    assert main(["report", *map(str, folders), "--out", str(out), *arguments]) == 0
    return Page.read(out)


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page.read(written)


def test_nothing_in_it_leads_elsewhere(page: Page) -> None:
    for name in ("src", "srcset", "action", "data", "background", "poster", "ping"):
        assert page.attributes(name) == [], name
    for name in ("href", "xlink:href"):
        assert all(re.match(r"#|data:", value) for value in page.attributes(name)), name
    assert "://" not in page.source, "an address, even of a namespace"
    assert "@import" not in page.source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.source))
    assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    policy = next(value["content"] for _, value in page.elements if value.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_it_is_well_formed_and_its_references_resolve(page: Page) -> None:
    assert page.mismatched == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for value in page.attributes("href") if value.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page.source))
    wanted |= set(page.attributes("aria-labelledby"))
    assert wanted <= set(ids)


def test_charts_say_in_words_what_they_show(page: Page) -> None:
    images = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert len(images) > 12
    assert all(len(attributes["aria-label"]) > 20 for attributes in images)
    assert any(label.startswith("test top-1") for label in page.attributes("aria-label"))
    assert any(re.match(r"share active: .*from \d", label) for label in page.attributes("aria-label"))


def test_the_overview_says_what_the_summaries_say(page: Page, made: Path) -> None:
    words = page.words()
    for name in ("resumed", "static"):
        summary = runs.summary(made / name)
        for expected in (
            f"{summary['test_top1']:.2f} %",
            f"{summary['best_top1']:.2f} %",
            f"{100 * summary['sparsity']:.2f} %",
            f"{100 * summary['model_sparsity']:.2f} %",
            f"{100 * summary['ever_active']:.2f} %",
            f"{summary['inference_flops_of_dense']:.3f}",
            f"{summary['training_flops_of_dense']:.3f}",
            f"{summary['active_weights']:,}",
            f"most memory {runs.summary(made / 'resumed')['peak_memory'] / 1e6:,.0f} MB",
            summary["mask_digest"],
            summary["weight_digest"],
        ):
            assert expected in words, (name, expected)
    assert re.search(r"status done done died: process \d+ on \S+ is gone", words)
    assert "reallocations 7 0 4" in words


def test_what_differs(page: Page) -> None:
    words = page.words()
    shown = words[
        words.index("What differs", words.index("weights of the sparse layers")) : words.index("Curves resumed")
    ]
    assert "method.name dsr static dsr" in shown
    assert "method.target_moves 30 – 30" in shown
    assert "train.epochs 3 2 3" in shown
    assert "model.name" not in shown
    assert "seed" not in shown


def test_reallocations_that_the_metrics_do_not_tell_of_are_counted_and_named(copy: Path, tmp_path: Path) -> None:
    """A run that went on from a checkpoint of another folder has those before it in that folder."""
    path = copy / "metrics.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"reallocation"' not in line))
    words = report(tmp_path / "out.html", copy).words()
    assert "run: metrics.jsonl tells of none of its 7 reallocations." in words
    assert "has made no reallocation" not in words


def test_the_average_of_the_weights_is_named_where_it_chose_the_best(copy: Path, tmp_path: Path) -> None:
    changed(copy / "summary.json", lambda found: found.update(ema_test_top1=77.25, best_by="ema", best_top1=77.25))
    words = report(tmp_path / "out.html", copy).words()
    assert "test top-1 of the averaged weights 77.25 %" in words
    assert "best epoch chosen by the averaged weights" in words


def test_outputs_without_a_weight_are_summed_over_the_layers(copy: Path, tmp_path: Path) -> None:
    """The chart has them by epoch, the overview at the end. Where there are none, there is no chart."""

    def dead(of_epoch: Callable[[int], int]) -> Page:
        def change(line: dict[str, Any]) -> None:
            for layer in line["layers"].values() if line["kind"] == "epoch" else ():
                layer["dead_outputs"] = of_epoch(line["epoch"])

        changed(copy / "metrics.jsonl", change)
        return report(tmp_path / "out.html", copy)

    layers = len(next(line for line in runs.metrics(copy) if line["kind"] == "epoch")["layers"])
    page = dead(lambda epoch: epoch)
    assert f"outputs without a weight {2 * layers} FLOPs" in page.words()
    (label,) = (label for label in page.attributes("aria-label") if label.startswith("outputs without a weight"))
    assert f"from 0 to {2 * layers}" in label
    page = dead(lambda epoch: 0)
    assert "outputs without a weight 0 FLOPs" in page.words()
    assert not [label for label in page.attributes("aria-label") if label.startswith("outputs without a weight")]


def test_totals_of_layers_add_up(page: Page, made: Path) -> None:
    lines = [line for line in runs.metrics(made / "resumed") if line["kind"] == "reallocation"]
    name, layer = next(iter(lines[-1]["layers"].items()))
    dropped, grown = (sum(line["layers"][name][key] for line in lines) for key in ("dropped", "grown"))
    net = f"{grown - dropped:+,}".replace("-", "−") if grown != dropped else "0"
    before = layer["active"] - grown + dropped
    assert f"{before:,} {dropped:,} {grown:,} {net} {layer['active']:,}" in page.words()


def test_what_stays_dense(page: Page, made: Path) -> None:
    ((name, vectors),) = runs.summary(made / "resumed")["dense"].items()
    assert name == "6 biases and norms"
    words = page.words()
    assert "that stay dense; asked for 80 % zeros in the sparse layers" in words
    assert f"{name} – {vectors['weights']:,} one number an output" in words


def test_rows_of_dense_weights_that_make_no_sense_are_skipped() -> None:
    good = {"shape": [4, 2], "weights": 8, "reason": "because"}
    bad = [{**good, "shape": 3}, {**good, "weights": "8"}, {"shape": [1]}, None, {**good, "reason": 1}]
    summary = {"status": "done", "dense": {"a": good, **{str(i): one for i, one in enumerate(bad)}}}
    run = Run(Path(), "", {}, Metrics(), None, checked_summary(summary), None)
    assert dense(run) == [("a", "4x2", "8", "because")]
    assert dense(replace(run, summary=checked_summary({"status": "done", "dense": 3}))) == []


def test_faults_and_resumes(page: Page) -> None:
    words = page.words()
    assert "of these resumed 1 0 0" in words
    assert "died without an end 1 0 0" in words
    assert re.search("steps done twice (at least [1-9]|not known) 0 0", words), "by how far the disk was behind"
    assert re.search(r"checkpoints/step-\d{9}\.pt", words)
    assert any(
        "session 1: start, 1 worker at step 0, died; session 2: resume" in a for a in page.attributes("aria-label")
    )


def hover(page: Page, kind: str) -> list[dict[str, Any]]:
    charts = [json.loads(value) for value in page.attributes("data-hover")]
    return [chart for chart in charts if chart["kind"] == kind]


def test_values_under_the_pointer_are_those_of_the_run(page: Page, made: Path) -> None:
    lines = runs.metrics(made / "resumed")
    losses = [line["train_loss"] for line in lines if line["kind"] == "epoch"]
    series = hover(page, "lines")[0]["series"][0]
    assert series["name"] == "resumed"
    assert series["x"] == [1, 2, 3]
    assert series["y"] == pytest.approx(losses, rel=1e-3)
    events = [line for line in lines if line["kind"] == "reallocation"]
    chart = hover(page, "moves")[0]
    assert [first for first, _, _ in chart["steps"]] == [line["step"] for line in events]
    for row, name in enumerate(chart["names"]):
        assert chart["grown"][row] == [line["layers"][name]["grown"] for line in events]
        assert chart["dropped"][row] == [line["layers"][name]["dropped"] for line in events]
    active = hover(page, "heat")[0]
    last = [line for line in lines if line["kind"] == "epoch"][-1]
    assert [row[-1] for row in active["values"]] == pytest.approx(
        [1 - layer["sparsity"] for layer in last["layers"].values()], rel=1e-3
    )


def test_names_stay_text(tmp_path: Path) -> None:
    """Odd names of runs and layers, and odd texts of configs and histories, never become markup or drawings."""
    evil = "<script>alert(1)<&$x_1$"
    run = static_run(tmp_path).rename(tmp_path / evil)
    name = runs.metrics(run)[0]["layers"].popitem()[0]
    for file, old, new in (
        ("metrics.jsonl", name, evil),
        ("config.yaml", "mnist_mlp", "'\" onload=\"alert(2)'"),
        ("history.jsonl", '"from": null', '"from": "<img src=x onerror=alert(3)>"'),
    ):
        text = (run / file).read_text()
        assert old in text
        (run / file).write_text(text.replace(old, new))
    page = report(tmp_path / "out.html", run, arguments=("--title", "</title><script>alert(4)</script>"))
    assert [tag for tag, _ in page.elements].count("script") == 1, "the page's own"
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert "img" not in {tag for tag, _ in page.elements}
    assert page.words().count(evil) > 5
    assert page.mismatched == []


def test_without_summary_and_history(copy: Path, tmp_path: Path) -> None:
    """A run of before they were written, or one that goes on elsewhere."""
    for name in ("summary.json", "history.jsonl"):
        (copy / name).unlink()
    words = report(tmp_path / "out.html", copy).words()
    assert "no end is written: a process is training, or died" in words
    assert "Sessions of run are not known" in words
    assert "What differs" not in words


def test_while_it_is_training(made: Path, tmp_path: Path) -> None:
    """This process holds the lock; the last line is half written; the first epoch has not ended."""
    from dynsparse.training.run.lock import RunLock

    run = Path(shutil.copytree(made / "dead", tmp_path / "run"))
    (run / "lock.json").unlink()
    first = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    assert json.loads(first)["kind"] == "reallocation"
    (run / "metrics.jsonl").write_text(first + '{"kind": "epo')
    lock = RunLock(run)
    assert lock.acquire()
    try:
        words = report(tmp_path / "out.html", run).words()
    finally:
        lock.release()
    assert "status running: process" in words
    assert "shares of active weights follow after its first epoch" in words


def test_damage_is_told_on_the_page_and_on_stderr(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = copy / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines[:2], "damaged\n", *lines[2:], "{}\n"]))
    (copy / "summary.json").write_text("{")
    (copy / "config.yaml").write_text("a: [")
    words, told = report(tmp_path / "out.html", copy).words(), capsys.readouterr().err
    for note in (
        "metrics.jsonl: lines 3, 12 are damaged and skipped",
        "summary.json: is damaged, and skipped",
        "config.yaml: is damaged, and skipped",
    ):
        assert note in words
        assert f"warning: run: {note}\n" in told


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Each line of the file, or the whole of it, altered as plain data."""
    texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    lines = [json.loads(text) for text in texts]
    for line in lines:
        change(line)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_sessions_without_a_time_are_left_out_and_named(copy: Path, tmp_path: Path) -> None:
    changed(copy / "history.jsonl", lambda line: line.pop("time"))
    assert "history.jsonl: lines 1, 2, 3 are damaged and skipped" in report(tmp_path / "out.html", copy).words()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seconds", "abc"),
        *(
            pytest.param(key, value, marks=pytest.mark.slow)
            for key, value in {
                "images_per_second": 10**400,
                "status": None,
                "versions": 3,
                "epochs": 1.5,
                "seconds": [1],
                "test_top1": True,
                "active_weights": -1,
                "mask_digest": {},
            }.items()
        ),
    ],
    ids=lambda given: str(given)[:20],
)
def test_a_summary_of_wrong_types_is_left_out_and_named(copy: Path, tmp_path: Path, key: str, value: Any) -> None:
    changed(copy / "summary.json", lambda summary: summary.update({key: value}))
    note = f"summary.json: is not what training writes ({key}), and is skipped"
    assert note in report(tmp_path / "out.html", copy).words()


def test_numbers_beyond_reason_are_gaps(copy: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Huge numbers of every epoch, of all reallocations and of the summary are shown as gaps."""
    changed(copy / "metrics.jsonl", lambda line: line.update(train_loss=1e308, threshold=-1e308))
    changed(copy / "summary.json", lambda summary: summary.update(seconds=1e308, sparsity=1e308))
    page = report(tmp_path / "out.html", copy)
    labels = page.attributes("aria-label")
    assert any(label.startswith("test loss") for label in labels)
    assert not [label for label in labels if label.startswith(("train loss", "threshold"))]
    assert "time in training" not in page.words()
    assert not [str(warning.message) for warning in recwarn]


def test_text_that_is_none(copy: Path, tmp_path: Path) -> None:
    """Names of layers and states of sessions stand in drawings, which hold no control characters and no half pairs."""
    name = runs.metrics(copy)[0]["layers"].popitem()[0]
    text = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(text.replace(f'"{name}"', r'"odd\u0000\ud800"'))
    changed(copy / "history.jsonl", lambda line: line.update(status="\ud800\n", host="\udcff"))
    words = report(tmp_path / "out.html", copy).words()
    assert r"odd\x00\ud800" in words
    assert r"\udcff" in words


BOMB = "".join(f"k{n}: &a{n} [{f'*a{n - 1}, ' * 9 if n else 'x'}]\n" for n in range(30))


@pytest.mark.parametrize(
    "text",
    ["a: &a {b: *a}", *(pytest.param(text, marks=pytest.mark.slow) for text in ("a: " + "[" * 3000, BOMB))],
    ids=["in a circle", "deep", "a bomb"],
)
def test_a_config_that_no_run_has(copy: Path, tmp_path: Path, text: str) -> None:
    (copy / "config.yaml").write_text(text)
    assert "config.yaml: is damaged, and skipped" in report(tmp_path / "out.html", copy).words()


def test_line_ends_in_a_runs_name(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy.rename(copy.with_name("odd\nname\udcff"))
    (run / "summary.json").write_text("{")
    assert main(["report", str(run)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(rf"{run.parent}/odd\nname\udcff/report.html (") and out.count("\n") == 1
    assert err == "warning: odd\\nname\\udcff: summary.json: is damaged, and skipped\n"


def test_where_it_goes_by_default(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second call is of two runs of one name, and one config."""
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(copy)]) == 0
    assert (copy / "report.html").exists()
    assert re.fullmatch(rf"{re.escape(str(copy))}/report\.html \(\d\.\d\d MB\)\n", capsys.readouterr().out)
    other = Path(shutil.copytree(copy, tmp_path / "elsewhere" / "run"))
    assert main(["report", str(copy), str(other)]) == 0
    assert capsys.readouterr().out.startswith("report.html (")
    words = Page.read(tmp_path / "report.html").words()
    assert f"run ({copy})" in words
    assert f"run ({other})" in words
    assert "The configs are the same, names aside." in words
    assert not list(tmp_path.rglob("*.partial"))
