"""Images that are damaged, unusual or made to harm: one verdict, by whoever loads, in little time and memory."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import zlib
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import pipelines
from pipelines.__main__ import PROGRAM
from pipelines.base import Data
from pipelines.common.errors import UserError
from pipelines.common.streams import LogLine
from pipelines.images.encoded import MOST_PIXELS
from pipelines.images.reference import LACKS_END, content_fault, decoded, rgb
from pipelines.loaders.dali_images import given
from pipelines.loaders.dali_probe import Probe
from tests.pipelines.images import hostile
from tests.pipelines.images.hostile import BOMBS, bomb, encoded
from tests.pipelines.pictures import CLASSES, numbered_folder, picture, settings
from tests.pipelines.streams import LOADERS, endless, request, whole

ROOT = Path(__file__).parents[3]


def fault(content: bytes, most_pixels: int = MOST_PIXELS) -> str | None:
    return content_fault(np.frombuffer(content, dtype=np.uint8), most_pixels)


def build(folder: Path, loader: str, **options: object) -> Data:
    return pipelines.build(settings(folder, loader=loader, **options), request())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return numbered_folder(tmp_path / "images", train=60, val=30)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_for_what_they_declare(name: str) -> None:
    assert re.fullmatch(BOMBS[name], fault(bomb(name)) or "")


SPECIAL = {
    "pipe": r"cannot be read \(is a pipe, not a file\)",
    "device": r"cannot be read \(is a device, not a file\)",
    "sparse file of 5 GB": r"cannot be read \(has 5,368,709,120 bytes, more than 241,048,576: .*data\.most_pixels .*\)",
    "no image, of 200 MB": "is no image of a known format, or its header is damaged",
}
"""Reasons why `hostile.SPECIALS` are refused."""


def laid(folder: Path) -> dict[str, str]:
    """Write all bombs and specials. Why each is refused, by name."""
    for name in BOMBS:
        (folder / f"{name}.jpg").write_bytes(bomb(name))
    for name, put in hostile.SPECIALS.items():
        put(folder / f"{name}.jpg")
    return {f"{name}.jpg": why for name, why in {**BOMBS, **SPECIAL}.items()}


TRAIN = """if True:
    import json, multiprocessing, sys
    import pipelines
    from tests.memory import peak
    from tests.pipelines.pictures import settings
    from tests.pipelines.streams import request
    if __name__ == "__main__":
        data = pipelines.build(settings(sys.argv[1], loader=sys.argv[2], on_bad_file="skip"), request())
        steps = data.train.epoch()
        most = lambda: max(map(peak, ["self", *(child.pid for child in multiprocessing.active_children())]))
        next(steps)
        before = most()
        seen = 1 + len(list(steps))
        grown = most() - before
        data.close()
        print(json.dumps([seen, data.train.bad_samples, grown]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_a_run_over_bombs_goes_on_and_takes_little_memory(folder: Path, loader: str, tmp_path: Path) -> None:
    """Pipes and devices among them: nothing waits for them."""
    place = folder / "train" / "bee"
    expected = laid(place)
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace("if True:\n", "").replace("\n    ", "\n").removeprefix("    "))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, folder, loader]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    steps, bad, grown = json.loads(done.stdout.splitlines()[-1])
    files = sorted(place.iterdir())
    found = {files[int(sample) - 20].name: why for sample, why in bad.items()}
    assert steps == (60 + len(expected)) // 24
    assert len(found) > len(expected) - 24, "the last batch is not full, and not seen"
    assert all(re.fullmatch(expected[name], why) for name, why in found.items()), found
    assert grown < 1 << 10, "MiB"


def test_the_scan_says_the_same_of_them(folder: Path) -> None:
    expected = laid(folder / "train" / "bee")
    assert PROGRAM.run(["scan", str(folder), "--workers=2"]) == 0
    report = json.loads((folder / "scan.json").read_text())
    assert set(report["bad"]) == {f"train/bee/{name}" for name in expected}
    wrong = {name: why for name, why in report["bad"].items() if not re.fullmatch(expected[name.split("/")[2]], why)}
    assert not wrong


def test_time_is_bounded_by_pixels_and_scans_together() -> None:
    """An ordinary progressive file of the largest size passes."""
    many, usual = (np.frombuffer(hostile.of_many_scans(scans), dtype=np.uint8) for scans in (90, 10))
    assert content_fault(many, 64 * 48 * 90 // 20) is None
    refused = content_fault(many, 64 * 48 * 90 // 20 - 1)
    assert refused == "has 90 scans of 3,072 pixels; 20 are decoded of 13,823"
    assert content_fault(usual, 64 * 48) is None


@pytest.mark.parametrize("loader", LOADERS)
def test_the_limit_is_the_configs(folder: Path, loader: str) -> None:
    """All images have 24 x 20 pixels."""
    assert len(list(build(folder, loader, most_pixels=480).train.epoch())) == 2
    match = r"declares 24 x 20 pixels, more than the 479 of data\.most_pixels \(and 23 more in this batch\)"
    with pytest.raises(UserError, match=match):
        next(build(folder, loader, most_pixels=479).train.epoch())


def test_the_scan_has_the_same_limit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAM.run(["scan", str(folder), "--workers=1", "--most-pixels=479"]) == 2
    assert "all 90 images are bad, such as train/ape/0000.png: declares 24 x 20 pixels" in capsys.readouterr().err


@pytest.mark.parametrize("first", range(4))
def test_both_decoders_give_one_verdict_on_mutations(first: int) -> None:
    """DALI makes the same pixels of its input as the reference, with which the torch loader decodes."""
    probe = Probe()
    met: Counter[str] = Counter()
    for number in range(first * 200, first * 200 + 200):
        content = np.frombuffer(hostile.mutated(random.Random(number)), dtype=np.uint8)
        why = content_fault(content, 10**6)
        try:
            handed = given(content, 10**6)
        except Exception:  # noqa: BLE001 - as from Pillow
            assert why is not None, number
            met["refused at once"] += 1
            continue
        pixels = probe.pixels(handed)
        if why is not None:
            assert pixels is None, (number, why)
            met["refused by both"] += 1
        elif pixels is not None:  # Else it is decoded for DALI (see below).
            assert np.array_equal(pixels, np.asarray(rgb(decoded(content, 10**6)))), number
            met["the same"] += 1
    assert met["refused at once"] > 20 and met["the same"] > 20


@pytest.mark.parametrize("loader", LOADERS)
def test_what_dali_alone_refuses_is_decoded_for_it(folder: Path, loader: str, caplog: pytest.LogCaptureFixture) -> None:
    """A PNG file whose pixels lack the last byte of their checksum; said once, in two epochs."""
    file = folder / "train" / "bee" / "0004.png"
    image = picture(24, 20, seed=1).convert("L")
    file.write_bytes(encoded(image, "PNG"))
    expected = [images for images, _ in steps(build(folder, loader, augment=False), 4)]
    file.write_bytes(hostile.png_without_checksum(image))
    data = build(folder, loader, augment=False)
    found = [images for images, _ in steps(data, 4)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert data.train.bad_samples == {}
    said = [record.getMessage() for record in caplog.records if "Pillow" in record.getMessage()]
    name = "train/bee/0004.png is decoded by Pillow: DALI cannot, though nothing is wrong with it"
    assert said == ([name] if loader == "dali" else [])


def steps(data: Data, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    of_all = endless(data.train)
    return [next(of_all) for _ in range(count)]


class TestEndMark:
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}])
    @pytest.mark.parametrize("cut", [1, 2])
    def test_what_lacks_it_alone_is_told_from_what_lacks_more(self, options: dict[str, object], cut: int) -> None:
        whole = encoded(picture(61, 47, 3), quality=90, **options)
        assert fault(whole) is None
        assert fault(whole[:-cut]) == LACKS_END
        for more in (4, 5, 6, 20, 200):
            assert (fault(whole[:-more]) or "").startswith("cannot be decoded: it is truncated or damaged (OSError: ")

    def test_a_progressive_file_that_ends_with_another_scan_lacks_pixels(self) -> None:
        whole = encoded(picture(61, 47, 3), progressive=True)
        assert (fault(whole[: whole.rindex(b"\xff\xda")]) or "").startswith("cannot be decoded: it is truncated")

    def test_what_stands_behind_it_does_no_harm(self) -> None:
        assert fault(encoded(picture(61, 47, 3)) + b"\0" * 70) is None

    @pytest.mark.parametrize("loader", ["dali", pytest.param("torch", marks=pytest.mark.slow)])
    def test_such_a_file_is_a_bad_file(self, folder: Path, loader: str) -> None:
        (folder / "val" / "bee" / "0001.jpg").write_bytes(encoded(picture(24, 20, 1))[:-2])
        with pytest.raises(UserError, match=rf"val/bee/0001\.jpg \(class bee, .*: {LACKS_END}; list all such"):
            whole(build(folder, loader).test)
        data = build(folder, loader, on_bad_file="skip")
        assert len(whole(data.test)[1]) == 30 and data.test.left_out == 1

    def test_the_scan_counts_them(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for number in range(2):
            (folder / "val" / "bee" / f"{number}.jpg").write_bytes(encoded(picture(24, 20, 1))[:-2])
        (folder / "val" / "bee" / "2.jpg").write_bytes(encoded(picture(24, 20, 1))[:-40])
        assert PROGRAM.run(["scan", str(folder), "--workers=1"]) == 0
        assert json.loads((folder / "scan.json").read_text())["bad_for_their_end_alone"] == 2
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == "bad: 3"
        assert "  of these, 2 lack only a JPEG file's end mark, bytes FF D9: with it they are whole" in lines


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("decision", ["stop", "skip"])
def test_names_with_line_ends_and_escape_codes_are_said_on_one_line(
    folder: Path, loader: str, decision: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = "a\nerror: b\x1b[31m\u2028c.jpg"
    (folder / "train" / "ape" / name).write_bytes(b"junk")
    data = build(folder, loader, on_bad_file=decision, most_pixels=480)
    shown = r"train/ape/a\nerror: b\x1b[31m\u2028c.jpg"
    if decision == "stop":
        with pytest.raises(UserError) as raised:
            steps(data, 2)
        said = str(raised.value)
    else:
        steps(data, 2)
        said = LogLine().format(next(record for record in caplog.records if "skipping" in record.getMessage()))
    assert shown in said and said.isprintable()


OUT_OF_MEMORY = """if True:
    import resource, sys
    import pipelines
    from pipelines.common.errors import UserError
    from tests.pipelines.pictures import settings
    from tests.pipelines.streams import request
    if __name__ == "__main__":
        def built(folder):
            return pipelines.build(settings(folder, loader=sys.argv[2], on_bad_file="skip"), request(batch=3))
        if sys.argv[2] == "dali":
            first = built(sys.argv[3])
            next(first.train.epoch())  # All is imported and started now: memory ends at the image alone.
        data = built(sys.argv[1])
        used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + (200 << 20),) * 2)
        try:
            next(data.train.epoch())
        except UserError as error:
            print(error)
"""


@pytest.mark.parametrize("loader", ["dali", pytest.param("torch", marks=pytest.mark.slow)])
def test_an_image_for_which_no_memory_is_left_is_named(tmp_path: Path, loader: str) -> None:
    """The image is not skipped: it may be good."""
    for folder, part, name in product(("images", "small"), ("train", "val"), CLASSES):
        (tmp_path / folder / part / name).mkdir(parents=True)
        picture(24, 20, seed=1).save(tmp_path / folder / part / name / "0.png")
    large = hostile.png(7_700, 7_700, zlib.compress(bytes(7_700 * 964), 1), bits=1)
    (tmp_path / "images" / "train" / "bee" / "0.png").write_bytes(large)
    script = tmp_path / "train.py"
    script.write_text(OUT_OF_MEMORY.replace("if True:\n", "").replace("\n    ", "\n").removeprefix("    "))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, tmp_path / "images", loader, tmp_path / "small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.startswith("train/bee/0.png: no memory is left to decode it; lower data.threads"), done.stderr
