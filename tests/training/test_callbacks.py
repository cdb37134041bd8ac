from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from dynsparse.errors import StopRequested, UserError
from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks import Callback, Observers, standard_observers
from dynsparse.training.callbacks.base import EpochReport
from dynsparse.training.callbacks.history_file import HistoryFile
from dynsparse.training.callbacks.records import LAYER_TAGS, reallocation_record, reallocation_scalars
from dynsparse.training.callbacks.summary_file import SummaryFile
from dynsparse.training.callbacks.tensorboard import LAYOUT
from dynsparse.training.checkpoint import read
from dynsparse.training.resume import checkpoints_of
from dynsparse.training.run.log_lines import last_step
from tests.training import runs
from tests.training.test_folder import open_folder

LAYERS = ["fc1.weight", "fc2.weight", "fc3.weight"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run with all observers: stopped at step 11 of 16, resumed and finished."""
    settings = runs.config(runs=str(tmp_path_factory.mktemp("runs")), name="a", checkpoint={"every_steps": 2})
    open_folder(settings, resume=None, overwrite=False)
    first = runs.trainer(settings, observers=standard_observers(settings), checkpoints=checkpoints_of(settings))
    first.stop_requested = lambda: first.progress.step == 11
    with pytest.raises(StopRequested):
        first.fit()
    stopped = runs.summary(settings.folder)
    assert (stopped["status"], stopped["steps"]) == ("stopped", 11)
    # As if it had been killed after step 10's save: what it wrote of step 11 must not stay.
    for name in ("step-000000011", "latest"):
        (settings.folder / "checkpoints" / f"{name}.pt").unlink()
    saved = open_folder(settings, resume="auto", overwrite=False)
    assert saved is not None
    path = settings.folder / "checkpoints" / "step-000000010.pt"
    observers = standard_observers(settings, launch="7", resumed_from=path)
    second = runs.trainer(settings, observers=observers, checkpoints=checkpoints_of(settings))
    second.load(saved)
    return settings.folder, second.fit()


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_every_chart(finished: tuple[Path, Any]) -> None:
    tags = events(finished[0]).Tags()
    per_layer = [f"{kind}/{name}" for name in LAYERS for kind in ("dropped", "grown", "exploration")]
    per_layer += [f"{kind}/layers/{name}" for name in LAYERS for kind in ("sparsity", "active")]
    general = ["loss/train", "loss/test", "loss/batch", "accuracy/train_top1", "accuracy/test_top1", "lr"]
    general += ["throughput/images_per_second", "communication/gradient_bytes_per_step", "loss/skipped_steps"]
    general += ["active/budget", "reallocation/threshold", "sparsity/model"]
    assert set(per_layer + general) <= set(tags["scalars"])
    assert {f"active_weights/{name}" for name in LAYERS} <= set(tags["histograms"])
    assert "config/text_summary" in tags["tensors"]


def test_tensorboard_has_the_first_batch_once(finished: tuple[Path, Any]) -> None:
    (image,) = events(finished[0]).Images("data/first_batch")
    assert image.step == 0
    assert (image.width, image.height) == (4 * 100, 3 * 114), "12 samples of 6x6, enlarged, each over its label"


def test_tensorboard_tells_the_truth_without_gaps_or_repeats(finished: tuple[Path, Any]) -> None:
    folder, summary = finished
    board = events(folder)
    lines = runs.metrics(folder)
    reallocations = {line["step"]: line for line in lines if line["kind"] == "reallocation"}
    assert list(reallocations) == [3, 6, 9, 12, 15]
    for name in LAYERS:
        dropped = {event.step: event.value for event in board.Scalars(f"dropped/{name}")}
        assert dropped == {step: line["layers"][name]["dropped"] for step, line in reallocations.items()}
        active = {event.step: int(event.value) for event in board.Scalars(f"active/layers/{name}")}
        assert {s: active[s] for s in reallocations} == {
            s: line["layers"][name]["active"] for s, line in reallocations.items()
        }
        assert active[16] == summary.layers[name]["active_weights"]
        explored = [event.value for event in board.Scalars(f"exploration/{name}")]
        assert explored == sorted(explored)
    assert [event.step for event in board.Scalars("loss/batch")] == [4, 8, 12, 16]
    assert [event.step for event in board.Scalars("loss/test")] == [8, 16]
    histogram = board.Histograms("active_weights/fc1.weight")[-1].histogram_value
    assert histogram.num == summary.layers["fc1.weight"]["active_weights"]


def test_a_resume_hides_what_was_written_after_its_checkpoint(finished: tuple[Path, Any]) -> None:
    """TensorBoard is told to forget steps from 11 on, in the second session's file."""
    first, second = sorted(finished[0].glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)
    starts = [
        [event.step for event in EventFileLoader(str(path)).Load() if event.HasField("session_log")]
        for path in (first, second)
    ]
    assert starts == [[], [11]]


def test_the_layout_puts_all_layers_on_one_chart(finished: tuple[Path, Any]) -> None:
    first, event = events(finished[0]).Tensors(metadata.CONFIG_SUMMARY_TAG)
    assert first.tensor_proto == event.tensor_proto, "at each start: a run may go on in another folder"
    layout = layout_pb2.Layout()
    layout.ParseFromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["sparsity of each layer"] == ["^sparsity/layers/.*"]
    assert len(charts) == sum(map(len, LAYOUT.values()))


def test_every_chart_of_the_layout_has_a_line(finished: tuple[Path, Any]) -> None:
    tags = events(finished[0]).Tags()["scalars"]
    for title, (_, patterns) in (chart for category in LAYOUT.values() for chart in category.items()):
        assert any(re.match(pattern, tag) for pattern in patterns for tag in tags), title


@pytest.mark.parametrize("beginning", LAYER_TAGS.values())
def test_all_that_is_told_of_a_layer_has_a_chart(beginning: str) -> None:
    """A number without a chart hides among the tags of all layers."""
    patterns = [pattern for category in LAYOUT.values() for _, found in category.values() for pattern in found]
    assert any(re.match(pattern, f"{beginning}/conv1.weight") for pattern in patterns)


@pytest.mark.parametrize("repaired", [(), ("fc1.weight", "fc2.weight")])
def test_layers_that_were_repaired_are_counted(repaired: tuple[str, ...]) -> None:
    report = ReallocationReport(3, 0, {}, {}, {}, {}, {}, repaired=repaired)
    assert dict(reallocation_scalars(reallocation_record(report)))["reallocation/repaired"] == len(repaired)


def test_history(finished: tuple[Path, Any]) -> None:
    """A resume cuts metrics and leaves history: step 11 was done, lost, and done again."""
    folder, summary = finished
    first, stop, second, end = (json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines())
    assert [line["kind"] for line in (first, stop, second, end)] == ["start", "end", "start", "end"]
    assert [line["step"] for line in (first, stop, second, end)] == [0, 11, 10, 16]
    assert (first["resumed"], first["from"], first["launch"]) == (False, None, None)
    checkpoint = folder / "checkpoints" / "step-000000010.pt"
    assert (second["resumed"], second["from"], second["launch"]) == (True, str(checkpoint), "7")
    assert (stop["status"], end["status"]) == ("stopped", "done")
    assert (first["reached"], second["reached"]) == (None, 9), "the last reallocation that was told of"
    assert first["process"] == os.getpid()
    assert first["versions"] == summary.versions
    assert first["time"] <= stop["time"] <= second["time"] <= end["time"]


def test_how_far_it_went_is_known_beside_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) is None
    path.write_text('{"kind": "reallocation", "step": 110, "layers": {}}\n{"kind": "epo')
    assert last_step(path) == 110


def test_half_a_line_of_history_spoils_no_other(tmp_path: Path, finished: tuple[Path, Any]) -> None:
    """A disk that was full leaves half a line."""
    path = tmp_path / "history.jsonl"
    path.write_text('{"kind": "start"}\n{"kind": "en')
    history = HistoryFile(path)
    history.on_end(finished[1])
    history.write()
    first, half, whole = path.read_text().splitlines()
    assert (json.loads(first), half) == ({"kind": "start"}, '{"kind": "en')
    assert json.loads(whole)["kind"] == "end"


def test_metrics_file(finished: tuple[Path, Any]) -> None:
    folder, summary = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        *(("reallocation", step) for step in (3, 6)),
        ("epoch", 8),
        *(("reallocation", step) for step in (9, 12, 15)),
        ("epoch", 16),
    ]
    for line in lines:
        if line["kind"] == "reallocation":
            assert line["dropped"] == line["grown"] == sum(layer["dropped"] for layer in line["layers"].values())
            assert line["threshold"] > 0
            assert line["timing"]["seconds"] > 0
        else:
            assert sum(layer["active"] for layer in line["layers"].values()) == line["active_weights"] == line["budget"]
            assert line["timing"]["images_per_second"] > 0
    assert lines[-1]["test_top1"] == summary.test_top1


def test_summary_file(finished: tuple[Path, Any]) -> None:
    content = runs.summary(finished[0])
    assert content["status"] == "done"
    expected = ["epochs", "steps", "test_top1", "test_top5", "best_top1", "active_weights", "sparse_layer_weights"]
    expected += ["total_parameters", "sparsity", "model_sparsity", "mask_digest", "weight_digest", "images_per_second"]
    expected += ["world_size", "reallocations", "seconds", "rank_digests"]
    assert all(content[key] is not None for key in expected)
    dense = content["total_parameters"] - content["sparse_layer_weights"]
    left = 1 - content["model_sparsity"]
    assert left * content["total_parameters"] == pytest.approx(dense + content["active_weights"])
    assert content["sparsity"] == pytest.approx(1 - content["active_weights"] / content["sparse_layer_weights"])
    assert content["layers"]["fc1.weight"]["sparsity_before"] == pytest.approx(0.8, abs=0.01)
    state = read(finished[0] / "checkpoints" / "latest.pt")
    assert state["progress"]["seconds"] > 0


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", log={"progress": "auto"})
    result = runs.dist_train("--config", runs.write_config(tmp_path, settings))
    assert result.returncode == 0
    assert "epoch 2/2  step 16  loss" in result.stderr
    assert "ETA" in result.stderr
    assert "\r" not in result.stderr
    assert "sparsity before" in result.stdout
    assert f"tensorboard --logdir {tmp_path / 'a'}" in result.stdout


@pytest.mark.slow
def test_a_bar_with_eta_in_a_terminal(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 20}, log={"progress": "auto"})
    path = runs.write_config(tmp_path, settings)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "dist_train.py", "--config", str(path)],
        cwd=runs.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # Linux's way to say that the other side has closed.
        pass
    finally:
        os.close(ours)
        assert process.wait(timeout=60) == 0, shown
    assert b"\r" in shown
    assert b"160/160" in shown
    assert b"step/s" in shown


class FullDisk(Callback):
    calls = 0

    def on_epoch(self, report: EpochReport) -> None:
        self.calls += 1
        raise OSError(28, "No space left on device")


def test_an_observer_that_cannot_write_does_not_end_training(caplog: pytest.LogCaptureFixture) -> None:
    broken = FullDisk()
    summary = runs.trainer(runs.config(), observers=[broken]).fit()
    assert summary.status == "done"
    assert broken.calls == 2
    assert caplog.text.count("FullDisk cannot write") == 1


def test_a_summary_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """Nothing comes after it that could make up for it; a later resume writes it."""
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=False)
    observer = SummaryFile(settings.folder / "vanished" / "summary.json")
    with pytest.raises(UserError, match=r"SummaryFile: cannot write the end of the run .*--resume auto"):
        runs.trainer(settings, observers=[observer], checkpoints=checkpoints_of(settings)).fit()


def test_other_faults_of_an_observer_are_not_hidden() -> None:
    class Broken(Callback):
        def on_epoch(self, report: EpochReport) -> None:
            raise KeyError("a fault of its own")

    with pytest.raises(KeyError, match="a fault of its own"):
        runs.trainer(runs.config(), observers=[Broken()]).fit()
    assert Observers([]).on_epoch is not None
