"""The scan of a data set: what it lists as bad is what training would stop at, and what dies of a file goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipelines
from pipelines.__main__ import PROGRAM
from pipelines.common.errors import UserError
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.datasets.webdataset import WebdatasetSettings
from pipelines.images.encoded import Bytes
from pipelines.settings import DataSetSettings
from pipelines.sources.base import Encoded
from pipelines.tools import scan
from pipelines.tools.sample_images import ODD, encoded
from pipelines.tools.scan_facts import examine
from pipelines.tools.scan_processes import DEADLY
from pipelines.tools.scan_report import Duplicates, Report
from pipelines.tools.scan_summary import listable, summary
from tests.pipelines.streams import LOADERS, request, whole
from tests.training import runs

UNKNOWN = "is no image of a known format, or its header is damaged"
DAMAGED = "cannot be decoded: it is truncated or damaged"
RAW = os.fsdecode(b"bad \xff.jpg")
"""A name that is no UTF-8."""
BAD = {
    "train/ape/directory.jpg": "cannot be read (is a folder)",
    "train/ape/dangling.jpg": "cannot be read (No such file or directory)",
    "train/ape/empty.jpg": "is empty",
    "train/ape/gif.jpg": UNKNOWN,
    "train/ape/junk.jpg": UNKNOWN,
    "train/ape/truncated.jpg": DAMAGED,
    "train/ape/truncated.png": DAMAGED,
    "train/ape/truncated.webp": DAMAGED,
    f"val/ape/{RAW}": UNKNOWN,
}


def picture(seed: int, width: int = 60, height: int = 44) -> Image.Image:
    """Smooth, as photographs are."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def files() -> dict[str, bytes]:
    """Contents by path. `folder` makes what is no file."""
    odd = {f"train/ape/{name}": make(picture(i)) for i, (name, make) in enumerate(ODD.items())}
    cut = {f"train/ape/truncated.{kind[:4]}": encoded(picture(30), kind)[:-300] for kind in ("png", "webp")}
    good = {f"{folder}/{i}.jpg": encoded(picture(100 + i)) for i, folder in enumerate(["train/bee", "val/bee"] * 3)}
    known = encoded(picture(50))
    return {
        **odd,
        **cut,
        **good,
        **{f"{folder}/known.jpg": known for folder in ("train/ape", "train/bee", "val/ape")},
        "train/ape/alpha.png": encoded(picture(51).convert("RGBA"), "PNG"),
        "train/ape/empty.jpg": b"",
        "train/ape/gif.jpg": encoded(picture(52), "GIF"),
        "train/ape/junk.jpg": np.random.default_rng(0).bytes(2000),
        "train/ape/truncated.jpg": known[: len(known) // 2],
        f"val/ape/{RAW}": b"no image",
        "train/ape/notes.txt": b"",
        "train/ape/.DS_Store": b"",
    }


def fill(root: Path, contents: dict[str, bytes]) -> Path:
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


@dataclass
class Scanned:
    root: Path
    exclude: Path
    out: str
    report: dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = fill(tmp_path_factory.mktemp("images"), files())
    (root / "train/ape/directory.jpg").mkdir()
    (root / "train/ape/dangling.jpg").symlink_to("nowhere")
    return root


@pytest.fixture(scope="module")
def scanned(folder: Path) -> Scanned:
    out = run(str(folder), "--workers=2")
    return Scanned(folder, folder / "exclude.txt", out, json.loads((folder / "scan.json").read_text()))


def run(*arguments: str) -> str:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert PROGRAM.run(["scan", *arguments]) == 0
    return out.getvalue()


def without_detail(reasons: dict[str, str]) -> dict[str, str]:
    """Pillow tells more of what is damaged."""
    return {name: DAMAGED if reason.startswith(f"{DAMAGED} (") else reason for name, reason in reasons.items()}


def test_the_bad_ones_are_listed_and_no_others(scanned: Scanned) -> None:
    assert without_detail(scanned.report["bad"]) == BAD
    lines = scanned.exclude.read_text(errors="surrogateescape").splitlines()
    assert sorted(line for line in lines if not line.startswith("#")) == sorted(BAD)
    assert lines[0].startswith("#")
    assert sorted(path.name for path in scanned.exclude.parent.iterdir() if path.is_file()) == [
        "exclude.txt", "scan.json",
    ]  # fmt: skip


def settings(root: Path, exclude: Path, **options: object) -> DataSetSettings:
    small = {"image_size": 16, "evaluation_resize": 16, "number_of_classes": 2, "threads": 1, "name": "imagenet"}
    given = {**small, "path": str(root), "exclude": str(exclude), **options}
    kind = {"imagenet": ImagenetSettings, "webdataset": WebdatasetSettings}[str(given["name"])]
    return kind.model_validate(given)


def train_and_evaluate(given: DataSetSettings, batch: int) -> tuple[int, int]:
    """Count the images of an epoch and of the evaluation. A bad one would end either."""
    data = pipelines.build(given, request(batch=batch))
    trained = sum(len(labels) for step in data.train.epoch() for _, labels in step)
    return trained, len(whole(data.test)[1])


@pytest.mark.parametrize("loader", LOADERS)
def test_training_takes_the_list_and_meets_no_bad_file(scanned: Scanned, loader: str) -> None:
    given = settings(scanned.root, scanned.exclude, loader=loader)
    assert train_and_evaluate(given, batch=15) == (15, 4)


def test_the_report(scanned: Scanned) -> None:
    report = scanned.report
    assert (report["most_pixels"], report["exclude"]) == (60_000_000, str(scanned.exclude))
    assert report["images"] == {"train": 23, "val": 5}
    assert report["classes"] == {
        "train": {"ape": {"images": 19, "bad": 8}, "bee": {"images": 4, "bad": 0}},
        "val": {"ape": {"images": 2, "bad": 1}, "bee": {"images": 3, "bad": 0}},
    }
    assert report["other_files"] == {"train": 1, "val": 0}
    assert report["formats"] == {"bmp": 1, "jpeg": 14, "png": 2, "tiff": 1, "webp": 1}
    odd = {"greyscale": 1, "cmyk": 1, "transparent": 1, "turned": 1, "misnamed": 1, "huge": 0}
    assert report["odd"] == odd
    assert report["smallest"] == {"width": 1, "height": 1, "name": "train/ape/odd_1x1.jpg"}
    assert (report["largest"]["width"], report["largest"]["height"]) == (60, 44)
    known = [f"{folder}/known.jpg" for folder in ("train/ape", "train/bee", "val/ape")]
    assert report["duplicates_within_train"] == {"count": 1, "first": [[known[1], known[0]]]}
    assert report["duplicates_of_train_in_val"] == {"count": 1, "first": [[known[2], known[0]]]}


def test_what_it_prints(scanned: Scanned) -> None:
    lines = scanned.out.splitlines()
    assert lines[0] == "checked 28 images: 23 in train, 5 in val, 2 classes"
    assert lines[1] == f"bad: {len(BAD)}"
    assert "  train/ape/empty.jpg: is empty" in lines
    assert f"  'val/ape/bad \\udcff.jpg': {UNKNOWN}" in lines
    assert any(line.startswith("odd, but fine: 1 greyscale, 1 CMYK, 1 with transparency, 1 turned") for line in lines)
    assert sum(line.startswith("warning: ") for line in lines) == 3
    assert lines[-1] == f"train without the bad ones: data.exclude={scanned.exclude}"


def pack(path: Path, samples: dict[str, tuple[bytes, int]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, (content, label) in samples.items():
            for member, held in ((name, content), (f"{name.partition('.')[0]}.cls", b"%d" % label)):
                info = tarfile.TarInfo(member)
                info.size = len(held)
                tar.addfile(info, io.BytesIO(held))


@pytest.mark.parametrize("options", [[], ["--shards", "train/*.tar", "val/*.tar"]])
def test_shards(tmp_path: Path, options: list[str]) -> None:
    good = {f"{i}.jpg": (encoded(picture(i)), i % 2) for i in range(4)}
    pack(tmp_path / "train/0.tar", {**good, "junk.png": (b"no image", 1)})
    pack(tmp_path / "train/1.tar", {"a.jpg": (encoded(picture(9))[:-400], 0), "b.jpg": (encoded(picture(8)), 1)})
    pack(tmp_path / "val/0.tar", good)
    out = run(str(tmp_path), "--workers", "1", *options)
    report = json.loads((tmp_path / "scan.json").read_text())
    assert without_detail(report["bad"]) == {"train/0.tar/junk.png": UNKNOWN, "train/1.tar/a.jpg": DAMAGED}
    assert report["classes"]["train"] == {"0": {"images": 3, "bad": 1}, "1": {"images": 4, "bad": 1}}
    assert report["duplicates_of_train_in_val"]["count"] == 4
    assert "checked 11 images: 7 in train, 4 in val, 2 classes\nbad: 2\n" in out
    given = settings(tmp_path, tmp_path / "exclude.txt", name="webdataset")
    assert train_and_evaluate(given, batch=5) == (5, 4)


def fine(source: Encoded, index: int) -> None:
    """A check that anything passes."""


def deadly(source: Encoded, index: int, accidents: Path) -> None:
    """Ends the process at each image named fatal; at one named accident only once."""
    name = source.name(index)
    if "fatal" in name:
        os._exit(3)
    if "accident" in name and not accidents.exists():
        accidents.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if "raises" in name:
        raise ArithmeticError("too\nmuch")


def test_a_process_that_dies_of_a_file_ends_no_scan(tmp_path: Path) -> None:
    names = [f"{i:03}" for i in range(70)]
    names[0] = names[5] = names[66] = "fatal"
    names = [f"{name}{i}" for i, name in enumerate(names)]
    names[7], names[8] = "accident", "raises"
    root = fill(tmp_path / "images", {f"train/ape/{name}.jpg": name.encode() for name in names})
    report = scan.scan(scan._folder_parts(root), 2, partial(deadly, accidents=tmp_path / "accidents"))
    assert (tmp_path / "accidents").exists()
    fatal = {f"train/ape/fatal{i}.jpg": DEADLY for i in (0, 5, 66)}
    assert report.bad == {**fatal, "train/ape/raises.jpg": "cannot be checked (ArithmeticError: too much)"}
    assert report.images == {"train": 70}


def test_processes_that_cannot_start_end_the_scan(tmp_path: Path) -> None:
    parts = scan._folder_parts(fill(tmp_path, {"train/ape/a.jpg": b""}))
    with pytest.raises(UserError, match="has ended before its first image"):
        scan.scan(parts, 1, Unpicklable())


class Unpicklable:
    """A check that can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (1,)

    def __call__(self, source: Encoded, index: int) -> None: ...


def test_structure_is_reported_and_stops_nothing(tmp_path: Path) -> None:
    images = ["train/ape/1.jpg", "train/ape/2.jpg", "train/bee/1.jpg", "val/cat/1.jpg", "val/ape/1.jpg"]
    root = fill(tmp_path, {name: name.encode() for name in [*images, "train/dog/notes.txt", "train/stray.jpg"]})
    (root / "train/ape/deeper").mkdir()
    report = scan.scan(scan._folder_parts(root), 1, fine)
    assert report.empty_classes == ["train/dog"]
    assert report.classes_only_in_val == ["cat"]
    assert report.classes_of_one_image == ["train/bee", "val/ape", "val/cat"]
    assert report.other_files == {"train": 1, "val": 0}
    assert report.classes["train"]["dog"] == {"images": 0, "bad": 0}
    said = "\n".join(summary(report))
    assert "warning: 1 classes without an image, such as train/dog; training refuses them: fill or remove them" in said
    assert "warning: 1 classes that train lacks, such as cat;" in said


def test_classes_of_bad_images_alone_are_told() -> None:
    counts = {"images": 2, "bad": 2}
    report = Report(
        {"train": 2}, {"train": {"ape": counts}}, {}, {}, {}, {}, None, None, [], Duplicates(), Duplicates()
    )
    assert report.classes_all_bad == ["train/ape"]


@dataclass(frozen=True)
class One:
    """A source of one image."""

    content: bytes
    labels: Any = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    class_names: tuple[str, ...] = ("ape",)
    listing: str = ""

    def name(self, index: int) -> str:
        return "train/ape/1.png"

    def encoded(self, index: int, most: int = 0) -> Bytes:
        return np.frombuffer(self.content, dtype=np.uint8)

    def reopen(self) -> None:
        pass


def test_over_100_megapixels() -> None:
    file = io.BytesIO()
    Image.new("1", (10_001, 10_000)).save(file, "PNG", compress_level=1)
    facts = examine(One(file.getvalue()), 0, fine)
    assert (facts.size, facts.odd, facts.format) == ((10_001, 10_000), ("greyscale", "huge"), "png")


def test_a_header_that_tells_nothing_is_no_fault() -> None:
    facts = examine(One(b"BM and then nonsense"), 0, fine)
    assert (facts.fault, facts.size, facts.format, facts.odd) == (None, None, "bmp", ("misnamed",))


def test_names_that_a_list_cannot_hold() -> None:
    assert all(map(listable, ["train/a b/ü.jpg", RAW, "train/#.jpg"]))
    assert not any(map(listable, ["train/a\nb.jpg", "train/a\u2028b.jpg", "#shards/0.tar/a.jpg", "train/a\r.jpg", ""]))


def test_nothing_bad_writes_no_list_and_empties_an_old_one(tmp_path: Path) -> None:
    root = fill(
        tmp_path, {f"{part}/ape/{i}.png": encoded(picture(i), "PNG") for i, part in enumerate(["train", "val"])}
    )
    assert run(str(root), "--workers=1").endswith("nothing to exclude\n")
    assert sorted(path.name for path in root.iterdir()) == ["scan.json", "train", "val"]
    (root / "exclude.txt").write_text("train/ape/7.jpg\n")
    assert "existed, and is now without names" in run(str(root), "--workers=1")
    assert all(line.startswith("#") for line in (root / "exclude.txt").read_text().splitlines())


def test_a_folder_in_one_that_may_not_be_entered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o000)
    with runs.nobody_if_root():
        assert PROGRAM.run(["scan", str(tmp_path / "locked" / "data")]) == 2
    assert capsys.readouterr().err.count("data, which is no folder; give the folder that holds") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: DIR; see python -m pipelines scan --help"),
        (["{0}/none"], "none, which is no folder; give the folder that holds"),
        (["{0}/empty"], "holds no images (train/CLASS/* and val/CLASS/*) and no shards"),
        (["{0}", "--shards", "a/*.tar", "b/*.tar"], "--shards: 'a/*.tar' matches no shard"),
        (["{0}", "--shards", "a"], "argument --shards: expected 2 arguments"),
        (["{0}", "--workers", "0"], "argument --workers: is '0'; it must be a whole number of at least 1"),
        (["{0}", "--most-pixels", "0"], "argument --most-pixels: is '0'; it must be a whole number of at least 1"),
        (["{0}", "--exclude", "{0}"], "which cannot be written; give a file in a folder that is there"),
        (["{0}", "--report", "{0}/none/x.json"], "--report is "),
        (["{0}", "--report", "{0}/exclude.txt"], "as is --exclude; give two files"),
        (["{0}", "--workers", "1"], "all 1 images are bad, such as train/ape/1.jpg: " + UNKNOWN),
    ],
)
def test_refusals(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {"train/ape/1.jpg": b"no image", "empty/notes.txt": b""})
    before = sorted(tmp_path.rglob("*"))
    assert PROGRAM.run(["scan", *[argument.format(tmp_path) for argument in arguments]]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_ctrl_c_leaves_neither_files_nor_processes(tmp_path: Path) -> None:
    large = encoded(picture(1, 4000, 3000))
    root = fill(tmp_path, {"train/ape/0.jpg": large})
    for i in range(1, 600):
        os.link(root / "train/ape/0.jpg", root / f"train/ape/{i}.jpg")
    program = (
        "import sys, pipelines.tools.scan\n"
        "from pipelines.__main__ import PROGRAM; print('ready', flush=True); PROGRAM.start(['scan', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", program, str(root), "--workers=2"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)  # As a terminal does: to all of them.
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")
    assert [path.name for path in root.iterdir()] == ["train"]
    assert eventually_gone(process.pid)


def eventually_gone(group: int) -> bool:
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
