"""Files made to look like checkpoints: nothing is built from them, and a whole one is used instead."""

from __future__ import annotations

import copy
import io
import os
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.training.checkpoint import checksum, read, write
from dynsparse.training.checkpoint.limits import MOST_TIMES, SPARE_BYTES
from dynsparse.training.checkpoint.schema import SavedProgress
from dynsparse.training.progress import Progress
from dynsparse.training.resume import checkpoints_of, find_resume_point, take_folder
from tests.training import runs

State = dict[str, Any]


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Gigabytes that a file asks for are not there."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # As the tests have.
    config = runs.config(runs=str(tmp_path_factory.mktemp("runs")), name="a", checkpoint={"every_steps": 4, "keep": 3})
    take_folder(config, None, overwrite=False)
    runs.trainer(config, checkpoints=checkpoints_of(config)).fit()
    return config.folder


def archive(*, pickled: bytes, **entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in {"data.pkl": pickled, "version": b"3\n", **entries}.items():
            written.writestr(f"archive/{name}", content)
    return file.getvalue()


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def saved(value: Any) -> bytes:
    """Return a file that torch.save made, signed as ours are."""
    content = {"format": 2, "sha256": checksum({}), "state": {"a": value}}
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def again_and_again() -> Any:
    """2**60 parts in a few hundred bytes."""
    value: Any = [1]
    for _ in range(60):
        value = [value, value]
    return value


def beyond_its_storage() -> bytes:
    """A tensor of 4 GB in an entry of 4 bytes: torch reads what lies behind them."""
    whole = saved(torch.ones(3))
    with zipfile.ZipFile(io.BytesIO(whole)) as plain:
        entries = {entry.filename.split("/", 1)[1]: plain.read(entry) for entry in plain.infolist()}
    entries["data/0"] = b"\0\0\0\0"
    return archive(pickled=entries.pop("data.pkl"), **entries)


NO_DATA = "holds other than plain data and dense tensors"
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "an entry of 64 MB": (lambda: archive(pickled=b"", more=bytes(64 << 20)), r"claims to hold 67,108,\d+ bytes in"),
    "bytes of 10 GB": (
        lambda: saved(Calls(bytearray, 10**10)),
        f"{NO_DATA} .*bytearray",
    ),
    "code": (lambda: saved(Calls(os.system, "true")), f"{NO_DATA} .*system"),
    "a meta tensor": (lambda: saved(torch.empty(10**10, device="meta")), f"{NO_DATA} .*meta"),
    "a sparse tensor": (lambda: saved(torch.eye(3).to_sparse()), f"{NO_DATA} .*sparse"),
    "a parameter": (lambda: saved(torch.nn.Parameter(torch.ones(3))), f"{NO_DATA} .*parameter"),
    "a tensor of 4 GB in 4 bytes": (lambda: saved(torch.ones(1).expand(1 << 30)), "a tensor that is not dense"),
    "an overlapping tensor": (lambda: saved(torch.ones(9).as_strided((5, 5), (1, 1))), "a tensor that is not dense"),
    "a gradient": (lambda: saved(torch.ones(3, requires_grad=True)), "a tensor that is not dense"),
    "one storage, many tensors": (
        lambda: saved(list(torch.ones(1 << 10).expand(100, -1))),
        "tensors that share memory",
    ),
    "a tensor beyond its storage": (beyond_its_storage, "has another size than it is said to have"),
    "deep nesting": (lambda: saved(nested(200)), "nests too deeply"),
    "parts of parts": (lambda: saved(again_and_again()), "nests too deeply|again and again"),
    "a huge number": (lambda: saved(1 << 70), "more than 64 bits"),
    "bytes": (lambda: saved(b"123"), NO_DATA),
    "another pickle": (lambda: archive(pickled=pickle.dumps({1: 2}, protocol=2)), "not written by dynsparse"),
    "no pickle": (lambda: archive(pickled=b"\x80\x02]q\x00(K"), "its pickle is not sound"),
}


@pytest.mark.parametrize("kind", FILES)
def test_nothing_is_built_from_it(tmp_path: Path, kind: str) -> None:
    make, message = FILES[kind]
    (tmp_path / "a.pt").write_bytes(make())
    assert (tmp_path / "a.pt").stat().st_size < 5 << 20
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "a.pt")
    assert len(caught.value.lines) == 1
    assert "\n" not in caught.value.lines[0]


def test_packed_in_another_way(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_LZMA) as written:
        written.writestr("archive/data.pkl", b"")
    with pytest.raises(UserError, match="packed in a way that is not ours"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["pipe", "device", "terabytes"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.pt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 42)
    with pytest.raises(UserError, match="is no archive" if kind == "terabytes" else f"is a {kind}, not a file"):
        read(path)


def test_our_own_zeros_are_read(tmp_path: Path) -> None:
    """They could be deflated to a thousandth: no further than what is read again."""
    state = {"zeros": torch.zeros(20_000_000), "ones": torch.ones(3)}
    write(tmp_path / "a.pt", state)
    size = (tmp_path / "a.pt").stat().st_size
    assert MOST_TIMES * size + SPARE_BYTES > 80_000_000
    assert torch.equal(read(tmp_path / "a.pt")["zeros"], state["zeros"])


def put(*keys: Any, value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        part: Any = state
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    return change


def less(*keys: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        part: Any = state
        for key in keys[:-1]:
            part = part[key]
        part.pop(keys[-1])

    return change


def counted_in_bytes(state: State) -> None:
    """Make the count of steps an int8, which AdamW's kernels do not take."""
    state["config"]["train"]["optimizer"] = {"name": "adamw"}
    for name, moments in state["optimizer"].items():
        mean = moments["momentum_buffer"]
        step = torch.tensor(3, dtype=torch.int8)
        state["optimizer"][name] = {"step": step, "exp_avg": mean, "exp_avg_sq": mean.clone()}


LAYER = ("masks", "layers", "fc1.weight")
CHANGES: dict[str, Callable[[State], None]] = {
    "lacks masks": less("masks"),
    "masks.layers.fc1.weight.shape is missing": less(*LAYER, "shape"),
    "masks.layers.fc1.weight.shape is []": put(*LAYER, "shape", value=[]),
    "masks.layers.fc1.weight.shape.0 is -24": put(*LAYER, "shape", value=[-24, 36]),
    "fc1.weight: its mask takes 108 bytes": put(*LAYER, "shape", value=[1 << 36, 36]),
    "units of 3 dimensions in a shape of 2": put(*LAYER, "mask_dims", value=3),
    "masks.layers.fc1.weight.mask is 3, not a tensor": put(*LAYER, "mask", value=3),
    "is torch.float32 of 1 dimensions, not packed bits": put(*LAYER, "mask", value=torch.ones(108)),
    "its mask has no active unit": put(*LAYER, "mask", value=torch.zeros(108, dtype=torch.uint8)),
    "values are stored, its mask has": put("weights", "fc1.weight", value=torch.ones(7, 1)),
    "its weights are torch.int64": put("weights", "bn1.bias", value=torch.ones(24, dtype=torch.int64)),
    "momentum_buffer: [24, 1] is stored": put("optimizer", "bn1.bias", "momentum_buffer", value=torch.ones(24, 1)),
    "its optimizer state has exp_avg": put("optimizer", "bn1.bias", value={"exp_avg": torch.ones(24)}),
    "fc1.weight: step: is torch.int8 [], not a number of steps": counted_in_bytes,
    "masks.budget is -1": put("masks", "budget", value=-1),
    "the budget is 7": put("masks", "budget", value=7),
    "progress.epoch is -1": put("progress", "epoch", value=-1),
    'progress.step is "4"': put("progress", "step", value="4"),
    "data.batch is -3": put("data", "batch", value=-3),
    "data.epoch is missing": less("data", "epoch"),
    "ranks is []": put("ranks", value=[]),
    "ranks.0.sums is torch.float32 [3]": put("ranks", 0, "sums", value=torch.zeros(3)),
    "ranks.0.random.cpu is no state": put("ranks", 0, "random", "cpu", value=torch.zeros(3, dtype=torch.uint8)),
    "method.threshold is missing": put("method", value={}),
    "method.threshold is not a positive number": put("method", "threshold", value=float("nan")),
    "config.method.name is missing": put("config", "method", value={}),
    "config is null": put("config", value=None),
    "versions.torch is 2": put("versions", "torch", value=2),
    "are of no such layer": put("initial_weights", value={"fc1.weight": torch.ones(3)}),
}


@pytest.mark.parametrize("message", CHANGES)
def test_one_that_does_not_hold_together_is_passed_over(
    whole_run: Path, tmp_path: Path, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Though it is signed: the line names the file and the key, and the whole one before it is taken."""
    folder = Path(shutil.copytree(whole_run, tmp_path / "a")) / "checkpoints"
    state = copy.deepcopy(read(folder / "step-000000016.pt"))
    CHANGES[message](state)
    for name in ("step-000000016", "latest", "best"):
        write(folder / f"{name}.pt", state)
    start = find_resume_point(runs.config(runs=str(tmp_path), name="a"), resume="auto", overwrite=False)
    assert start is not None
    assert start.path == folder / "step-000000012.pt"
    said = next(record.getMessage() for record in caplog.records if "step-000000016.pt: " in record.getMessage())
    assert message in said
    assert "\n" not in said


def test_a_file_with_another_steps_content_is_passed_over(
    whole_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy that went wrong gives a checkpoint the name of another step."""
    folder = Path(shutil.copytree(whole_run, tmp_path / "a")) / "checkpoints"
    for name in ("step-000000016", "latest", "best"):
        shutil.copy(folder / "step-000000008.pt", folder / f"{name}.pt")
    config = runs.config(runs=str(tmp_path), name="a")
    start = find_resume_point(config, resume="auto", overwrite=False)
    assert start is not None
    assert start.path == folder / "step-000000012.pt"
    assert "step-000000016.pt: holds step 8, not what its name says" in caplog.text
    take_folder(config, start, overwrite=False)
    assert (folder / "step-000000016.pt.stale").exists()
    assert read(folder / "latest.pt")["progress"]["step"] == 12


@pytest.mark.parametrize(("left", "step"), [("latest", 16), ("best", 8)])
def test_the_newest_under_any_name_is_taken(whole_run: Path, tmp_path: Path, left: str, step: int) -> None:
    """`--resume auto` where the step files are gone does not begin anew over a finished run."""
    folder = Path(shutil.copytree(whole_run, tmp_path / "a")) / "checkpoints"
    shutil.copy(folder / "step-000000008.pt", folder / "best.pt")
    for path in folder.iterdir():
        if path.name.startswith("step") or (path.stem, left) == ("latest", "best"):
            path.unlink()
    start = find_resume_point(runs.config(runs=str(tmp_path), name="a"), resume="auto", overwrite=False)
    assert start is not None
    assert (start.path, start.state["progress"]["step"]) == (folder / f"{left}.pt", step)


def test_going_back_leaves_the_only_file_of_a_later_step(whole_run: Path, tmp_path: Path) -> None:
    """Its step's own file is gone, and `latest.pt` will be another."""
    folder = Path(shutil.copytree(whole_run, tmp_path / "a")) / "checkpoints"
    config = runs.config(runs=str(tmp_path), name="a")
    (folder / "step-000000016.pt").unlink()
    take_folder(
        config, find_resume_point(config, resume=str(folder / "step-000000008.pt"), overwrite=False), overwrite=False
    )
    assert read(folder / "latest.pt")["progress"]["step"] == 8
    assert read(folder / "latest.pt.stale")["progress"]["step"] == 16


def test_a_trained_run_without_any_checkpoint_is_not_begun_anew(whole_run: Path, tmp_path: Path) -> None:
    """Neither by `--resume auto` nor by a later attempt of the launch that began it; `--overwrite` may."""
    copied = Path(shutil.copytree(whole_run, tmp_path / "a"))
    for path in (copied / "checkpoints").iterdir():  # The initial state alone would be to begin anew, too.
        if path.name != "initial.pt":
            path.unlink()
    config = runs.config(runs=str(tmp_path), name="a")
    (copied / "launch.json").write_text('{"id": "job-1"}')
    (copied / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 0}\n')
    for launch in (None, "job-1"):
        with pytest.raises(
            UserError, match=r"a holds a run that has trained \(metrics.jsonl\), and no checkpoint of it"
        ):
            find_resume_point(config, resume="auto", overwrite=False, launch=launch)
    assert find_resume_point(config, resume=None, overwrite=True) is None
    (copied / "metrics.jsonl").write_text('{"kind": "reallocation", "step": 3}\n')
    start = find_resume_point(config, resume="auto", overwrite=False)
    assert start is not None
    assert start.path.name == "initial.pt", "killed in its first epoch"
    start.path.unlink()
    assert find_resume_point(config, resume="auto", overwrite=False) is None, "killed before its first checkpoint"


def test_the_schema_knows_all_of_the_progress() -> None:
    assert SavedProgress.model_fields.keys() == Progress.model_fields.keys()


def test_tensors_of_every_kind_that_we_write(tmp_path: Path) -> None:
    kinds = [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.uint8,
        torch.int64,
        torch.bool,
        torch.int32,
    ]
    state: dict[str, Tensor] = {str(kind): torch.ones(2, 3, 4, 5).to(kind) for kind in kinds}
    state["last"] = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state["none"], state["number"] = torch.ones(0, 3), torch.tensor(3.0)
    write(tmp_path / "a.pt", state)
    for name, value in read(tmp_path / "a.pt").items():
        assert torch.equal(value, state[name]), name
